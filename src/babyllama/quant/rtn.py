"""What a method is, and the simplest one: round every weight to the nearest point (RTN).

A method sees the inputs of each matrix through two sums, `Moments`, never the inputs themselves. Not here: where inputs
come from (calibrate.py), methods that use them (gptq.py, awq.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from babyllama.quant.grid import Grid, Solution


class Moments:
    """Sums over the inputs x (K,) of a linear: hessian, the mean of 2·x·xᵀ, and size, the mean of |x|; float32."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self._products = torch.zeros(inputs, inputs, device=device)
        self._sizes = torch.zeros(inputs, device=device)

    def add(self, x: Tensor) -> None:
        """x: (M, K)."""
        x = x.float()
        self.tokens += len(x)
        self._products.addmm_(x.T, x)
        self._sizes += x.abs().sum(0)

    @property
    def hessian(self) -> Tensor:
        """(K, K): of the squared error of a row's output, twice differentiated."""
        return self._products * (2 / max(1, self.tokens))

    @property
    def size(self) -> Tensor:
        """(K,)"""
        return self._sizes / max(1, self.tokens)

    def scaled(self, scale: Tensor) -> Moments:
        """Those of scale · x; scale: (K,)."""
        made = Moments(0, scale.device)
        made.tokens, made._sizes = self.tokens, self._sizes * scale.abs()
        made._products = self._products * scale[:, None] * scale
        return made


def output_error(change: Tensor, hessian: Tensor) -> Tensor:
    """Σ over rows of the mean (change · x)²: half of tr(change · H · changeᵀ). change: (N, K); a scalar."""
    return ((change @ hessian) * change).sum() / 2


class Method(Grid):
    """A grid and a way to choose codes on it. `prepares`: `prepare` wants to see a block before its first matrix."""

    prepares: ClassVar[bool] = False

    def prepare(self, linears: Mapping[str, torch.nn.Linear], norms: Mapping[str, torch.nn.Module],
                inputs: Mapping[str, Moments]) -> None:  # fmt: skip
        """Change a block's weights in place such that it computes what it did. All keys are names inside a block."""

    def solve(self, weight: Tensor, inputs: Moments, name: str) -> Solution:
        """weight (N, K) float32 → its codes. `name` is the matrix's inside its block, or lm_head, embed_tokens."""
        raise NotImplementedError


class Rtn(Method):
    """Needs no calibration data."""

    kind: Literal["rtn"] = "rtn"

    def solve(self, weight: Tensor, inputs: Moments, name: str) -> Solution:
        return self.nearest(weight)
