"""Products with weights in float8 (e4m3, arXiv 2209.05433), going forward: half the bits of both factors.

What an RMSNorm gives has a root mean square of about 1 whatever the model does, so it is rounded under a fixed scale,
other states under one a row. A compiler does both inside the kernel that makes the numbers; uncompiled it is slow.
Going backward the products are as ever. Not here: the head's (train/losses/float8.py).
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from babyllama.hardware import multiplies_float8
from babyllama.model.config import ModelConfig

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
REACH = 56.0  # of a normed state; what is larger is cut off. Down to 1/512 nothing loses bits
MULTIPLE = 16  # of numbers that such a product is over, and of its columns
SINCE = (9, 0)  # the compute capability: PyTorch's products with a scale a row were tried on a Hopper, nothing older


class Rounded(NamedTuple):
    """A matrix (N, K) in e4m3, and what it is to be multiplied by: a float32 scalar or (N, 1)."""

    numbers: Tensor
    scale: Tensor


def usable(config: ModelConfig, device: torch.device) -> bool:
    """Whether the device multiplies float8 numbers, one scale a row, and can those of a model's blocks."""
    sizes = config.hidden_size, config.num_key_value_heads * config.head_dim, config.intermediate_size
    able = multiplies_float8(device) and torch.cuda.get_device_capability(device) >= SINCE and sys.platform != "win32"
    return able and not any(size % MULTIPLE for size in sizes)


def normed(x: Tensor) -> Rounded:
    """Rows (…, K) that come from an RMSNorm."""
    scale = REACH / LARGEST
    numbers = (x.flatten(0, -2).float() * (1 / scale)).clamp(-LARGEST, LARGEST).to(E4M3)
    return Rounded(numbers, torch.full((), scale, device=x.device))


def whole(weight: Tensor) -> Rounded:
    """A weight (N, K) under one scale."""
    scale = weight.abs().amax().float().clamp(min=1e-12) / LARGEST
    return Rounded((weight.float() * (1 / scale)).to(E4M3), scale)


def by_row(x: Tensor) -> Rounded:
    """Rows (…, K), each under a scale of its own."""
    exact = x.flatten(0, -2).float()
    scale = exact.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return Rounded((exact * (1 / scale)).to(E4M3), scale)


def multiplied(x: Rounded, weight: Rounded, dtype: torch.dtype) -> Tensor:
    """x (N, K) · weightᵀ (K, M) → (N, M). Both have one scale, or both one a row."""
    across = weight.scale.T if weight.scale.ndim else weight.scale
    return product(x.numbers, x.scale, weight.numbers, across, dtype, long=False)


def product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype, long: bool = True) -> Tensor:
    """(a · a_scale) (M, K) · (b · b_scale)ᵀ (K, N) of float8 matrices.

    Args:
        a_scale, b_scale: float32 scalars, or (M, 1) and (1, N).
        long: the sums are long: a GPU then adds them up in float32, for its tensor cores keep fourteen bits of a sum.
    """
    if a.is_cuda:
        return torch._scaled_mm(a, b.T, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=not long)
    return (a.float() @ b.float().T * (a_scale * b_scale)).to(dtype)


def float8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """What an RMSNorm gives (…, C) · weightᵀ (C, F) → (…, F)."""
    return _Linear.apply(x, weight)  # type: ignore[return-value]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiplied(normed(x), whole(weight), x.dtype).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        mine = grad @ weight if ctx.needs_input_grad[0] else None
        return mine, grad.flatten(0, -2).T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
