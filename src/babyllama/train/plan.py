"""Plan: how long a training is, in what portions it goes, and when it logs, looks and saves.

Not here: the loop that follows it (trainer.py), the verb that proposes one (commands/plan.py).
"""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from babyllama.errors import InputError
from babyllama.recipe import Recipe
from babyllama.train.guard import Guard


class Plan(Recipe):
    """How long and in what portions to train. Give exactly one of steps, epochs, tokens.

    A step reads micro_batch_size × accumulate rows, however many processes share them out.
    """

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, ge=1)
    context: int | None = Field(default=None, ge=2, description="tokens a row; the model's longest when absent")
    micro_batch_size: int = Field(default=32, ge=1, description="rows in one forward pass")
    accumulate: int = Field(default=1, ge=1, description="forward passes in one optimiser step, over all processes")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    recompute: bool = Field(default=False, description="activation checkpointing: a third more time, far less memory")
    guard: Guard = Guard()
    log_every: int = Field(default=10, ge=1, description="steps")
    validate_every: int = Field(default=250, ge=1, description="steps")
    validation_tokens: int = Field(default=65_536, ge=1, description="read at most, of each corpus")
    sample_every: int = Field(default=250, ge=1, description="steps")
    save_every: int = Field(default=250, ge=1, description="steps")
    keep: int = Field(default=2, ge=2, description="checkpoints; two, so that a damaged one has another before it")
    keep_best: bool = Field(default=True, description="keep the model of the lowest validation loss in best/")

    @model_validator(mode="after")
    def _one_length(self) -> Plan:
        if sum(x is not None for x in (self.steps, self.epochs, self.tokens)) != 1:
            raise ValueError("give exactly one of steps, epochs, tokens")
        return self

    @property
    def rows(self) -> int:
        """Rows in one optimiser step."""
        return self.micro_batch_size * self.accumulate

    def total_steps(self, rows_in_epoch: int, context: int) -> int:
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * rows_in_epoch / self.rows))
        return max(1, math.ceil((self.tokens or 0) / (self.rows * context)))

    def shares(self, size: int) -> list[int]:
        """Rows of each micro-batch of one of `size` processes: equal ones, none above micro_batch_size.

        Raises:
            InputError: the rows of a step cannot be shared out equally.
        """
        if self.rows % size:
            raise InputError(
                f"plan: a step's {self.rows} rows (micro_batch_size × accumulate) cannot be shared by {size} "
                f"processes; choose a multiple of {size}"
            )
        mine = self.rows // size
        pieces = next(n for n in range(-(-mine // self.micro_batch_size), mine + 1) if mine % n == 0)
        return [mine // pieces] * pieces
