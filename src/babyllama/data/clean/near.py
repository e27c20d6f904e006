"""Near-duplicates: MinHash over runs of characters, bands, pairs, clusters. Arrays only.

Two documents agree in a place of their signatures (minhash.py) with the probability of their Jaccard similarity. A band
is a hash of `rows` places; documents that share a band are looked at: with b bands and similarity s that is so with
probability 1 − (1 − s^r)^b. What a signature cannot tell of a pair is computed exactly from the texts.

Not here: which document of a cluster is kept, files (duplicates.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from babyllama.data.clean.minhash import Signatures, jaccard, shingles
from babyllama.recipe import Recipe

# Documents of a bucket of which all pairs are looked at; of a larger one neighbours, and each with the first.
_WHOLE = 16
AT_ONCE = 1 << 20  # documents in memory at a time, with some 80 bytes each; of all only a few bytes are


class Near(Recipe):
    """Documents of which the Jaccard similarity of their runs of characters is `threshold` or more.

    Scattered edits of a share e of the characters leave (1 − e)^5 of the runs: 1 % a similarity of 0.91, 5 % 0.63,
    10 % 0.42. `rows` is chosen for a recall of 0.93 or more at the threshold unless it is given.
    """

    kind: Literal["near"] = "near"
    threshold: float = Field(default=0.5, gt=0, le=1, description="of the Jaccard similarity")
    characters: int = Field(default=5, ge=1, le=64, description="of a run")
    permutations: int = Field(default=128, ge=16, le=1024, description="numbers of a signature")
    rows: int | None = Field(default=None, ge=1, description="of a band; permutations / rows are the bands")

    @model_validator(mode="after")
    def _a_band_fits(self) -> Near:
        if (self.rows or 1) > self.permutations:
            raise ValueError(f"rows {self.rows} must not be more than permutations {self.permutations}")
        return self

    @property
    def height(self) -> int:
        """Rows of a band."""
        fit = (r for r in range(self.permutations, 1, -1)
               if 1 - (1 - self.threshold**r) ** (self.permutations // r) >= 0.93)  # fmt: skip
        return self.rows or next(fit, 1)

    @property
    def bands(self) -> int:
        return self.permutations // self.height

    @property
    def unsure(self) -> float:
        """Three standard deviations of an estimate at the threshold: nearer to it the texts are compared."""
        return 3 * float(np.sqrt(self.threshold * (1 - self.threshold) / self.permutations))


def sign(texts: Sequence[str], near: Near) -> Signatures:
    """What tells which of them may be near-duplicates."""
    return Signatures.of(texts, near.characters, near.permutations, near.height)


# ── clusters ───────────────────────────────────────────────────────────────────────────────────────────────────────
class Clusters:
    """Union-find over n documents; the root of a cluster is its smallest number."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int32 if count < 1 << 31 else np.int64)

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Each a[i] with b[i]."""
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            first, second = self._root(one), self._root(other)
            if first != second:
                self._parent[max(first, second)] = min(first, second)

    def _root(self, one: int) -> int:
        parent = self._parent
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = int(parent[one])
        return one

    def apart(self, a: int, b: int) -> bool:
        """Whether two are not in one cluster."""
        return self._root(a) != self._root(b)

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Which cluster each of some belongs to."""
        found = self._parent[numbers]
        while not np.array_equal(above := self._parent[found], found):
            found = above
        return found

    def roots(self) -> np.ndarray:
        """int32 or int64, n: which cluster each belongs to; until the next call of `join`."""
        for start in range(0, len(self._parent), AT_ONCE):
            self._parent[start : start + AT_ONCE] = self.of(np.arange(start, min(start + AT_ONCE, len(self._parent))))
        return self._parent


def pairs_of(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (smaller number first) of equal `values` that are not 0: all of small groups, enough of large ones.

    Values are hashes, and looked at in parts by their first bits.
    """
    bits = (max(len(values) - 1, 0) // AT_ONCE).bit_length()
    if not bits:
        yield _pairs(values)
        return
    for part in range(1 << bits):
        numbers = np.concatenate([
            start + np.flatnonzero(values[start : start + AT_ONCE] >> np.uint64(64 - bits) == part)
            for start in range(0, len(values), AT_ONCE)
        ])  # fmt: skip
        left, right = _pairs(values[numbers])
        yield numbers[left], numbers[right]


def _pairs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    many = np.flatnonzero(_perhaps_twice(values))
    order = many[np.argsort(values[many])]
    ordered = values[order]
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    begins, sizes = edges[:-1], np.diff(edges)
    left, right = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(sizes[(sizes > 1) & (sizes <= _WHOLE)]).tolist():
        members = np.sort(order[begins[sizes == size][:, None] + np.arange(size)])
        a, b = np.triu_indices(size, 1)
        left.append(members[:, a].ravel())
        right.append(members[:, b].ravel())
    for begin, size in zip(begins[sizes > _WHOLE].tolist(), sizes[sizes > _WHOLE].tolist(), strict=True):
        members = np.sort(order[begin : begin + size])
        left += [np.full(size - 1, members[0]), members[1:-1]]
        right += [members[1:], members[2:]]
    return np.concatenate(left), np.concatenate(right)


def _perhaps_twice(values: np.ndarray) -> np.ndarray:
    """bool: False for values that are there once or 0, but for a few; so that only the others have to be sorted."""
    places = 1 << (4 * len(values)).bit_length()
    place = (values & np.uint64(places - 1)).astype(np.int64)
    last, twice = np.empty(places, np.uint32), np.zeros(places, bool)
    number = np.arange(len(values), dtype=np.uint32)
    last[place] = number
    twice[place[last[place] != number]] = True
    return twice[place] & (values != 0)


_PAIRS = 1 << 14  # compared at a time


def join_near(
    clusters: Clusters, near: Near, bands: Iterator[np.ndarray], minima: Callable[[np.ndarray], np.ndarray],
    text: Callable[[int], str],
) -> None:  # fmt: skip
    """Join all documents that are near-duplicates, band by band.

    Args:
        bands: uint64 (n) each.  minima: numbers of documents → their rows.  text: number → text, for exact similarity.
    """
    refused: set[tuple[int, int]] = set()
    low, high = near.threshold - near.unsure, near.threshold + near.unsure
    known = lru_cache(maxsize=256)(lambda number: shingles(text(number), near.characters))
    for left, right in chain.from_iterable(map(pairs_of, bands)):
        clusters.roots()  # paths are short again
        for start in range(0, len(left), _PAIRS):
            a, b = left[start : start + _PAIRS], right[start : start + _PAIRS]
            apart = clusters.of(a) != clusters.of(b)
            a, b = a[apart], b[apart]
            likeness = (minima(a) == minima(b)).mean(1) if len(a) else np.zeros(0)
            sure = likeness >= high
            clusters.join(a[sure], b[sure])
            for i in np.flatnonzero(~sure & (likeness > low)).tolist():
                pair = int(a[i]), int(b[i])
                if pair not in refused and clusters.apart(*pair):
                    if jaccard(known(pair[0]), known(pair[1])) >= near.threshold:
                        clusters.join(a[i : i + 1], b[i : i + 1])
                    else:
                        refused.add(pair)
