"""LLM.int8() (arXiv 2208.07339): products of eight-bit integers, beside a 16- or 32-bit one for outlier columns of x.

Rows of x and rows of W (out, in) each have one scale, their largest magnitude / 127; the integers' product is exact.
A column of x with any |x| ≥ 6 would spoil the scale of its rows: it is taken out and multiplied in x's own precision,
by the rounded weights, or by 16-bit ones for columns that were seen to be outliers when W was packed. The paper keeps
all of W in 16 bits for that; here it is needed where large x meet small weights. Gradients flow to x, not to W.
Not here: weights of less than eight bits (linear.py), files (folder.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from babyllama.model.surgery import FewBits, Unrounded, dense_weight, replace_modules
from babyllama.quant.linear import few_rows, kernels_take, on_cpu
from babyllama.recipe import Recipe

THRESHOLD = 6.0  # arXiv 2208.07339, section 3.2
# Outlier columns of one product, the largest: a fixed number, so that the host need not wait to hear how many it is.
# What reaches the threshold beyond it is rounded with the rest; the paper finds at most 7 in 13 billion parameters.
# The kernel for few rows (kernels.py) takes all of them.
MOST = 128
STEPS = 127
_ROWS, _SIDE = 17, 8  # what the GPU's integer product asks for: at least 17 rows, sides in multiples of 8


class MixedInt8Linear(Unrounded):
    """A linear-like module of 8 bits a weight and a float32 scale for each output. Made by `from_linear`.

    Buffers: weight (out, in) int8, zero in the kept columns; scales (out,) float32, which no change of the model's
    dtype rounds; kept (out, K) float16 and kept_index (K,) int32, the columns that are always multiplied in x's
    precision.

    Args:
        threshold: columns of x with any magnitude from it on are outliers; None: none are, plain vector-wise int8.
        kept: K.
    """

    unrounded: ClassVar[dict[str, torch.dtype]] = {"scales": torch.float32, "kept": torch.float16}
    weight: Tensor
    scales: Tensor
    kept: Tensor
    kept_index: Tensor

    def __init__(self, in_features: int, out_features: int, threshold: float | None = THRESHOLD, kept: int = 0
                 ) -> None:  # fmt: skip
        super().__init__()
        self.in_features, self.out_features, self.threshold = in_features, out_features, threshold
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(out_features))
        self.register_buffer("kept", torch.zeros(out_features, kept, dtype=torch.float16))
        self.register_buffer("kept_index", torch.zeros(kept, dtype=torch.int32))

    @classmethod
    def from_linear(cls, module: nn.Module, threshold: float | None = THRESHOLD, columns: Tensor | None = None) -> Self:
        """Round the matrix of a linear-like module without bias, all but `columns` (K,) of its inputs."""
        dense = dense_weight(module).detach().float()
        index = torch.zeros(0, dtype=torch.int32) if columns is None else columns.to(torch.int32)
        with torch.device("meta"):
            made = cls(dense.shape[1], dense.shape[0], threshold, len(index))
        made.kept_index = index.to(dense.device)
        made.kept = dense[:, made.kept_index].half()
        made.weight, scales = quantised_rows(dense.index_fill(1, made.kept_index.long(), 0.0))
        made.scales = scales[:, 0]
        return made

    def dense_weight(self) -> Tensor:
        """(out, in) float32."""
        return _dense(self.weight, self.scales, self.kept, self.kept_index)

    def few_bits(self) -> FewBits:
        """The weights' eight bits, by which few rows are multiplied on a CPU: x stays as it is."""
        codes = (self.weight.to(torch.int16) + 128).to(torch.uint8)
        return FewBits(codes, self.scales[None], torch.full_like(self.scales, 128.0)[None], 8, self.in_features,
                       kept_index=self.kept_index, kept=self.kept)  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight, self.scales, self.kept, self.kept_index, self.threshold)  # type: ignore[return-value]

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, threshold {self.threshold}, {len(self.kept_index)} kept"


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


