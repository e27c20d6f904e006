"""Texts → ids by fast.cpp, for the two kinds of vocabulary that are made here; the ids are those of the backend.

Which kind a vocabulary is, its tokenizer.json says: SentencePiece's BPE as from_sentencepiece.py writes it, or BPE of
bytes behind the cuts of cuts.py. For any other, and where there is no compiler, there is no `Fast`. Not here: markers
(the backend that tokenizer.py gives finds none).
"""

from __future__ import annotations

import ctypes
import functools
import json
import weakref
from collections.abc import Iterable, Sequence
from ctypes import c_char_p, c_int, c_int64, c_void_p
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import Regex, pre_tokenizers

from babyllama.compiling import compiled
from babyllama.tokenizer.cuts import BYTE_TO_CHAR, SPLITS, pre_tokenizer
from babyllama.tokenizer.from_sentencepiece import normalizer

CHARACTERS = 0x110000
NONE = 0xFFFFFFFF
BEFORE, AFTER = 64, 128  # of a character: a merge may join it with any other before it, after it
_CLASSES = (r"\p{L}", r"\p{M}", r"\p{N}", r"\p{P}", r"\p{S}", r"\s")  # bits 1, 2, 4, 8, 16, 32 of a character
_ASSIGNED = (range(0xD800), range(0xE000, 0x40000), range(0xE0000, 0xE1000))  # beyond, no character has a class
_ROOM = 8  # ids that fast.cpp may write beyond the last


@functools.cache
def library() -> ctypes.CDLL:
    """fast.cpp, compiled. Raises OSError where it cannot be."""
    found = compiled(Path(__file__).with_name("fast.cpp"), gil=True)
    found.babyllama_encoder.argtypes = (c_int, *(c_void_p,) * 4, c_int64, c_void_p, c_int64)
    found.babyllama_encoder.restype = c_void_p
    found.babyllama_encoder_free.argtypes, found.babyllama_encoder_free.restype = (c_void_p,), None
    found.babyllama_encode.argtypes = (c_void_p, c_char_p, c_void_p, c_int64, c_void_p, c_void_p)
    found.babyllama_encode.restype = None
    return found


def missing() -> str:
    """Why nothing could be compiled; empty where it could."""
    try:
        library()
    except OSError as error:
        return str(error)
    return ""


class Tables(NamedTuple):
    """What fast.cpp is told of a vocabulary.

    `digits` is the most in a word, 0 where units are characters, not bytes; `single` (0x110000,) the id of a character
    that is a unit, or NONE; `bytes` (256,) the id of each byte; `flags` (0x110000,) classes of characters, BEFORE,
    AFTER; `merges` (n, 3) left, right and made id by rank; `pairs` (m, 2) characters side by side in what is made.
    """

    digits: int
    single: np.ndarray
    bytes: np.ndarray
    flags: np.ndarray
    merges: np.ndarray
    pairs: np.ndarray


