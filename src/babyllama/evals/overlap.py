"""Which items of a task a model may have read in training: 13 characters in a row that occur in its corpora.

Only letters, digits and hanzi count; an item that has fewer than 13 of them cannot be told and counts as clean. Not
here: which corpora a model was trained on (provenance.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from babyllama.data.clean.leaks import GRAM, grams
from babyllama.data.shards.shards import Prepared
from babyllama.evals.items import Item
from babyllama.tokenizer.tokenizer import Tokenizer

_PIECE = 1 << 20  # tokens decoded at a time


def texts_of(data: Iterable[Prepared], tokenizer: Tokenizer) -> Iterator[str]:
    """What the train splits of prepared folders hold, in long pieces that overlap."""
    for prepared in data:
        for label in prepared.corpora:
            store = prepared.store(label, "train")
            for start in range(0, len(store), _PIECE):
                yield tokenizer.decode(store.tokens(start, min(len(store), start + _PIECE + GRAM)).tolist())


def grams_of(item: Item) -> np.ndarray:
    """Of its question and its options."""
    return grams("\n".join((item.question, *item.options)))


def clean_ids(items: Iterable[Item], texts: Iterable[str]) -> frozenset[str]:
    """The ids of items of which no 13 characters of the question, or of a long option, occur in the texts."""
    of_item = {item.id: grams_of(item) for item in items}
    wanted = np.unique(np.concatenate([np.zeros(0, np.uint64), *of_item.values()]))
    seen = np.zeros(len(wanted), bool)
    for text in texts if len(wanted) else ():
        found = grams(text)
        place = np.searchsorted(wanted, found).clip(max=len(wanted) - 1)
        seen[place[wanted[place] == found]] = True
    read = wanted[seen]
    return frozenset(id for id, held in of_item.items() if not np.isin(held, read).any())
