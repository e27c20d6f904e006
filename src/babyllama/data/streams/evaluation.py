"""The first documents of one split, in order, to measure a model on. Not here: the measuring, rows for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import Batch, collated
from babyllama.data.streams.packing import fit_documents
from babyllama.data.streams.rows import Packed, Windows


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Some first documents of one split, in order: `batches` to sum a loss over, `bytes` to divide it by."""

    rows_of: Windows | Packed
    rows: int
    documents: int

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of exactly the documents in `batches`; of a chat, those of its answers."""
        return int(self.rows_of.store.document_bytes[: self.documents].sum())

    @property
    def batches(self) -> Iterator[Batch]:
        """From the start at each use; the last batch may have fewer rows."""
        for first in range(0, self.rows_of.rows, self.rows):
            yield collated([self.rows_of.row(r) for r in range(first, min(first + self.rows, self.rows_of.rows))])

    def __iter__(self) -> Iterator[Batch]:
        return self.batches


def evaluation(
    prepared: Prepared, label: str, split: str, context: int, rows: int, max_tokens: int | None = None,
    apart: bool = False,
) -> Evaluation:  # fmt: skip
    """One split of one corpus, unshuffled: texts as a stream, chats as whole documents.

    Args:
        rows: of a batch.
        apart: texts as whole documents too, none of which sees another, as `DataRecipe.apart` trains them.
        max_tokens: takes as many whole documents as fit in it, but at least one. An empty split has no batches.
    """
    store = prepared.store(label, split)
    offsets = store.document_offsets
    documents = store.documents
    if max_tokens is not None and documents:
        documents = max(1, int(np.searchsorted(offsets, max_tokens, "right")) - 1)
    if store.kind == "text" and not apart:
        return Evaluation(Windows(store, context, prepared.eos, stop=int(offsets[documents])), rows, documents)
    return Evaluation(Packed(store, fit_documents(store, context, 0, documents), prepared.eos), rows, documents)
