"""Frozen weights in four or eight bits for QLoRA (arXiv 2305.14314): small in memory, dense while they multiply.

Blocks of 64 weights share one float16 scale, their largest magnitude; each weight is the nearest of a fixed table's
values. NF4's sixteen are equally likely under a normal distribution. No calibration. Not here: adapters (lora.py),
quantisation that looks at data (quant/).
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from babyllama.errors import InputError
from babyllama.model.mlp import MoE
from babyllama.model.surgery import dense_weight, replace_modules, unpacked_product

BLOCK = 64  # weights of one scale, along the flattened matrix
Base = Literal["dense", "nf4", "int8"]

# arXiv 2305.14314, appendix E: normal quantiles, one exact zero, ends at −1 and 1.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class PackedLinear(nn.Module):
    """A linear-like module without parameters: codes in bytes, a scale for each block. Made by `from_linear`.

    All buffers are integers, the bits of float ones included, so that a change of the model's dtype leaves them alone.
    They are no part of ``state_dict``: they are a function of the base's weights.
    """

    levels: ClassVar[tuple[float, ...]]
    per_byte: ClassVar[int]
    packed: Tensor
    scales: Tensor
    table: Tensor

    def __init__(self, in_features: int, out_features: int, packed: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("scales", scales.view(torch.int16), persistent=False)
        table = _table(self.levels, self.per_byte).to(packed.device)
        self.register_buffer("table", table.view(torch.int32), persistent=False)

    @classmethod
    def from_linear(cls, module: nn.Module) -> Self:
        """Pack the matrix of a linear-like module without bias."""
        weight = dense_weight(module).detach().float()
        out_features, in_features = weight.shape
        flat = pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
        scales = flat.abs().amax(1).half()
        divisor = torch.where(scales == 0, 1.0, scales.float())
        levels = torch.tensor(cls.levels, device=weight.device)
        codes = torch.bucketize(flat / divisor[:, None], (levels[1:] + levels[:-1]) / 2).to(torch.uint8).flatten()
        if cls.per_byte == 2:
            codes = codes[0::2] << 4 | codes[1::2]
        return cls(in_features, out_features, codes, scales)

    def dense_weight(self) -> Tensor:
        """(out, in) float32."""
        return _dense(self.packed, self.scales, self.table, self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        sizes = self.out_features, self.in_features
        return unpacked_product(x, _dense, self.packed, self.scales, self.table, *sizes)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Nf4Linear(PackedLinear):
    """4.25 bits a weight: a code in half a byte, 16 / 64 bits of scale."""

    levels, per_byte = NF4, 2


class Int8Linear(PackedLinear):
    """8.25 bits a weight: 255 equal steps from −1 to 1."""

    levels, per_byte = tuple(n / 127 for n in range(-127, 128)), 1


PACKED: dict[Base, type[PackedLinear]] = {"nf4": Nf4Linear, "int8": Int8Linear}


def _table(levels: tuple[float, ...], per_byte: int) -> Tensor:
    """(256, per_byte): the levels that each byte stands for."""
    values = torch.tensor(levels)
    if per_byte == 2:
        return torch.stack([values.repeat_interleave(16), values.repeat(16)], 1)
    return pad(values, (0, 256 - len(levels)))[:, None].contiguous()


def _dense(packed: Tensor, scales: Tensor, table: Tensor, out_features: int, in_features: int) -> Tensor:
    values = table.view(torch.float32).index_select(0, packed.int()).view(-1, BLOCK)
    weights = values * scales.view(torch.float16).float()[:, None]
    return weights.flatten()[: out_features * in_features].view(out_features, in_features)


def pack_base(model: nn.Module, base: Base) -> None:
    """Put packed linears in the place of all plain ones inside the blocks; embedding, head and norms stay.

    Raises:
        InputError: there are no plain ones.
    """
    if base != "dense":
        if any(isinstance(module, MoE) for module in model.modules()):
            raise InputError(f"adapter.base: {base} packs no experts, which are most of this model; leave it out")
        kind = PACKED[base]
        plain = lambda name, module: name.startswith("layers.") and isinstance(module, nn.Linear)  # noqa: E731
        packed = replace_modules(model, plain, lambda _, module: kind.from_linear(module))
        if not packed:
            raise InputError(f"adapter.base: {base} packs plain weights, this model's are packed already; leave it out")


def plain_linear(weight: Tensor, dtype: torch.dtype) -> nn.Linear:
    """An ordinary frozen linear of a (out, in) matrix."""
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    return made
