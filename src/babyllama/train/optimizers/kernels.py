"""Triton kernels of Muon's step. Each has a PyTorch twin in muon.py, its oracle and the way on a CPU.

Imported only where there is a GPU: Triton does not come with every PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # numbers of a program


@triton.jit
def _look_ahead(grad, buffer, out, refused, count, momentum, block: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < count
    given = tl.load(grad + place, mask=inside)
    before = tl.load(buffer + place, mask=inside)
    after = before + (given - before) * (1 - momentum)
    tl.store(out + place, (given + (after - given) * momentum).to(out.dtype.element_ty), mask=inside)
    if tl.load(refused) == 0:
        tl.store(buffer + place, after, mask=inside)


def look_ahead_(grads: list[Tensor], buffers: list[Tensor], momentum: float, refused: Tensor | None) -> Tensor:
    """As `muon.look_ahead_`, in bf16; every number read once and written once."""
    refused = grads[0].new_zeros(()) if refused is None else refused
    found = torch.empty(len(grads), *grads[0].shape, dtype=torch.bfloat16, device=grads[0].device)
    count = grads[0].numel()
    for grad, buffer, out in zip(grads, buffers, found, strict=True):
        _look_ahead[(triton.cdiv(count, BLOCK),)](grad, buffer, out, refused, count, momentum, BLOCK, num_warps=8)
    return found


@triton.jit
def _move(weight, update, rates, decay, refused, count, columns, block: tl.constexpr):
    if tl.load(refused) == 0:
        place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = place < count
        held = tl.load(weight + place, mask=inside)
        step = tl.load(update + place, mask=inside).to(tl.float32)
        rate = tl.load(rates + place // columns, mask=inside)
        tl.store(weight + place, held * tl.load(decay) - step * rate, mask=inside)


def move_(weights: list[Tensor], updates: Tensor, rates: Tensor | float, decay: Tensor | float,
          refused: Tensor | None) -> None:  # fmt: skip
    """As `muon.move_`; every number read once and written once."""
    like, updates = weights[0], updates.contiguous()
    refused = like.new_zeros(()) if refused is None else refused
    decay = decay if isinstance(decay, Tensor) else like.new_full((), decay)
    rates = rates if isinstance(rates, Tensor) else like.new_full((), rates)
    rates = rates.expand(*updates.shape[:-1], 1).contiguous()
    count, columns = like.numel(), like.shape[-1]
    for weight, update, rate in zip(weights, updates, rates, strict=True):
        _move[(triton.cdiv(count, BLOCK),)](weight, update, rate, decay, refused, count, columns, BLOCK, num_warps=8)
