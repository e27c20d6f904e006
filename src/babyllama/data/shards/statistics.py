"""What is in a prepared folder, counted over its tokens: documents, lengths, scripts, what is there twice, chats.

One pass over the memory-mapped tokens, some millions at a time in whole documents; what stays in memory are about 50
bytes a document. Characters and bytes are those that `prepare` counted: of a chat all that is said, and the bytes of
what is learned. Not here: what chats and pairs hold (talks.py), what prepare left out (summary.py), tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash

from babyllama.data.shards.shards import SPLITS, Prepared, TokenStore
from babyllama.data.shards.talks import Talks, spread
from babyllama.tokenizer.report import OTHER, SCRIPTS, script_of
from babyllama.tokenizer.token_bytes import token_bytes
from babyllama.tokenizer.tokenizer import Tokenizer

Json = dict[str, Any]
STRETCH = 1 << 22  # tokens looked at together
CONTEXTS = (512, 2048)
_NAMES = [name for name in (*SCRIPTS, OTHER) if name != "blanks"]


def statistics(prepared: Prepared, tokenizer: Tokenizer, labels: Iterable[str] | None = None,
               contexts: Iterable[int] = CONTEXTS, tick: Callable[[int], None] = lambda tokens: None,
               most: int | None = None) -> Json:  # fmt: skip
    """All figures, by corpus.

    Args:
        labels: of the corpora; default: all.  contexts: of each, how many documents are longer.
        tick: is told of so many tokens that have been looked at.
        most: of each split, only about so many tokens are looked at for scripts, chats and what is there twice.

    Raises:
        InputError: a label that is not there.
    """
    words = Words.of(tokenizer)
    found = {label: _Counted(words) for label in (prepared.corpora if labels is None else labels)}
    for label, counted in found.items():
        for split in SPLITS:
            counted.add(prepared.store(label, split), split, tokenizer, tick, most)
    tokens = sum(len(prepared.store(label, split)) for label in found for split in SPLITS)
    again = _again({label: counted.hashes for label, counted in found.items()})
    corpora = {label: {**_stored(prepared.manifest["corpora"][label], tokens), **counted.json(contexts),
                       "duplicates": again[label]} for label, counted in found.items()}  # fmt: skip
    return {"path": str(prepared.path), "tokenizer": prepared.manifest["tokenizer"],
            "chat_template": prepared.manifest["chat_template"], "tokens": tokens,
            "documents": sum(corpus["documents"] for corpus in corpora.values()), "corpora": corpora}  # fmt: skip


def _stored(corpus: Mapping[str, Any], tokens: int) -> Json:
    """What the manifest says of one corpus, and its share of all tokens."""
    splits = {split: {key: corpus["splits"][split][key] for key in ("documents", "tokens", "characters", "bytes")}
              for split in SPLITS}  # fmt: skip
    found = {key: sum(split[key] for split in splits.values()) for key in splits[SPLITS[0]]}
    return {"kind": corpus["kind"], "licence": corpus["licence"], "source": corpus["source"], **found,
            "characters_per_token": found["characters"] / max(found["tokens"], 1),
            "share": found["tokens"] / max(tokens, 1), "splits": splits}  # fmt: skip


@dataclass
class _Counted:
    """One corpus as it is counted."""

    words: Words
    lengths: list[np.ndarray] = field(default_factory=list)
    hashes: dict[str, np.ndarray] = field(default_factory=dict)  # of each split
    counted: int = 0  # tokens
    learned: int = 0
    scripts: np.ndarray = field(default_factory=lambda: np.zeros(len(_NAMES), np.int64))
    talks: Talks | None = None

    def add(self, store: TokenStore, split: str, tokenizer: Tokenizer, tick: Callable[[int], None],
            most: int | None) -> None:  # fmt: skip
        group = 2 if store.kind == "preference" else 1
        if store.kind != "text" and self.talks is None:
            self.talks = Talks.of(tokenizer, store.kind, self.words.bytes)
        offsets, hashes = store.document_offsets, []
        for first, stop in store.stretches(STRETCH, group):
            begin, end = int(offsets[first]), int(offsets[stop])
            if most is not None and begin >= most:
                break
            self.counted += end - begin
            tokens, marks = store.tokens(begin, end), store.marks(begin, end)
            borders = offsets[first : stop + 1] - begin
            hashes.append(_hashes(tokens, borders[::group]))
            self.learned += int(np.count_nonzero(marks))
            self.scripts += self.words.scripts(tokens)
            if self.talks is not None:
                self.talks.add(tokens, marks, borders)
            tick(end - begin)
        self.lengths.append(np.diff(offsets))
        self.hashes[split] = np.concatenate([np.empty(0, np.uint64), *hashes])

    def json(self, contexts: Iterable[int]) -> Json:
        lengths, all_characters = np.concatenate(self.lengths), max(int(self.scripts.sum()), 1)
        found = {
            "counted": self.counted, "learned": self.learned / max(self.counted, 1),
            "lengths": {**spread(lengths), "histogram": histogram(lengths)},
            "longer": {str(context): int((lengths - 1 > context).sum()) for context in contexts},
            "scripts": {name: {"characters": n, "share": n / all_characters}
                        for name, n in zip(_NAMES, self.scripts.tolist(), strict=True) if n},
        }  # fmt: skip
        return found if self.talks is None else {**found, **self.talks.json()}


def histogram(lengths: np.ndarray) -> list[list[int]]:
    """[from, to, documents] of each power of two, from 1 to that of the longest; `to` is in it."""
    counts = np.bincount(np.frexp(np.maximum(lengths, 1))[1] - 1)
    return [[1 << power, (2 << power) - 1, count] for power, count in enumerate(counts.tolist())]


def _hashes(tokens: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """uint64: of the ids between neighbouring borders."""
    data, places = memoryview(tokens.tobytes()), (borders * tokens.itemsize).tolist()
    return np.fromiter((xxhash.xxh3_64_intdigest(data[a:b]) for a, b in pairwise(places)), np.uint64, len(places) - 1)


def _again(hashes: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Json]:
    """Of each corpus: how many documents are the same as an earlier one, of the same or another corpus; are also in
    another corpus; are held out, but also in what is trained on. Of pairs, pairs are counted."""
    parts = [(label, split, found) for label, splits in hashes.items() for split, found in splits.items()]
    sizes = [len(found) for _, _, found in parts]
    labels = list(hashes)
    owner = np.repeat([labels.index(label) for label, _, _ in parts], sizes)
    trained = np.repeat([split == "train" for _, split, _ in parts], sizes)
    _, first, same = np.unique(np.concatenate([found for _, _, found in parts]), return_index=True, return_inverse=True)
    again = first[same] != np.arange(len(same))
    others = np.zeros(len(first), bool)
    others[same[owner != owner[first[same]]]] = True
    in_training = np.zeros(len(first), bool)
    in_training[same[trained]] = True
    found = {}
    for number, label in enumerate(labels):
        mine = owner == number
        count = int(again[mine].sum())
        found[label] = {"documents": count, "share": count / max(int(mine.sum()), 1),
                        "elsewhere": int(others[same[mine]].sum()),
                        "held_out_in_training": int(in_training[same[mine & ~trained]].sum())}  # fmt: skip
    return found


@dataclass(frozen=True, eq=False)
class Words:
    """What the tokens of a vocabulary are. A token that holds a part of a character counts with its neighbours."""

    bytes: list[bytes]  # of each id; empty of special ones
    whole: np.ndarray  # (ids,) bool: whether it is made of whole characters
    of_scripts: np.ndarray  # (ids, scripts) int64: its characters; none of parts

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Words:
        special = tokenizer.special_ids
        found = [b"" if i in special else token_bytes(tokenizer, i) for i in range(tokenizer.vocab_size)]
        whole, of_scripts = np.ones(len(found), bool), np.zeros((len(found), len(_NAMES)), np.int64)
        for i, content in enumerate(found):
            try:
                of_scripts[i] = _counts(content.decode())
            except UnicodeDecodeError:
                whole[i] = False
        return cls(found, whole, of_scripts)

    def scripts(self, tokens: np.ndarray) -> np.ndarray:
        """(scripts,) how many characters of each are in tokens that begin and end between characters."""
        found = np.bincount(tokens, minlength=len(self.bytes)) @ self.of_scripts
        parts = np.flatnonzero(~self.whole[tokens])
        if len(parts):
            firsts = np.flatnonzero(np.diff(parts, prepend=-2) != 1)
            sizes = np.diff(np.append(firsts, len(parts)))
            for size in np.unique(sizes).tolist():  # runs of parts make whole characters
                runs = tokens[parts[firsts[sizes == size]][:, None] + np.arange(size)]
                for run, count in zip(*np.unique(runs, axis=0, return_counts=True), strict=True):
                    text = b"".join(self.bytes[i] for i in run.tolist()).decode("utf-8", "replace")
                    found = found + count * _counts(text)
        return found


def _counts(text: str) -> np.ndarray:
    """(scripts,) of a text's characters, blanks left out."""
    scripts = script_of(text)
    return np.array([scripts.count(name) for name in _NAMES], np.int64)
