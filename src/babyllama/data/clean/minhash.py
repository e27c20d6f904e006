"""MinHash: texts → shingles, and signatures of them that are alike where the texts are.

A text's shingles are all runs of `size` letters, digits and hanzi in it (lower case, without blanks and punctuation),
as hashes. A signature is made as in "Fast Similarity Sketching" (Dahlgaard, Knudsen, Thorup 2017, arXiv 1704.04370):
in each round every shingle falls into one of `bins` bins, and a bin that was empty before the round keeps the smallest
hash that falls into it. After `bins` rounds all shingles fall into bin 0, then all into bin 1, and so on, so that none
stays empty. Two signatures agree in a bin with the probability of the sets' Jaccard similarity, and an average over
the bins is at least as sure as one over as many hash functions, which cost so many hashes a shingle. Here a text of
some hundred shingles is done after the first rounds.

minhash.cpp computes the same where there is a compiler. Not here: which signatures are compared (near.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import c_int32, c_int64, c_void_p
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from babyllama.compiling import compiled
from babyllama.data.clean.measures import DIGIT, HANZI, LETTER, codes_of, hashes, spread, table

_PART = 1 << 15  # characters at a time: what a core's cache holds
_EMPTY = np.uint32(0xFFFFFFFF)
_FACTOR = np.uint64(0xD6E8FEB86659FD93)


class Signatures(NamedTuple):
    """Of n texts: shingles int64 (n), repeated ones counted again; minima uint32 (n, bins); bands uint64 (bands, n).

    A band is a hash of `rows` bins. A text without a shingle has 0 in every band.
    """

    shingles: np.ndarray
    minima: np.ndarray
    bands: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str], size: int, bins: int, rows: int) -> Signatures:
        """Of each text, by the compiled code where it compiles."""
        count = len(texts)
        found = cls(np.empty(count, np.int64), np.empty((count, bins), np.uint32),
                    np.empty((bins // rows, count), np.uint64))  # fmt: skip
        fill = fill_by_numpy if library() is None else fill_compiled
        for part in _parts(texts):
            fill(texts[part], size, rows, cls(found.shingles[part], found.minima[part], found.bands[:, part]))
        return found


def shingles(text: str, size: int) -> np.ndarray:
    """uint32, sorted, each once."""
    code, codes = library(), codes_of(text)
    if code is None:
        found = _flat([text], size)[0]
    else:
        found = np.empty(len(codes), np.uint32)
        at = codes.ctypes.data, len(codes), _terms().ctypes.data, size, found.ctypes.data
        found = found[: code.babyllama_shingles(*at)]
    found.sort()
    return found[np.concatenate([found[:1] == found[:1], found[1:] != found[:-1]])]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sets as `shingles` gives them."""
    together = np.concatenate([a, b])
    together.sort()
    both = int((together[1:] == together[:-1]).sum())
    return both / max(len(a) + len(b) - both, 1)


def _parts(texts: Sequence[str]) -> Iterator[slice]:
    first = characters = 0
    for i, text in enumerate(texts):
        characters += len(text)
        if characters >= _PART:
            yield slice(first, i + 1)
            first, characters = i + 1, 0
    if first < len(texts):
        yield slice(first, len(texts))


@lru_cache(maxsize=1)
def _terms() -> np.ndarray:
    """uint32, 1,114,112: each letter, digit or hanzi in lower case, spread for hashing; 0 for all else."""
    codes = np.arange(0x110000, dtype=np.uint32)
    codes[: 1 << 16] = [ord(small) if len(small := chr(code).lower()) == 1 else code for code in range(1 << 16)]
    used = np.ones(0x110000, bool)  # beyond the BMP all count: rare hanzi
    used[: 1 << 16] = np.isin(table()[: 1 << 16], (HANZI, LETTER, DIGIT))
    return np.where(used, spread(codes, 32), np.uint32(0))


