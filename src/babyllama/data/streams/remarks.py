"""What somebody should know about the rows of a training before it starts, in plain words. Not here: printing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from babyllama.data.shards.shards import Prepared, TokenStore
from babyllama.data.streams.answers import Answers
from babyllama.data.streams.batches import Stream
from babyllama.data.streams.rows import Packed

_CHUNK = 1 << 24  # tokens looked at together


def remarks(prepared: Prepared, stream: Stream, context: int) -> Iterator[str]:
    """Answers that have no room, chats that are cut, rows with nothing to learn, corpora without a held-out part."""
    for label, rows in zip(stream.labels, stream.corpora, strict=True):
        if isinstance(rows, Answers) and rows.left_out:
            yield _about_answers(label, rows)
        if rows.store.kind == "chat":
            yield from _about_chats(label, rows.store, context, isinstance(rows, Packed))
        if isinstance(rows, Packed) and rows.store.kind == "chat" and (empty := rows_without_targets(rows)):
            yield (
                f"{label}: {empty:,} of {rows.rows:,} rows have nothing to learn, for the question alone fills them; "
                f"a longer context (plan.context) or shorter chats would make use of them"
            )
        if not prepared.store(label, "val").documents:
            yield f"{label}: nothing is held out, so it is not validated; prepare it with a larger validation=…"


def _about_answers(label: str, rows: Answers) -> str:
    units, room = ("pairs" if rows.group == 2 else "answers"), rows.room
    most = f" and a pair {room.context:,}" if rows.group == 2 else ""
    return (
        f"{label}: {rows.left_out:,} of {rows.store.documents // rows.group:,} {units} are too long and are left out: "
        f"an answer may have {room.longest:,} tokens with its prompt{most}"
    )


def _about_chats(label: str, store: TokenStore, context: int, whole: bool) -> Iterator[str]:
    longer = int((np.diff(store.document_offsets) - 1 > context).sum())
    if not whole:
        yield f"{label}: packing=stream mixes and cuts chats; data.packing=documents keeps each whole"
    elif longer:
        yield (
            f"{label}: {longer:,} of {store.documents:,} chats ({longer / store.documents:.1%}) are longer than the "
            f"context of {context:,} tokens and are cut; the later parts are trained on without their beginning"
        )


def rows_without_targets(packed: Packed) -> int:
    """How many rows hold no token that the loss counts."""
    packing, store = packed.packing, packed.store
    order = np.argsort(packing.starts)
    starts, stops = packing.starts[order], (packing.starts + packing.lengths)[order]
    counts = np.zeros(len(starts), np.int64)
    for first in range(0, len(store), _CHUNK):
        inputs = np.flatnonzero(store.mask(first, min(first + _CHUNK, len(store)))) + first - 1
        span = np.searchsorted(starts, inputs, "right") - 1
        inside = (span >= 0) & (inputs < stops[span])
        counts += np.bincount(span[inside], minlength=len(starts))
    of_spans = np.empty_like(counts)
    of_spans[order] = counts
    return int((np.add.reduceat(of_spans, packing.borders[:-1]) == 0).sum())
