"""Documents of a prepared folder as text, with what the loss covers: drawn at random, or by number.

A pair counts as one document here, both its answers in it. Not here: colours and marks (commands/looking.py), rows
of a training (data/streams/).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from babyllama.data.shards.shards import SPLITS, Prepared, TokenStore
from babyllama.data.sources.documents import GOOD, Kind
from babyllama.errors import InputError
from babyllama.tokenizer.tokenizer import Tokenizer

_ANSWERS = {"preference": ("the better answer", "the other answer"), "rated": ("a good answer", "a bad answer")}


class Piece(NamedTuple):
    """A stretch of text that the loss covers, or that it does not."""

    text: str
    learned: bool


@dataclass(frozen=True, eq=False)
class Part:
    """A text, a chat, or an answer with its prompt; `title` says which of them, empty where there is but one."""

    title: str
    tokens: np.ndarray
    learned: np.ndarray  # bool

    def pieces(self, tokenizer: Tokenizer, most: int | None = None) -> list[Piece]:
        """As text, special tokens by their names. `most`: tokens; what is left out is not told."""
        return pieces(self.tokens[:most].tolist(), self.learned[:most].tolist(), tokenizer)


@dataclass(frozen=True)
class Shown:
    """One document: where it lies (by its number in that split of that corpus) and what is in it."""

    corpus: str
    split: str
    document: int
    kind: Kind
    parts: tuple[Part, ...]

    @property
    def tokens(self) -> int:
        return sum(len(part.tokens) for part in self.parts)

    def json(self, tokenizer: Tokenizer, most: int | None = None) -> dict[str, Any]:
        """With the pieces of its parts; `left`: tokens that are not shown, where each part has at most so many."""
        parts = [{"title": part.title, "tokens": len(part.tokens), "left": len(part.tokens) - len(part.tokens[:most]),
                  "pieces": [list(piece) for piece in part.pieces(tokenizer, most)]}
                 for part in self.parts]  # fmt: skip
        return {"corpus": self.corpus, "split": self.split, "document": self.document, "kind": self.kind,
                "tokens": self.tokens, "parts": parts}  # fmt: skip


def pieces(tokens: Sequence[int], learned: Sequence[bool], tokenizer: Tokenizer) -> list[Piece]:
    """Neighbours that are alike as one text each."""
    groups = groupby(zip(tokens, learned, strict=True), key=lambda pair: bool(pair[1]))
    return [Piece(tokenizer.decode([token for token, _ in pairs], skip_special=False), kept) for kept, pairs in groups]


def part_of(store: TokenStore, document: int) -> Part:
    """One stored document, by its number in the store."""
    start, stop = store.document_offsets[document : document + 2].tolist()
    marks = store.marks(start, stop)
    titles = _ANSWERS.get(store.kind)
    title = titles[int(marks.max(initial=0) != GOOD)] if titles else ""
    return Part(title, store.tokens(start, stop), marks > 0)


@dataclass(frozen=True, eq=False)
class Selection:
    """Some of a folder's documents.

    Args:
        corpora: their labels; splits: of them.
        least, most: tokens that a document has; of a pair, both answers with their prompts.

    Raises:
        InputError: a label that is not there; no document is left.
    """

    prepared: Prepared
    corpora: Sequence[str]
    splits: Sequence[str] = SPLITS
    least: int = 0
    most: int | None = None

    def __post_init__(self) -> None:
        if not len(self):
            limits = (
                f" of {self.least:,} to {self.most:,} tokens" if self.most else f" of {self.least:,} tokens or more"
            )
            where = f"{', '.join(self.corpora)} ({', '.join(self.splits)})"
            asked = limits if self.least or self.most else ""
            raise InputError(f"{self.prepared.path}: no document{asked} in {where}; ask for others")

    @cached_property
    def _found(self) -> list[tuple[str, str, np.ndarray]]:
        """Label, split, and the numbers of the documents."""
        return [(label, split, self._numbers(self.prepared.store(label, split)))
                for label in self.corpora for split in self.splits]  # fmt: skip

    def _numbers(self, store: TokenStore) -> np.ndarray:
        lengths = np.diff(store.document_offsets[:: _group(store)])
        return np.flatnonzero((lengths >= self.least) & (lengths <= (self.most or np.iinfo(np.int64).max)))

    def __len__(self) -> int:
        return sum(len(numbers) for _, _, numbers in self._found)

    def __getitem__(self, index: int) -> Shown:
        """By its place among all that are selected: corpora in their order, first what is trained on."""
        left = index
        for label, split, numbers in self._found:
            if 0 <= left < len(numbers):
                return self._shown(label, split, int(numbers[left]))
            left -= len(numbers)
        raise InputError(f"document: {index:,} is not there; they are numbered 0 … {len(self) - 1:,}")

    def _shown(self, label: str, split: str, number: int) -> Shown:
        store = self.prepared.store(label, split)
        group = _group(store)
        parts = tuple(part_of(store, number * group + i) for i in range(group))
        return Shown(label, split, number, store.kind, parts)

    def drawn(self, count: int, seed: int) -> list[Shown]:
        """So many different ones at random, or all where there are fewer; the same ones for a seed."""
        chosen = np.random.default_rng(seed).choice(len(self), min(count, len(self)), replace=False)
        return [self[index] for index in chosen.tolist()]


def _group(store: TokenStore) -> int:
    return 2 if store.kind == "preference" else 1
