"""The RoPE laws as frozen values: by which frequencies keys and queries turn, and how a trained context is stretched.

    rope: {kind: none | linear | ntk | dynamic_ntk | by_parts | yarn | clex}

`factor` is the new context over the trained one, `original` the trained one in tokens. `theta` and `original` may be
left out: they are then the model's own. Also how each law is written in a Hugging Face ``config.json``. Not here: the
formulas (rope.FREQUENCIES, clex.py), the rest of ``config.json`` (config.py).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from babyllama.errors import InputError
from babyllama.recipe import Recipe, validate


class _Law(Recipe):
    """What all laws have."""

    theta: float | None = Field(default=None, gt=1, description="the base b; default: the model's own, or 10,000")

    @property
    def base(self) -> float:
        """b of θ_i = b^(−2i/D), as it was trained."""
        return 10_000.0 if self.theta is None else self.theta

    @property
    def static(self) -> bool:
        """Whether the frequencies are the same at every length: keys may then be cached after rotation."""
        return True

    @property
    def reach(self) -> float:
        """How many times the trained context."""
        return 1.0

    @property
    def stretch(self) -> int | None:
        """Rows of training take positions up to so many times the trained context; None: they count 0, 1, 2, …"""
        return None

    def parameters(self, head_dim: int) -> int:
        """How many weights the law itself learns."""
        return 0


class PlainRope(_Law):
    """RoPE as LLaMA-2 has it (arXiv 2104.09864)."""

    kind: Literal["none"] = "none"

    @model_validator(mode="before")
    @classmethod
    def _no_factor(cls, data: Any) -> Any:
        given = [key for key in ("factor", "original", "max_t") if isinstance(data, dict) and key in data]
        if given:
            raise ValueError(f"{given[0]} has no effect with kind none; choose one of {', '.join(KINDS[1:])}")
        return data


class _Extension(_Law):
    """What all laws have that reach beyond the trained context."""

    original: int | None = Field(default=None, ge=1, description="trained context, tokens; default: the model's")

    @property
    def trained(self) -> int:
        """`original`, known. Raises ValueError while it is not."""
        if self.original is None:
            raise ValueError("original (the trained context, in tokens) is not known here; give it")
        return self.original


class _Scaled(_Extension):
    factor: float = Field(ge=1, le=1024, description="new context / trained context")

    @property
    def reach(self) -> float:
        return self.factor


class LinearRope(_Scaled):
    """Position interpolation (arXiv 2306.15595): position m counts as m / factor. Needs fine-tuning."""

    kind: Literal["linear"] = "linear"


class NtkRope(_Scaled):
    """NTK-aware: a larger base; the fastest frequency is untouched, the slowest slowed by exactly the factor."""

    kind: Literal["ntk"] = "ntk"


class DynamicNtkRope(_Scaled):
    """NTK-aware by the length at hand: plain up to `original`, then s = factor · length / original − (factor − 1)."""

    kind: Literal["dynamic_ntk"] = "dynamic_ntk"

    @property
    def static(self) -> bool:
        return False


class _Parted(_Scaled):
    """Frequencies that turn more than `beta` times in the trained context stay, those below `alpha` are interpolated.

    In between a ramp leads over: ``dimensions`` is straight over the dimensions, as the authors' code and transformers
    have it; ``rotations`` is straight over the number of turns, as the paper's equation has it.
    """

    alpha: float = Field(default=1.0, gt=0, description="turns in the trained context; Hugging Face's beta_slow")
    beta: float = Field(default=32.0, gt=0, description="turns in the trained context; Hugging Face's beta_fast")
    ramp: Literal["dimensions", "rotations"] = Field(
        default="dimensions", description="between fast and slow pairs: by their number (YaRN) or by their turns"
    )

    @model_validator(mode="after")
    def _ordered(self) -> _Parted:
        if self.alpha >= self.beta:
            raise ValueError(f"alpha {self.alpha:g} must be below beta {self.beta:g}")
        return self


class ByPartsRope(_Parted):
    """NTK-by-parts (arXiv 2309.00071, eq. 17–19): YaRN without its temperature."""

    kind: Literal["by_parts"] = "by_parts"


class YarnRope(_Parted):
    """YaRN (arXiv 2309.00071): by parts, and sharper attention at longer context."""

    kind: Literal["yarn"] = "yarn"
    attention_factor: float | None = Field(
        default=None, gt=0, description="multiplies cos and sin; default: 0.1·ln(factor) + 1"
    )


class ClexRope(_Extension):
    """CLEX (arXiv 2310.16450): an ordinary differential equation, learned, moves the frequencies as t grows.

    t = ⌈length / original⌉, at most max_t. Up to `original` tokens nothing changes.
    """

    kind: Literal["clex"] = "clex"
    max_t: int = Field(default=16, ge=2, le=256, description="the longest context that is trained / the original one")
    amplify: int = Field(default=1, ge=1, le=16, description="λ: width of the hidden layer / head_dim")
    steps: int = Field(default=8, ge=1, le=1000, description="Runge-Kutta steps from one whole t to the next")

    @property
    def reach(self) -> float:
        return self.max_t

    @property
    def static(self) -> bool:
        return False

    @property
    def stretch(self) -> int | None:
        return self.max_t

    def parameters(self, head_dim: int) -> int:
        return head_dim * self.amplify * head_dim


Kind = Literal["none", "linear", "ntk", "dynamic_ntk", "by_parts", "yarn", "clex"]
KINDS: tuple[str, ...] = get_args(Kind)


def _says_its_kind(data: Any) -> Any:
    if isinstance(data, dict) and "kind" not in data:
        raise ValueError(f"kind must be given, one of {', '.join(KINDS)}")
    return data


RopeConfig = Annotated[
    PlainRope | LinearRope | NtkRope | DynamicNtkRope | ByPartsRope | YarnRope | ClexRope,
    Field(discriminator="kind"),
    BeforeValidator(_says_its_kind),
]


class _Chosen(Recipe):
    rope: RopeConfig


def law_of(fields: dict[str, Any], where: str) -> RopeConfig:
    """A law by its fields. Raises InputError, which begins with `where`."""
    return validate(_Chosen, {"rope": fields}, where).rope


def settle(rope: RopeConfig, theta: float, original: float) -> RopeConfig:
    """The law with what it left out. Raises ValueError when the trained context would not be a whole number."""
    known: dict[str, Any] = {} if rope.theta is not None else {"theta": theta}
    if isinstance(rope, _Extension) and rope.original is None:
        if original != int(original) or original < 1:
            raise ValueError(f"the trained context would be {original:g} tokens; give original, in tokens")
        known["original"] = int(original)
    return rope.model_copy(update=known) if known else rope


def stretched_theta(base: float, factor: float, head_dim: int) -> float:
    """NTK-aware: b' = b · s^(D/(D−2))."""
    return base * factor ** (head_dim / (head_dim - 2))


