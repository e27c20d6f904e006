"""The grid that weights are rounded to: code q in 0 … 2^bits − 1 stands for scale · (q − zero).

One scale (fp16) and zero (an integer) for each group of successive inputs of an output row. Not here: which code a
weight gets when its neighbours' errors count too (gptq.py), words (packing.py).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from babyllama.recipe import Recipe

Bits = Literal[2, 3, 4, 8]
SHRINKS = torch.linspace(1.0, 0.21, 80).tolist()  # of the range, for the clip search, as GPTQ's own code

SEARCHED = 1 << 24  # weights that one pass of that search makes


class Scales(NamedTuple):
    """Both (N, G); `scale` holds numbers that fp16 holds, in float32, `zero` integers in float32."""

    scale: Tensor
    zero: Tensor


class Solution(NamedTuple):
    """One matrix on its grid.

    codes: (N, K) uint8.  scale, zero: (N, G).  group_size: None for one group.
    order: (K,) or None; the inputs in the order in which groups were made of them: code column i is input order[i].
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group_size: int | None
    order: Tensor | None = None

    def rows(self, start: int, stop: int) -> Solution:
        """The part for some outputs."""
        return self._replace(codes=self.codes[start:stop], scale=self.scale[start:stop], zero=self.zero[start:stop])

    def dense(self) -> Tensor:
        """(N, K) float32, inputs in the model's order."""
        index = group_index(self.codes.shape[1], self.group_size, self.codes.device)
        weight = (self.codes.float() - self.zero[:, index]) * self.scale[:, index]
        return weight if self.order is None else weight[:, self.order.argsort()]


class Grid(Recipe):
    """How finely: what all methods share."""

    bits: Bits = Field(default=4, description="of each weight")
    group_size: int | None = Field(
        default=128, ge=16, multiple_of=16, description="inputs that share a scale; null: whole rows"
    )
    short_group: bool = Field(
        default=False, description="let the last group be shorter; default: take 64, 32 or 16 where 128 does not divide"
    )
    symmetric: bool = Field(default=False, description="put zero in the middle of the grid")
    mse: bool = Field(default=False, description="search for a clipped range with a smaller error (norm 2.4)")

    def fit(self, weight: Tensor, shrink: Tensor | None = None) -> Scales:
        """The grids of groups (…, g) → scale and zero (…), from their smallest and largest values.

        Args:
            shrink: (…) share of the range that is kept; what is beyond is clipped.
        """
        if self.mse and shrink is None:
            return self._search(weight)
        low, high = weight.amin(-1).clamp(max=0), weight.amax(-1).clamp(min=0)
        if shrink is not None:
            low, high = low * shrink, high * shrink
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        empty = (low == 0) & (high == 0)
        low, high = low.where(~empty, -1.0), high.where(~empty, 1.0)
        scale = as_fp16((high - low) / self.top)
        if self.symmetric:
            return Scales(scale, torch.full_like(scale, (self.top + 1) / 2))
        # Zero is 1 at least, since GPTQ's folders store zero − 1: a group without negative weights gets wider steps.
        positive = low > -scale / 2
        scale = as_fp16(high / (self.top - 1)).where(positive, scale)
        return Scales(scale, (-low / scale).round().clamp(1, self.top))

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def codes(self, weight: Tensor, scales: Scales) -> Tensor:
        """weight (…, g) → the nearest codes (…, g), as floats."""
        scale, zero = scales.scale[..., None], scales.zero[..., None]
        return (weight / scale + zero).round().clamp(0, self.top)

    def round(self, weight: Tensor, scales: Scales) -> Tensor:
        """weight (…, g) → the nearest values on the grid (…, g)."""
        return (self.codes(weight, scales) - scales.zero[..., None]) * scales.scale[..., None]

    def nearest(self, weight: Tensor, shrink: Tensor | None = None) -> Solution:
        """Round every weight of (N, K) by itself. `shrink` is (N, G)."""
        grouped = groups(weight, self.group_size)
        scales = self.fit(grouped, shrink)
        codes = self.codes(grouped, scales).flatten(1)[:, : weight.shape[1]]
        return Solution(codes.to(torch.uint8), *scales, self.bits, self.group_size)

    def _search(self, weight: Tensor) -> Scales:
        """All shares of the range at once, some groups at a time."""
        flat = weight.reshape(-1, weight.shape[-1])
        some = max(1, SEARCHED // (flat.shape[1] * len(SHRINKS)))
        found = zip(*(self._least(part) for part in flat.split(some)), strict=True)
        return Scales(*(torch.cat(parts).view(weight.shape[:-1]) for parts in found))

    def _least(self, weight: Tensor) -> Scales:
        """weight (M, g) → the scales (M,) of the least error; of equal ones the wider range."""
        shares = torch.tensor(SHRINKS, device=weight.device)[:, None].expand(-1, len(weight))
        scales = self.fit(weight.expand(len(SHRINKS), -1, -1), shares)
        best = self._error(weight, scales).argmin(0, keepdim=True)
        return Scales(*(part.gather(0, best)[0] for part in scales))

    def _error(self, weight: Tensor, scales: Scales) -> Tensor:
        return (self.round(weight, scales) - weight).abs().pow(2.4).sum(-1)


def groups(weight: Tensor, group_size: int | None) -> Tensor:
    """(N, K) → (N, G, g); a short last group is filled up with zeros, which no range has to grow for."""
    size = group_size or weight.shape[1]
    return pad(weight, (0, -weight.shape[1] % size)).unflatten(1, (-1, size))


def group_index(inputs: int, group_size: int | None, device: torch.device) -> Tensor:
    """(K,) int64: which group each input's code column belongs to."""
    return torch.arange(inputs, device=device) // (group_size or inputs)


def as_fp16(scale: Tensor) -> Tensor:
    """Round to what fp16 holds, never to zero or infinity."""
    tiny, top = torch.finfo(torch.float16).smallest_normal, torch.finfo(torch.float16).max
    return scale.clamp(tiny, top).half().float()
