"""How well held-out prompts are answered: greedily, marked as the training's answers are.

Not here: rollouts that are learned from (rollouts.py), an evaluation of a finished model (evals/answers.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from babyllama.data.streams.prompts import Prompt
from babyllama.marking import exact
from babyllama.model.transformer import Transformer
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.rl.agents import Agents, Asked, ToolUse, seen
from babyllama.train.rl.marks import mark, names_of
from babyllama.train.rl.rewards import Reward


@dataclass(frozen=True)
class RewardSums:
    """Sums over `count` answers; the ratios need some. `bits_per_byte`: of general text, where that is measured too."""

    count: int = 0
    reward: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    exact: int = 0
    ended: int = 0
    tokens: int = 0
    bits_per_byte: float | None = None

    def __add__(self, other: RewardSums) -> RewardSums:
        parts = {name: self.parts.get(name, 0.0) + other.parts.get(name, 0.0) for name in {**self.parts, **other.parts}}
        bits = self.bits_per_byte if other.bits_per_byte is None else other.bits_per_byte
        return RewardSums(self.count + other.count, self.reward + other.reward, parts, self.exact + other.exact,
                          self.ended + other.ended, self.tokens + other.tokens, bits)  # fmt: skip

    @property
    def loss(self) -> float:
        """The best model is that of the highest reward."""
        return -self.reward / self.count

    @property
    def figures(self) -> dict[str, Any]:
        """Means an answer."""
        means = {"reward": self.reward, **{f"reward_{name}": total for name, total in self.parts.items()},
                 "exact": self.exact, "ended": self.ended, "answer_tokens": self.tokens}  # fmt: skip
        return {"loss": self.loss, **{name: total / self.count for name, total in means.items()},
                "answers": self.count, "bits_per_byte": self.bits_per_byte}  # fmt: skip

    @property
    def words(self) -> str:
        """For a line of text."""
        bits = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.4f} bits per byte of general text"
        return (f"held-out reward {self.reward / self.count:.4f}, {self.exact / self.count:.1%} exact of "
                f"{self.count:,} answers{bits}")  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """Prompts with their reference answers, and how answers to them are marked."""

    prompts: Sequence[Prompt]
    rewards: Sequence[Reward]
    tokenizer: Tokenizer
    max_tokens: int
    tools: ToolUse | None = None
    room: int = 0

    def measure(self, model: Transformer) -> RewardSums:
        """Greedy answers to all of them. A reward that cannot be had counts as 0."""
        draw = Agents(self.tokenizer, self.max_tokens, self.tools, self.room)
        found = RewardSums(parts=dict.fromkeys(names_of(self.rewards), 0.0))
        drawn = draw(model, [(prompt.tokens, 0) for prompt in self.prompts], 0.0)
        every = seen(self.tokenizer, drawn, [Asked.of(self.tokenizer, prompt) for prompt in self.prompts])
        for reward in self.rewards:
            reward.ahead(every)
        for said, answer in zip(every, drawn, strict=True):
            marked = mark(self.rewards, said)
            total = marked.total if math.isfinite(marked.total) else 0.0
            found += RewardSums(1, total, marked.parts, int(exact(said.text, said.reference)), int(answer.ended),
                                len(answer.tokens))  # fmt: skip
        return found
