"""Documents → rows: which span of which document lies in which row. Not here: tokens, the order of rows.

A span (start, length) of a store stands for the inputs start … start + length − 1 and, one further on, the targets. A
text's first input is the end token of the text before it (start is −1 for the very first), so all its tokens are
targets; a chat has its own start, so its first token is input only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from babyllama.data.shards.shards import TokenStore
from babyllama.data.streams.order import permute


@dataclass(frozen=True, eq=False)
class Packing:
    """Row r holds the spans borders[r] … borders[r + 1] − 1, from its left end."""

    starts: np.ndarray  # (spans,)
    lengths: np.ndarray  # (spans,)
    borders: np.ndarray  # (rows + 1,)
    context: int

    @property
    def rows(self) -> int:
        return len(self.borders) - 1

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold a document."""
        return float(self.lengths.sum()) / max(1, self.rows * self.context)

    def row(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The starts and lengths in one row."""
        spans = slice(self.borders[row], self.borders[row + 1])
        return self.starts[spans], self.lengths[spans]


def fit_documents(store: TokenStore, context: int, seed: int, documents: int | None = None) -> Packing:
    """Every document in a row, by `best_fit`.

    `documents` takes the first ones only. A document longer than `context` is cut into spans of `context` whose
    inputs meet without a gap, so no target is lost; no other document is cut.
    """
    return best_fit(*_spans(store, context, documents), context, seed)


def best_fit(starts: np.ndarray, lengths: np.ndarray, context: int, seed: int) -> Packing:
    """Spans of at most `context` → rows: the longest first, each into the fullest row that has room; equals in a seeded
    shuffle."""
    order = permute(np.arange(len(lengths)), len(lengths), seed) if len(lengths) else np.arange(0)
    order = order[np.argsort(-lengths[order], kind="stable")]
    starts, lengths = starts[order], lengths[order]
    rows = _rows(lengths, context)
    by_row = np.argsort(rows, kind="stable")
    borders = np.searchsorted(rows[by_row], np.arange(rows.max(initial=-1) + 2))
    return Packing(starts[by_row], lengths[by_row], borders, context)


def _spans(store: TokenStore, context: int, documents: int | None) -> tuple[np.ndarray, np.ndarray]:
    offsets = store.document_offsets[: None if documents is None else documents + 1]
    before = 1 if store.kind == "text" else 0
    first = offsets[:-1] - before
    inputs = np.diff(offsets) - 1 + before
    pieces = -(-inputs // context)
    document = np.repeat(np.arange(len(first)), pieces)
    number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = first[document] + number * context
    return starts, np.minimum(inputs[document] - number * context, context)


def _rows(lengths: np.ndarray, context: int) -> np.ndarray:
    """The row of each span. Rows with equal room share a stack; bit r of `has` tells that stack r is not empty."""
    stacks: list[list[int]] = [[] for _ in range(context + 1)]
    rows, has, count = np.empty(len(lengths), np.int64), 0, 0
    for index, length in enumerate(lengths.tolist()):
        fitting = has >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = stacks[room].pop()
            if not stacks[room]:
                has ^= 1 << room
        else:
            room, row, count = context, count, count + 1
        rows[index] = row
        left = room - length
        if left:
            stacks[left].append(row)
            has |= 1 << left
    return rows
