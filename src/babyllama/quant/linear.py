"""Linear-likes that hold their matrix in few bits, and the embedding that reads one.

Gradients flow to inputs, not to weights: adapters train on top. Not here: how codes are found, layouts of files
(folder.py). Shapes: K inputs, N outputs, G groups of inputs; the last group may be short.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from babyllama.hardware import ampere
from babyllama.model.surgery import FewBits, Words, unpacked_product
from babyllama.quant.cpu import Nibbles, WithNibbles, nibble_group
from babyllama.quant.grid import Solution, group_index
from babyllama.quant.packing import pack, unit, unpack, word_count

FEW_ROWS = 16  # of decoding: the weights' way through memory is what costs, so they travel packed


class GroupedLinear(WithNibbles):
    """x · ((codes − zero) · scale)ᵀ, codes in 2, 3, 4 or 8 bits.

    Buffers: words (K · bits / 32, N) int32, rounded up to whole units of packing.py; zeros (G, N) uint8; scales (G, N)
    float16, which no change of the model's dtype rounds; order (K,) int32 or None: code k belongs to input order[k],
    so that groups are of successive codes whatever order a method went in.
    """

    unrounded: ClassVar[dict[str, torch.dtype]] = {"scales": torch.float16}
    words: Tensor
    zeros: Tensor
    scales: Tensor
    order: Tensor | None

    def __init__(self, in_features: int, out_features: int, bits: int, group_size: int | None, ordered: bool = False
                 ) -> None:  # fmt: skip
        super().__init__()
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        self.group_size = group_size or in_features
        groups = -(-in_features // self.group_size)
        words = torch.zeros(word_count(in_features, bits), out_features, dtype=torch.int32)
        self.register_buffer("words", words)
        self.register_buffer("zeros", torch.zeros(groups, out_features, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(groups, out_features, dtype=torch.float16))
        self.register_buffer("order", torch.arange(in_features, dtype=torch.int32) if ordered else None)

    @classmethod
    def of(cls, solution: Solution) -> Self:
        """Pack what a method found."""
        out_features, in_features = solution.codes.shape
        with torch.device("meta"):
            made = cls(in_features, out_features, solution.bits, solution.group_size)
        codes, order = solution.codes, solution.order
        if order is not None:  # inside a group by the input's number, as whoever reads a folder's groups has them
            back = group_index(in_features, solution.group_size, codes.device)[order.argsort()].argsort(stable=True)
            codes, order = codes[:, order.argsort()][:, back], back
        made.words = pack(codes, made.bits).T.contiguous()
        made.zeros = solution.zero.T.to(torch.uint8).contiguous()
        made.scales = solution.scale.T.half().contiguous()
        made.order = None if order is None else order.to(torch.int32)
        return made

    @property
    def codes(self) -> Tensor:
        """(N, K) uint8, in the order of the words."""
        return unpack(self.words.T, self.bits, self.in_features)

    def dense_weight(self) -> Tensor:
        """(out, in) float32: the oracle of every product."""
        return self._in_the_models_order(_dense(*self._packed))

    def few_bits(self) -> FewBits:
        """The matrix by its codes."""
        return FewBits(self.codes, self.scales, self.zeros, self.bits, self.group_size, order=self.order)

    @property
    def in_words(self) -> Words | None:
        """The matrix as it lies in memory; None where kernels of elsewhere do not read it."""
        if self.bits not in (4, 8) or not self.on_gpu:
            return None
        return Words(self.words, self.zeros, self.scales, self.order, self.bits, self.group_size)

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the dense weight: index (…) → (…, in) float32."""
        flat = index.flatten()
        found = _rounded(self.words[:, flat], self.zeros[:, flat], self.scales[:, flat], self.in_features, self.bits,
                         self.group_size, torch.float32)  # fmt: skip
        return self._in_the_models_order(found).view(*index.shape, -1)

    def _in_the_models_order(self, weight: Tensor) -> Tensor:
        return weight if self.order is None else weight[:, self.order.argsort()]

    @property
    def _packed(self) -> tuple[Tensor, Tensor, Tensor, int, int, int]:
        return self.words, self.zeros, self.scales, self.in_features, self.bits, self.group_size

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.order is None else x[..., self.order]
        if few_rows(x):
            if kernels_take(x) and self.on_gpu:
                from babyllama.quant.kernels import packed_product

                return packed_product(x.flatten(0, -2), *self._packed).view(*x.shape[:-1], -1)
            if on_cpu(x) and self.on_cpu:
                return self.nibbles(x)
        return unpacked_product(x, _rounded, *self._packed, x.dtype)

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU's kernels compute this: a unit of words lies in one group."""
        return self.group_size % unit(self.bits)[0] == 0 or self.group_size >= self.in_features

    @property
    def on_cpu(self) -> bool:
        """Whether PyTorch's own product of few bits computes this."""
        return nibble_group(self.in_features, self.group_size) is not None

    def _as_nibbles(self) -> Nibbles:
        size = nibble_group(self.in_features, self.group_size) or 0
        return Nibbles(self.codes, self.scales, self.zeros, self.bits, self.group_size, size)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, {self.bits} bits, groups of {self.group_size}"


def few_rows(x: Tensor) -> bool:
    """Whether x (…, K) is what decoding multiplies, for which kernels read packed weights. They have no gradients."""
    return x.numel() <= FEW_ROWS * x.shape[-1] and not (x.requires_grad and torch.is_grad_enabled())


def kernels_take(x: Tensor) -> bool:
    """Whether x is where kernels.py runs, in a dtype that it multiplies."""
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and ampere(x.device)


def on_cpu(x: Tensor) -> bool:
    """Whether x is where the operators of cpu.py run, in the one dtype in which they beat a dense product."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def _dense(words: Tensor, zeros: Tensor, scales: Tensor, inputs: int, bits: int, group_size: int) -> Tensor:
    """(N, K) float32, in the order of the words."""
    group = group_index(inputs, group_size, words.device)
    codes = unpack(words.T, bits, inputs)
    return (codes.float() - zeros.T.float()[:, group]) * scales.T.float()[:, group]


def _rounded(words: Tensor, zeros: Tensor, scales: Tensor, inputs: int, bits: int, group_size: int, dtype: torch.dtype
             ) -> Tensor:  # fmt: skip
    """`_dense` in another dtype: on a GPU by one kernel, where PyTorch takes some thirty a matrix."""
    one_group = 32 % bits == 0 and (group_size % (32 // bits) == 0 or group_size >= inputs)
    if words.is_cuda and one_group and ampere(words.device) and not torch.compiler.is_compiling():
        from babyllama.quant.kernels import unpacked

        return unpacked(words, zeros, scales, inputs, bits, group_size, dtype)
    return _dense(words, zeros, scales, inputs, bits, group_size).to(dtype)


class PackedEmbedding(nn.Module):
    """tokens (…) → rows of a packed matrix, in the dtype that the model computes in.

    `packed` may be the head's own: a tied model then holds it once.
    """

    like: Tensor

    def __init__(self, packed: GroupedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = packed
        device = torch.device("cpu") if packed.words.is_meta else packed.words.device
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Empty: it has the device and the dtype that callers ask an embedding's weight for."""
        return self.like

    @property
    def in_words(self) -> Words | None:
        """Its matrix, as of a GroupedLinear."""
        return self.packed.in_words

    def forward(self, tokens: Tensor) -> Tensor:
        return self.packed.rows(tokens).to(self.like.dtype)

    def dense_weight(self) -> Tensor:
        """(V, C) float32."""
        return self.packed.dense_weight()
