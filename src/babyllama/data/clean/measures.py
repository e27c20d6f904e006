"""One number of a text each, with limits: length, hanzi, symbols, lines, repetition.

The limits that Chinese needs are not those of English. Where a rule is that of Gopher (arXiv 2112.11446), C4 or
FineWeb-2 (arXiv 2506.20920), the default is FineWeb-2's for Chinese (its configs/cmn_Hani.yml, fitted to Chinese web
text) as far as it counts what we count: it counts words of a segmenter, of about 1.6 characters, and we characters.
Other defaults were chosen on books, news, encyclopedia and technical prose: docs/cleaning.md says how many documents
of each they leave out.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from babyllama.data.clean.filters import Measured

BLANK, HANZI, LETTER, DIGIT, MARK, SYMBOL = range(6)
_BEYOND = 0x10000  # in the table: a character outside the BMP that is no hanzi; the next one: a hanzi there
_USUAL = frozenset("#$%&*+-/<=>@^_`|~…—·￥℃×÷±≤≥≠≈")  # counted as punctuation: prose and code are full of them


@lru_cache(maxsize=1)
def table() -> np.ndarray:
    """uint8, 65,538: the class of each character."""
    found = np.full(_BEYOND + 2, SYMBOL, np.uint8)
    for code in range(_BEYOND):
        character = chr(code)
        if 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or character == "〇":
            found[code] = HANZI
        elif character.isspace():
            found[code] = BLANK
        elif character.isalpha() or unicodedata.category(character)[0] == "M":
            found[code] = LETTER
        elif character.isdigit() or character.isnumeric():
            found[code] = DIGIT
        elif unicodedata.category(character)[0] == "P" or character in _USUAL:
            found[code] = MARK
    found[_BEYOND + 1] = HANZI
    return found


def codes_of(text: str) -> np.ndarray:
    """Its characters as numbers, uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


@lru_cache(maxsize=1)
def classes(text: str) -> np.ndarray:
    """uint8: the class of each of its characters. Kept for the next filter, which often has the same text."""
    codes = codes_of(text)
    if len(codes) and codes.max() >= _BEYOND:
        codes = np.where(codes < _BEYOND, codes, np.where(codes < 0x20000, _BEYOND, _BEYOND + 1))
    return table()[codes]


@lru_cache(maxsize=1)
def _counts(text: str) -> np.ndarray:
    return np.bincount(classes(text), minlength=6)


class Length(Measured):
    """Characters that are no blanks. Gopher asks for 50 English words; 30 hanzi say about as much as 20 of them."""

    kind: Literal["length"] = "length"
    top: ClassVar[float] = 2.0**20
    at_least: float | None = Field(default=30, description="leave out texts of fewer characters")

    def measure(self, text: str) -> float:
        counts = _counts(text)
        return float(counts.sum() - counts[BLANK])


class HanziShare(Measured):
    """Hanzi among all characters that are no blanks: 0.85 in prose, 0.4 to 0.7 in text with much English or code."""

    kind: Literal["hanzi"] = "hanzi"
    at_least: float | None = Field(default=0.3, description="leave out texts with a smaller share")

    def measure(self, text: str) -> float:
        counts = _counts(text)
        return float(counts[HANZI] / max(counts.sum() - counts[BLANK], 1))


class SymbolShare(Measured):
    """Characters that are no letters, digits or punctuation (★ ■ │ → emoji, broken ones) among those that are no
    blanks. Gopher leaves out texts with more than 0.1 of # and … a word."""

    kind: Literal["symbols"] = "symbols"
    at_most: float | None = Field(default=0.1, description="leave out texts with a larger share")

    def measure(self, text: str) -> float:
        counts = _counts(text)
        return float(counts[SYMBOL] / max(counts.sum() - counts[BLANK], 1))


class LineBreaks(Measured):
    """Line breaks among all characters: menus and lists of links have many. FineWeb-2 for Chinese: 0.178."""

    kind: Literal["line_breaks"] = "line_breaks"
    at_most: float | None = Field(default=0.178, description="leave out texts with a larger share")

    def measure(self, text: str) -> float:
        return text.strip("\n").count("\n") / max(len(text), 1)


_ENDS = tuple("。．！？…；：，、.!?;:,”’」』）)》〉】~～—")


