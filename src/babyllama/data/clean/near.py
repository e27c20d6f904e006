"""Near-duplicates: MinHash over runs of characters, bands, pairs, clusters. Arrays only.

A document's shingles are all runs of `characters` letters, digits and hanzi in it (lower case, without blanks and
punctuation), as hashes. Its signature is `permutations` minima of them (rensa's MinHash): two documents agree in a
place with the probability of their Jaccard similarity. A band is a hash of `rows` places; documents that share a band
are looked at: with b bands and similarity s that is so with probability 1 − (1 − s^r)^b. What a signature cannot tell
of a pair is computed exactly from the texts.

Not here: which document of a cluster is kept, files (duplicates.py).
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from babyllama.data.clean.measures import DIGIT, HANZI, LETTER, codes_of, hashes, spread, table
from babyllama.errors import needs_extra
from babyllama.recipe import Recipe

_SEED = 20261129
_CHUNK = 1 << 16  # characters whose shingles are in memory at a time: what a core's cache holds
_WHOLE = (
    16  # documents of a bucket of which all pairs are looked at; of a larger one neighbours, and each with the first
)
_FACTOR = np.uint64(0xD6E8FEB86659FD93)


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


class Signatures(NamedTuple):
    """Of n documents: shingles int64 (n), minima uint32 (n, permutations), bands uint64 (bands, n)."""

    shingles: np.ndarray
    minima: np.ndarray
    bands: np.ndarray


@lru_cache(maxsize=1)
def _terms() -> np.ndarray:
    """uint32, 1,114,112: each letter, digit or hanzi in lower case, spread for hashing; 0 for all else."""
    codes = np.arange(0x110000, dtype=np.uint32)
    codes[: 1 << 16] = [ord(small) if len(small := chr(code).lower()) == 1 else code for code in range(1 << 16)]
    used = np.ones(0x110000, bool)  # beyond the BMP all count: rare hanzi
    used[: 1 << 16] = np.isin(table()[: 1 << 16], (HANZI, LETTER, DIGIT))
    return np.where(used, spread(codes, 32), np.uint32(0))


def _flat(texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all shingles of all texts, one after the other, and n + 1 offsets."""
    terms = np.take(_terms(), codes_of("".join(texts)).astype(np.intp), mode="clip")
    used = np.flatnonzero(terms)
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    passed = np.searchsorted(used, ends)  # used characters up to each text's end
    found = hashes(np.take(terms, used), size)
    counts = np.maximum(np.diff(passed, prepend=0) - size + 1, 0)
    across = (passed[:, None] - np.arange(1, size)).ravel()  # runs that begin in one text and end in another
    inside = np.ones(len(found), bool)
    inside[across[(across >= 0) & (across < len(found))]] = False
    return found[inside], np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def shingles(text: str, size: int) -> np.ndarray:
    """uint32, sorted, each once: the hashes of its runs of `size` characters."""
    return np.unique(_flat([text], size)[0])


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sets as `shingles` gives them."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(len(a) + len(b) - both, 1)


def sign(texts: Sequence[str], near: Near) -> Signatures:
    """The signatures of texts. A text without a shingle has band 0 everywhere."""
    parts = [_signed(part, near) for part in _parts(texts)]
    if not parts:
        return Signatures(np.zeros(0, np.int64), np.zeros((0, near.permutations), np.uint32),
                          np.zeros((near.bands, 0), np.uint64))  # fmt: skip
    counts, minima, bands = zip(*parts, strict=True)
    return Signatures(np.concatenate(counts), np.concatenate(minima), np.concatenate(bands, axis=1))


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    first = size = 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= _CHUNK:
            yield texts[first : i + 1]
            first, size = i + 1, 0
    if first < len(texts):
        yield texts[first:]


def rensa() -> Any:
    """The package. Raises InputError where it is not installed."""
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the work is spread over processes
    try:
        import rensa as found
    except ImportError:
        raise needs_extra("rensa", "data") from None
    return found


def _signed(texts: Sequence[str], near: Near) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found, offsets = _flat(texts, near.characters)
    matrix = rensa().RMinHash.digest_matrix_from_flat_token_hashes(
        found.astype(np.uint64), offsets.astype(np.uint64), near.permutations, _SEED
    )
    flat = array("I")  # several times as fast as numpy from lists
    for row in matrix.to_rows():
        flat.fromlist(row)
    minima = np.array(flat, np.uint32).reshape(len(texts), near.permutations)
    counts = np.diff(offsets)
    grouped = minima[:, : near.bands * near.height].reshape(len(texts), near.bands, near.height).astype(np.uint64)
    bands = np.zeros((len(texts), near.bands), np.uint64)
    with np.errstate(over="ignore"):
        for row in range(near.height):
            bands = (bands ^ grouped[:, :, row]) * _FACTOR
            bands ^= bands >> np.uint64(32)
    bands[counts == 0] = 0
    return counts, minima, np.ascontiguousarray(bands.T)


# ── clusters ───────────────────────────────────────────────────────────────────────────────────────────────────────
class Clusters:
    """Union-find over n documents; the root of a cluster is its smallest number."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

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

    def roots(self) -> np.ndarray:
        """int64, n: which cluster each belongs to."""
        while True:
            above = self._parent[self._parent]
            if np.array_equal(above, self._parent):
                return above
            self._parent = above


def pairs_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (smaller number first) of equal `values` that are not 0: all of small groups, enough of large ones."""
    if not len(values):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    begins, sizes = edges[:-1], np.diff(edges)
    sizes[ordered[begins] == 0] = 1
    left, right = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(sizes[(sizes > 1) & (sizes <= _WHOLE)]).tolist():
        members = order[begins[sizes == size][:, None] + np.arange(size)]
        a, b = np.triu_indices(size, 1)
        left.append(members[:, a].ravel())
        right.append(members[:, b].ravel())
    for begin, size in zip(begins[sizes > _WHOLE].tolist(), sizes[sizes > _WHOLE].tolist(), strict=True):
        members = order[begin : begin + size]
        left += [np.full(size - 1, members[0]), members[1:-1]]
        right += [members[1:], members[2:]]
    return np.concatenate(left), np.concatenate(right)


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
    known = lru_cache(maxsize=4096)(lambda number: shingles(text(number), near.characters))
    for band in bands:
        left, right = pairs_of(band)
        for start in range(0, len(left), _PAIRS):
            a, b = left[start : start + _PAIRS], right[start : start + _PAIRS]
            roots = clusters.roots()
            apart = roots[a] != roots[b]
            a, b = a[apart], b[apart]
            likeness = (minima(a) == minima(b)).mean(1) if len(a) else np.zeros(0)
            sure = likeness >= near.threshold + near.unsure
            clusters.join(a[sure], b[sure])
            for i in np.flatnonzero(~sure & (likeness > near.threshold - near.unsure)).tolist():
                pair = int(a[i]), int(b[i])
                if pair not in refused and clusters.apart(*pair):
                    if jaccard(known(pair[0]), known(pair[1])) >= near.threshold:
                        clusters.join(a[i : i + 1], b[i : i + 1])
                    else:
                        refused.add(pair)
