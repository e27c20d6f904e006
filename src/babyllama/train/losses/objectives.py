"""Objectives: frozen callable values, (model, batch) → (summed loss, {metric: sum}).

Sums, not means: the trainer divides once, by the weight of the whole global batch, so that accumulation and world size
cannot change the update. The metrics are summed and divided alike, and logged. Not here: optimisers, any loop.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from babyllama.data.streams.batches import Batch
from babyllama.model.mlp import routers
from babyllama.model.transformer import Transformer
from babyllama.recipe import Recipe
from babyllama.train.losses.cross_entropy import linear_cross_entropy
from babyllama.train.losses.float8 import float8_cross_entropy, in_float8
from babyllama.train.losses.router import RouterLoss
from babyllama.train.losses.sampled import Sampled


class Objective(Protocol):
    """What a training minimises.

    Attributes:
        plain: the loss is the cross-entropy of the batch's targets by the model's logits, which anybody can compute.
        recorded: an update is recorded on a GPU even where nothing is compiled.
        steady: batches of one shape are always the same work, and none of it asks the host: an update may be recorded.
    """

    plain: ClassVar[bool]
    recorded: ClassVar[bool]

    @property
    def steady(self) -> bool: ...

    def __call__(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what else is measured, as sums: float32 scalars, the metrics without a gradient and of the same
        names at each call."""
        ...

    def weight(self, batch: Batch) -> float:
        """What its sums over this batch count for: the loss is Σ sums / Σ weights over the whole step."""
        ...


class NextToken(Recipe):
    """Cross-entropy of the next token. Pretraining counts every token, SFT those that the batch's targets keep."""

    plain: ClassVar[bool] = True
    recorded: ClassVar[bool] = False
    compiles: ClassVar[bool] = True  # it asks the model for what a compiled forward pass gives
    kind: Literal["next_token"] = "next_token"
    fp8_head: bool = Field(
        default=False, description="the head's products in float8 on GPUs that multiply it: RTX 40 series, H100, newer"
    )
    sampled: Sampled | None = Field(
        default=None, description="take the loss over a part of the vocabulary for most of the training, for large ones"
    )
    neftune: float = Field(default=0.0, ge=0, description="α of NEFTune's noise, 5 to 15; for chats, 0: none")
    router: RouterLoss = Field(default=RouterLoss(), description="what keeps the experts of a model that has some busy")

    @property
    def steady(self) -> bool:
        """As of every objective."""
        return True

    def __call__(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        noisy = self._noisy(model, batch) if self.neftune and model.training else None
        with routers(model.layers) as routed:
            hidden = model.hidden(batch.tokens, batch.positions, batch.segments, embedded=noisy)  # (B, T, C)
        weight, targets = model.lm_head.weight, batch.targets
        if "candidates" in batch.extras:
            weight, targets = weight.index_select(0, batch.extras["candidates"]), batch.extras["places"]
        head = float8_cross_entropy if self.fp8_head and in_float8(hidden) else linear_cross_entropy
        loss = head(hidden.flatten(0, 1), weight, targets.flatten())
        if model.config.moe is None:
            return loss, {}
        more, measured = self.router(routed, model.config.moe.active, batch.targets)
        return loss + more, {"cross_entropy": loss.detach(), **measured}

    def weight(self, batch: Batch) -> float:
        """Its targets."""
        return batch.weight

    def _noisy(self, model: Transformer, batch: Batch) -> Tensor:
        """Embeddings + U(−1, 1)·α/√(L·C), L the length of the token's own document (NEFTune, arXiv 2310.05914).

        Drawn from the global generator, which the trainer seeds by (seed, step, rank).
        """
        x = model.embed_tokens(batch.tokens)  # (B, T, C)
        noise = torch.rand(x.shape, device=x.device) * 2 - 1
        return x + (noise * (self.neftune / (lengths(batch) * x.shape[-1]).sqrt()[..., None])).to(x.dtype)


def lengths(batch: Batch) -> Tensor:
    """(B, T) float32: how many tokens the document of each token has in its row."""
    if batch.segments is None:
        return torch.full(batch.tokens.shape, float(batch.tokens.shape[1]), device=batch.tokens.device)
    counts = torch.zeros(batch.tokens.shape[0], batch.tokens.shape[1] + 1, device=batch.tokens.device)
    ones = torch.ones(batch.tokens.shape, device=batch.tokens.device)
    return counts.scatter_add_(1, batch.segments, ones).gather(1, batch.segments)
