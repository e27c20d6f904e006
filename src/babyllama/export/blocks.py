"""One matrix → the numbers of a GGUF tensor: whole, rounded to blocks of 32, or packed codes as they are.

A block is 32 successive inputs of an output row. Q8_0: f16 scale d, 32 int8 q, value d·q. Q4_0: f16 d, 32 q of 4 bits,
value d·(q − 8). Q4_1: f16 d, f16 m, 32 q of 4 bits, value d·q + m. A byte holds q_j below and q_(j+16) above.
A packed matrix whose groups are whole blocks is one of these already, so that no weight is rounded a second time.
Not here: names and order of tensors (weights.py), the file (gguf_file.py).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType, quantize
from torch import Tensor

from babyllama.errors import InputError
from babyllama.quant.linear import GroupedLinear

Type = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]
WHOLE: tuple[Type, ...] = ("F32", "F16", "BF16")
BLOCK = 32


class Encoded(NamedTuple):
    """data: (rows, bytes of a row) uint8 for blocks and BF16, else the numbers themselves."""

    data: np.ndarray
    type: GGMLQuantizationType


def encoded(weight: Tensor, type: Type, name: str) -> Encoded:
    """A dense matrix (N, K) in `type`; rows that are no whole blocks stay F16.

    Raises:
        InputError: numbers that are not finite, or too large for F16.
    """
    values = weight.detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise InputError(f"{name}: holds weights that are no finite numbers; export an earlier checkpoint")
    if type not in WHOLE and values.shape[-1] % BLOCK:
        type = "F16"
    if type == "F32":
        return Encoded(values, GGMLQuantizationType.F32)
    if type == "BF16":
        return Encoded(quantize(values, GGMLQuantizationType.BF16), GGMLQuantizationType.BF16)
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise InputError(f"{name}: holds weights above 65504, which F16 cannot; export with type=BF16 or type=F32")
    if type == "F16":
        return Encoded(values.astype(np.float16), GGMLQuantizationType.F16)
    kind = GGMLQuantizationType[type]
    return Encoded(quantize(values, kind), kind)


def same_codes(packed: GroupedLinear, name: str) -> Encoded:
    """Packed codes as blocks: Q4_0 where every code lies within 8 below and 7 above its zero, Q4_1 for other 4-bit
    codes (its minimum, −zero · scale, is rounded to f16), Q8_0 for 8 bits.

    Raises:
        InputError: groups that are not of successive inputs or no whole blocks, 8-bit codes too far from their zero.
    """
    inputs, remedy = packed.in_features, "type=F16 writes the same weights unpacked"
    if inputs % BLOCK or (packed.group_size % BLOCK and packed.group_size < inputs):
        raise InputError(f"{name}: groups of {packed.group_size} of {inputs} inputs are no whole blocks of {BLOCK}; "
                         f"quantise with method.group_size=32, or {remedy}")  # fmt: skip
    codes = packed.codes.int()
    if packed.order is not None:
        back = packed.order.argsort()
        group = torch.arange(inputs) // packed.group_size
        if not torch.equal(group[back], group):
            raise InputError(f"{name}: act_order=true makes groups of inputs that are not neighbours, GGUF has none; "
                             f"quantise with method.act_order=groups, or {remedy}")  # fmt: skip
        codes = codes[:, back]
    repeat = -(-packed.group_size // BLOCK)
    scales, zeros = (
        part.T.repeat_interleave(repeat, 1)[:, : inputs // BLOCK] for part in (packed.scales, packed.zeros)
    )
    blocks = codes.unflatten(1, (-1, BLOCK))  # (N, G, 32)
    signed = blocks - zeros[..., None].int()
    low, high = int(signed.min()), int(signed.max())
    scale = scales.half().contiguous().view(torch.uint8).unflatten(-1, (-1, 2))  # (N, G, 2) bytes
    if low >= -8 and high <= 7:
        kind, parts = GGMLQuantizationType.Q4_0, [scale, _nibbles(signed + 8)]
    elif packed.bits <= 4:
        least = (-zeros.float() * scales.float()).half().contiguous().view(torch.uint8).unflatten(-1, (-1, 2))
        kind, parts = GGMLQuantizationType.Q4_1, [scale, least, _nibbles(blocks)]
    elif low >= -128 and high <= 127:
        kind, parts = GGMLQuantizationType.Q8_0, [scale, signed.to(torch.int8).view(torch.uint8)]
    else:
        raise InputError(f"{name}: its 8-bit codes lie up to {max(-low, high)} from their zero, Q8_0 holds 127; "
                         f"quantise with method.symmetric=true, or {remedy}")  # fmt: skip
    return Encoded(torch.cat(parts, -1).flatten(1).numpy(), kind)


def _nibbles(codes: Tensor) -> Tensor:
    """(N, G, 32) of 0 … 15 → (N, G, 16) bytes."""
    return (codes[..., :16] | codes[..., 16:] << 4).to(torch.uint8)
