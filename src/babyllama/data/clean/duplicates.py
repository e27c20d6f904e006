"""Which documents, and which lines, are there more than once, and which of them stays.

    exact   the same text
    near    nearly the same text (near.py)
    lines   a line that stands in many documents: kept in the first, cut from the others

Of documents that are alike one stays: one that its record holds out before others, then the longest, then the one with
the smallest hash, of the same text the first; so the number of workers does not matter. `Marks` is what has to be known
of a blob of documents for that, as arrays in files: what is in memory of a document are some hundred bytes.

Not here: where documents come from and go to (shards/distinct.py).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import xxhash
from pydantic import Field

from babyllama.atomic import write_atomic
from babyllama.data.clean.near import Clusters, Near, join_near, sign
from babyllama.recipe import Recipe

KEPT, SAME, ALIKE = range(3)  # what becomes of a document
_MARKS = np.dtype([("hash", "<u8", 2), ("size", "<u4"), ("held", "u1"), ("offset", "<u8"), ("bytes", "<u8")])
_LINES = np.dtype([("hash", "<u8"), ("document", "<u8")])
_LINES_AT_ONCE = 1 << 24


class Exact(Recipe):
    """Documents that are the same, character by character."""

    kind: Literal["exact"] = "exact"


class Lines(Recipe):
    """Lines that stand in many documents, such as a site's footer: they stay in the first one only."""

    kind: Literal["lines"] = "lines"
    at_least: int = Field(default=15, ge=1, description="characters; shorter lines may stand everywhere")
    documents: int = Field(default=10, ge=2, description="a line that stands in so many documents is cut")


AnyDuplicates = Annotated[Exact | Near | Lines, Field(discriminator="kind")]
DUPLICATES: dict[str, type[Recipe]] = {"exact": Exact, "near": Near, "lines": Lines}


def line_hash(line: str) -> int:
    """Of a line without the blanks around it."""
    return xxhash.xxh3_64_intdigest(line.encode())


@dataclass(frozen=True)
class Marks:
    """The files ``PATH.marks``, ``.minima``, ``.bands`` and ``.lines`` of one blob."""

    path: Path

    def write(self, records: Sequence[tuple[bytes, str, int, bool, bool]], choices: Sequence[Any]) -> None:
        """Args: records: of each document its stored form, text, characters, held out by its record, near counts."""
        marks = np.zeros(len(records), _MARKS)
        offset = 0
        for i, (line, _, size, held, _) in enumerate(records):
            digest = xxhash.xxh3_128_intdigest(line)
            marks[i] = ((digest >> 64, digest & (1 << 64) - 1), size, held, offset, len(line))
            offset += len(line) + 1
        self._save("marks", marks)
        for choice in choices:
            if isinstance(choice, Near):
                found = sign([text if near else "" for _, text, _, _, near in records], choice)
                self._save("minima", found.minima)
                self._save("bands", found.bands)
            elif isinstance(choice, Lines):
                self._save("lines", _lines([text if near else "" for _, text, _, _, near in records], choice))

    def _save(self, name: str, array: np.ndarray) -> None:
        file = io.BytesIO()
        np.save(file, array)
        write_atomic(self.path.with_suffix(f".{name}"), file.getvalue())

    def load(self, name: str) -> np.ndarray:
        """Mapped, not read."""
        return np.load(self.path.with_suffix(f".{name}"), mmap_mode="r")

    def text(self, number: int) -> bytes:
        """The stored form of one document."""
        mark = self.load("marks")[number]
        with self.path.with_suffix(".jsonl").open("rb") as file:
            file.seek(int(mark["offset"]))
            return file.read(int(mark["bytes"]))


def _lines(texts: Sequence[str], choice: Lines) -> np.ndarray:
    found = []
    for number, text in enumerate(texts):
        lines = {line.strip() for line in text.split("\n")} if text else set()
        found += [(value, number) for value in sorted({line_hash(x) for x in lines if len(x) >= choice.at_least})]
    return np.array(found, _LINES)


