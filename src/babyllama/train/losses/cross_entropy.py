"""Cross-entropy to one target a row, and its gradient in the logits' place.

Not here: how logits come to be (head.py; float8.py), which targets count (data/), what else a loss may hold
(objectives.py).
"""

from __future__ import annotations

from torch import Tensor

from babyllama.data.streams.batches import IGNORE
from babyllama.train.losses.head import head_loss


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int | None = None, multiple: int | None = None
) -> Tensor:
    """Σ over targets ≠ IGNORE of cross_entropy(hidden · weightᵀ, target), float32. Arguments as head_loss's.

    Args:
        targets: (N,) int64.
    """
    vocab = weight.shape[0]

    def slope(logits: Tensor, rows: slice) -> Tensor:
        return loss_and_gradient_(logits, targets[rows], vocab)

    return head_loss(hidden, weight, slope, chunk_rows, multiple)


def loss_and_gradient_(logits: Tensor, targets: Tensor, vocab: int) -> Tensor:
    """Summed loss (float32) of logits (N, V), which are overwritten by their gradient, softmax − one-hot.

    Columns from `vocab` on are padding: no probability, no gradient. Rows whose target is IGNORE count for nothing.
    """
    if logits.is_cuda:
        from babyllama.train.losses.kernels import softmax_gradient_

        return softmax_gradient_(logits, targets, vocab).sum()
    kept = targets != IGNORE
    safe = targets.where(kept, 0)[:, None]
    exact = logits[:, :vocab].float()
    logsumexp = exact.logsumexp(-1, keepdim=True)
    loss = ((logsumexp - exact.gather(1, safe))[:, 0] * kept).sum()
    gradient = (exact - logsumexp).exp_().scatter_add_(1, safe, exact.new_full(safe.shape, -1.0)).mul_(kept[:, None])
    logits[:, :vocab], logits[:, vocab:] = gradient, 0
    return loss
