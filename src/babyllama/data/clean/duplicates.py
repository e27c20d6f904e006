"""Which documents, and which lines, are there more than once, and which of them stays.

    exact   the same text
    near    nearly the same text (near.py)
    lines   a line that stands in many documents: kept in the first, cut from the others

Of documents that are alike one stays: one that its record holds out before others, then the longest, then the one with
the smallest hash, of the same text the first; so the number of workers does not matter. What has to be known of a blob
of documents for that are its marks, arrays in files: in memory are some twenty bytes of each document, and what else
is known of a million at a time.

Not here: where documents come from and go to (shards/distinct.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import xxhash
from pydantic import Field

from babyllama.atomic import write_atomic
from babyllama.data.clean.near import AT_ONCE, Clusters, Near, join_near, pairs_of, sign
from babyllama.recipe import Recipe

KEPT, SAME, ALIKE = range(3)  # what becomes of a document
_MARKS = np.dtype([("hash", "<u8", 2), ("size", "<u4"), ("held", "u1"), ("offset", "<u8"), ("bytes", "<u8")])
_LINES = np.dtype([("hash", "<u8"), ("document", "<u8")])
_LINES_AT_ONCE = 1 << 21  # in memory, with some 50 bytes each


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


def write_marks(path: Path, records: Sequence[tuple[bytes, str, int, bool, bool]], choices: Sequence[Any]) -> None:
    """The files ``PATH.marks``, ``.minima``, ``.bands`` and ``.lines`` of one blob.

    Args:
        records: of each document its stored form, text, characters, held out by its record, near and lines count.
    """
    marks = np.zeros(len(records), _MARKS)
    offset = 0
    for i, (line, _, size, held, _) in enumerate(records):
        digest = xxhash.xxh3_128_intdigest(line)
        marks[i] = ((digest >> 64, digest & (1 << 64) - 1), size, held, offset, len(line))
        offset += len(line) + 1
    found = {"marks": marks}
    for choice in choices:
        if isinstance(choice, Near):
            signed = sign([text if near else "" for _, text, _, _, near in records], choice)
            found |= {"minima": signed.minima, "bands": signed.bands}
        elif isinstance(choice, Lines):
            found["lines"] = _lines([text if near else "" for _, text, _, _, near in records], choice)
    for name, array in found.items():
        write_atomic(path.with_suffix(f".{name}"), array.tobytes())


class Marked:
    """The documents of many blobs, numbered through. What is not asked for stays in the blobs' files."""

    def __init__(self, blobs: Sequence[Path]) -> None:
        self.blobs = blobs
        self.starts = np.cumsum([0, *(path.with_suffix(".marks").stat().st_size // _MARKS.itemsize for path in blobs)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def owner(self, numbers: np.ndarray | int) -> np.ndarray:
        """int64: the blob of each document."""
        return np.searchsorted(self.starts, numbers, "right") - 1

    def marks(self, numbers: np.ndarray) -> np.ndarray:
        """Of some documents, in rising order."""
        edges = np.searchsorted(numbers, self.starts).tolist()
        return np.concatenate([np.zeros(0, _MARKS), *(
            np.fromfile(path.with_suffix(".marks"), _MARKS)[numbers[begin:end] - start]
            for (path, start, _), (begin, end) in zip(self._spans(), pairwise(edges), strict=True) if end > begin
        )])  # fmt: skip

    def hashes(self, half: int) -> np.ndarray:
        """uint64 (documents): the first or the second half of each one's hash."""
        found = np.empty(len(self), np.uint64)
        for path, start, stop in self._spans():
            found[start:stop] = np.fromfile(path.with_suffix(".marks"), _MARKS)["hash"][:, half]
        return found

    def band(self, number: int) -> np.ndarray:
        """uint64 (documents)."""
        found = np.empty(len(self), np.uint64)
        for path, start, stop in self._spans():
            offset = 8 * number * (stop - start)
            found[start:stop] = np.fromfile(path.with_suffix(".bands"), np.uint64, stop - start, offset=offset)
        return found

    def minima(self, numbers: np.ndarray, permutations: int) -> np.ndarray:
        """uint32 (numbers, permutations)."""
        found, owner = np.empty((len(numbers), permutations), np.uint32), self.owner(numbers)
        for blob in np.unique(owner).tolist():
            mine = owner == blob
            rows = np.memmap(self.blobs[blob].with_suffix(".minima"), np.uint32, "r").reshape(-1, permutations)
            found[mine] = rows[numbers[mine] - self.starts[blob]]
        return found

    def lines(self) -> Iterator[np.ndarray]:
        """The long lines of each blob's documents: their hash, and which document they are of."""
        for path, start, _ in self._spans():
            found = np.fromfile(path.with_suffix(".lines"), _LINES)
            found["document"] += np.uint64(start)
            yield found

    def line(self, number: int) -> bytes:
        """The stored form of one document."""
        path, start = self.blobs[blob := int(self.owner(number))], int(self.starts[blob])
        place = _MARKS.itemsize * (number - start)
        mark = np.fromfile(path.with_suffix(".marks"), _MARKS, 1, offset=place)[0]
        with path.open("rb") as file:
            file.seek(int(mark["offset"]))
            return file.read(int(mark["bytes"]))

    def _spans(self) -> Iterator[tuple[Path, int, int]]:
        return zip(self.blobs, self.starts.tolist(), self.starts[1:].tolist(), strict=False)


def _lines(texts: Sequence[str], choice: Lines) -> np.ndarray:
    least, hashes, counts = choice.at_least, list[int](), list[int]()
    for text in texts:
        long = (line.strip() for line in text.split("\n") if len(line) >= least)
        hashes += sorted({line_hash(line) for line in long if len(line) >= least})
        counts.append(len(hashes))
    found = np.empty(len(hashes), _LINES)
    found["hash"] = hashes
    found["document"] = np.repeat(np.arange(len(texts)), np.diff(np.array(counts, np.int64), prepend=0))
    return found


@dataclass(frozen=True)
class Decision:
    """`fate`: uint8, of every document KEPT, SAME or ALIKE. `root`: whose cluster it is in."""

    fate: np.ndarray
    root: np.ndarray


def decide(documents: Marked, choices: Sequence[Any], text: Callable[[bytes], str]) -> Decision:
    """Which documents stay. `text` reads a stored form."""
    near = next((choice for choice in choices if isinstance(choice, Near)), None)
    clusters = Clusters(len(documents))
    fate = np.full(len(documents), KEPT, np.uint8)
    if near or any(isinstance(choice, Exact) for choice in choices):
        _join_same(clusters, documents)
        for others in _others(documents, clusters, fate):
            fate[others] = SAME
    if near:
        gone = fate == SAME
        bands = (_zero(documents.band(number), gone) for number in range(near.bands))
        join_near(clusters, near, bands, lambda numbers: documents.minima(numbers, near.permutations),
                  lambda number: text(documents.line(number)))  # fmt: skip
        for others in _others(documents, clusters, fate):
            fate[others] = ALIKE
    return Decision(fate, clusters.roots())


def _zero(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    values[where] = 0
    return values


def _join_same(clusters: Clusters, documents: Marked) -> None:
    second = documents.hashes(1)
    for left, right in pairs_of(documents.hashes(0)):
        same = second[left] == second[right]
        clusters.join(left[same], right[same])


def _others(documents: Marked, clusters: Clusters, fate: np.ndarray) -> Iterator[np.ndarray]:
    """The documents kept so far of which a better one is in the same cluster, some of them at a time."""
    roots, several = clusters.roots(), np.zeros(len(fate), bool)
    for start in range(0, len(fate), AT_ONCE):
        mine = roots[start : start + AT_ONCE]
        several[mine[mine != np.arange(start, start + len(mine))]] = True
    for start in range(0, len(fate), AT_ONCE):
        several[start : start + AT_ONCE] = several[roots[start : start + AT_ONCE]]
    numbers = np.flatnonzero(several & (fate == KEPT))
    parts = len(numbers) // AT_ONCE + 1
    for part in range(parts):
        mine = numbers[roots[numbers] % parts == part]
        marks, of = documents.marks(mine), roots[mine]
        size, held = -marks["size"].astype(np.int64), -marks["held"].astype(np.int8)
        order = np.lexsort((marks["hash"][:, 1], marks["hash"][:, 0], size, held, of))  # of the same the first is first
        yield mine[order[1:][of[order[1:]] == of[order[:-1]]]]


def common_lines(documents: Marked, fate: np.ndarray, choice: Lines) -> np.ndarray:
    """Lines that stand in so many kept documents: their hash, sorted, and the first document that has them.

    Counted in parts by their hash, so that memory stays flat.
    """
    total = sum(path.with_suffix(".lines").stat().st_size // _LINES.itemsize for path in documents.blobs)
    parts = -(-total // _LINES_AT_ONCE) or 1
    found = [np.zeros(0, _LINES)]
    for part in range(parts):
        mine = [np.zeros(0, _LINES)]
        for lines in documents.lines():
            lines = lines[lines["hash"] % np.uint64(parts) == part]
            mine.append(lines[fate[lines["document"].astype(np.int64)] == KEPT])
        lines = np.concatenate(mine)
        mine.clear()
        lines = lines[np.argsort(lines["hash"], kind="stable")]  # of one hash by document, as they came
        begins = np.ones(len(lines), bool)
        begins[1:] = lines["hash"][1:] != lines["hash"][:-1]
        first = np.flatnonzero(begins)
        found.append(lines[first[np.diff(np.append(first, len(lines))) >= choice.documents]])
    return np.sort(np.concatenate(found), order="hash")
