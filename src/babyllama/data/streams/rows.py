"""One row of tokens: a window of a stream, or whole documents side by side. Not here: which rows, batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from babyllama.data.shards.shards import TokenStore
from babyllama.data.streams.packing import Packing

IGNORE = -100


class Row(NamedTuple):
    """One row before it is a tensor; all (T,), `extras` too."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray | None
    segments: np.ndarray | None
    extras: Mapping[str, np.ndarray] = {}  # as a batch's


@dataclass(frozen=True, eq=False)
class Windows:
    """Rows of the stream: row r's targets are the tokens r·T … r·T + T − 1, its inputs those one place before.

    So every token is a target exactly once. Before the very first stands the end token; the last row is padded. With
    `separate`, a document's segment begins with the end token before it, as in documents' packing.
    """

    store: TokenStore
    context: int
    eos: int
    separate: bool = False
    stop: int | None = None  # tokens; the whole store when None

    @property
    def rows(self) -> int:
        return -(-self._end // self.context)

    @property
    def _end(self) -> int:
        return len(self.store) if self.stop is None else self.stop

    def row(self, row: int) -> Row:
        first = row * self.context
        stop = min(first + self.context, self._end)
        tokens = _read(self.store, first - 1, stop, self.eos)
        targets = np.where(self.store.mask(first, stop), tokens[1:], IGNORE)
        inputs, targets = _padded(tokens[:-1], self.context, self.eos), _padded(targets, self.context, IGNORE)
        if not self.separate:
            return Row(inputs, targets, None, None)
        offsets = self.store.document_offsets
        document = np.searchsorted(offsets, np.arange(first, stop), "right") - 1
        segments = _padded(document - document[0], self.context, int(document[-1] - document[0]) + 1)
        starts = np.flatnonzero(np.diff(segments, prepend=-1))
        return Row(inputs, targets, np.arange(self.context) - starts[segments_of(starts, self.context)], segments)


def segments_of(starts: np.ndarray, context: int) -> np.ndarray:
    """Which of the stretches that begin at `starts` each place of a row lies in."""
    return np.searchsorted(starts, np.arange(context), "right") - 1


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of whole documents. The padding at the end is a segment of its own, without targets."""

    store: TokenStore
    packing: Packing
    eos: int

    @property
    def rows(self) -> int:
        return self.packing.rows

    def row(self, row: int) -> Row:
        starts, lengths = self.packing.row(row)
        return laid(self.store, zip(starts.tolist(), lengths.tolist(), strict=True), self.packing.context, self.eos)


def laid(store: TokenStore, spans: Iterable[tuple[int, int]], context: int, eos: int, whole: bool = False) -> Row:
    """Spans (start, length) of a store side by side in one row, each a segment; see packing.py for what one holds.
    `whole`: their last tokens are inputs too, to which no target follows."""
    inputs, targets = np.full(context, eos, np.int64), np.full(context, IGNORE, np.int64)
    begins, at = [], 0
    for start, length in spans:
        stop = start + length + (not whole)
        tokens = _read(store, start, stop, eos)
        inputs[at : at + length] = tokens[:length]
        targets[at : at + len(tokens) - 1] = np.where(store.mask(start + 1, stop), tokens[1:], IGNORE)
        begins.append(at)
        at += length
    starts = np.array([*begins, at] if at < context else begins)
    segments = segments_of(starts, context)
    return Row(inputs, targets, np.arange(context) - starts[segments], segments)


def _read(store: TokenStore, start: int, stop: int, eos: int) -> np.ndarray:
    """int64; the place before the first token holds the end token."""
    tokens = store.tokens(max(start, 0), stop).astype(np.int64)
    return np.concatenate([[eos], tokens]) if start < 0 else tokens


def _padded(values: np.ndarray, length: int, filler: int) -> np.ndarray:
    return np.pad(values.astype(np.int64), (0, length - len(values)), constant_values=filler)
