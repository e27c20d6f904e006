"""Cross-entropy of a head whose three products are of float8 numbers: half the bits to move, twice the products a watt.

Hidden states and weights are rounded to e4m3 (three bits of mantissa) under one scale each, the logits' gradient to
e5m2 (two bits, but 32 powers of two; arXiv 2209.05433). That gradient, softmax − one-hot, lies between −1 and 1
whatever the model does, so its scale is fixed and no pass looks for its largest number. Logits, losses and sums are as
elsewhere. Tensor cores multiply float8 only along the dimension that lies together in memory, so what takes part in
two products is laid both ways. Not here: the head in other precisions (head.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from babyllama.data.streams.batches import IGNORE
from babyllama.hardware import multiplies_float8
from babyllama.model.products import E4M3, LARGEST, MULTIPLE, product
from babyllama.train.losses.cross_entropy import loss_and_gradient_
from babyllama.train.losses.head import Made, aligned, chunks, with_gradients

E5M2 = torch.float8_e5m2
SLOPE_SCALE = 2.0**15  # 1 becomes e5m2's largest power of two, and 2⁻³¹ its smallest number above zero


def in_float8(hidden: Tensor) -> bool:
    """Whether a head multiplies these hidden states in float8: on a device that can, a width that it can, and only
    instead of half precision; who asks for float32 means it."""
    able = multiplies_float8(hidden.device) and hidden.shape[-1] % MULTIPLE == 0
    return able and hidden.dtype != torch.float32


def float8_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int | None = None) -> Tensor:
    """As linear_cross_entropy, its products in float8; on a CPU the same numbers by products in float32.

    Args:
        hidden: (N, C).  weight: (V, C).  targets: (N,) int64.  C is a multiple of 16.
        chunk_rows: rows of logits held at a time, a multiple of 16; default: as many as suit the device.
    """

    def make(hidden: Tensor, weight: Tensor, to_hidden: bool, to_weight: bool) -> Made:
        count, vocab, dtype = len(hidden), len(weight), hidden.dtype
        more = -count % MULTIPLE if count else MULTIPLE
        counted = pad(targets, (0, more), value=IGNORE)
        x = rounded(pad(hidden, (0, 0, 0, more)) if more else hidden)
        w = rounded(aligned(weight, 128))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        unit = torch.full((), 1 / SLOPE_SCALE, device=hidden.device)
        grad_hidden = torch.empty(x.rows.shape, dtype=dtype, device=hidden.device) if to_hidden else None
        grad_weight = None
        for rows in chunks(x.rows, chunk_rows):
            logits = product(x.rows[rows], x.scale, w.rows, w.scale, dtype, long=False)
            loss, slopes = _slopes(logits, counted[rows], vocab)
            del logits  # before the gradients' products: their factors need its memory
            total += loss
            if grad_hidden is not None:
                grad_hidden[rows] = product(slopes, unit, w.columns, w.scale, dtype)
            if to_weight:
                part = product(_turned(slopes), unit, x.columns[:, rows], x.scale, torch.float32)
                grad_weight = part if grad_weight is None else grad_weight.add_(part)
                del part
            del slopes  # before the next chunk's are made
        return total, None if grad_hidden is None else grad_hidden[:count], grad_weight

    return with_gradients(hidden, weight, make)


class Rounded(NamedTuple):
    """A matrix (N, M) in e4m3, which is to be multiplied by `scale`, a float32 scalar."""

    rows: Tensor  # (N, M)
    columns: Tensor  # (M, N), contiguous as well
    scale: Tensor


def rounded(matrix: Tensor) -> Rounded:
    """Its largest number becomes e4m3's largest."""
    scale = torch.linalg.vector_norm(matrix, torch.inf, dtype=torch.float32).clamp(min=1e-12) / LARGEST
    if matrix.is_cuda:
        from babyllama.train.losses.kernels import rounded_both_ways

        return Rounded(*rounded_both_ways(matrix, 1 / scale, E4M3), scale)
    rows = (matrix.float() * (1 / scale)).to(E4M3)
    return Rounded(rows, rows.T.contiguous(), scale)


def _slopes(logits: Tensor, targets: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """The summed loss of logits (n, V), float32, and its gradient in e5m2, (n, V), times SLOPE_SCALE."""
    if logits.is_cuda:
        from babyllama.train.losses.kernels import softmax_gradient

        slopes = torch.empty(logits.shape, dtype=E5M2, device=logits.device)
        return softmax_gradient(logits, targets, vocab, slopes, SLOPE_SCALE).sum(), slopes
    exact = logits.float()
    loss = loss_and_gradient_(exact, targets, vocab)
    return loss, (exact * SLOPE_SCALE).to(E5M2)


def _turned(matrix: Tensor) -> Tensor:
    """(N, M) of float8 → (M, N), contiguous."""
    if matrix.is_cuda:
        from babyllama.train.losses.kernels import turned

        return turned(matrix)
    return matrix.T.contiguous()
