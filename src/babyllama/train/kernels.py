"""Triton kernels of training. Each has a PyTorch twin next to its caller, which is its oracle and the way on a CPU.

Imported only where there is a GPU: Triton does not come with every PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from babyllama.data.batches import IGNORE


@triton.jit
def _softmax_gradient(logits, targets, losses, stride, vocab, padded, ignore: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = logits + row * stride
    target = tl.load(targets + row)
    columns = tl.arange(0, block)
    if target == ignore:
        for start in range(0, padded, block):
            tl.store(at + start + columns, tl.zeros([block], at.dtype.element_ty), mask=start + columns < padded)
        tl.store(losses + row, 0.0)
    else:
        largest = tl.full((), float("-inf"), tl.float32)
        total = tl.full((), 0.0, tl.float32)
        for start in range(0, vocab, block):  # the running log-sum-exp: one read of the row
            x = tl.load(at + start + columns, mask=start + columns < vocab, other=-float("inf")).to(tl.float32)
            higher = tl.maximum(largest, tl.max(x, 0))
            total = total * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher), 0)
            largest = higher
        logsumexp = largest + tl.log(total)
        tl.store(losses + row, logsumexp - tl.load(at + target).to(tl.float32))
        for start in range(0, padded, block):  # the second read comes from L2: a row is 130 KB
            place = start + columns
            x = tl.load(at + place, mask=place < padded, other=0.0).to(tl.float32)
            gradient = tl.exp(x - logsumexp) - tl.where(place == target, 1.0, 0.0)
            tl.store(at + place, tl.where(place < vocab, gradient, 0.0).to(at.dtype.element_ty), mask=place < padded)


def softmax_gradient_(logits: Tensor, targets: Tensor, vocab: int) -> Tensor:
    """Overwrite logits (N, V) by ∂loss/∂logits, softmax − one-hot; returns the losses, (N,) float32.

    One read from memory and one write, where the eager way takes ten passes. Columns from `vocab` on are padding: no
    probability, no gradient. Rows whose target is IGNORE: no loss, no gradient.
    """
    rows, padded = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _softmax_gradient[(rows,)](
        logits, targets, losses, logits.stride(0), vocab, padded, IGNORE, block=4096, num_warps=8
    )  # fmt: skip
    return losses
