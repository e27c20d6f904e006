"""OneBit (arXiv 2402.11295): the start of its training from a dense model, and its packed form of one bit a weight.

The law is Y = LN(((X ⊙ g) · sign(W)ᵀ) ⊙ h), model/bitnet.py's. The start is SVID, sign-value-independent decomposition:
|W| ≈ h gᵀ of rank 1. Not here: the training form (model/bitnet.py), its loss (train/distil.py), files (folder.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from babyllama.errors import InputError
from babyllama.hardware import finest
from babyllama.model.bitnet import OneBitLinear, normed, replace_matrices
from babyllama.model.surgery import FewBits, replace_modules, unpacked_product
from babyllama.model.transformer import Transformer
from babyllama.quant.cpu import MIDDLE, Nibbles, WithNibbles, nibble_group
from babyllama.quant.linear import few_rows, kernels_take, on_cpu
from babyllama.recipe import Recipe

WORD = 32  # signs of one int32, input j of a word in bit j


def svid(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W (out, in) → h (out,), g (in,) float32, none negative, ‖h‖ = ‖g‖, with the least ‖|W| − h gᵀ‖.

    The first singular vectors of |W|: its entries are not negative, so power iteration from any positive vector finds
    them, and fast (Perron). In `finest`.
    """
    size = weight.detach().abs().to(finest(weight.device))
    g = size.mean(0)
    for _ in range(1000):
        before, g = g, size.T @ (size @ g)
        g = g / g.norm().clamp(min=torch.finfo(g.dtype).tiny)
        if (g - before).norm() <= max(1e-12, 4 * torch.finfo(g.dtype).eps):
            break
    h = size @ g  # σ times the other one
    root = h.norm().sqrt()
    return (h / root.clamp(min=torch.finfo(h.dtype).tiny)).float(), (g * root).float()


def start(model: Transformer) -> None:
    """A dense model becomes one of OneBit's: its matrices, with h and g of each by SVID. Embedding and head stay.

    Raises:
        InputError: its weights are not dense, or there is nothing but packed ones in its blocks.
    """
    if model.config.weights != "dense":
        raise InputError(f"adapter.kind: onebit starts from a dense model; this one's weights are "
                         f"{model.config.weights}, which go on with adapter.kind=full")  # fmt: skip
    replace_matrices(model, "onebit")
    placed = [module for module in model.modules() if isinstance(module, OneBitLinear)]
    if len(placed) != 7 * len(model.layers):
        raise InputError("adapter.kind: onebit starts from a dense model; this one's blocks hold packed weights")
    model.config = model.config.model_copy(update={"weights": "onebit"})
    with torch.no_grad():
        for module in placed:
            h, g = svid(module.weight)
            module.h.copy_(h)
            module.g.copy_(g)


# ── one bit a weight ───────────────────────────────────────────────────────────────────────────────────────────────
def pack_signs(negative: Tensor) -> Tensor:
    """negative (out, in) bool → (out, ⌈in / 32⌉) int32, 1 for negative; behind the last input are zeros."""
    bits = pad(negative.to(torch.int64), (0, -negative.shape[1] % WORD)).unflatten(1, (-1, WORD))
    words = (bits << torch.arange(WORD, device=bits.device)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack_signs(words: Tensor, in_features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `pack_signs`, as ±1: (out, in) in `dtype`."""
    bits = words[..., None] >> torch.arange(WORD, dtype=torch.int32, device=words.device) & 1
    return 1 - 2 * bits.flatten(1)[:, :in_features].to(dtype)


class PackedOneBitLinear(WithNibbles):
    """OneBitLinear's forward from one bit a weight and 16 an input and an output. Gradients flow to x only.

    Buffers: signs (out, ⌈in / 32⌉) int32; g (in,) and h (out,) float16, which no change of the model's dtype rounds.
    Adapters on top train against this forward; merging one needs a matrix, and LN has none.
    """

    unrounded: ClassVar[dict[str, torch.dtype]] = {"g": torch.float16, "h": torch.float16}
    signs: Tensor
    g: Tensor
    h: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("signs", torch.zeros(out_features, -(-in_features // WORD), dtype=torch.int32))
        self.register_buffer("g", torch.zeros(in_features, dtype=torch.float16))
        self.register_buffer("h", torch.zeros(out_features, dtype=torch.float16))

    @classmethod
    def of(cls, trained: OneBitLinear) -> Self:
        """Pack what was trained; g and h are rounded to float16, nothing else is lost."""
        with torch.device("meta"):
            made = cls(trained.in_features, trained.out_features)
        made.signs = pack_signs(trained.weight.detach().signbit())
        made.g, made.h = trained.g.detach().half(), trained.h.detach().half()
        return made

    def dense_weight(self) -> Tensor:
        """(out, in) float32: sign(W) ⊙ h gᵀ, which is what LN gets; LN itself has no matrix."""
        return unpack_signs(self.signs, self.in_features) * torch.outer(self.h.float(), self.g.float())

    def forward(self, x: Tensor) -> Tensor:
        if few_rows(x) and kernels_take(x):
            from babyllama.quant.kernels import one_bit_product

            found = one_bit_product(x.flatten(0, -2), self.g, self.signs, self.h)
            return normed(found.view(*x.shape[:-1], -1))
        if few_rows(x) and on_cpu(x) and nibble_group(self.in_features, self.in_features):
            return normed(self.nibbles(x * self.g.to(x.dtype)) * self.h.to(x.dtype))
        sums = unpacked_product(x * self.g.to(x.dtype), unpack_signs, self.signs, self.in_features)
        return normed(sums * self.h.to(x.dtype))

    def few_bits(self) -> FewBits:
        """Signs as ±1, h as the scale of their rows."""
        codes = (1 + unpack_signs(self.signs, self.in_features)).to(torch.uint8)
        return FewBits(
            codes, self.h[None], torch.ones_like(self.h)[None], 2, self.in_features, before=self.g, normed=True
        )

    def _as_nibbles(self) -> Nibbles:
        codes = (MIDDLE + unpack_signs(self.signs, self.in_features)).to(torch.uint8)
        ones = torch.ones(1, self.out_features)
        size = nibble_group(self.in_features, self.in_features) or 0
        return Nibbles(codes, ones, MIDDLE * ones, 4, self.in_features, size)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, 1 bit"


class PackSigns(Recipe):
    """What adapter.kind=onebit has trained, in one bit a weight. Nothing is searched: the training did that."""

    kind: Literal["onebit"] = "onebit"

    def place(self, model: Transformer, run: Callable[[], Any]) -> list[str]:
        """As every method that needs no walk: the names of what it replaced."""
        return pack_trained(model)


def check_trained(model: nn.Module) -> None:
    """Raise InputError unless the model was trained by OneBit."""
    if not any(isinstance(module, OneBitLinear) for module in model.modules()):
        raise InputError("onebit: packs what adapter.kind=onebit has trained; this model has no such matrices: "
                         "babyllama train seed/onebit makes them")  # fmt: skip


def pack_trained(model: Transformer) -> list[str]:
    """Put packed linears in the place of all trained ones; returns their names.

    Raises:
        InputError: the model was not trained by OneBit.
    """
    check_trained(model)
    return replace_modules(model, lambda _, module: isinstance(module, OneBitLinear),
                           lambda _, module: PackedOneBitLinear.of(module))  # type: ignore[arg-type]  # fmt: skip
