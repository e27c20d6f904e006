"""Triton kernels of the model's training. Each has a PyTorch twin next to its caller, its oracle and the way on a CPU.

Imported only where there is a GPU: Triton does not come with every PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate(
    out, x, cos, sin, out_b, out_h, out_t, x_b, x_h, x_t, table_b, tokens, sign,
    half: tl.constexpr, width: tl.constexpr, turned: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * block + tl.arange(0, block)[:, None]
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    column = tl.arange(0, width)[None, :]
    inside = (token < tokens) & (column < half)
    source = x + row * x_b + head * x_h + token * x_t + column
    target = out + row * out_b + head * out_h + token * out_t + column
    first, second = tl.load(source, mask=inside), tl.load(source + half, mask=inside)
    if turned:
        place = row * table_b + token * (2 * half) + column
        c, s = tl.load(cos + place, mask=inside), tl.load(sin + place, mask=inside) * sign
        a, b = first.to(tl.float32), second.to(tl.float32)
        first, second = a * c - b * s, b * c + a * s
    tl.store(target, first.to(out.dtype.element_ty), mask=inside)
    tl.store(target + half, second.to(out.dtype.element_ty), mask=inside)


def rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, turned: bool, sign: int) -> None:
    """As `fused.rotate_into`; the last dimension of out and x must be contiguous, the others may be strided."""
    B, heads, T, D = x.shape
    if x.stride(3) != 1:
        x = x.contiguous()
    half = D // 2
    block = 64
    _rotate[(triton.cdiv(T, block), heads, B)](
        out, x, cos, sin, out.stride(0), out.stride(1), out.stride(2), x.stride(0), x.stride(1), x.stride(2),
        cos.stride(0) if cos.shape[0] > 1 else 0, T, sign,
        half=half, width=triton.next_power_of_2(half), turned=turned, block=block, num_warps=4,
    )  # fmt: skip


@triton.jit
def _swiglu_backward(gate_up, grad, slope, product, rows, width, block_rows: tl.constexpr, block: tl.constexpr):
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * block + tl.arange(0, block))[None, :]
    inside = (row < rows) & (column < width)
    pair, one = row * (2 * width) + column, row * width + column
    gate = tl.load(gate_up + pair, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + pair + width, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(grad + one, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    swish = gate * sigmoid
    kind = slope.dtype.element_ty
    tl.store(product + one, (swish * up).to(kind), mask=inside)
    tl.store(slope + pair, (given * up * (sigmoid + swish * (1 - sigmoid))).to(kind), mask=inside)
    tl.store(slope + pair + width, (given * swish).to(kind), mask=inside)


def swiglu_backward(gate_up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """As `fused.swiglu_backward`, every number read once and written once."""
    gate_up, grad = gate_up.contiguous(), grad.contiguous()
    width = grad.shape[-1]
    rows = grad.numel() // width
    slope, product = torch.empty_like(gate_up), torch.empty_like(grad)
    block_rows, block = 4, 512
    _swiglu_backward[(triton.cdiv(rows, block_rows), triton.cdiv(width, block))](
        gate_up, grad, slope, product, rows, width, block_rows=block_rows, block=block, num_warps=8
    )
    return slope, product
