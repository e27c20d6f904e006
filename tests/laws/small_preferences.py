"""Rows of made preference pairs for small trainings, each addressed by number; with KTO's z where it is wanted."""

from __future__ import annotations

import numpy as np
from small_training import CONTEXT, VOCAB

from babyllama.data.shards.shards import TokenStore
from babyllama.data.streams.answers import Answers, Room, answers
from babyllama.data.streams.batches import Batch, collated
from babyllama.data.streams.mismatches import Mismatches
from babyllama.train.drift import DriftRows
from babyllama.train.losses.kto import Kto
from babyllama.train.losses.preference import Dpo, Orpo
from babyllama.train.losses.reward import RewardModel

PAIRS = 40


class Memory(TokenStore):
    """Pairs of three to six tokens an answer, the last half of which is learned, good and bad in turn."""

    drawn: np.ndarray
    written: np.ndarray

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        lengths = draw.integers(3, 7, 2 * PAIRS).tolist()
        super().__init__((), (sum(lengths),), "preference", np.dtype("<u4"))
        marks = [[0] * (n - n // 2) + [i % 2 + 1] * (n // 2) for i, n in enumerate(lengths)]
        object.__setattr__(self, "drawn", draw.integers(0, VOCAB, sum(lengths)).astype("<u4"))
        object.__setattr__(self, "written", np.concatenate(marks).astype(np.uint8))
        object.__setattr__(self, "_documents", np.array([(n, n) for n in lengths], "<u4"))

    def _slice(self, start, stop, suffix, dtype):
        return (self.written if suffix else self.drawn)[start:stop]


class PairRows:
    """A stream of one corpus in order; the reference's sums are drawn too."""

    def __init__(self, whole: bool = False) -> None:
        known = -10 + np.random.default_rng(1).normal(size=2 * PAIRS).astype(np.float32)
        self.corpora: list[Answers] = [answers(Memory(), Room(CONTEXT, CONTEXT), 0, 1, known, whole=whole)]

    def places(self, first_row: int, count: int) -> list[tuple[int, int]]:
        return [(0, number % self.corpora[0].rows) for number in range(first_row, first_row + count)]

    def batch(self, first_row: int, count: int) -> Batch:
        return collated([self.corpora[corpus].row(row) for corpus, row in self.places(first_row, count)])


def kto_rows() -> DriftRows:
    """The same with z, which is far from 0."""
    stream = PairRows()
    apart = Mismatches(stream.corpora[0].store, 0, np.full(2 * PAIRS, -14, np.float32))
    return DriftRows(stream, [apart], KTO.beta, rows=16, size=3)  # type: ignore[arg-type]


KTO = Kto(beta=0.3)
KINDS = {"dpo": {"objective": Dpo(nll=0.1), "stream": PairRows}, "orpo": {"objective": Orpo(), "stream": PairRows},
         "kto": {"objective": KTO, "stream": kto_rows},
         "reward": {"objective": RewardModel(), "stream": lambda: PairRows(whole=True), "scores": True}}  # fmt: skip