def attention_factor(rope: RopeConfig) -> float:
    """What cos and sin are multiplied with: √(1/t) of YaRN (arXiv 2309.00071, eq. 22), 1 elsewhere."""
    if not isinstance(rope, YarnRope):
        return 1.0
    return 0.1 * math.log(rope.factor) + 1.0 if rope.attention_factor is None else rope.attention_factor


# ── Hugging Face ───────────────────────────────────────────────────────────────────────────────────────────────────
def hugging_face_rope(rope: RopeConfig, head_dim: int) -> dict[str, Any] | None:
    """``rope_parameters`` by which transformers computes this law exactly; None where it cannot."""
    if isinstance(rope, PlainRope):
        return {"rope_type": "default", "rope_theta": rope.base}
    if isinstance(rope, NtkRope):
        return {"rope_type": "default", "rope_theta": stretched_theta(rope.base, rope.factor, head_dim)}
    if isinstance(rope, LinearRope | DynamicNtkRope):
        kind = "linear" if isinstance(rope, LinearRope) else "dynamic"
        return {"rope_type": kind, "rope_theta": rope.base, "factor": rope.factor}
    if isinstance(rope, ByPartsRope | YarnRope) and rope.ramp == "dimensions":
        return {"rope_type": "yarn", "rope_theta": rope.base, "factor": rope.factor,
                "original_max_position_embeddings": rope.trained, "attention_factor": attention_factor(rope),
                "beta_fast": rope.beta, "beta_slow": rope.alpha}  # fmt: skip
    return None


def from_hugging_face_rope(found: dict[str, Any], longest: int, where: str) -> tuple[RopeConfig, int]:
    """``rope_parameters`` (or the older ``rope_scaling``) → law, and the longest context it reaches.

    Args:
        longest: the file's max_position_embeddings, which of a dynamic law is the trained context.

    Raises:
        InputError: a law that is not computed here.
    """
    kind, factor = found.get("rope_type", "default"), found.get("factor")
    theta = found.get("rope_theta", 10_000.0)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 1:
        raise InputError(f"{where}: rope.theta: input should be a valid number above 1, got {theta!r}")
    theta = float(theta)
    if kind not in ("default", "linear", "dynamic", "yarn") or found.get("truncate") is False or (
        found.get("partial_rotary_factor", 1) != 1
    ):  # fmt: skip
        raise InputError(f"{where}: rope_scaling = {found!r} is not supported here; "
                         "RoPE scalings that can be read: default, linear, dynamic, yarn")  # fmt: skip
    if kind == "default":
        return PlainRope(theta=theta), longest
    trained = int(found.get("original_max_position_embeddings", longest))
    if kind == "yarn" and factor is None:
        factor = longest / trained
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor <= 1024:
        raise InputError(f"{where}: rope_scaling.factor = {factor!r} must be a number from 1 to 1024")
    if kind == "linear":
        return LinearRope(theta=theta, factor=float(factor), original=max(1, round(longest / factor))), longest
    if kind == "dynamic":
        return DynamicNtkRope(theta=theta, factor=float(factor), original=longest), int(longest * factor)
    alpha, beta = float(found.get("beta_slow") or 1), float(found.get("beta_fast") or 32)
    law = YarnRope(theta=theta, factor=float(factor), original=trained, alpha=alpha, beta=beta,
                   attention_factor=_temperature(found, factor))  # fmt: skip
    return law, longest


def _temperature(found: dict[str, Any], factor: float) -> float | None:
    """YaRN's attention factor as the file gives it, or as DeepSeek's mscale and mscale_all_dim do."""
    if found.get("attention_factor") is not None:
        return float(found["attention_factor"])
    above, below = found.get("mscale"), found.get("mscale_all_dim")
    if not (above and below):
        return None
    return (0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)