class Fast:
    """Encodes by one vocabulary."""

    def __init__(self, tables: Tables) -> None:
        self._lead = b"" if tables.digits else b" "
        code = library()
        self._encode = code.babyllama_encode
        single, by_byte, flags, merges, pairs = map(_at, tables[1:])
        self._encoder = code.babyllama_encoder(
            tables.digits, single, by_byte, flags, merges, len(tables.merges), pairs, len(tables.pairs)
        )
        weakref.finalize(self, code.babyllama_encoder_free, self._encoder)

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> Fast | None:
        """None for a vocabulary of another kind. Raises OSError where nothing can be compiled."""
        tables = tables_of(json.loads(backend.to_str()))
        return tables and cls(tables)

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text (tokens,), uint32. Raises UnicodeEncodeError for half a surrogate pair."""
        parts = [self._lead + text.encode() if text else b"" for text in texts]
        ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)[1:]
        ids, stops = np.empty(sum(map(len, parts)) + _ROOM, np.uint32), np.empty(len(parts), np.int64)
        self._encode(self._encoder, b"".join(parts), _at(ends), len(parts), _at(ids), _at(stops))
        return [ids[start:stop] for start, stop in pairwise([0, *stops.tolist()])]


def _at(array: np.ndarray) -> int:
    return array.ctypes.data


# ── tokenizer.json → tables ────────────────────────────────────────────────────────────────────────────────────────
def tables_of(content: dict[str, Any]) -> Tables | None:
    """Of the contents of a tokenizer.json; None where fast.cpp does not know this kind of vocabulary."""
    model = content["model"]
    plain = {key: model.get(key) or None for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")}
    if model["type"] != "BPE" or any(plain.values()) or model.get("ignore_merges"):
        return None
    if any(not token["special"] for token in content["added_tokens"]):  # found in texts before anything else
        return None
    vocab: dict[str, int] = model["vocab"]
    merges = [(a, b) for a, b in model["merges"]]
    if len(set(merges)) < len(merges):
        return None
    ids = np.array([(vocab[a], vocab[b], vocab[a + b]) for a, b in merges], np.uint32).reshape(-1, 3)
    made = {a + b for a, b in merges}
    if content["normalizer"] == _state(normalizer(), "normalizer"):
        return _of_characters(content, vocab, ids, made)
    return _of_bytes(content, vocab, ids, made)


def _of_characters(content: dict[str, Any], vocab: dict[str, int], merges: np.ndarray, made: set[str]) -> Tables | None:
    by_byte = [vocab.get(f"<0x{byte:02X}>", NONE) for byte in range(256)]
    if content["pre_tokenizer"] or not content["model"]["byte_fallback"] or NONE in by_byte:
        return None
    single = np.full(CHARACTERS, NONE, np.uint32)
    for piece, number in vocab.items():
        if len(piece) == 1:
            single[ord(piece)] = number
    pairs = {pair for piece in made for pair in pairwise(piece)}
    return Tables(0, single, np.array(by_byte, np.uint32), np.zeros(CHARACTERS, np.uint8), merges, _codes(pairs))


def _of_bytes(content: dict[str, Any], vocab: dict[str, int], merges: np.ndarray, made: set[str]) -> Tables | None:
    cut = content["pre_tokenizer"]
    digits = next((digits for digits in SPLITS if cut == _state(pre_tokenizer(digits), "pre_tokenizer")), None)
    by_byte = [vocab.get(char, NONE) for char in BYTE_TO_CHAR.values()]
    if digits is None or content["normalizer"] or NONE in by_byte:
        return None
    flags, pairs = _classes(), set[tuple[str, str]]()
    byte_of = {char: byte for byte, char in BYTE_TO_CHAR.items()}
    for left, right in (cut for piece in made for cut in _cuts(bytes(map(byte_of.__getitem__, piece)))):
        if left and right:
            pairs.add((left, right))
        else:  # a part of a character beside another: which one, is not looked at
            flags[slice(None) if left is right else ord(left or right or "")] |= BEFORE if left is None else AFTER
    single = np.full(CHARACTERS, NONE, np.uint32)
    return Tables(digits, single, np.array(by_byte, np.uint32), flags, merges, _codes(pairs))


def _cuts(piece: bytes) -> Iterable[tuple[str | None, str | None]]:
    """The characters on both sides of each place in a piece where one begins; None for a part of one."""
    begins = [i for i, byte in enumerate(piece) if byte & 0xC0 != 0x80]
    edges = sorted({0, *begins, len(piece)})
    parts = [piece[a:b].decode("utf-8", "ignore") or None for a, b in pairwise(edges)]
    return pairwise(parts)


def _codes(pairs: Iterable[tuple[str, str]]) -> np.ndarray:
    return np.array([(ord(a), ord(b)) for a, b in sorted(pairs)], np.uint32).reshape(-1, 2)


def _state(part: Any, name: str) -> Any:
    """What tokenizer.json says of a normaliser or a pre-tokeniser."""
    whole = tokenizers.Tokenizer(tokenizers.models.BPE())
    setattr(whole, name, part)
    return json.loads(whole.to_str())[name]


@functools.cache
def _classes() -> np.ndarray:
    """Of each character the classes that the library's own regular expressions see: one pass, and one by class."""
    codes = [code for some in _ASSIGNED for code in some]
    text = "".join(map(chr, codes))
    cut = pre_tokenizers.Split(Regex("|".join(f"{kind}+" for kind in _CLASSES)), "isolated")
    runs = [place for _, place in cut.pre_tokenize_str(text)]
    firsts, found = "".join(text[start] for start, _ in runs), np.zeros(CHARACTERS, np.uint8)
    for bit, kind in enumerate(_CLASSES):
        matched = pre_tokenizers.Split(Regex(kind), "removed", invert=True).pre_tokenize_str(firsts)
        for start, stop in (runs[i] for _, place in matched for i in range(*place)):
            found[codes[start:stop]] |= 1 << bit
    return found
