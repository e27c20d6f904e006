"""Blobs of JSON lines: what readers give and workers get. Not here: files and their formats (readers.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite
from typing import Any, Literal

from babyllama.data.sources.files import Unreadable
from babyllama.errors import InputError

try:
    from orjson import dumps
except ImportError:  # babyllama[data] is not installed
    dumps = None

OnBad = Literal["stop", "skip"]  # what is done about a record, or a file, that cannot be read
BLOB_BYTES = 16 << 20
DAMAGED = ", file "  # ends the `where` of a blob that stands for what could not be read of a file


@dataclass(frozen=True)
class Part:
    """Of a blob's lines those from number `at` on, counted from 0: `where` they are from, `first` as of `Blob`."""

    at: int
    where: str
    first: int


@dataclass(frozen=True)
class Blob:
    """Whole JSON lines, undecoded. `where` + a line's number names it: ``a.jsonl:7`` or ``a.json, record 7``.

    `first` is the number of the blob's first line.
    `position` counts the source's bytes on disk that were read when the blob was complete.
    `more`: of a blob of several small files, where the lines of each but the first begin.
    """

    where: str
    first: int
    lines: bytes
    position: int
    more: tuple[Part, ...] = ()

    def numbered(self) -> Iterator[tuple[str, int, bytes]]:
        """Each line, with the `where` and the number that name it."""
        lines = self.lines.split(b"\n")
        parts = (Part(0, self.where, self.first), *self.more, Part(len(lines), "", 0))
        for part, following in pairwise(parts):
            for at in range(part.at, following.at):
                yield part.where, part.first + at - part.at, lines[at]


def joined(blobs: Iterable[Blob], blob_bytes: int) -> Iterator[Blob]:
    """The same lines in fewer blobs: those of small files together, up to `blob_bytes`, for each blob becomes files."""
    held, size = list[Blob](), 0
    try:
        for blob in blobs:
            if held and size + len(blob.lines) > blob_bytes:
                yield _one(held)
                held, size = [], 0
            if len(blob.lines) >= blob_bytes:  # not held until the next one is read
                yield blob
                continue
            held.append(blob)
            size += len(blob.lines)
    except InputError:  # what was read before the fault comes before it
        yield from [_one(held)] if held else []
        raise
    yield from [_one(held)] if held else []


def _one(blobs: list[Blob]) -> Blob:
    first, *others = blobs
    if not others:
        return first
    parts, lines = list[Part](), [first.lines]
    at = 0
    for blob in others:
        if not lines[-1].endswith(b"\n"):  # the last line of a file may have no end
            lines[-1] += b"\n"
        at += lines[-1].count(b"\n")
        parts += [replace(part, at=part.at + at) for part in (Part(0, blob.where, blob.first), *blob.more)]
        lines.append(blob.lines)
    return Blob(first.where, first.first, b"".join(lines), blobs[-1].position, (*first.more, *parts))


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
