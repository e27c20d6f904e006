"""Rotary position embedding: position → rotation of every pair of head dimensions.

`FREQUENCIES` maps the kind of a law (laws.py) to its formula; a new law is one entry. The rotation pairs dimension i
with i + D/2 (Hugging Face's layout, "rotate half"). A module of the same contract as `Rope` may stand in its place
(clex.py). Not here: where keys are cached (attention.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from babyllama.hardware import finest
from babyllama.model.laws import (
    ByPartsRope,
    DynamicNtkRope,
    LinearRope,
    NtkRope,
    RopeConfig,
    YarnRope,
    attention_factor,
    stretched_theta,
)


def geometric(theta: float, head_dim: int) -> Tensor:
    """θ_i = theta^(−2i/D), i < D/2, in float32 (arXiv 2104.09864, eq. 15)."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def plain_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """As trained."""
    return geometric(rope.base, head_dim)


def linear_frequencies(rope: LinearRope, head_dim: int) -> Tensor:
    """θ_i / s: the same angles as position m / s (arXiv 2306.15595, eq. 4)."""
    return plain_frequencies(rope, head_dim) / rope.factor


def ntk_frequencies(rope: NtkRope, head_dim: int) -> Tensor:
    """b'^(−2i/D), b' = b · s^(D/(D−2)): 1 for i = 0, θ_i / s for the last i."""
    return geometric(stretched_theta(rope.base, rope.factor, head_dim), head_dim)


def parted_frequencies(rope: ByPartsRope | YarnRope, head_dim: int) -> Tensor:
    """(1 − γ_i)·θ_i / s + γ_i·θ_i (arXiv 2309.00071, eq. 19)."""
    plain, kept = plain_frequencies(rope, head_dim), RAMPS[rope.ramp](rope, head_dim)
    return torch.lerp(plain / rope.factor, plain, kept)


def rotations_ramp(rope: ByPartsRope | YarnRope, head_dim: int) -> Tensor:
    """γ_i = clip((r_i − α) / (β − α), 0, 1), r_i = L·θ_i / 2π turns in the trained context (eq. 17 and 18)."""
    turns = rope.trained * plain_frequencies(rope, head_dim) / (2 * math.pi)
    return ((turns - rope.alpha) / (rope.beta - rope.alpha)).clamp(0, 1)


def dimensions_ramp(rope: ByPartsRope | YarnRope, head_dim: int) -> Tensor:
    """γ falls along a straight line from the dimension with β turns (rounded down) to that with α (rounded up)."""

    def dimension(turns: float) -> float:
        return head_dim * math.log(rope.trained / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    first = max(math.floor(dimension(rope.beta)), 0)
    last = min(math.ceil(dimension(rope.alpha)), head_dim - 1)
    width = last - first or 0.001
    return 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)


RAMPS: dict[str, Callable[[Any, int], Tensor]] = {"dimensions": dimensions_ramp, "rotations": rotations_ramp}

# Of laws that do not change with the length; those that do start from the plain ones.
FREQUENCIES: dict[str, Callable[[Any, int], Tensor]] = {
    "none": plain_frequencies,
    "linear": linear_frequencies,
    "ntk": ntk_frequencies,
    "dynamic_ntk": plain_frequencies,
    "by_parts": parted_frequencies,
    "yarn": parted_frequencies,
    "clex": plain_frequencies,
}


class Rope(nn.Module):
    """positions (B, T) → cos, sin (B, 1, T, D), each in float32: at position 10⁴ a bf16 angle is off by radians."""

    frequencies: Tensor

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        super().__init__()
        self.config, self.head_dim = config, head_dim
        self.scale = attention_factor(config)
        self.register_buffer("frequencies", FREQUENCIES[config.kind](config, head_dim), persistent=False)

    @property
    def static(self) -> bool:
        """Whether keys may be cached after rotation."""
        return self.config.static

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rope:
        """Follow the model to its device but never to its dtype: frequencies, learned or not, stay float32."""

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)  # type: ignore[return-value]

    def forward(self, positions: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The rotations.

        Args:
            lengths: (B,) tokens of each row's whole sequence, or (B, T) of each token's, for laws that go by it; by
                default a row's last position + 1.
        """
        if self.static:
            return turns(positions, self.frequencies, self.scale)
        lengths = positions.amax(-1) + 1 if lengths is None else lengths
        return turns(positions, self.at(lengths), self.scale)

    def at(self, lengths: Tensor) -> Tensor:
        """Lengths (…) → frequencies (…, D/2)."""
        return self.frequencies.expand(*lengths.shape, -1)


