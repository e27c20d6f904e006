"""The head's product and a loss of its logits in one, chunk by chunk: all logits never exist at once.

At 64,793 tokens of vocabulary the head is 55 % of the seed model's arithmetic, and eager float32 logits are what fills
a 24 GB card. Not here: which loss of the logits (cross_entropy.py, distil.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from babyllama import hardware

Slope = Callable[[Tensor, slice], Tensor]
"""(logits (n, V or more), which rows they are) → their summed loss, a float32 scalar; overwrites the logits by their
gradient. Columns from V on are padding: no probability, gradient 0."""


def head_loss(
    hidden: Tensor, weight: Tensor, slope: Slope, chunk_rows: int | None = None, multiple: int | None = None
) -> Tensor:
    """Σ over chunks of rows of slope(hidden · weightᵀ), without ever holding all logits.

    The gradient of each chunk is made while its logits are at hand, and in their place, so the head is multiplied
    three times, never four, and memory holds `chunk_rows` × V logits instead of N × V.

    Args:
        hidden: (N, C).  weight: (V, C).
        chunk_rows: rows of logits held at a time; default: as many as suit the device.
        multiple: the vocabulary is padded to it with rows of zeros; default: as `aligned`.

    Returns:
        float32 scalar.
    """

    def make(hidden: Tensor, weight: Tensor, to_hidden: bool, to_weight: bool) -> Made:
        padded = aligned(weight, multiple)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if to_hidden else None
        grad_weight = torch.empty_like(padded, dtype=torch.float32) if to_weight else None
        if grad_weight is not None and not len(hidden):  # no chunk will write it
            grad_weight.zero_()
        for rows in chunks(hidden, chunk_rows):
            logits = hidden[rows] @ padded.T
            total += slope(logits, rows)
            if grad_hidden is not None:
                torch.mm(logits, padded, out=grad_hidden[rows])
            if grad_weight is not None:
                _product_(grad_weight, logits.T, hidden[rows], add=rows.start > 0)
            del logits  # before the next product is made, or two chunks would be held
        return total, grad_hidden, grad_weight

    return with_gradients(hidden, weight, make)


Made = tuple[Tensor, Tensor | None, Tensor | None]
"""A loss, its gradient in the hidden states, and that in the head, which may have more rows than the head."""


def with_gradients(hidden: Tensor, weight: Tensor, make: Callable[[Tensor, Tensor, bool, bool], Made]) -> Tensor:
    """A loss whose gradients are made together with it: make(hidden, weight, for hidden?, for weight?)."""
    return _WithGradients.apply(hidden, weight, make)  # type: ignore[return-value]


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, make: Callable[[Tensor, Tensor, bool, bool], Made]) -> Tensor:
        total, grad_hidden, grad_weight = make(hidden, weight, *ctx.needs_input_grad[:2])
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight[: weight.shape[0]])
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        own = [_scaled(grad, grads[0], dtype) for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return *own, None


def chunks(hidden: Tensor, chunk_rows: int | None = None) -> Iterator[slice]:
    """The rows whose logits are held at a time: `chunk_rows` of them, or as many as suit the device."""
    size = chunk_rows or hardware.chunk_rows(_memory_gib(hidden.device))
    return (slice(start, start + size) for start in range(0, len(hidden), size))


def aligned(weight: Tensor, multiple: int | None = None) -> Tensor:
    """A head (V, C) with rows of zeros up to a multiple of rows.

    On a GPU of 128: an odd V (ChatGLM2's 64,793) cannot use the aligned tensor-core kernels, which are three times as
    fast.
    """
    multiple = multiple or (128 if weight.is_cuda else 1)
    more = -weight.shape[0] % multiple
    return pad(weight, (0, 0, 0, more)) if more else weight


def _scaled(grad: Tensor | None, scale: Tensor, dtype: torch.dtype) -> Tensor | None:
    """grad · scale, rounded once, to `dtype`."""
    return None if grad is None else torch.mul(grad, scale, out=torch.empty_like(grad, dtype=dtype))


def _product_(out: Tensor, a: Tensor, b: Tensor, add: bool) -> None:
    """out = a · b, or += if `add`, in float32 of half-precision factors: on a GPU it adds up where it is made."""
    if not (out.is_cuda and a.dtype != out.dtype):
        out.copy_(out + a @ b if add else a @ b)
    elif add:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a, b, out_dtype=torch.float32, out=out)


def _memory_gib(device: torch.device) -> float:
    return hardware.allowed_memory(device) / 2**30 if device.type == "cuda" else 0.0
