"""Documents through a list of filters, with the ledger of what each did. Not here: the filters, the ledger itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from babyllama.data.clean.filters import Drop, Filter, Measured, filtered
from babyllama.data.clean.ledger import Entry
from babyllama.data.sources.corpora import Source
from babyllama.data.sources.documents import Document, Text
from babyllama.data.sources.records import parse


class Cleaning:
    """Filters in their order; ``ledger`` says what they did to all documents that went through."""

    def __init__(self, filters: Sequence[Filter]) -> None:
        self._filters = tuple(filters)
        self._entries = [Entry(filter.name) for filter in filters]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """One entry a filter, as the manifest holds it."""
        return [entry.json() for entry in self._entries]

    @property
    def dropped(self) -> int:
        return sum(entry.dropped for entry in self._entries)

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents that all filters keep, as they leave them."""
        found = iter(documents)
        alone: list[tuple[Filter, Entry]] = []  # one document goes through all of them before the next is looked at
        for filter, entry in zip(self._filters, self._entries, strict=True):
            if isinstance(filter, Measured) and filter.together > 1:
                found = _together(filter, entry, _each(tuple(alone), found))
                alone = []
            else:
                alone.append((filter, entry))
        return _each(tuple(alone), found)


def _each(filters: Sequence[tuple[Filter, Entry]], documents: Iterator[Document]) -> Iterator[Document]:
    for document in documents:
        kept: Document | None = document
        for filter, entry in filters:
            if isinstance(filter, Measured) and _judged(filter, kept):
                kept = _by_value(filter, entry, kept, filter.measure(kept.text))
            else:
                kept = _noted(entry, kept, filtered(filter, kept))
            if kept is None:
                break
        if kept is not None:
            yield kept


def _together(filter: Measured, entry: Entry, documents: Iterator[Document]) -> Iterator[Document]:
    """Some documents at a time through one filter."""
    while batch := list(islice(documents, filter.together)):
        judged = [_judged(filter, document) for document in batch]
        texts = [document.text for document, mine in zip(batch, judged, strict=True) if mine]
        values = iter(filter.measures(texts) if texts else ())
        for document, mine in zip(batch, judged, strict=True):
            kept = _by_value(filter, entry, document, next(values)) if mine else _noted(entry, document, document)
            if kept is not None:
                yield kept


def _judged(filter: Measured, document: Document) -> bool:
    """Whether it is one for this filter to measure."""
    return filter.whole or isinstance(document, Text)


def _by_value(filter: Measured, entry: Entry, document: Document, value: float) -> Document | None:
    entry.measured(value, filter.top)
    return _noted(entry, document, filter.judge(value) or document)


def _noted(entry: Entry, document: Document, found: Document | Drop) -> Document | None:
    """What is left of a document, written into the ledger."""
    before = document.text
    if isinstance(found, Drop):
        entry.saw(before, before if found.stays else None, found.reason)
        return document if found.stays else None
    entry.saw(before, before if found is document else found.text)
    return found


def settled(filters: Sequence[Filter], sources: Sequence[Source]) -> tuple[Filter, ...]:
    """The filters with all their limits: where some hang on the texts, on the first ones of all sources in turn, as the
    filters before leave them. The same for the same sources."""
    found: list[Filter] = []
    for filter in filters:
        found.append(filter.settled(lambda: _in_turn([_first(source, tuple(found)) for source in sources])))
    return tuple(found)


def _first(source: Source, filters: Sequence[Filter]) -> Iterator[str]:
    documents = (document for blob in source.blobs() for document in parse(blob, source.shape).documents)
    return (document.text for document in Cleaning(filters)(documents) if isinstance(document, Text))


def _in_turn(sources: list[Iterator[str]]) -> Iterator[str]:
    while sources:
        for source in list(sources):
            text = next(source, None)
            if text is None:
                sources.remove(source)
            else:
                yield text