def spans(positions: Tensor, segments: Tensor) -> Tensor:
    """Positions (B or 1, T) and document numbers (B, T) → how many positions each token's document spans, (B, T)."""
    B, T = segments.shape
    positions = positions.expand(B, T)
    nothing = positions.new_zeros(B, T + 1)
    first, last = (nothing.scatter_reduce(1, segments, positions, way, include_self=False) for way in ("amin", "amax"))
    return (last - first).gather(1, segments) + 1


class DynamicNtk(Rope):
    """NTK-aware scaling by the length at hand; b' always comes from the trained base, and nothing is remembered."""

    config: DynamicNtkRope

    def at(self, lengths: Tensor) -> Tensor:
        """s(l) = max(1, α·l/L − (α − 1)); θ_i·s^(−2i/(D−2)), which is b'^(−2i/D). Plain, to the bit, up to L."""
        factor, trained, fine = self.config.factor, self.config.trained, finest(lengths.device)
        s = (factor * lengths.to(fine) / trained - (factor - 1)).clamp(min=1)[..., None]  # (…, 1)
        base = self.config.base * s ** (self.head_dim / (self.head_dim - 2))
        powers = torch.arange(0, self.head_dim, 2, device=lengths.device, dtype=fine) / self.head_dim
        grown = (1.0 / base**powers).float()
        return torch.where(s > 1, grown, self.frequencies)


def _by_place(frequencies: Tensor) -> Tensor:
    """(D/2,), (B, D/2) or (B, T, D/2) → (B or 1, 1, T or 1, D/2)."""
    if frequencies.ndim == 3:
        return frequencies[:, None]
    return frequencies.view(-1, 1, 1, frequencies.shape[-1])


def _turns(positions: Tensor, frequencies: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """positions (B, T), frequencies (D/2,), (B, D/2) or (B, T, D/2) → scale · cos, scale · sin (B, 1, T, D)."""
    angles = positions[:, None, :, None].float() * _by_place(frequencies)  # (B, 1, T, D/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * scale, angles.sin() * scale


# An operator of its own, so that a compiler computes them once: left to itself it fuses the cosines into every use,
# for every head of every layer, which took 5 % of a training step.
rotations = torch.library.custom_op("babyllama::rotations", _turns, mutates_args=())


@rotations.register_fake
def _(positions: Tensor, frequencies: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    B, T = positions.shape
    if frequencies.ndim > 1:
        B = max(B, frequencies.shape[0])
    shape = B, 1, T, 2 * frequencies.shape[-1]
    return frequencies.new_empty(shape), frequencies.new_empty(shape)


def _rotations_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    positions, frequencies, _ = inputs
    ctx.learned = frequencies.requires_grad
    ctx.save_for_backward(positions, frequencies, *output)


def _rotations_backward(ctx: Any, cos_grad: Tensor, sin_grad: Tensor) -> tuple[None, Tensor | None, None]:
    """d cos = −sin · position · dθ, d sin = cos · position · dθ; summed over the places and rows that share θ."""
    positions, frequencies, cos, sin = ctx.saved_tensors
    if not ctx.learned:
        return None, None, None
    slope = (sin_grad * cos - cos_grad * sin) * positions[:, None, :, None]  # (B, 1, T, D)
    first, second = slope.chunk(2, dim=-1)
    return None, (first + second).sum_to_size(_by_place(frequencies).shape).view_as(frequencies), None


rotations.register_autograd(_rotations_backward, setup_context=_rotations_context)


def turns(positions: Tensor, frequencies: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`rotations` where it is trained or compiled; else without the operator, whose first call imports the compiler:
    two seconds of every chat."""
    learning = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return (rotations if learning else _turns)(positions, frequencies, scale)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, heads, T, D) by the angles (B, 1, T, D); computed in float32, returned in x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
