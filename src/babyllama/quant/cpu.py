"""Products of few rows with packed weights on a CPU, by PyTorch's own operators, which are fast in bfloat16 only.

They multiply 4-bit codes and rows of int8. Fewer bits than four travel as four, eight bits in groups as two fours.
Not here: what the codes stand for (linear.py, int8.py, onebit.py). Shapes: K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from babyllama.model.surgery import Unrounded

SIZES, OUTPUTS = (128, 64, 32, 256), 16  # groups that the 4-bit product takes, and what outputs are a multiple of
MIDDLE = 8  # the code that stands for zero there


def nibble_group(in_features: int, group_size: int) -> int | None:
    """Inputs a scale in `Nibbles`: one of SIZES that divides both; None where there is none."""
    return next((size for size in SIZES if group_size % size == 0 and in_features % size == 0), None)


class Nibbles:
    """x · Wᵀ, W = scale · (codes − zero): made once from the codes, and held beside them.

    Scales and zeros are rounded to bfloat16, an error of 2⁻⁹ of a weight, as of a dense matrix in that dtype.

    Args:
        codes: (N, K) uint8.
        scales, zeros: (G, N), each for `group_size` codes.
        size: `nibble_group` of them.
    """

    def __init__(self, codes: Tensor, scales: Tensor, zeros: Tensor, bits: int, group_size: int, size: int) -> None:
        (self.outputs, inputs), self.size = codes.shape, size
        scales, zeros = (part.float().repeat_interleave(group_size // size, 0)[: inputs // size]
                         for part in (scales, zeros))  # fmt: skip
        if bits <= 4:  # the middle of every grid is MIDDLE, so that what is rounded with the zeros is small
            own = 1 << (bits - 1)
            self.terms = [self._term(codes + (MIDDLE - own), scales, (own - zeros) * scales)]
        else:  # code = 16 · high + low
            shift = (17 * MIDDLE - zeros) * scales
            self.terms = [self._term(codes >> 4, 16 * scales, shift), self._term(codes & 15, scales, 0 * shift)]

    def _term(self, codes: Tensor, scales: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The operator's form of (codes − MIDDLE) · scales + shift, outputs filled up."""
        more = -self.outputs % OUTPUTS
        words = torch._convert_weight_to_int4pack_for_cpu(pad(codes, (0, 0, 0, more)).int(), 1)
        return words, pad(torch.stack([scales, shift], -1).bfloat16(), (0, 0, 0, more))

    def __call__(self, x: Tensor) -> Tensor:
        """x (…, K) bfloat16 → (…, N)."""
        rows = x.flatten(0, -2).contiguous()
        found = [torch._weight_int4pack_mm_for_cpu(rows, words, self.size, scales) for words, scales in self.terms]
        y = found[0] if len(found) == 1 else found[0] + found[1]
        return y[:, : self.outputs].view(*x.shape[:-1], -1)


class WithNibbles(Unrounded):
    """A packed linear that holds `Nibbles` beside its codes from the first time that they are asked for."""

    _nibbles: Nibbles | None = None

    @property
    def nibbles(self) -> Nibbles:
        """The same weights in the order of that product."""
        if self._nibbles is None:
            self._nibbles = self._as_nibbles()
        return self._nibbles

    def _as_nibbles(self) -> Nibbles:
        raise NotImplementedError

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._nibbles = None  # they do not follow the module to another device or dtype
        return super()._apply(fn, recurse)
