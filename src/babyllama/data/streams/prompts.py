"""Chats as prompts: what stands before the last answer, and that answer to compare with. Nothing else is prepared.

Not here: which answers are drawn and what they are worth (train/rl/), an evaluation's greedy ones (evals/answers.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from babyllama.data.shards.shards import Prepared, TokenStore
from babyllama.data.streams.batches import DataRecipe
from babyllama.data.streams.order import Order, block_counts
from babyllama.errors import InputError


class Prompt(NamedTuple):
    """Tokens up to where the answer begins, exactly as in training; `answer`: those of the answer, its end included."""

    tokens: list[int]
    answer: list[int]


def last_answers(store: TokenStore, question: int | None = None) -> np.ndarray:
    """(documents, 4) int64: where each document begins, where its prompt ends, where the last stretch that the loss
    counts begins, and where that ends; the last three are equal where there is none.

    Args:
        question: the token that opens a question; with it a prompt ends where the first answer to the last question
            begins, before any calls, else where the last stretch does.
    """
    offsets, learned = store.document_offsets, store.mask(0, len(store))
    if not store.documents:
        return np.empty((0, 4), np.int64)
    place = np.arange(len(learned))
    stop = np.maximum.reduceat(np.where(learned, place + 1, 0), offsets[:-1])
    before = np.maximum.accumulate(np.where(learned, 0, place + 1))  # after the newest place that is not learned
    last = np.maximum(before[stop - 1], offsets[:-1])
    first = last
    if question is not None:
        asks = np.asarray(store.tokens(0, len(store))) == question
        asked = np.maximum.reduceat(np.where(asks & ~learned, place, 0), offsets[:-1])  # the last question of each
        following = np.minimum.accumulate(np.where(learned, place, len(learned))[::-1])[::-1]  # the next learned place
        first = np.where(asked < offsets[:-1], last, np.minimum(following[np.maximum(asked, offsets[:-1])], last))
    none = stop <= offsets[:-1]
    first, last, stop = (np.where(none, offsets[1:], part) for part in (first, last, stop))
    return np.stack([offsets[:-1], first, last, stop], 1)


def prompt_of(store: TokenStore, places: np.ndarray) -> Prompt:
    """One row of `last_answers` as tokens."""
    start, first, last, stop = places.tolist()
    return Prompt(store.tokens(start, first).tolist(), store.tokens(last, stop).tolist())


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of one split, by endless numbers: shuffled and mixed as rows are.

    Args:
        room: tokens that a prompt may have; a longer one is passed over, and so is a chat that begins with its answer.
        question: as of `last_answers`.

    Raises:
        InputError: a corpus of texts, a split without prompts.
    """

    prepared: Prepared
    split: str
    recipe: DataRecipe
    room: int
    seed: int
    question: int | None = None

    def __post_init__(self) -> None:
        for label, store in self._stores.items():
            if store.kind != "chat":
                raise InputError(f"data.path: {label} of {self.prepared.path} holds {store.kind}s; answers are drawn "
                                 "to the questions of chats: give a corpus of chats, or leave it out by data.weights"
                                 )  # fmt: skip
            if not len(self.places[label]):
                why = f"fits into {self.room} tokens beside an answer" if store.documents else "is there"
                raise InputError(f"data.path: the {self.split} split of {label} of {self.prepared.path}: no prompt "
                                 f"{why}; prepare more, or lower rollouts.max_tokens")  # fmt: skip

    @cached_property
    def _counts(self) -> dict[str, int] | None:
        return None if self.recipe.weights is None else block_counts(self.recipe.weights)

    @cached_property
    def _stores(self) -> dict[str, TokenStore]:
        labels = self.prepared.corpora if self._counts is None else [k for k, rows in self._counts.items() if rows]
        return {label: self.prepared.store(label, self.split) for label in labels}

    @cached_property
    def places(self) -> dict[str, np.ndarray]:
        """Label → where its prompts lie, as `last_answers`."""
        found = {label: last_answers(store, self.question) for label, store in self._stores.items()}
        return {label: rows[self._fits(rows)] for label, rows in found.items()}

    def _fits(self, rows: np.ndarray) -> np.ndarray:
        length = rows[:, 1] - rows[:, 0]
        return (length > 0) & (length <= self.room) & (rows[:, 3] > rows[:, 2])

    @property
    def count(self) -> int:
        return sum(map(len, self.places.values()))

    @cached_property
    def passed_over(self) -> int:
        """Chats that are no prompts here."""
        return sum(store.documents for store in self._stores.values()) - self.count

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(int((rows[:, 1] - rows[:, 0]).max()) for rows in self.places.values())

    @cached_property
    def _order(self) -> Order:
        counts = None if self._counts is None else [self._counts[label] for label in self._stores]
        return Order([len(self.places[label]) for label in self._stores], counts, self.seed)

    def taken(self, first: int, count: int) -> list[Prompt]:
        """Prompts first … first + count − 1 of the endless order."""
        labels = list(self._stores)
        found = [(labels[corpus], row) for corpus, row in self._order.places(first, count)]
        return [prompt_of(self._stores[label], self.places[label][row]) for label, row in found]

    def spread(self, count: int) -> list[Prompt]:
        """At most `count` of each corpus, spread evenly over it: the same ones each time."""
        found = []
        for label, rows in self.places.items():
            picked = np.linspace(0, len(rows), min(count, len(rows)), endpoint=False).astype(int)
            found += [prompt_of(self._stores[label], rows[row]) for row in picked.tolist()]
        return found
