"""Objectives: frozen callable values, (model, batch) → (loss summed over the batch's targets, {metric: sum}).

Sums, not means: the trainer divides once, by the weight of the whole global batch, so that accumulation and world size
cannot change the update. Not here: optimisers, any loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor

from babyllama.data.batches import Batch
from babyllama.model.transformer import Transformer
from babyllama.recipe import Recipe
from babyllama.train.cross_entropy import linear_cross_entropy

Objective = Callable[[Transformer, Batch], tuple[Tensor, dict[str, Tensor]]]


class NextToken(Recipe):
    """Cross-entropy of the next token. Pretraining counts every token, SFT those that the batch's targets keep."""

    kind: Literal["next_token"] = "next_token"
    fp8_head: bool = Field(default=False, description="logits in float8; RTX 40 series, H100 and newer")

    def __call__(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = model.hidden(batch.tokens, batch.positions, batch.segments)  # (B, T, C)
        loss = linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, batch.targets.flatten(),
                                    fp8=self.fp8_head)  # fmt: skip
        return loss, {"loss": loss.detach()}
