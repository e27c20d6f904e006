"""Two pieces of a block that training on a GPU computes better than a compiler does by itself.

`swiglu_down` makes silu(gate) · up again going backward: what the product's gradient needs is already read there, so
that costs one write, and saves F numbers a token and layer (a sixth of all activations at 512 × 8). `rotate_joined`
writes the gradients of q, k and v straight into their joined product's; the compiler's own kernel for that took three
times as long. On a CPU both compute the same in PyTorch. Not here: the modules (transformer.py), kernels (kernels.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu


def rotate_joined(joined: Tensor, cos: Tensor, sin: Tensor, heads: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Cut q, k and v out of one product and rotate q and k.

    Args:
        joined: (B, T, (H + 2K)·D).  cos, sin: (1 or B, 1, T, D) float32.
        heads: H, K, K.

    Returns:
        (B, H, T, D), (B, K, T, D), (B, K, T, D), each laid out token by token.
    """
    return _RotateJoined.apply(joined, cos, sin, heads)  # type: ignore[return-value]


class _RotateJoined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joined: Tensor, cos: Tensor, sin: Tensor, heads: tuple[int, int, int]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        return tuple(part.transpose(1, 2) for part in _cut(joined, cos, sin, heads))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _join(*grads, *ctx.saved_tensors), None, None, None


# Two operators of our own: a compiler that looked inside would copy the slices that the kernels write into.
@torch.library.custom_op("babyllama::cut_and_rotate", mutates_args=())
def _cut(joined: Tensor, cos: Tensor, sin: Tensor, heads: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    B, T, width = joined.shape
    D = width // sum(heads)
    parts = joined.view(B, T, sum(heads), D).transpose(1, 2).split(list(heads), dim=1)
    q, k, v = (joined.new_empty(B, T, count, D) for count in heads)
    for out, part, turned in zip((q, k, v), parts, (True, True, False), strict=True):
        rotate_into(out.transpose(1, 2), part, cos, sin, turned, 1)
    return q, k, v


@_cut.register_fake
def _(joined: Tensor, cos: Tensor, sin: Tensor, heads: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    B, T, width = joined.shape
    q, k, v = (joined.new_empty(B, T, count, width // sum(heads)) for count in heads)
    return q, k, v


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
    """Fill out (B, heads, T, D) with x, rotated forward (sign 1) or back (−1) if `turned`."""
    if x.is_cuda:
        from babyllama.model.kernels import rotate_into as fused

        fused(out, x, cos, sin, turned, sign)
    elif turned:
        first, second = x.float().chunk(2, dim=-1)
        out.copy_(x.float() * cos + sign * torch.cat((-second, first), dim=-1) * sin)
    else:
        out.copy_(x)


def swiglu_down(gate_up: Tensor, weight: Tensor) -> Tensor:
    """gate_up (…, 2F), gate first; weight (C, F) → (…, C)."""
    return _SwiGluDown.apply(gate_up, weight)  # type: ignore[return-value]


class _SwiGluDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        gate, up = gate_up.chunk(2, -1)
        return linear(silu(gate) * up, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gate_up, weight = ctx.saved_tensors
        grad = grads[0]
        slope, product = swiglu_backward(gate_up, grad @ weight)
        return slope, grad.flatten(0, -2).T @ product.flatten(0, -2) if ctx.needs_input_grad[1] else None


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
