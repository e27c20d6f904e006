"""Logits → the next token: greedy or sampled, as one frozen callable value.

Order and meaning are those of transformers' logits processors: repetition penalty, temperature, top-k, top-p, min-p.
One uniform number decides each token (inverse of the cumulative distribution), and `uniforms` makes those numbers for
a row from its seed alone: no row's tokens depend on the other rows of a batch, the device or the length asked for.
Not here: when to stop, which vocabulary rows exist (engine.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from babyllama.recipe import Recipe

NOT_FINITE = -1  # the token of a row whose logits hold NaN or infinity


class Sampling(Recipe):
    """How the next token is chosen. The defaults draw from the model's own distribution."""

    temperature: float = Field(default=1.0, ge=0, le=100, description="0 is greedy: always the likeliest token")
    top_k: int = Field(default=0, ge=0, description="only the k likeliest tokens; 0 is off")
    top_p: float = Field(default=1.0, gt=0, le=1, description="only the likeliest that together reach p; 1 is off")
    min_p: float = Field(default=0.0, ge=0, le=1, description="only those min_p times as likely as the likeliest")
    repetition_penalty: float = Field(default=1.0, gt=0, le=10, description="above 1 shuns tokens seen; 1 is off")
    seed: int = Field(default=0, ge=0, lt=2**63)

    def __call__(self, logits: Tensor, draws: Tensor, seen: Tensor | None = None) -> Tensor:
        """The next token of every row, (B,) int64; NOT_FINITE where the logits are broken.

        Args:
            logits: (B, V), any float dtype; V must leave out padded vocabulary rows.
            draws: (B,) float64, uniform on [0, 1) (see `uniforms`); not looked at when greedy.
            seen: (B, V) bool, the tokens of prompt and answer so far; needed for the repetition penalty only.
        """
        scores = self.scores(logits, seen)
        if self.temperature == 0:
            tokens = scores.argmax(-1)
        else:
            cumulative = scores.double().exp().cumsum(-1)  # not normalised
            tokens = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)[:, 0]
        return tokens.where(logits.amax(-1).isfinite(), NOT_FINITE)

    def scores(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """(B, V) float32 log-probabilities up to a constant of each row (0 for the likeliest), −∞ where cut off.

        Every cut is a floor under the scores, so tokens of equal score stay or go together and no result hangs on
        how a sort orders equals (bf16 logits are often equal).
        """
        scores = logits.float()
        if self.repetition_penalty != 1 and seen is not None:
            penalised = torch.where(scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty)
            scores = torch.where(seen, penalised, scores)
        scores = scores - scores.amax(-1, keepdim=True)
        if self.temperature == 0:
            return scores
        scores = scores / self.temperature
        if self.top_k:
            floor = scores.topk(min(self.top_k, scores.shape[-1])).values[:, -1:]
            scores = scores.masked_fill(scores < floor, -math.inf)
        if self.top_p < 1:
            scores = scores.masked_fill(scores < _nucleus_floor(scores, self.top_p), -math.inf)
        if self.min_p > 0:
            scores = scores.masked_fill(scores < math.log(self.min_p), -math.inf)
        return scores


def _nucleus_floor(scores: Tensor, top_p: float) -> Tensor:
    """(B, 1): the score of the last token that is needed to reach top_p (arXiv 1904.09751).

    A token is kept when those likelier than it have not reached top_p. The 1,024 likeliest nearly always do; sorting
    a whole vocabulary of ChatGLM2's size takes five times as long as finding them.
    """
    total = scores.logsumexp(-1, keepdim=True)
    best = scores.topk(min(1024, scores.shape[-1])).values
    if ((best.logsumexp(-1, keepdim=True) - total).exp() < top_p).any():
        best = scores.sort(-1, descending=True).values
    probabilities = (best - total).exp()
    before = probabilities.cumsum(-1) - probabilities
    kept = (before < top_p).sum(-1, keepdim=True).clamp(min=1)
    return best.gather(-1, kept - 1)


def uniforms(seed: int, count: int) -> Tensor:
    """The `count` first numbers of a seed's stream, (count,) float64 in [0, 1 − 2⁻³²]; on the CPU.

    Philox counts, so a longer stream starts with the shorter one's numbers.
    """
    stream = np.random.Generator(np.random.Philox(seed))
    return torch.from_numpy(stream.integers(0, 2**32, size=count, dtype=np.uint64).astype(np.float64) / 2**32)


class SamplingRecipe(Recipe):
    """A recipe with a `sampling` part whose keys may also be written without the prefix: ``temperature=0.7``."""

    sampling: Sampling = Sampling()

    @model_validator(mode="before")
    @classmethod
    def _lift(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        short = {key: data[key] for key in data if key in Sampling.model_fields}
        nested = data.get("sampling", cls.model_fields["sampling"].default)
        if not short or not isinstance(nested, dict | Sampling):
            return data
        rest = {key: value for key, value in data.items() if key not in short}
        return {**rest, "sampling": {**(nested if isinstance(nested, dict) else nested.model_dump()), **short}}
