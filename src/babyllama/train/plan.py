"""Plan: how long a training is, in what portions it goes, and when it logs, looks and saves.

Not here: the loop that follows it (trainer.py), the verb that proposes one (commands/plan.py).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from babyllama.amounts import size as bytes_of
from babyllama.errors import InputError
from babyllama.recipe import Changeable, Recipe
from babyllama.train.guard import Guard

FEW = 10  # steps that change a model hardly, whatever they read


class Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    validate: bool
    sample: bool
    save: bool


class Plan(Recipe):
    """How long and in what portions to train. Give exactly one of steps, epochs, tokens.

    A step reads micro_batch_size × accumulate rows, however many processes share them out. How they are cut may change
    while a run is continued, their number not. Whether its length may, the schedule says.
    """

    steps: Changeable[int | None] = Field(default=None, ge=1, description="length in steps")
    epochs: Changeable[float | None] = Field(default=None, gt=0, description="length in passes over the data")
    tokens: Changeable[int | None] = Field(default=None, ge=1, description="length in tokens")
    context: int | None = Field(default=None, ge=2, description="tokens in a row; default: the model's context")
    micro_batch_size: Changeable[int] = Field(default=32, ge=1, description="rows in one forward pass")
    accumulate: Changeable[int] = Field(
        default=1, ge=1, description="forward passes in one optimiser step, over all processes"
    )
    clip: float = Field(default=1.0, gt=0, description="gradients with a larger norm are scaled down to it")
    recompute: Changeable[bool] = Field(
        default=False, description="activation checkpointing: a third more time, far less memory"
    )
    guard: Guard = Field(default=Guard(), description="which steps are left out as bad")
    log_every: Changeable[int] = Field(default=10, ge=1, description="steps between logged lines")
    validate_every: Changeable[int] = Field(default=250, ge=1, description="steps between validations")
    validation_tokens: Changeable[int] = Field(default=65_536, ge=1, description="at most, of each corpus")
    sample_every: Changeable[int] = Field(default=250, ge=1, description="steps between samples")
    save_every: Changeable[int] = Field(default=250, ge=1, description="steps between two checkpoints")
    keep: Changeable[int] = Field(
        default=2, ge=2, description="checkpoints to keep; two, so that a damaged one has another before it"
    )
    keep_best: Changeable[bool] = Field(
        default=True, description="keep the model of the lowest validation loss in best/"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Plan:
        given = [name for name in ("steps", "epochs", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            hint = (
                f", not {' and '.join(given)}; leave one out: plan.{given[-1]}=null"
                if given
                else ", such as plan.epochs=1"
            )
            raise ValueError(f"say how long: give exactly one of steps, epochs, tokens{hint}")
        return self

    @property
    def rows(self) -> int:
        """Rows in one optimiser step."""
        return self.micro_batch_size * self.accumulate

    def identity(self) -> dict[str, Any]:
        """As every recipe's, and how many rows a step reads."""
        return {**super().identity(), "rows": self.rows}

    def total_steps(self, rows_in_epoch: int, context: int) -> int:
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * rows_in_epoch / self.rows))
        return max(1, math.ceil((self.tokens or 0) / (self.rows * context)))

    def too_few(self, rows_in_epoch: int, context: int) -> str | None:
        """What to say where the epochs that are asked for are so few steps that they hardly change the model."""
        steps = self.total_steps(rows_in_epoch, context)
        if self.epochs is None or steps >= FEW:
            return None
        size = max(1, int(self.epochs * rows_in_epoch) // (4 * FEW))
        smaller = self.model_copy(update={"micro_batch_size": size, "accumulate": 1})
        more = smaller.total_steps(rows_in_epoch, context)
        if more <= steps:
            return None
        return (
            f"{steps} step{'s' * (steps > 1)} will hardly change the model: they are large for so little data; "
            f"with plan.micro_batch_size={size} plan.accumulate=1 it makes {more}"
        )

    def due(self, step: int, last: bool) -> Due:
        """After step `step`, 1 being the first; after the last all."""
        intervals = self.log_every, self.validate_every, self.sample_every, self.save_every
        return Due(*(last or step % every == 0 for every in intervals))

    def check_memory(self, size: int, context: int, width: int, have: int) -> None:
        """Refuse what cannot be, before minutes are spent on it: all token ids of a step and, of a micro-batch, one
        vector of `width` half-precision numbers a token. A step needs many times as much.

        Args:
            size: how many processes share a step.  context: tokens that one of them holds of a row.
            have: bytes of the device.

        Raises:
            InputError: `have` is less than that.
        """
        mine = -(-self.rows // size)
        ids, vectors = 2 * 8 * mine * context, 2 * min(mine, self.micro_batch_size) * context * width
        if ids + vectors > have:
            key, remedy = "accumulate", "take fewer"
            if vectors > ids:
                key, remedy = "micro_batch_size", "halve it and double plan.accumulate: the update stays the same"
            raise InputError(f"plan.{key}: {self.micro_batch_size} rows × {self.accumulate} of {context} tokens take "
                             f"more than {bytes_of(ids + vectors)}, and this device has {bytes_of(have)}; "
                             f"{remedy}")  # fmt: skip

    def shares(self, size: int) -> list[int]:
        """Rows of each micro-batch of one of `size` processes, the same on every one: as few micro-batches as
        micro_batch_size allows, of sizes that differ by one row at most.

        Raises:
            InputError: the rows of a step cannot be shared out equally.
        """
        if self.rows % size:
            raise InputError(
                f"plan: a step's {self.rows} rows (micro_batch_size × accumulate) cannot be shared by {size} "
                f"processes (with engine.context: groups of them); choose a multiple of {size}"
            )
        mine = self.rows // size
        pieces = -(-mine // self.micro_batch_size)
        return [mine // pieces + (number < mine % pieces) for number in range(pieces)]
