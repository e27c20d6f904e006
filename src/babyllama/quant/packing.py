"""Small integers in 32-bit words, in the orders of GPTQ's and AWQ's folders. Pure functions, exact.

GPTQ's order is successive values in successive bits, little end first; 32 values of 3 bits fill three words, and two of
those values lie over a word's border. AWQ's order interleaves the eight 4-bit values of a word.
Not here: scales and zeros as numbers (grid.py), modules (linear.py).
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor
from torch.nn.functional import pad

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of an AWQ word holds value AWQ_ORDER[i] of its eight


def unit(bits: int) -> tuple[int, int]:
    """(values, words) of the smallest stretch that whole words hold: 4 bits (8, 1), 3 bits (32, 3)."""
    words = bits // gcd(bits, 32)
    return 32 * words // bits, words


def word_count(values: int, bits: int) -> int:
    """Words that `values` take, in whole units."""
    each, words = unit(bits)
    return -(-values // each) * words


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes (…, M) → (…, word_count(M)) int32 along the last dimension, GPTQ's order; behind M are zeros."""
    values, words = unit(bits)
    split = pad(codes, (0, -codes.shape[-1] % values)).to(torch.int64).unflatten(-1, (-1, values))
    joined = torch.zeros(*split.shape[:-1], words, dtype=torch.int64, device=codes.device)
    for i in range(values):
        word, shift = divmod(i * bits, 32)
        joined[..., word] |= (split[..., i] << shift) & 0xFFFFFFFF
        if shift + bits > 32:
            joined[..., word + 1] |= split[..., i] >> (32 - shift)
    return torch.where(joined >= 1 << 31, joined - (1 << 32), joined).to(torch.int32).flatten(-2)


def unpack(words: Tensor, bits: int, values: int) -> Tensor:
    """The inverse of `pack`: (…, W) int32 → (…, values) uint8."""
    each, count = unit(bits)
    split, mask = words.unflatten(-1, (-1, count)), (1 << bits) - 1
    found = []
    for i in range(each):
        word, shift = divmod(i * bits, 32)
        value = (split[..., word] >> shift) & (mask if shift + bits <= 32 else (1 << (32 - shift)) - 1)
        if shift + bits > 32:
            value = (value | split[..., word + 1] << (32 - shift)) & mask
        found.append(value.to(torch.uint8))
    return torch.stack(found, -1).flatten(-2)[..., :values]


def pack_awq(codes: Tensor) -> Tensor:
    """4-bit values along the last dimension, a multiple of eight: (…, M) → (…, M / 8) int32, AWQ's order."""
    return pack(codes.unflatten(-1, (-1, 8))[..., list(AWQ_ORDER)].flatten(-2), 4)


def unpack_awq(words: Tensor) -> Tensor:
    """The inverse of `pack_awq`: (…, W) → (…, 8 · W) uint8."""
    back = [AWQ_ORDER.index(i) for i in range(8)]
    return unpack(words, 4, 8 * words.shape[-1]).unflatten(-1, (-1, 8))[..., back].flatten(-2)
