"""log π of the token that followed, for objectives that are no sum over single tokens: preferences, policies.

Not here: what an objective makes of them (policy.py), the loss of the next token (cross_entropy.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.model.transformer import Transformer
from babyllama.train.losses.head import aligned, head_loss

CHUNK_ROWS = 2048  # of logits at a time


class Told(NamedTuple):
    """Of every place (B, T), float32, 0 where no target counts. The entropy has no gradient."""

    logprobs: Tensor
    entropy: Tensor


def token_logprobs(model: Transformer, batch: Batch, temperature: float = 1.0, hidden: Tensor | None = None) -> Told:
    """log π(target) and the entropy of π, in nats, at every place of a batch; π = softmax(logits / temperature).

    Logits never exist whole: they are made in chunks, and for the gradient once more. A batch that says in its extras
    where its targets are (`answered`, see policy.py) asks the host nothing. `hidden`: the model's (B, T, C), where they
    are known.
    """
    if hidden is None:
        hidden = model.hidden(batch.tokens, batch.positions, batch.segments)
    kept = batch.targets != IGNORE
    places = batch.extras.get("answered")
    at = kept.flatten().nonzero()[:, 0] if places is None else places.flatten()
    targets = batch.targets.flatten()[at].clamp(min=0)
    found = head_logprobs(hidden.flatten(0, 1).index_select(0, at), model.lm_head.weight, targets, temperature)
    empty = torch.zeros(kept.numel(), device=kept.device)
    return Told(*(empty.scatter(0, at, part).view(kept.shape).where(kept, 0) for part in found))


def head_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """log softmax(hidden · weightᵀ / temperature) at the targets, and its entropy: (N,) float32 each.

    Args:
        hidden: (N, C).  weight: (V, C).  targets: (N,) int64.
    """
    return _HeadLogprobs.apply(hidden, weight, targets, temperature)  # type: ignore[return-value]


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Any:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.temperature = temperature
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy, padded, vocab = torch.empty_like(logprobs), aligned(weight), weight.shape[0]
        for start in range(0, len(targets), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            log_p = (hidden[rows] @ padded.T)[:, :vocab].float().div(temperature).log_softmax(-1)
            logprobs[rows] = log_p.gather(1, targets[rows, None])[:, 0]
            entropy[rows] = -(log_p.exp() * log_p).sum(-1)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, weight, targets = ctx.saved_tensors
        vocab, temperature, wanted = weight.shape[0], ctx.temperature, ctx.needs_input_grad

        def slope(logits: Tensor, rows: slice) -> Tensor:
            """Of Σ grad · log π: grad · (one-hot − softmax) / temperature."""
            by = (grads[0][rows] / temperature)[:, None]
            p = (logits[:, :vocab].float() / temperature).softmax(-1)
            logits[:, :vocab], logits[:, vocab:] = (p * -by).scatter_add_(1, targets[rows, None], by), 0
            return p.new_zeros(())

        with torch.enable_grad():
            hidden, weight = (part.detach().requires_grad_(want) for part, want in
                              zip((hidden, weight), wanted, strict=False))  # fmt: skip
            total = head_loss(hidden, weight, slope, CHUNK_ROWS)
        found = iter(torch.autograd.grad(total, [part for part in (hidden, weight) if part.requires_grad]))
        return *(next(found) if part.requires_grad else None for part in (hidden, weight)), None, None
