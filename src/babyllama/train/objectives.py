"""Objectives: frozen callable values, (model, batch) → (loss summed over the batch's targets, {metric: sum}).

Sums, not means: the trainer divides once, by the weight of the whole global batch, so that accumulation and world size
cannot change the update. Not here: optimisers, any loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from babyllama.data.batches import IGNORE, Batch
from babyllama.model.transformer import Transformer
from babyllama.recipe import Recipe
from babyllama.train.hardware import can_compile


class NextToken(Recipe):
    """Cross-entropy of the next token. Pretraining counts every token, SFT those that the batch's targets keep."""

    kind: Literal["next_token"] = "next_token"

    def __call__(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = model.hidden(batch.tokens, batch.positions, batch.segments)  # (B, T, C)
        loss = linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, batch.targets.flatten())
        return loss, {"loss": loss.detach()}


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int = 8192, multiple: int | None = None
) -> Tensor:
    """Σ over targets ≠ IGNORE of cross_entropy(hidden · weightᵀ, target), without ever holding all logits.

    The gradient of each chunk is made while its logits are at hand, so the head is multiplied three times, never
    four, and memory holds `chunk_rows` × V logits instead of N × V.

    Args:
        hidden: (N, C).  weight: (V, C).  targets: (N,) int64.
        chunk_rows: rows of logits held at a time.
        multiple: the vocabulary is padded to it with rows that get no probability. On a GPU 128: an odd V
            (ChatGLM2's 64,793) cannot use the aligned tensor-core kernels.

    Returns:
        float32 scalar.
    """
    multiple = multiple or (128 if hidden.is_cuda else 1)
    return _LinearCrossEntropy.apply(hidden, weight, targets, chunk_rows, multiple)  # type: ignore[return-value]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int, multiple: int) -> Tensor:
        vocab = weight.shape[0]
        padded = pad(weight, (0, 0, 0, -vocab % multiple))
        fused = _compiled_loss_and_gradient() if hidden.is_cuda else _loss_and_gradient
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        grad_weight = torch.zeros_like(padded, dtype=torch.float32) if weight.requires_grad else None
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            loss, grad_logits = fused(hidden[rows] @ padded.T, targets[rows], vocab)
            total += loss
            if grad_hidden is not None:
                grad_hidden[rows] = grad_logits @ padded
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight[:vocab])
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        from_hidden = None if grad_hidden is None else (grad_hidden * scale).to(grad_hidden.dtype)
        from_weight = None if grad_weight is None else (grad_weight * scale).to(ctx.dtype)
        return from_hidden, from_weight, None, None, None


@cache
def _compiled_loss_and_gradient() -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    """One pass over the logits instead of ten: on a GPU this, not the products, is what the loss costs."""
    return torch.compile(_loss_and_gradient, dynamic=False) if can_compile(torch.device("cuda")) else _loss_and_gradient


def _loss_and_gradient(logits: Tensor, targets: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """Summed loss (float32) and ∂loss/∂logits (logits' dtype): softmax − one-hot, zero where the target is IGNORE.

    Columns from `vocab` on are padding: no probability, no gradient.
    """
    kept = targets != IGNORE
    safe = targets.where(kept, 0)[:, None]
    columns = torch.arange(logits.shape[1], device=logits.device)
    exact = logits.float().masked_fill(columns >= vocab, -torch.inf)
    logsumexp = exact.logsumexp(-1, keepdim=True)
    loss = ((logsumexp - exact.gather(1, safe))[:, 0] * kept).sum()
    gradient = ((exact - logsumexp).exp() - (columns == safe).float()) * kept[:, None]
    return loss, gradient.to(logits.dtype)
