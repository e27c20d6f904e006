"""The union of all rewards, and how several of them mark one answer: values add up with their weights.

Not here: the rewards themselves (rewards.py, judge.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, NamedTuple

from pydantic import Field

from babyllama.errors import InputError
from babyllama.train.rl.judge import ModelReward
from babyllama.train.rl.rewards import (
    Answer,
    Ends,
    Exact,
    IdiomChain,
    Json,
    Length,
    Number,
    Poem,
    Repetition,
    Reward,
    ToolCall,
    ValidCalls,
)

AnyReward = Annotated[
    Exact | Number | Poem | IdiomChain | Json | ToolCall | ValidCalls | Ends | Repetition | Length | ModelReward,
    Field(discriminator="kind"),
]


class BadReward(InputError):
    """A reward that raised, or that is no number."""


class Marked(NamedTuple):
    """Values by the name of their reward, before weights, and what they add up to; NaN where one is bad."""

    parts: dict[str, float]
    total: float
    fault: str = ""


def names_of(rewards: Sequence[Reward]) -> tuple[str, ...]:
    """A name for each; the second of a kind is kind_2."""
    return _named(tuple(reward.name for reward in rewards))


@lru_cache(maxsize=16)  # asked for once for each answer
def _named(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(kind if kinds[:i].count(kind) == 0 else f"{kind}_{kinds[:i].count(kind) + 1}"
                 for i, kind in enumerate(kinds))  # fmt: skip


def mark(rewards: Sequence[Reward], answer: Answer) -> Marked:
    """All rewards of one answer. One that raises or is no number is named, and makes the sum NaN."""
    parts, total = dict[str, float](), 0.0
    for name, reward in zip(names_of(rewards), rewards, strict=True):
        try:
            value = float(reward(answer))
            fault = "" if math.isfinite(value) else f"is {value}"
        except Exception as error:  # a reward may be anybody's function
            value, fault = math.nan, f"raised {type(error).__name__}: {error}"
        if fault:
            return Marked(parts, math.nan, f"reward {name} {fault} for the answer {answer.text[:40]!r} "
                                           f"to {answer.prompt[-40:]!r}")  # fmt: skip
        parts[name] = value
        total += reward.weight * value
    return Marked(parts, total)