@dataclass(frozen=True)
class Decision:
    """`fate`: uint8, of every document KEPT, SAME or ALIKE. `root`: int64, whose cluster it is in."""

    fate: np.ndarray
    root: np.ndarray


def decide(blobs: Sequence[Marks], choices: Sequence[Any], text: Callable[[bytes], str]) -> Decision:
    """Of all documents of all blobs, numbered through. `text` reads a stored form."""
    marks = np.concatenate([np.zeros(0, _MARKS), *(np.array(blob.load("marks")) for blob in blobs)])
    starts = np.cumsum([0, *(len(blob.load("marks")) for blob in blobs)])
    size, held = -marks["size"].astype(np.int64), -marks["held"].astype(np.int8)
    order = np.lexsort((marks["hash"][:, 1], marks["hash"][:, 0], size, held))
    rank = np.empty(len(marks), np.int64)
    rank[order] = np.arange(len(marks))  # 0 is the one to keep before all others
    near = next((choice for choice in choices if isinstance(choice, Near)), None)
    clusters = Clusters(len(marks))
    fate = np.full(len(marks), KEPT, np.uint8)
    if near or any(isinstance(choice, Exact) for choice in choices):
        _join_same(clusters, marks)
        fate[~_best(clusters.roots(), rank)] = SAME
    if near:
        one_of_each = fate == KEPT

        def bands() -> Iterator[np.ndarray]:
            for band in range(near.bands):
                values = np.concatenate([np.zeros(0, np.uint64), *(blob.load("bands")[band] for blob in blobs)])
                yield np.where(one_of_each, values, np.uint64(0))

        def minima(numbers: np.ndarray) -> np.ndarray:
            found = np.empty((len(numbers), near.permutations), np.uint32)
            owner = np.searchsorted(starts, numbers, "right") - 1
            for blob in np.unique(owner).tolist():
                mine = owner == blob
                found[mine] = blobs[blob].load("minima")[numbers[mine] - starts[blob]]
            return found

        def read(number: int) -> str:
            blob = int(np.searchsorted(starts, number, "right")) - 1
            return text(blobs[blob].text(number - int(starts[blob])))

        join_near(clusters, near, bands(), minima, read)
        fate[one_of_each & ~_best(clusters.roots(), rank)] = ALIKE
    return Decision(fate, clusters.roots())


def _join_same(clusters: Clusters, marks: np.ndarray) -> None:
    order = np.lexsort((marks["hash"][:, 1], marks["hash"][:, 0]))
    same = (marks["hash"][order[1:]] == marks["hash"][order[:-1]]).all(1)
    clusters.join(order[:-1][same], order[1:][same])


def _best(roots: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """bool: whether a document is that of its cluster with the smallest rank."""
    least = np.full(len(roots), len(roots), np.int64)
    np.minimum.at(least, roots, rank)
    return least[roots] == rank


def common_lines(blobs: Sequence[Marks], fate: np.ndarray, choice: Lines) -> np.ndarray:
    """Lines that stand in so many kept documents: their hash, sorted, and the first document that has them.

    Counted in parts by their hash, so that memory stays flat.
    """
    total = sum(len(blob.load("lines")) for blob in blobs)
    parts = -(-total // _LINES_AT_ONCE) or 1
    found = [np.zeros(0, _LINES)]
    for part in range(parts):
        mine, start = [np.zeros(0, _LINES)], 0
        for blob in blobs:
            lines = np.array(blob.load("lines"))
            lines = lines[lines["hash"] % np.uint64(parts) == part]
            lines["document"] += np.uint64(start)
            mine.append(lines[fate[lines["document"].astype(np.int64)] == KEPT])
            start += len(blob.load("marks"))
        lines = np.sort(np.concatenate(mine), order=("hash", "document"))
        begins = np.ones(len(lines), bool)
        begins[1:] = lines["hash"][1:] != lines["hash"][:-1]
        first = np.flatnonzero(begins)
        found.append(lines[first[np.diff(np.append(first, len(lines))) >= choice.documents]])
    return np.sort(np.concatenate(found), order="hash")
