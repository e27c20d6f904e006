"""Documents through a list of filters, with the ledger of what each did. Not here: the filters, the ledger itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from babyllama.data.clean.filters import Drop, Filter, Measured, filtered
from babyllama.data.clean.ledger import Entry
from babyllama.data.sources.documents import Document, Text


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
        for document in documents:
            kept = self._one(document)
            if kept is not None:
                yield kept

    def _one(self, document: Document) -> Document | None:
        for filter, entry in zip(self._filters, self._entries, strict=True):
            before = document.text
            if isinstance(filter, Measured) and (filter.whole or isinstance(document, Text)):
                value = filter.measure(before)
                entry.measured(value, filter.top)
                found: Document | Drop = filter.judge(value) or document
            else:
                found = filtered(filter, document)
            if isinstance(found, Drop) and found.stays:
                entry.saw(before, before, found.reason)
                continue
            if isinstance(found, Drop):
                entry.saw(before, None, found.reason)
                return None
            entry.saw(before, before if found is document else found.text)
            document = found
        return document
