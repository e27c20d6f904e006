"""Linear-likes that hold their matrix in few bits, in the layout of GPTQ's folders, and the embedding that reads one.

Gradients flow to inputs, not to weights: adapters train on top. Not here: how codes are found, files (folder.py).
Shapes: K inputs, N outputs, G groups of inputs; the last group may be short.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from babyllama.quant.grid import Solution, group_index
from babyllama.quant.packing import pack, unpack, word_count


class GroupedLinear(nn.Module):
    """x · ((codes − zero) · scale)ᵀ, codes in 2, 3, 4 or 8 bits.

    Buffers: qweight (K · bits / 32, N) int32; qzeros (G, N · bits / 32) int32, which hold zero − `offset`; scales
    (G, N), which no change of the model's dtype rounds; g_idx (K,) int32, each input's group. The words of a side that
    does not fill whole ones are rounded up.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor

    def __init__(self, in_features: int, out_features: int, bits: int, group_size: int | None, offset: int = 1) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits, self.group_size = in_features, out_features, bits, group_size
        self.offset = offset
        groups = -(-in_features // (group_size or in_features))
        sizes = {"qweight": (word_count(in_features, bits), out_features),
                 "qzeros": (groups, word_count(out_features, bits)), "g_idx": (in_features,)}  # fmt: skip
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(groups, out_features, dtype=torch.float16))

    @classmethod
    def of(cls, solution: Solution) -> Self:
        """Pack what a method found."""
        out_features, in_features = solution.codes.shape
        offset = int(solution.zero.min() >= 1)
        with torch.device("meta"):
            made = cls(in_features, out_features, solution.bits, solution.group_size, offset)
        index, codes = group_index(in_features, solution.group_size, solution.codes.device), solution.codes
        if solution.order is not None:
            back = solution.order.argsort()
            index, codes = index[back], codes[:, back]
        made.qweight = pack(codes, made.bits).T.contiguous()
        made.qzeros = pack((solution.zero.T - offset).to(torch.uint8), made.bits)
        made.scales = solution.scale.T.half().contiguous()
        made.g_idx = index.to(torch.int32)
        return made

    @property
    def codes(self) -> Tensor:
        """(N, K) uint8, inputs in the model's order."""
        return unpack(self.qweight.T, self.bits, self.in_features)

    @property
    def zero(self) -> Tensor:
        """(G, N) int32."""
        return unpack(self.qzeros, self.bits, self.out_features).int() + self.offset

    def dense_weight(self) -> Tensor:
        """(out, in) float32: the oracle of every product."""
        return _dense(*self._packed, self.in_features, self.out_features, self.bits, self.offset)

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the dense weight: index (…) → (…, in) float32."""
        flat = index.flatten()
        codes, group = unpack(self.qweight[:, flat].T, self.bits, self.in_features), self.g_idx.long()
        zero, scale = self.zero[:, flat].T[:, group], self.scales[:, flat].T.float()[:, group]
        return ((codes - zero) * scale).view(*index.shape, -1)

    @property
    def _packed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.qweight, self.qzeros, self.scales, self.g_idx

    def forward(self, x: Tensor) -> Tensor:
        sizes = self.in_features, self.out_features, self.bits, self.offset
        return _Product.apply(x, *self._packed, sizes)  # type: ignore[return-value]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """`fn` sees the scales as the integers of their bits: it moves them and cannot round them."""
        dtype = self.scales.dtype
        self.scales = self.scales.view(torch.int32 if dtype.itemsize == 4 else torch.int16)
        try:
            return super()._apply(fn, recurse)
        finally:
            self.scales = self.scales.view(dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, {self.bits} bits, groups of {self.group_size or 'all'}"


def _dense(qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor, inputs: int, outputs: int, bits: int,
           offset: int) -> Tensor:  # fmt: skip
    group = g_idx.long()
    zero = (unpack(qzeros, bits, outputs).float() + offset)[group]  # (K, N)
    codes = unpack(qweight.T, bits, inputs).T
    return ((codes - zero) * scales.float()[group]).T


class _Product(torch.autograd.Function):
    """x · Wᵀ with W unpacked for the product and again for the gradient: autograd keeps the packed words only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor,
                sizes: tuple[int, int, int, int]) -> Tensor:  # fmt: skip
        ctx.save_for_backward(qweight, qzeros, scales, g_idx)
        ctx.sizes = sizes
        return linear(x, _dense(qweight, qzeros, scales, g_idx, *sizes).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] @ _dense(*ctx.saved_tensors, *ctx.sizes).to(grads[0].dtype), None, None, None, None, None


class PackedEmbedding(nn.Module):
    """tokens (…) → rows of a packed matrix, in the dtype that the model computes in.

    `packed` may be the head's own: a tied model then holds it once.
    """

    like: Tensor

    def __init__(self, packed: GroupedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = packed
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Empty: it has the device and the dtype that callers ask an embedding's weight for."""
        return self.like

    def forward(self, tokens: Tensor) -> Tensor:
        return self.packed.rows(tokens).to(self.like.dtype)

    def dense_weight(self) -> Tensor:
        """(V, C) float32."""
        return self.packed.dense_weight()
