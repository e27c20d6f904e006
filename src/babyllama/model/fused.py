"""Two pieces of a block that training on a GPU computes better than a compiler does by itself.

`swiglu_down` makes silu(gate) · up again going backward: what the product's gradient needs is already read there, so
that costs one write, and saves F numbers a token and layer (a sixth of all activations at 512 × 8). `rotated_product`
turns queries and keys where the joined product has put them, and writes the gradients of q, k and v straight into that
product's. On a CPU both compute the same in PyTorch. Not here: the modules (transformer.py), kernels (kernels.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from babyllama.model import products


def rotated_product(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, heads: tuple[int, int, int], float8: bool = False
) -> tuple[Tensor, ...]:
    """q, k and v of one product, q and k rotated; `float8`: the product as float8_linear's.

    Args:
        x: (B, T, C).  weight: ((H + 2K)·D, C).  cos, sin: (1 or B, 1, T, D) float32.
        heads: H, K, K.

    Returns:
        (B, H, T, D), (B, K, T, D), (B, K, T, D): views of the product, which lies token by token.
    """
    return _RotatedProduct.apply(x, weight, cos, sin, heads, float8)  # type: ignore[return-value]


class _RotatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, heads: tuple[int, int, int], float8: bool
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight, cos, sin)
        if float8:
            factors = *products.normed(x), *products.whole(weight)
            product = _rotated8(*factors, cos, sin, sum(heads[:2]), sum(heads), x.shape[0], x.dtype)
        else:
            product = _rotated(x, weight, cos, sin, sum(heads[:2]), sum(heads))
        return product.transpose(1, 2).split(list(heads), dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, cos, sin = ctx.saved_tensors
        grad = _join(*grads, cos, sin)  # (B, T, (H + 2K)·D)
        mine = grad @ weight if ctx.needs_input_grad[0] else None
        its = grad.flatten(0, -2).T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return mine, its, None, None, None, None


# Operators of our own: a compiler that looked inside would copy the slices that the kernels write into, and would
# put products whose width is no multiple of 64 into wider rows, only to copy them out of these for the next kernel.
@torch.library.custom_op("babyllama::rotated_product", mutates_args=())
def _rotated(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, turned: int, heads: int) -> Tensor:
    """(B, T, heads, D), the first `turned` heads rotated."""
    product = linear(x, weight).unflatten(-1, (heads, -1))
    part = product.transpose(1, 2)[:, :turned]
    rotate_into(part, part, cos, sin, True, 1)
    return product


@torch.library.custom_op("babyllama::rotated_product_float8", mutates_args=())
def _rotated8(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, cos: Tensor, sin: Tensor, turned: int,
              heads: int, B: int, dtype: torch.dtype) -> Tensor:  # fmt: skip
    """As _rotated of rounded factors, x (B·T, C)."""
    made = products.multiplied(products.Rounded(x, x_scale), products.Rounded(weight, scale), dtype)
    made = made.unflatten(0, (B, -1)).unflatten(-1, (heads, -1))
    part = made.transpose(1, 2)[:, :turned]
    rotate_into(part, part, cos, sin, True, 1)
    return made


@_rotated8.register_fake
def _(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, cos: Tensor, sin: Tensor, turned: int,
      heads: int, B: int, dtype: torch.dtype) -> Tensor:  # fmt: skip
    return x.new_empty(B, x.shape[0] // B, heads, weight.shape[0] // heads, dtype=dtype)


@_rotated.register_fake
def _(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, turned: int, heads: int) -> Tensor:
    return x.new_empty(*x.shape[:2], heads, weight.shape[0] // heads)


@torch.library.custom_op("babyllama::rotate_back_and_join", mutates_args=())
def _join(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    heads = [part.shape[1] for part in (q, k, v)]
    B, _, T, D = q.shape
    joined = q.new_empty(B, T, sum(heads), D)
    parts = joined.transpose(1, 2).split(heads, dim=1)
    for out, part, turned in zip(parts, (q, k, v), (True, True, False), strict=True):
        rotate_into(out, part, cos, sin, turned, -1)
    return joined.view(B, T, sum(heads) * D)


@_join.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    B, heads, T, D = q.shape
    return q.new_empty(B, T, (heads + k.shape[1] + v.shape[1]) * D)


def rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, turned: bool, sign: int) -> None:
    """Fill out (B, heads, T, D), which may be x, with x, rotated forward (sign 1) or back (−1) if `turned`."""
    if x.is_cuda:
        from babyllama.model.kernels import rotate_into as fused

        fused(out, x, cos, sin, turned, sign)
    elif turned:
        first, second = x.float().chunk(2, dim=-1)
        out.copy_(x.float() * cos + sign * torch.cat((-second, first), dim=-1) * sin)
    else:
        out.copy_(x)


def swiglu_down(gate_up: Tensor, weight: Tensor, float8: bool = False) -> Tensor:
    """gate_up (…, 2F), gate first; weight (C, F) → (…, C). `float8`: the product's factors rounded by row."""
    return _SwiGluDown.apply(gate_up, weight, float8)  # type: ignore[return-value]


class _SwiGluDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor, float8: bool) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        gate, up = gate_up.chunk(2, -1)
        product = silu(gate) * up
        if not float8:
            return linear(product, weight)
        made = products.multiplied(products.by_row(product), products.by_row(weight), product.dtype)
        return made.unflatten(0, product.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gate_up, weight = ctx.saved_tensors
        grad = grads[0]
        slope, product = _slopes(gate_up, grad, weight)
        return slope, grad.flatten(0, -2).T @ product.flatten(0, -2) if ctx.needs_input_grad[1] else None, None


@torch.library.custom_op("babyllama::swiglu_slopes", mutates_args=())
def _slopes(gate_up: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return swiglu_backward(gate_up, grad @ weight)


@_slopes.register_fake
def _(gate_up: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return gate_up.new_empty(gate_up.shape), grad.new_empty(*grad.shape[:-1], weight.shape[1])


def swiglu_backward(gate_up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """gate_up (…, 2F) and the gradient of the product (…, F) → the gradient of gate_up, the product itself."""
    if gate_up.is_cuda:
        from babyllama.model.kernels import swiglu_backward as fused

        return fused(gate_up, grad)
    gate, up = gate_up.float().chunk(2, -1)
    sigmoid, grad = gate.sigmoid(), grad.float()
    swish = gate * sigmoid
    slope = torch.cat((grad * up * (sigmoid + swish * (1 - sigmoid)), grad * swish), -1)
    return slope.to(gate_up.dtype), (swish * up).to(gate_up.dtype)
