"""Rows of answers that people compared or rated: pairs whole, both answers in one row, none of which sees another.

A row's extras go by segment, as wide as the row: `label` is 1 for a good answer, −1 for a bad one, 0 where there is
none; `reference` the sum of log-probabilities that the reference gives the answer. Of pairs, segments 2i and 2i + 1 are
one.
Not here: the sums themselves (train/reference.py), what is learned from them (train/losses/preference.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from babyllama.data.shards.shards import TokenStore
from babyllama.data.sources.documents import Kind
from babyllama.data.streams.packing import best_fit
from babyllama.data.streams.rows import Packed, Row, laid

ANSWERS: frozenset[Kind] = frozenset({"preference", "rated"})  # kinds of corpora


@dataclass(frozen=True)
class Room:
    """What a row holds: `context` inputs in all, `longest` of one answer with its prompt."""

    context: int
    longest: int


@dataclass(frozen=True, eq=False)
class Answers(Packed):
    """Rows of answers; of pairs a span is both. `reference`: (documents,) float32, NaN where it is not known. `whole`:
    the end tokens are inputs too."""

    room: Room
    group: int = 1  # answers of a span
    reference: np.ndarray | None = None
    whole: bool = False

    @property
    def left_out(self) -> int:
        """Pairs, or single answers, that no row has room for."""
        return self.store.documents // self.group - len(self.packing.starts)

    def documents(self, row: int) -> np.ndarray:
        """Which documents of the store are the row's segments, in order."""
        firsts = np.searchsorted(self.store.document_offsets, self.packing.row(row)[0])
        return (firsts[:, None] + np.arange(self.group)).ravel()

    def row(self, row: int) -> Row:
        documents, offsets, context = self.documents(row), self.store.document_offsets, self.packing.context
        starts, inputs = offsets[documents], offsets[documents + 1] - offsets[documents] - (not self.whole)
        spans = zip(starts.tolist(), inputs.tolist(), strict=True)
        extras = {"label": np.where(self.store.good[documents], 1, -1)}
        if self.reference is not None:
            extras["reference"] = self.reference[documents]
        wide = {name: np.pad(values, (0, context - len(values))) for name, values in extras.items()}
        return laid(self.store, spans, context, self.eos, self.whole)._replace(extras=wide)


def answers(store: TokenStore, room: Room, eos: int, seed: int, reference: np.ndarray | None = None,
            documents: int | None = None, single: bool = False, whole: bool = False) -> Answers:  # fmt: skip
    """The rows of a store of answers. What has no room is left out.

    Args:
        documents: takes the first ones only.  single: pairs as answers that have nothing to do with each other.
        whole: see `Answers`.
    """
    group = 2 if store.kind == "preference" and not single else 1
    count = (store.documents if documents is None else documents) // group * group
    offsets = store.document_offsets[: count + 1]
    inputs = (np.diff(offsets) - (not whole)).reshape(-1, group)
    fits = (inputs.sum(1) <= room.context) & (inputs.max(1, initial=0) <= room.longest)
    packing = best_fit(offsets[:-1][::group][fits], inputs.sum(1)[fits], room.context, seed)
    return Answers(store, packing, eos, room, group, reference, whole)
