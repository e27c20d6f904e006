"""Tokens to their experts and back, and products by expert, whose sizes only the device knows.

Shapes: N tokens, K experts of each token, M = N · K, E experts, C inputs, F outputs. Rows of one expert lie together,
experts in order. Nothing is dropped and nothing padded; nothing here adds up in an order that changes from run to run.
Not here: which experts a token goes to (mlp.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

FAST = (9, 0)  # the compute capability from which on grouped products ask nothing of the host


class Order(NamedTuple):
    """Where rows go.

    Attributes:
        rows: (M,) which of the M = N · K choices, token by token, is each row.  places: (M,) its inverse.
        ends: (E,) int32, after which row each expert's end.
    """

    rows: Tensor
    places: Tensor
    ends: Tensor


def order_by(chosen: Tensor, experts: int) -> Order:
    """Of the experts (N, K) that tokens go to; a stable sort, by comparisons of fixed shapes."""
    flat = chosen.flatten()
    rows = flat.argsort(stable=True)
    numbers = torch.arange(len(flat), device=flat.device)
    places = torch.empty_like(rows).scatter_(0, rows, numbers)
    counts = (flat[:, None] == torch.arange(experts, device=flat.device)).sum(0)
    return Order(rows, places, counts.cumsum(0).to(torch.int32))


def spread(x: Tensor, order: Order) -> Tensor:
    """(N, C) → (M, C): each token once for each of its experts."""
    return _Spread.apply(x, order.rows, order.places)  # type: ignore[return-value]


def collect(rows: Tensor, order: Order) -> Tensor:
    """(M, C), by expert → (M, C), token by token."""
    return _Collect.apply(rows, order.rows, order.places)  # type: ignore[return-value]


def grouped(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """(M, C) → (M, F): each row times its expert's matrix of `weights` (E, F, C).

    In bf16 on a GPU one launch; elsewhere expert by expert, whose sizes the host fetches.
    """
    if x.is_cuda and x.dtype == torch.bfloat16:  # a compiled pass takes no other
        return torch._grouped_mm(x, weights.transpose(1, 2), offs=ends)
    return by_segments(x, weights, ends)


def by_segments(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """`grouped`, as it is said: one product for each expert that has rows."""
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    parts = zip(x.split(sizes), weights.unbind(), strict=True)
    return torch.cat([linear(rows, weight) for rows, weight in parts if len(rows)])


def asks_no_host(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether grouped products run by themselves, so that a CUDA graph can hold them; else their sizes are fetched."""
    return device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= FAST


class _Spread(torch.autograd.Function):
    """A gather whose gradient is one too: indexing's own adds up where it lands, in any order on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.tokens = x.shape[0]
        return x[rows // (rows.shape[0] // x.shape[0])]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        return grads[0][places].unflatten(0, (ctx.tokens, -1)).sum(1), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x[places]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (rows,) = ctx.saved_tensors
        return grads[0][rows], None, None