def mixed_product(x: Tensor, weight: Tensor, scales: Tensor, threshold: float | None, kept: Tensor | None = None,
                  kept_index: Tensor | None = None) -> Tensor:  # fmt: skip
    """x (N, in) times the matrix of int8 weight (out, in), scales (out,) and kept columns → (N, out) in x's dtype."""
    if not x.shape[0]:
        return x.new_zeros(0, weight.shape[0])
    if few_rows(x) and on_cpu(x):  # the weights' eight bits are all that counts: x stays as it is, outliers or not
        y = torch._weight_int8pack_mm(x.contiguous(), weight, scales.to(x.dtype))
        return y if kept is None or kept_index is None else y + linear(x[:, kept_index], kept.to(x.dtype))
    if kept is not None and kept_index is not None and len(kept_index):
        rest = x.index_fill(1, kept_index.long(), 0.0)
        return mixed_product(rest, weight, scales, threshold) + linear(x[:, kept_index], kept.to(x.dtype))
    if few_rows(x) and kernels_take(x):
        from babyllama.quant.kernels import eight_bit_product

        return eight_bit_product(x, weight, scales, threshold)
    beside, rest = x.new_zeros(()), x
    if threshold is not None:
        index, out = outliers(rest, threshold)
        if rest.is_cuda or out.any():  # a GPU is not asked: the host would wait
            columns = rest[:, index]
            few = (weight[:, index].float() * scales[:, None]).to(x.dtype)
            beside = beside + linear(torch.where(out, columns, 0), few)
            rest = rest.index_copy(1, index, torch.where(out, 0, columns))
    codes, steps = quantised_rows(rest)
    return (product(codes, weight).float() * steps * scales).to(x.dtype) + beside


def _dense(weight: Tensor, scales: Tensor, kept: Tensor, kept_index: Tensor) -> Tensor:
    return (weight.float() * scales[:, None]).index_copy(1, kept_index.long(), kept.float())


class _Product(torch.autograd.Function):
    """Forward in integers; backward as if nothing had been rounded but W. Autograd keeps W's bytes only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scales: Tensor, kept: Tensor, kept_index: Tensor,
                threshold: float | None) -> Tensor:  # fmt: skip
        ctx.save_for_backward(weight, scales, kept, kept_index)
        found = mixed_product(x.reshape(-1, x.shape[-1]), weight, scales, threshold, kept, kept_index)
        return found.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] @ _dense(*ctx.saved_tensors).to(grads[0].dtype), None, None, None, None, None


# ── whole models ───────────────────────────────────────────────────────────────────────────────────────────────────
class Int8(Recipe):
    """LLM.int8(): as `MixedInt8Linear`. No walk: every matrix is rounded by itself."""

    kind: Literal["int8"] = "int8"
    threshold: float | None = Field(
        default=THRESHOLD, gt=0, description="inputs above it are outliers; null: none are (plain int8)"
    )
    keep_columns: bool = Field(
        default=True, description="keep 16-bit weights for inputs that are outliers in calibration"
    )

    def place(self, model: nn.Module, run: Callable[[], Any]) -> list[str]:
        """Replace the blocks' matrices; `run` calls the model with calibration data. Returns their names."""
        seen = outlier_columns(model, run, self.threshold) if self.keep_columns and self.threshold else None
        return to_int8(model, self.threshold, seen)


def to_int8(model: nn.Module, threshold: float | None = THRESHOLD, columns: Mapping[str, Tensor] | None = None
            ) -> list[str]:  # fmt: skip
    """Put `MixedInt8Linear`s in the place of all plain linears inside the blocks; returns their names.

    Args:
        columns: name → the inputs whose weights stay in 16 bits, as `outlier_columns` finds them.
    """
    known = columns or {}

    def rounded(name: str, module: nn.Module) -> nn.Module:
        return MixedInt8Linear.from_linear(module, threshold, known.get(name))

    return replace_modules(model, _plain, rounded)


def outlier_columns(model: nn.Module, run: Callable[[], Any], threshold: float = THRESHOLD) -> dict[str, Tensor]:
    """Name of each linear inside the blocks → its inputs (K,) that reach `threshold` while `run` calls the model."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found = (inputs[0].detach().abs() >= threshold).flatten(0, -2).any(0)
            seen[name] = found | seen[name] if name in seen else found

        return hook

    hooks = [m.register_forward_pre_hook(note(n)) for n, m in model.named_modules() if _plain(n, m)]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found.nonzero()[:, 0] for name, found in seen.items()}


def _plain(name: str, module: nn.Module) -> bool:
    return name.startswith("layers.") and isinstance(module, nn.Linear)