class PunctuatedLines(Measured):
    """Lines that end in punctuation among all that are not empty. FineWeb-2 for Chinese: at least 0.106.

    Of fewer than five lines nothing can be told; they count as 1.
    """

    kind: Literal["punctuated_lines"] = "punctuated_lines"
    at_least: float | None = Field(default=0.106, description="leave out texts with a smaller share")

    def measure(self, text: str) -> float:
        lines = [line.rstrip() for line in text.split("\n") if line.strip()]
        return sum(line.endswith(_ENDS) for line in lines) / len(lines) if len(lines) >= 5 else 1.0


class DuplicateLines(Measured):
    """Characters in lines that the text has said before, among those of all lines. Gopher: at most 0.2.

    Its other rule counts lines instead (FineWeb-2 for Chinese: 0.287); old novels with many "却说" would fail it.
    """

    kind: Literal["duplicate_lines"] = "duplicate_lines"
    at_most: float | None = Field(default=0.2, description="leave out texts with a larger share")

    def measure(self, text: str) -> float:
        lines = [line.strip() for line in text.split("\n")]
        total = sum(map(len, lines))
        return 1 - sum(map(len, set(lines))) / total if total else 0.0


class DuplicateGrams(Measured):
    """Characters in runs of `size` that the text has said before, among all that are no blanks.

    Gopher's rule for 5 to 10 words (0.15 to 0.1; FineWeb-2 for Chinese 0.198 to 0.127). 16 characters are about ten
    words; statutes and manuals, which say things in one form, need more room than the web.
    """

    kind: Literal["duplicate_grams"] = "duplicate_grams"
    at_most: float | None = Field(default=0.3, description="leave out texts with a larger share")
    size: int = Field(default=16, ge=2, description="characters of a run")

    def measure(self, text: str) -> float:
        codes = codes_of(text)[classes(text) != BLANK]
        found = rolling(codes, self.size)
        ordered = np.sort(found)
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(twice):
            return 0.0
        where = np.flatnonzero(among(found, twice))
        again = np.delete(where, np.unique(found[where], return_index=True)[1])  # all but the first of each
        covered = np.zeros(len(codes) + 1, np.int64)
        np.add.at(covered, again, 1)
        np.add.at(covered, again + self.size, -1)
        return float((np.cumsum(covered)[:-1] > 0).mean())


# ── hashes ─────────────────────────────────────────────────────────────────────────────────────────────────────────
_FACTORS = {32: (0x9E3779B1, 0x85EBCA6B), 64: (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)}  # of a number, of a hash


def rolling(codes: np.ndarray, size: int) -> np.ndarray:
    """uint64, max(length − size + 1, 0): a hash of every run of `size` numbers.

    A polynomial modulo 2⁶⁴, made of runs of half the length, then mixed.
    """
    return hashes(spread(codes, 64), size)


def spread(codes: np.ndarray, bits: Literal[32, 64]) -> np.ndarray:
    """Numbers as `hashes` takes them, uint32 or uint64; none of them is 0."""
    kind = np.dtype(f"u{bits // 8}").type
    with np.errstate(over="ignore"):
        return (codes.astype(kind) + kind(1)) * kind(_FACTORS[bits][0])


def hashes(terms: np.ndarray, size: int) -> np.ndarray:
    """As `rolling`, in the type of `terms`, which are spread already."""
    if len(terms) < size:
        return np.zeros(0, terms.dtype)
    bits = 8 * terms.dtype.itemsize
    half, factor = terms.dtype.type(bits // 2), terms.dtype.type(_FACTORS[bits][1])
    with np.errstate(over="ignore"):
        found = _joined({1: terms}, size, _FACTORS[bits][0], bits)[: len(terms) - size + 1]
        found = found ^ (found >> half)
        found *= factor
        found ^= found >> half
    return found


def _joined(known: dict[int, np.ndarray], size: int, factor: int, bits: int) -> np.ndarray:
    if size not in known:
        left, right = size - size // 2, size // 2
        first, second = _joined(known, left, factor, bits), _joined(known, right, factor, bits)
        length = len(second) - left
        found = first[:length] * first.dtype.type(pow(factor, right, 1 << bits))
        found += second[left:]
        known[size] = found
    return known[size]


def among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """bool: which of `values` are in `known`, which is sorted and not empty."""
    place = np.searchsorted(known, values)
    return known[np.minimum(place, len(known) - 1)] == values