def _joined(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The characters of all texts, one text after the other, and where each ends."""
    return codes_of("".join(texts)), np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))


# ── compiled ───────────────────────────────────────────────────────────────────────────────────────────────────────
@cache
def library() -> ctypes.CDLL | None:
    """minhash.cpp, compiled; None where it cannot be."""
    try:
        found = compiled(Path(__file__).with_name("minhash.cpp"))
    except OSError:
        return None
    found.babyllama_minhash.argtypes = (
        c_void_p,
        c_void_p,
        c_int64,
        c_void_p,
        *(c_int32,) * 3,
        *(c_void_p,) * 3,
        c_int64,
    )
    found.babyllama_minhash.restype = None
    found.babyllama_shingles.argtypes = (c_void_p, c_int64, c_void_p, c_int32, c_void_p)
    found.babyllama_shingles.restype = c_int64
    return found


def fill_compiled(texts: Sequence[str], size: int, rows: int, into: Signatures) -> None:
    """As `fill_by_numpy`."""
    codes, ends = _joined(texts)
    counts, minima, bands = into
    code, at = library(), [array.ctypes.data for array in (codes, ends, _terms(), counts, minima, bands)]
    assert code is not None
    stride = bands.strides[0] // bands.itemsize
    code.babyllama_minhash(*at[:2], len(texts), at[2], size, minima.shape[1], rows, *at[3:], stride)


# ── numpy ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def fill_by_numpy(texts: Sequence[str], size: int, rows: int, into: Signatures) -> None:
    """Of some texts at once: all that is computed on the way is in memory."""
    found, counts = _flat(texts, size)
    bins = into.minima.shape[1]
    minima = np.full(len(texts) * bins, _EMPTY)
    owner = np.repeat(np.arange(len(texts)), counts)
    for number in range(2 * bins):
        values = _mixed(found, number) if number else found
        bin = (values.astype(np.uint64) * np.uint64(bins) >> np.uint64(32)).astype(np.int64)
        place = owner * bins + (bin if number < bins else number - bins)
        was_empty = minima[place] == _EMPTY
        np.minimum.at(minima, place[was_empty], values[was_empty])
        left = (minima.reshape(-1, bins) == _EMPTY).any(1)[owner]
        found, owner = found[left], owner[left]
        if not len(found):
            break
    into.shingles[:], into.minima[:] = counts, minima.reshape(-1, bins)
    into.bands[:] = _bands(into.minima, rows)
    into.bands[:, counts == 0] = 0


def _bands(minima: np.ndarray, rows: int) -> np.ndarray:
    """uint64 (bands, texts)."""
    count = minima.shape[1] // rows
    places = minima[:, : count * rows].T.reshape(count, rows, len(minima)).astype(np.uint64)
    bands = np.zeros((count, len(minima)), np.uint64)
    with np.errstate(over="ignore"):
        for row in range(rows):
            bands = (bands ^ places[:, row]) * _FACTOR
            bands ^= bands >> np.uint64(32)
    return bands


def _mixed(values: np.ndarray, number: int) -> np.ndarray:
    """Another hash of each, for round `number`."""
    with np.errstate(over="ignore"):
        found = values + np.uint32(number * 0x9E3779B9 & 0xFFFFFFFF)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            found ^= found >> np.uint32(shift)
            found *= np.uint32(factor)
        return found ^ (found >> np.uint32(16))


def _flat(texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all shingles of all texts, one after the other, and how many each text has."""
    codes, ends = _joined(texts)
    terms = np.take(_terms(), codes.astype(np.intp), mode="clip")
    used = np.flatnonzero(terms)
    passed = np.searchsorted(used, ends)  # used characters up to each text's end
    found = hashes(np.take(terms, used), size)
    counts = np.maximum(np.diff(passed, prepend=0) - size + 1, 0)
    across = (passed[:, None] - np.arange(1, size)).ravel()  # runs that begin in one text and end in another
    inside = np.ones(len(found), bool)
    inside[across[(across >= 0) & (across < len(found))]] = False
    return found[inside], counts
