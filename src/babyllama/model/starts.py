"""Starts of an adapter that take their part out of the base's matrices: PiSSA and OLoRA, as PEFT computes them.

Such an adapter, s·B·A, belongs to W − s·B₀·A₀, which no file holds: whoever loads it finds B₀ and A₀ again from W and
the rank. `beside_whole` writes the sum as an adapter of W itself, of twice the rank. Shapes: W (out, in), B (out, R),
A (R, in). Not here: files (adapters.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]  # B, A


def principal(weight: Tensor, rank: int, scale: float) -> Factors:
    """PiSSA (arXiv 2404.02948, eq. 2 and 3): s·B₀·A₀ is made of the R largest singular values of W."""
    U, S, V = torch.linalg.svd(weight, full_matrices=False)
    root = (S[:rank] / scale).sqrt()
    return U[:, :rank] * root, root[:, None] * V[:rank]


def triangular(weight: Tensor, rank: int, scale: float) -> Factors:
    """OLoRA (arXiv 2406.01775, eq. 4): the first R columns of Q and rows of R in W = Q·R, whatever s."""
    Q, R = torch.linalg.qr(weight)
    return Q[:, :rank], R[:rank]


STARTS: dict[str, Callable[[Tensor, int, float], Factors]] = {"pissa": principal, "olora": triangular}
# By chance or by data that nobody kept: what was taken out of the base cannot be found again.
LOST = ("pissa_niter", "corda", "loftq", "lora_ga")


def beside_whole(start: str, weight: Tensor, B: Tensor, A: Tensor, scale: float) -> Factors:
    """The B (out, 2R) and A (2R, in) of scale s that make W what W − s·B₀·A₀ and s·B·A are together."""
    B0, A0 = STARTS[start](weight.float(), len(A), scale)
    return torch.cat((B.float(), -B0), dim=1), torch.cat((A.float(), A0))
