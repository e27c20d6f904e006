"""Triton kernels of training. Each has a PyTorch twin next to its caller, which is its oracle and the way on a CPU.

Imported only where there is a GPU: Triton does not come with every PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from babyllama.data.streams.batches import IGNORE

WARPS, BLOCK, PROGRAMS = 32, 16384, 2  # the fastest of nine settings on an H100


@triton.jit
def _softmax_gradient(
    logits, targets, losses, stride, rows, vocab, padded, ignore: tl.constexpr, block: tl.constexpr, keep: tl.constexpr
):  # fmt: skip
    columns = tl.arange(0, block)
    for number in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = number.to(tl.int64)
        at = logits + row * stride
        target = tl.load(targets + row)
        if target == ignore:
            for start in range(0, padded, block):
                tl.store(at + start + columns, tl.zeros([block], at.dtype.element_ty), mask=start + columns < padded)
            tl.store(losses + row, 0.0)
        else:
            largest = tl.full((), float("-inf"), tl.float32)
            total = tl.full((), 0.0, tl.float32)
            for start in range(0, padded, block):  # the running log-sum-exp: one read of the row
                place = start + columns
                # The mask is a multiple of 128, which keeps loads 16 bytes wide; an odd vocabulary would not.
                x = tl.load(at + place, mask=place < padded, other=float("-inf"), eviction_policy=keep).to(tl.float32)
                x = tl.where(place < vocab, x, float("-inf"))
                higher = tl.maximum(largest, tl.max(x, 0))
                total = total * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher), 0)
                largest = higher
            logsumexp = largest + tl.log(total)
            tl.store(losses + row, logsumexp - tl.load(at + target).to(tl.float32))
            for start in range(0, padded, block):
                place = start + columns
                x = tl.load(at + place, mask=place < padded, other=0.0, eviction_policy="evict_first").to(tl.float32)
                slope = tl.exp(x - logsumexp) - tl.where(place == target, 1.0, 0.0)
                slope = tl.where(place < vocab, slope, 0.0).to(at.dtype.element_ty)
                tl.store(at + place, slope, mask=place < padded, eviction_policy="evict_first")


def softmax_gradient_(logits: Tensor, targets: Tensor, vocab: int) -> Tensor:
    """Overwrite logits (N, V) by ∂loss/∂logits, softmax − one-hot; returns the losses, (N,) float32.

    One read from memory and one write, where the eager way takes ten passes. Columns from `vocab` on are padding: no
    probability, no gradient. Rows whose target is IGNORE: no loss, no gradient.
    """
    rows, padded = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    # Few rows at a time: then those at work stay in L2, and the second read costs less memory traffic.
    programs = min(rows, PROGRAMS * torch.cuda.get_device_properties(logits.device).multi_processor_count)
    _softmax_gradient[(programs,)](
        logits, targets, losses, logits.stride(0), rows, vocab, padded, IGNORE, BLOCK, "evict_last", num_warps=WARPS
    )
    return losses
