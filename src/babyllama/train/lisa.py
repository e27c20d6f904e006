"""LISA (arXiv 2403.17919): full fine-tuning of a few blocks at a time. Not here: who asks each step (worker.py)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from torch import nn

from babyllama.data.streams.order import permute
from babyllama.errors import InputError
from babyllama.recipe import Recipe

SALT = -3  # of the draw; streams use −1, −2 and up


class Lisa(Recipe):
    """Embedding, head and final norm always learn; of the blocks, `layers` drawn anew every `every` steps.

    The others get no gradient, and their moments are forgotten when they fall asleep: a block that wakes up later
    begins with fresh ones. Which blocks is a pure function of (seed, step), on every rank the same.
    """

    kind: Literal["lisa"] = "lisa"
    layers: int = Field(default=2, ge=1, description="blocks trained at a time")
    every: int = Field(default=20, ge=1, description="steps until other blocks are drawn")

    def check(self, blocks: int) -> None:
        """Raise InputError for more layers than the model has."""
        if self.layers > blocks:
            raise InputError(f"adapter.layers: {self.layers} is more than the model's {blocks} blocks")

    def awake(self, step: int, blocks: int, seed: int) -> frozenset[int]:
        """The blocks that learn in `step` (0 is the first)."""
        drawn = permute(np.arange(self.layers), blocks, seed, SALT, step // self.every)
        return frozenset(drawn.tolist())

    def freeze(self, model: nn.Module, awake: frozenset[int]) -> list[nn.Parameter]:
        """Let only the blocks of `awake` want gradients; returns the parameters of the others."""
        asleep: list[nn.Parameter] = []
        for number, block in enumerate(model.layers):  # type: ignore[arg-type]
            block.requires_grad_(number in awake)
            if number not in awake:
                asleep += block.parameters()
        return asleep
