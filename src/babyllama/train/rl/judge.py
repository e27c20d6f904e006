"""Rewards by a model: what a reward model finds an answer worth.

Not here: how one is trained (losses/reward.py), rewards that need no judge (rewards.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from babyllama.model.transformer import Transformer
from babyllama.train.losses.reward import score
from babyllama.train.rl.rewards import Answer, Reward


class ModelReward(Reward):
    """The score of a reward model (objective.kind=reward) with the same tokenizer; it has no best value."""

    kind: Literal["model"] = "model"
    path: Path = Field(description="its run or folder")

    def of(self, model: Transformer) -> Judge:
        """The reward itself, by the model at `path`."""
        return Judge(weight=self.weight, model=model)


class Judge(Reward):
    """A `ModelReward` with its model, and the scores of the answers that it read last."""

    kind: Literal["model"] = "model"
    model: Any = Field(exclude=True, repr=False)  # a Transformer
    _scores: dict[tuple[int, ...], float] = PrivateAttr(default_factory=dict)

    def ahead(self, answers: Sequence[Answer]) -> None:
        """All scores."""
        longest, texts = self.model.config.max_position_embeddings, list({a.tokens: None for a in answers})
        found = score(self.model, [list(text[-longest:]) for text in texts])
        self._scores.clear()
        self._scores.update(zip(texts, found, strict=True))

    def __call__(self, answer: Answer) -> float:
        if answer.tokens not in self._scores:
            self.ahead([answer])
        return self._scores[answer.tokens]
