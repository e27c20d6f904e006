"""Answers beside the wrong prompt: each prompt of a store with the answer to the next one. KTO measures on them how far
a model has gone from its reference, whatever is asked.

Nothing is stored: prompt and answer are put together as they are read. Not here: what is measured (train/drift.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from babyllama.data.shards.shards import TokenStore
from babyllama.data.streams.packing import best_fit
from babyllama.data.streams.rows import IGNORE, Row, segments_of


@dataclass(frozen=True, eq=False)
class Mismatches:
    """Of every document of a store of answers one. `reference` as that of `Answers`."""

    store: TokenStore
    eos: int
    reference: np.ndarray | None = None

    @property
    def partners(self) -> np.ndarray:
        """(documents,): whose answer follows the prompt; both answers of a pair have the same prompt."""
        return np.roll(np.arange(self.store.documents), -2 if self.store.kind == "preference" else -1)

    @property
    def inputs(self) -> np.ndarray:
        """(documents,): how long each is."""
        lengths, prompts = np.diff(self.store.document_offsets), self.store.prompts
        return prompts + (lengths - prompts)[self.partners] - 1

    def packed(self, context: int, longest: int) -> list[np.ndarray]:
        """All that have room in rows of `context`, as the documents of each row."""
        inputs = self.inputs
        fits = np.flatnonzero(inputs <= min(context, longest))
        packing = best_fit(fits, inputs[fits], context, 0)
        return [packing.row(row)[0] for row in range(packing.rows)]

    def kept(self, documents: Iterable[int], context: int, longest: int) -> list[int]:
        """Those of the documents, in order, that have room together and whose reference is known."""
        inputs, partners, left, found = self.inputs, self.partners, context, list[int]()
        for document in documents:
            known = self.reference is None or np.isfinite(self.reference[document])
            if known and partners[document] != document and inputs[document] <= min(left, longest):
                found.append(document)
                left -= int(inputs[document])
        return found

    def row(self, documents: Iterable[int], context: int) -> Row:
        """A row of them, in the form of `Answers`; every label is 1."""
        store, offsets, prompts = self.store, self.store.document_offsets, self.store.prompts
        documents = list(documents)
        tokens, targets = np.full(context, self.eos, np.int64), np.full(context, IGNORE, np.int64)
        begins, at = [], 0
        for document in documents:
            partner = self.partners[document]
            first, answer = offsets[document], offsets[partner] + prompts[partner]
            prompt = store.tokens(int(first), int(first + prompts[document]))
            whole = np.concatenate([prompt, store.tokens(int(answer), int(offsets[partner + 1]))]).astype(np.int64)
            stop = at + len(whole) - 1
            tokens[at:stop] = whole[:-1]
            targets[at + len(prompt) - 1 : stop] = whole[len(prompt) :]
            begins.append(at)
            at = stop
        starts = np.array([*begins, at] if at < context else begins)
        segments = segments_of(starts, context)
        extras = {"label": np.ones(len(documents), np.int64)}
        if self.reference is not None:
            extras["reference"] = self.reference[documents]
        wide = {name: np.pad(values, (0, context - len(values))) for name, values in extras.items()}
        return Row(tokens, targets, np.arange(context) - starts[segments], segments, wide)
