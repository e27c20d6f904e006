"""Streams of batches, addressed by row: a pure function of (prepared data, recipe, context, seed, row number).

Nothing is consumed, so resuming, another number of GPUs or another micro-batch size read the very same rows. Rows are
shuffled anew each epoch. Not here: the loss, the loop, devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from babyllama.data.shards.shards import Prepared, TokenStore
from babyllama.data.streams.answers import ANSWERS, Answers, Room, answers
from babyllama.data.streams.order import Order, block_counts
from babyllama.data.streams.packing import fit_documents
from babyllama.data.streams.rows import IGNORE, Packed, Row, Windows
from babyllama.errors import InputError
from babyllama.recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """All (B, T) int64. `segments` numbers the documents of a row, `positions` restart in each; None: one stretch.

    `count` says how many targets there are where that is known, so that nobody has to ask a GPU. `extras` are what an
    objective needs beside them, by name, each (B, …): a reference's log-probabilities, advantages.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor | None = None
    segments: Tensor | None = None
    count: int | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """All its tensors, in the same order for batches of one kind."""
        own = (self.tokens, self.targets, self.positions, self.segments)
        return [part for part in own if part is not None] + [self.extras[name] for name in sorted(self.extras)]

    @property
    def weight(self) -> int:
        """How many targets the loss sums over."""
        if self.count is not None:
            return self.count
        return int((self.targets != IGNORE).sum())

    def each(self, change: Callable[[Tensor], Tensor], count: int | None = None) -> Batch:
        """Every tensor changed alike."""
        own = (self.tokens, self.targets, self.positions, self.segments)
        tokens, targets, positions, segments = (part if part is None else change(part) for part in own)
        extras = {name: change(part) for name, part in self.extras.items()}
        return Batch(tokens, targets, positions, segments, count, extras)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; to a GPU through pinned memory, so that the host need not wait."""
        pinned = torch.device(device).type == "cuda"

        def moved(part: Tensor) -> Tensor:
            return (part.pin_memory() if pinned and not part.is_cuda else part).to(device, non_blocking=True)

        return self.each(moved, self.count)

    @staticmethod
    def joined(batches: Sequence[Batch]) -> Batch:
        """Rows of batches of one kind, one after the other."""
        parts = zip(*(batch.tensors for batch in batches), strict=True)
        columns = iter([torch.cat(column) for column in parts])
        return batches[0].each(lambda _: next(columns))


class Rows(Protocol):
    """A stream addressed by row: row r is the same whenever and by whomever it is asked for."""

    def batch(self, first_row: int, count: int) -> Batch: ...


class DataRecipe(Recipe):
    """What a run reads. Without `weights` every corpus is read whole, every token once an epoch.

    ``stream`` cuts all documents, one after the other, into rows; ``documents`` packs whole ones into rows. The default
    is documents for chats and stream for texts. `separate_documents` lets no token of a streamed row see another.
    """

    path: Path = Field(description="the prepared corpus")
    weights: dict[str, float] | None = Field(
        default=None, description="share of each corpus by name, relative; null: by its tokens"
    )
    packing: Literal["auto", "stream", "documents"] = Field(
        default="auto", description="auto: documents for chats, stream for texts")  # fmt: skip
    separate_documents: bool = Field(
        False, description="keep documents apart where packing is stream; with documents they always are"
    )
    stretch: int | None = Field(default=None, ge=1, description="spread each row's positions at random over up to so "
                                "many trained contexts; default: CLEX's max_t; 1: off")  # fmt: skip

    @property
    def apart(self) -> bool:
        """Whether texts are read as documents that do not see each other; held-out ones are then measured so too."""
        return self.packing == "documents" or self.separate_documents


def collated(rows: list[Row]) -> Batch:
    """Rows → a batch. Where one of them keeps its documents apart, a row of one stretch is one document."""
    if any(row.segments is not None for row in rows):
        rows = [row if row.segments is not None else _as_document(row) for row in rows]
    *own, extras = zip(*rows, strict=True)
    columns = [None if column[0] is None else torch.from_numpy(np.stack(column)) for column in own]
    named = {name: torch.from_numpy(np.stack([row[name] for row in extras])) for name in extras[0]}
    return Batch(*columns, extras=named)  # type: ignore[arg-type]


def _as_document(row: Row) -> Row:
    return row._replace(positions=np.arange(len(row.tokens)), segments=np.zeros(len(row.tokens), np.int64))


class Stream:
    """The rows of one split in training order, without end. Holds no place: `batch` may be called in any order.

    Args:
        longest: inputs of an answer with its prompt; default: `context`.  whole: see `Answers`.

    Raises:
        InputError: an unknown corpus in the weights, bad weights, nothing to read.
    """

    def __init__(self, prepared: Prepared, split: str, recipe: DataRecipe, context: int, seed: int,
                 longest: int | None = None, whole: bool = False) -> None:  # fmt: skip
        counts = None if recipe.weights is None else block_counts(recipe.weights)
        labels = list(prepared.corpora) if counts is None else [label for label, rows in counts.items() if rows]
        stores = {label: prepared.store(label, split) for label in labels}
        empty = [label for label, store in stores.items() if not store.documents]
        if len(empty) == len(stores) or (recipe.weights and empty):
            raise InputError(f"{prepared.path}: the {split} split of {empty[0]} is empty; prepare more or drop it")
        self.labels = labels
        room = Room(context, longest or context)
        self.corpora: list[Windows | Packed] = [
            answers(store, room, prepared.eos, seed, whole=whole) if store.kind in ANSWERS else
            _rows_of(store, recipe, context, prepared.eos, seed) for label, store in stores.items()
        ]  # fmt: skip
        sizes = [corpus.rows for corpus in self.corpora]
        self._order = Order(sizes, None if counts is None else [counts[label] for label in labels], seed)
        if not self.rows:
            raise InputError(f"{prepared.path}: no answer of {', '.join(labels)} has room in {context} tokens; give "
                             "more in plan.context, or prepare shorter ones")  # fmt: skip

    def compared(self, references: Mapping[str, np.ndarray]) -> Stream:
        """The same rows of answers with what a reference finds of them, by label; see `Answers`."""
        found = copy(self)
        found.corpora = [replace(rows, reference=references.get(label)) if isinstance(rows, Answers) else rows
                         for label, rows in zip(self.labels, self.corpora, strict=True)]  # fmt: skip
        return found

    @property
    def rows(self) -> int:
        """Rows in an epoch: those of all corpora with a weight, each counted once."""
        return sum(self._order.sizes)

    @property
    def fill(self) -> float:
        """Share of the places that hold documents; 1 but for the last row of a stream."""
        parts = [c.packing.fill * c.rows if isinstance(c, Packed) else len(c.store) / c.context for c in self.corpora]
        return sum(parts) / self.rows

    def batch(self, first_row: int, count: int) -> Batch:
        """Rows first_row … first_row + count − 1 of the endless order."""
        return collated([self.corpora[corpus].row(row) for corpus, row in self.places(first_row, count)])

    def row(self, number: int) -> Row:
        """Row `number` of the endless order."""
        ((corpus, row),) = self.places(number, 1)
        return self.corpora[corpus].row(row)

    def places(self, first_row: int, count: int) -> list[tuple[int, int]]:
        """The same rows as (number of the corpus, row in it)."""
        return self._order.places(first_row, count)


def _rows_of(store: TokenStore, recipe: DataRecipe, context: int, eos: int, seed: int) -> Windows | Packed:
    if recipe.packing == "documents" or (recipe.packing == "auto" and store.kind == "chat"):
        return Packed(store, fit_documents(store, context, seed), eos)
    return Windows(store, context, eos, recipe.separate_documents)
