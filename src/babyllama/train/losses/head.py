"""The head's product and a loss of its logits in one, chunk by chunk: all logits never exist at once.

At 64,793 tokens of vocabulary the head is 55 % of the seed model's arithmetic, and eager float32 logits are what fills
a 24 GB card. Not here: which loss of the logits (cross_entropy.py, distil.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from babyllama import hardware

Slope = Callable[[Tensor, slice], Tensor]
"""(logits (n, V or more), which rows they are) → their summed loss, a float32 scalar; overwrites the logits by their
gradient. Columns from V on are padding: no probability, gradient 0."""


def head_loss(hidden: Tensor, weight: Tensor, slope: Slope, chunk_rows: int | None = None, multiple: int | None = None,
              fp8: bool = False) -> Tensor:  # fmt: skip
    """Σ over chunks of rows of slope(hidden · weightᵀ), without ever holding all logits.

    The gradient of each chunk is made while its logits are at hand, and in their place, so the head is multiplied
    three times, never four, and memory holds `chunk_rows` × V logits instead of N × V.

    Args:
        hidden: (N, C).  weight: (V, C).
        chunk_rows: rows of logits held at a time; default: as many as suit the device.
        multiple: the vocabulary is padded to it with rows of zeros; default: as `aligned`.
        fp8: multiply the logits in float8 (e4m3, one scale a tensor); the gradients' products stay as they are. For
            GPUs that have it (compute capability 8.9 and up).

    Returns:
        float32 scalar.
    """
    chunk_rows = chunk_rows or hardware.chunk_rows(_memory_gib(hidden.device))
    return _HeadLoss.apply(hidden, weight, slope, chunk_rows, multiple, fp8)  # type: ignore[return-value]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, slope: Slope, chunk_rows: int, multiple: int | None, fp8: bool
    ) -> Tensor:
        padded = aligned(weight, multiple)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(padded, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        if grad_weight is not None and not len(hidden):  # no chunk will write it
            grad_weight.zero_()
        product = _fp8_product(hidden, padded) if fp8 else lambda rows: hidden[rows] @ padded.T
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            logits = product(rows)
            total += slope(logits, rows)
            if grad_hidden is not None:
                torch.mm(logits, padded, out=grad_hidden[rows])
            if grad_weight is not None:
                _product_(grad_weight, logits.T, hidden[rows], add=start > 0)
            del logits  # before the next product is made, or two chunks would be held
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight[: weight.shape[0]])
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        own = [_scaled(grad, grads[0], dtype) for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return *own, *[None] * 4


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


def _fp8_product(hidden: Tensor, weight: Tensor) -> Callable[[slice], Tensor]:
    """rows → hidden[rows] · weightᵀ, both factors rounded to e4m3 under one scale each."""

    def rounded(tensor: Tensor) -> tuple[Tensor, Tensor]:
        scale = tensor.abs().amax().float().clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
        return (tensor / scale).to(torch.float8_e4m3fn), scale

    (a, a_scale), (b, b_scale) = rounded(hidden), rounded(weight)
    return lambda rows: torch._scaled_mm(
        a[rows], b.T, scale_a=a_scale, scale_b=b_scale, out_dtype=hidden.dtype, use_fast_accum=True
    )


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
