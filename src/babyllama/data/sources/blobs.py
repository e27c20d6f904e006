"""Blobs of JSON lines: what readers give and workers get. Not here: files and their formats (readers.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from babyllama.data.sources.files import Unreadable

try:
    from orjson import dumps
except ImportError:  # babyllama[data] is not installed
    dumps = None

OnBad = Literal["stop", "skip"]  # what is done about a record, or a file, that cannot be read
BLOB_BYTES = 16 << 20
DAMAGED = ", file "  # ends the `where` of a blob that stands for what could not be read of a file


@dataclass(frozen=True)
class Blob:
    """Whole JSON lines, undecoded. `where` + a line's number names it: ``a.jsonl:7`` or ``a.json, record 7``.

    `first` is the number of the blob's first line.
    `position` counts the source's bytes on disk that were read when the blob was complete.
    """

    where: str
    first: int
    lines: bytes
    position: int


def pack_records(
    records: Iterable[Any], where: str, blob_bytes: int = BLOB_BYTES, position: Callable[[], int] = lambda: 0
) -> Iterator[Blob]:
    """Objects already read, their JSON as bytes, or `Unreadable` → blobs; their line numbers are record numbers."""
    lines, size, first, number = [], 0, 1, 0
    for number, record in enumerate(records, start=1):
        lines.append(_line(record))
        size += len(lines[-1]) + 1
        if size >= blob_bytes:
            yield Blob(where, first, b"\n".join(lines) + b"\n", position())
            lines, size, first = [], 0, number + 1
    if lines:
        yield Blob(where, first, b"\n".join(lines) + b"\n", position())


def _line(record: Any) -> bytes:
    if isinstance(record, Unreadable):
        return record.line
    return record if isinstance(record, bytes) else json_of(record)


def json_of(value: Any) -> bytes:
    """In one line, as Python writes it."""
    with suppress(TypeError, RecursionError):  # bytes that are no text, as surrogates; very large numbers
        if dumps and _simple(value):
            return dumps(value)
    return json.dumps(value, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass")


def _simple(value: Any) -> bool:
    """Whether orjson writes it as Python does."""
    kind = type(value)
    if kind is list or kind is tuple:
        return all(map(_simple, value))
    if kind is dict:
        return all(map(_simple, value.values()))
    return kind in (str, int, bool) or value is None or (kind is float and isfinite(value))


def _plain(value: Any) -> str:
    """Bytes are UTF-8 text, or become what records.py refuses as text; all else as Python writes it."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
