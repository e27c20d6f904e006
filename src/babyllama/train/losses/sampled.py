"""Sampled softmax: for most of a training the head's loss is over a part of the vocabulary.

At 64,793 tokens of vocabulary the head is more than half of a small model's arithmetic, and nearly all of that goes to
tokens that none of a micro-batch's targets is. A candidate set holds every target and a sweep of others. Not here: the
product and its loss (head.py, cross_entropy.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from babyllama.data.streams.batches import IGNORE, Batch, Rows
from babyllama.recipe import Recipe

STRIDE = 20_011  # a prime: neighbours of the sweep are far apart in the vocabulary
MULTIPLE = 128  # of a candidate set's size, as the head's product on a GPU likes it
ROOM = 2048  # and where the targets alone are more: few sizes, for each is a CUDA graph of its own


class Sampled(Recipe):
    """How large the candidate sets are: up to each part of the training a share of the vocabulary, then all of it.

    A micro-batch's set is its distinct targets and tokens of a sweep with a fixed stride through the vocabulary, which
    runs on from micro-batch to micro-batch; the logits are not corrected. Sets are larger where there are more targets.
    Validation, samples and exports know nothing of it.
    """

    stages: tuple[tuple[float, float], ...] = Field(
        default=((0.57, 0.2), (0.81, 0.28), (0.92, 0.5)),
        min_length=1,
        description="pairs: up to this part of the training, this share of the vocabulary; afterwards all of it",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        ends = [0.0, *(end for end, _ in self.stages)]
        if sorted(set(ends)) != ends or ends[-1] > 1 or not all(0 < share <= 1 for _, share in self.stages):
            raise ValueError("the parts must rise and lie above 0 and up to 1, the shares too, such as [[0.9, 0.25]]")
        return self

    def share(self, done: float) -> float | None:
        """Of the vocabulary, when so much of the training is done; None: all of it."""
        return next((share for end, share in self.stages if done < end), None)

    def branch(self, steps: int) -> int:
        """After how many of `steps` steps the first stage is over. Up to there the length is not felt."""
        return math.floor(self.stages[0][0] * steps)

    def over(self, rows: Rows, vocab: int, total: int) -> Rows:
        """`rows` with candidate sets; `total`: rows of the whole training."""
        return Candidates(rows, self, vocab, total)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rows whose batches say over which tokens their loss is taken, as extras: ``candidates`` (P,) rising ids, and
    ``places`` (B, T), where among them each target is, IGNORE as the targets have it.

    A pure function of the rows asked for. What a GPU makes of it, it makes beside the training's own work.
    """

    rows: Rows
    recipe: Sampled
    vocab: int
    total: int

    def batch(self, first_row: int, count: int) -> Batch:
        """As `rows`' own, and with all of the vocabulary the very same."""
        share = self.recipe.share(first_row / self.total)
        if share is None:
            return self.rows.batch(first_row, count)
        size = math.ceil(share * self.vocab)
        side = _side_stream()
        if side is None:
            return self._made(first_row, count, size)
        with torch.cuda.stream(side):
            found = self._made(first_row, count, size)
        now = torch.cuda.current_stream()
        now.wait_stream(side)
        for part in found.tensors:
            if part.is_cuda:
                part.record_stream(now)
        return found

    def _made(self, first_row: int, count: int, size: int) -> Batch:
        batch = self.rows.batch(first_row, count)
        chosen, places = candidates(batch.targets, self.vocab, size, first_row // count * size)
        return replace(batch, extras={**batch.extras, "candidates": chosen, "places": places})


_SIDE: list[torch.cuda.Stream] = []  # one of the process: what is made there waits for nothing but itself


def _side_stream() -> torch.cuda.Stream | None:
    if not torch.cuda.is_initialized():
        return None
    if not _SIDE:
        _SIDE.append(torch.cuda.Stream())
    return _SIDE[0]


def candidates(targets: Tensor, vocab: int, size: int, start: int) -> tuple[Tensor, Tensor]:
    """The candidate set of some targets and the targets' places in it.

    Args:
        targets: of any shape, int64, IGNORE where nothing counts.
        size: tokens in the set, rounded up to MULTIPLE; if there are more distinct targets, room for these, rounded up
            to ROOM; `vocab` at most.
        start: where the sweep through the vocabulary begins.

    Returns:
        (P,) ids in rising order, and the places, of the targets' shape.
    """
    kept = targets != IGNORE
    wanted = torch.zeros(vocab + 1, dtype=torch.bool, device=targets.device)
    wanted[targets.where(kept, vocab)] = True  # what is ignored goes into a place of its own
    wanted = wanted[:vocab]
    distinct = int(wanted.sum())
    size = -(-size // MULTIPLE) * MULTIPLE
    size = min(size if distinct <= size else -(-distinct // ROOM) * ROOM, vocab)
    stride = next(s for s in range(STRIDE, STRIDE + vocab + 1) if math.gcd(s, vocab) == 1)
    sweep = (start + torch.arange(vocab, device=targets.device)) * stride % vocab  # every token once
    fresh = ~wanted[sweep]
    wanted[sweep[fresh & (fresh.cumsum(0) <= size - distinct)]] = True
    place = wanted.cumsum(0) - 1
    return wanted.nonzero()[:, 0], place[targets.where(kept, 0)].where(kept, IGNORE)
