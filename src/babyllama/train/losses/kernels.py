"""Triton kernels of training. Each has a PyTorch twin next to its caller, which is its oracle and the way on a CPU.

Imported only where there is a GPU: Triton does not come with every PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from babyllama.data.streams.batches import IGNORE

SIDE = 128  # of the tiles in which a matrix is turned over
WARPS, BLOCK, PROGRAMS = 16, 8192, 4  # within 2 % of the fastest of 21 settings on an H200, and good for short rows
LOG2E = tl.constexpr(1.4426950408889634)  # the card computes powers of two


@triton.jit
def _softmax_gradient(
    logits, targets, losses, slopes, stride, slopes_stride, rows, vocab, padded, scale,
    ignore: tl.constexpr, block: tl.constexpr, keep: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, block)
    whole = vocab // block * block  # up to there without a mask
    for number in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(number, tl.int64)
        at, out = logits + row * stride, slopes + row * slopes_stride  # one place or two
        kind = slopes.dtype.element_ty
        target = tl.load(targets + row)
        if target == ignore:
            for start in range(0, padded, block):
                tl.store(out + start + columns, tl.zeros([block], kind), mask=start + columns < padded)
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
                slope = (tl.exp2(x * LOG2E - logsumexp) * scale).to(kind)
                tl.store(out + start + columns, slope, eviction_policy="evict_first")
            x = tl.load(at + place, mask=place < padded, other=0.0, eviction_policy="evict_first").to(tl.float32)
            slope = tl.where(place < vocab, tl.exp2(x * LOG2E - logsumexp) * scale, 0.0).to(kind)
            tl.store(out + place, slope, mask=place < padded, eviction_policy="evict_first")
            tl.debug_barrier()  # the target's slope is written last, over what another thread wrote
            tl.store(out + target, ((tl.exp2(own - logsumexp) - 1.0) * scale).to(kind))


def softmax_gradient_(logits: Tensor, targets: Tensor, vocab: int) -> Tensor:
    """Overwrite logits (N, V) by ∂loss/∂logits, softmax − one-hot; returns the losses, (N,) float32.

    One read from memory and one write, where the eager way takes ten passes. Columns from `vocab` on are padding: no
    probability, no gradient. Rows whose target is IGNORE: no loss, no gradient.
    """
    return softmax_gradient(logits, targets, vocab, logits)


def softmax_gradient(logits: Tensor, targets: Tensor, vocab: int, slopes: Tensor, scale: float = 1.0) -> Tensor:
    """As softmax_gradient_, but fills `slopes` (N, V), of any floating dtype, with the gradient · `scale`."""
    rows, padded = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    # Few rows at a time: then those at work stay in L2, and the second read costs less memory traffic.
    programs = min(rows, PROGRAMS * torch.cuda.get_device_properties(logits.device).multi_processor_count)
    _softmax_gradient[(programs,)](
        logits, targets, losses, slopes, logits.stride(0), slopes.stride(0), rows, vocab, padded, scale,
        IGNORE, BLOCK, "evict_last", num_warps=WARPS,
    )  # fmt: skip
    return losses


@triton.jit
def _turn(source, rounded, target, factor, rows, columns, both: tl.constexpr, side: tl.constexpr):
    row = (tl.program_id(0) * side + tl.arange(0, side)).to(tl.int64)
    column = (tl.program_id(1) * side + tl.arange(0, side)).to(tl.int64)
    place = row[:, None] * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    x = tl.load(source + place, mask=inside, other=0.0, eviction_policy="evict_first")
    if both:
        x = (x.to(tl.float32) * tl.load(factor)).to(rounded.dtype.element_ty)
        tl.store(rounded + place, x, mask=inside)
    across = column[:, None] * rows + row[None, :]
    tl.store(target + across, tl.trans(x), mask=(column < columns)[:, None] & (row < rows)[None, :])


def turned(x: Tensor) -> Tensor:
    """(N, M) → (M, N), contiguous."""
    return _laid(x, x, None, x.dtype)


def rounded_both_ways(x: Tensor, factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(N, M) → x · factor in `dtype`, (N, M) and (M, N), both contiguous; factor: a float32 scalar on x's device."""
    rounded = torch.empty(x.shape, dtype=dtype, device=x.device)
    return rounded, _laid(x.contiguous(), rounded, factor, dtype)


def _laid(x: Tensor, rounded: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
    rows, columns = x.shape
    target = torch.empty(columns, rows, dtype=dtype, device=x.device)
    grid = triton.cdiv(rows, SIDE), triton.cdiv(columns, SIDE)
    _turn[grid](x, rounded, target, factor, rows, columns, factor is not None, SIDE, num_warps=8)
    return target
