"""LLM.int8() (arXiv 2208.07339): products of eight-bit integers, beside a 16- or 32-bit one for outlier columns of x.

Rows of x and rows of W (out, in) each have one scale, their largest magnitude / 127; the integers' product is exact.
A column of x with any |x| ≥ 6 would spoil the scale of its rows: it is taken out and multiplied in x's own precision.
No calibration; gradients flow to x, not to W. Not here: weights of less than eight bits (linear.py), files (folder.py).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from babyllama.model.surgery import dense_weight, replace_modules

THRESHOLD = 6.0  # arXiv 2208.07339, section 3.2
MOST = 128  # outlier columns of one product, the largest: a fixed number, so that the host need not ask how many
STEPS = 127
_ROWS, _SIDE = 17, 8  # what the GPU's integer product asks for: at least 17 rows, sides in multiples of 8


class MixedInt8Linear(nn.Module):
    """A linear-like module of 8 bits a weight and a float32 scale for each output. Made by `from_linear`.

    Buffers: weight (out, in) int8, scales (out,) float32, which no change of the model's dtype rounds.

    Args:
        threshold: columns of x with any magnitude from it on are outliers; None: there are none, plain vector-wise int8.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, in_features: int, out_features: int, threshold: float | None = THRESHOLD) -> None:
        super().__init__()
        self.in_features, self.out_features, self.threshold = in_features, out_features, threshold
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(out_features))

    @classmethod
    def from_linear(cls, module: nn.Module, threshold: float | None = THRESHOLD) -> Self:
        """Round the matrix of a linear-like module without bias."""
        dense = dense_weight(module).detach().float()
        with torch.device("meta"):
            made = cls(dense.shape[1], dense.shape[0], threshold)
        made.weight, scales = quantised_rows(dense)
        made.scales = scales[:, 0]
        return made

    def dense_weight(self) -> Tensor:
        """(out, in) float32."""
        return self.weight.float() * self.scales[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight, self.scales, self.threshold)  # type: ignore[return-value]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """`fn` meets the scales as integers: it may move them, and has nothing to round."""
        self.scales = self.scales.view(torch.int32)
        try:
            return super()._apply(fn, recurse)
        finally:
            self.scales = self.scales.view(torch.float32)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, threshold {self.threshold}"


def quantised_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, K) → int8 codes (N, K) and float32 scales (N, 1), the rows' largest magnitudes / 127. Zeros stay zeros."""
    x = x.float()
    scales = x.abs().amax(1, keepdim=True) / STEPS
    return (x / torch.where(scales == 0, 1.0, scales)).round_().to(torch.int8), scales


def plain_product(a: Tensor, b: Tensor) -> Tensor:
    """a (N, K) int8, b (M, K) int8 → a · bᵀ (N, M) int32, in float64, which holds every such sum. The oracle."""
    return (a.double() @ b.double().T).to(torch.int32)


def product(a: Tensor, b: Tensor) -> Tensor:
    """`plain_product` by integer instructions."""
    (rows, inner), outer = a.shape, b.shape[0]
    if a.is_cuda:
        a = pad(a, (0, -inner % _SIDE, 0, max(0, _ROWS - rows)))
        b = pad(b, (0, -inner % _SIDE, 0, -outer % _SIDE)) if inner % _SIDE or outer % _SIDE else b
    return torch._int_mm(a, b.T)[:rows, :outer]


def outliers(x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The columns of x (N, K) that reach `threshold`: of the largest min(K, MOST), (index, whether it does)."""
    largest, index = x.abs().amax(0).topk(min(x.shape[1], MOST))
    return index, largest >= threshold


def mixed_product(x: Tensor, weight: Tensor, scales: Tensor, threshold: float | None) -> Tensor:
    """x (N, in) times the matrix of int8 weight (out, in) and scales (out,) → (N, out) in x's dtype."""
    if not x.shape[0]:
        return x.new_zeros(0, weight.shape[0])
    rest, beside = x, None
    if threshold is not None:
        index, out = outliers(x, threshold)
        columns = x[:, index]
        few = (weight[:, index].float() * scales[:, None]).to(x.dtype)
        beside = linear(torch.where(out, columns, 0), few)
        rest = x.index_copy(1, index, torch.where(out, 0, columns))
    codes, steps = quantised_rows(rest)
    found = (product(codes, weight).float() * steps * scales).to(x.dtype)
    return found if beside is None else found + beside


class _Product(torch.autograd.Function):
    """Forward in integers; backward as if nothing had been rounded but W. Autograd keeps W's bytes only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scales: Tensor, threshold: float | None) -> Tensor:
        ctx.save_for_backward(weight, scales)
        return mixed_product(x.reshape(-1, x.shape[-1]), weight, scales, threshold).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        weight, scales = ctx.saved_tensors
        return grads[0] @ (weight.float() * scales[:, None]).to(grads[0].dtype), None, None, None


def to_int8(model: nn.Module, threshold: float | None = THRESHOLD) -> list[str]:
    """Put `MixedInt8Linear`s in the place of all plain linears inside the blocks; returns their names."""
    return replace_modules(model, lambda name, module: name.startswith("layers.") and isinstance(module, nn.Linear),
                           lambda _, module: MixedInt8Linear.from_linear(module, threshold))  # fmt: skip
