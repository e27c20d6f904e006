"""Rotary position embedding: position → rotation of every pair of head dimensions.

`FREQUENCIES` maps a RopeConfig's kind to its formula; a new law is one entry. The rotation pairs dimension i with
i + D/2 (Hugging Face's layout, "rotate half"). Not here: where keys are cached (attention.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from babyllama.model.config import RopeConfig


def plain_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """θ_i = theta^(−2i/D), i < D/2, in float32 (arXiv 2104.09864, eq. 15)."""
    return 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


FREQUENCIES: dict[str, Callable[[RopeConfig, int], Tensor]] = {"none": plain_frequencies}


class Rope(nn.Module):
    """positions (B, T) → cos, sin (B, 1, T, D), each in float32: at position 10⁴ a bf16 angle is off by radians."""

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        super().__init__()
        self.config, self.head_dim = config, head_dim
        self.register_buffer("frequencies", FREQUENCIES[config.kind](config, head_dim), persistent=False)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[override]
        """Follow the model to its device but never to its dtype: the frequencies stay float32."""
        super()._apply(fn, recurse)
        exact = FREQUENCIES[self.config.kind](self.config, self.head_dim)
        self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotations(positions, self.frequencies)


@torch.library.custom_op("babyllama::rotations", mutates_args=())
def rotations(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """positions (B, T), frequencies (D/2,) → cos, sin (B, 1, T, D).

    An operator of its own, so that a compiler computes them once: left to itself it fuses the cosines into every use,
    for every head of every layer, which took 5 % of a training step.
    """
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, D/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@rotations.register_fake
def _(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    B, T = positions.shape
    shape = B, 1, T, 2 * frequencies.shape[0]
    return frequencies.new_empty(shape), frequencies.new_empty(shape)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, heads, T, D) by the angles (B, 1, T, D); computed in float32, returned in x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
