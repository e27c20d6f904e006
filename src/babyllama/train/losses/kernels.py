"""Triton kernels of training. Each has a PyTorch twin next to its caller, which is its oracle and the way on a CPU.

Imported only where there is a GPU: Triton does not come with every PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from babyllama.data.streams.batches import IGNORE

WARPS, BLOCK, PROGRAMS = 16, 8192, 4  # within 2 % of the fastest of 21 settings on an H200, and good for short rows
LOG2E = tl.constexpr(1.4426950408889634)  # the card computes powers of two


@triton.jit
def _softmax_gradient(
    logits, targets, losses, stride, rows, vocab, padded, ignore: tl.constexpr, block: tl.constexpr, keep: tl.constexpr
):  # fmt: skip
    columns = tl.arange(0, block)
    whole = vocab // block * block  # up to there without a mask
    for number in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(number, tl.int64)
        at = logits + row * stride
        target = tl.load(targets + row)
        if target == ignore:
            for start in range(0, padded, block):
                tl.store(at + start + columns, tl.zeros([block], at.dtype.element_ty), mask=start + columns < padded)
            tl.store(losses + row, 0.0)
        else:
            largest = tl.full((), float("-inf"), tl.float32)
            total = tl.full((), 0.0, tl.float32)
            # The masks are multiples of 128, which keeps loads 16 bytes wide; an odd vocabulary would not.
            place = whole + columns
            x = tl.load(at + place, mask=place < padded, other=float("-inf"), eviction_policy=keep).to(tl.float32)
            x = tl.where(place < vocab, x * LOG2E, float("-inf"))
            if whole < vocab:
                largest = tl.max(x, 0)
                total = tl.sum(tl.exp2(x - largest), 0)
            for start in range(0, whole, block):  # the running log-sum-exp: one read of the row
                x = tl.load(at + start + columns, eviction_policy=keep).to(tl.float32)
                higher = tl.maximum(largest, tl.max(x, 0) * LOG2E)
                total = total * tl.exp2(largest - higher) + tl.sum(tl.exp2(x * LOG2E - higher), 0)
                largest = higher
            logsumexp = largest + tl.log2(total)
            own = tl.load(at + target).to(tl.float32) * LOG2E
            tl.store(losses + row, (logsumexp - own) / LOG2E)
            for start in range(0, whole, block):
                x = tl.load(at + start + columns, eviction_policy="evict_first").to(tl.float32)
                slope = tl.exp2(x * LOG2E - logsumexp).to(at.dtype.element_ty)
                tl.store(at + start + columns, slope, eviction_policy="evict_first")
            x = tl.load(at + place, mask=place < padded, other=0.0, eviction_policy="evict_first").to(tl.float32)
            slope = tl.where(place < vocab, tl.exp2(x * LOG2E - logsumexp), 0.0).to(at.dtype.element_ty)
            tl.store(at + place, slope, mask=place < padded, eviction_policy="evict_first")
            tl.debug_barrier()  # the target's slope is written last, over what another thread wrote
            tl.store(at + target, (tl.exp2(own - logsumexp) - 1.0).to(at.dtype.element_ty))


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
