"""The prepared folder: its files, its manifest, and how tokens are read back.

    manifest.json                     what is in it, of which tokenizer; written last, so its presence means complete
    shards/LABEL/train-00000.bin      tokens, raw little-endian uint16 (uint32 above 65,536 ids)
                 train-00000.docs     one row a document: tokens, bytes (uint32 each)
                 train-00000.mask     chats: one byte a token, 1 where the loss counts; of an answer that people
                                      found bad, 2
                 val-00000.…          the same for the validation split
                 00000.json           what went into the two, for continuing an interrupted run

A text is its tokens and the end token; a chat is what the chat template makes of it; a preference pair is two
neighbouring chats, the better one first, whose last answers the mask covers. ``bytes`` counts the UTF-8
bytes of the text; of a chat, those of the answers. Not here: writing (encode.py), order and batches (batches.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from babyllama.data.sources.documents import GOOD, Kind
from babyllama.errors import InputError
from babyllama.recipe import maker
from babyllama.run import Run

VERSION = 1
SPLITS = ("train", "val")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type for ids below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def shard_digest(tokens: bytes, documents: bytes, mask: bytes) -> str:
    """32 hex digits of one shard's content: its .bin, .docs and .mask, the last empty for texts."""
    digest = xxhash.xxh3_128()
    for part in (tokens, documents, mask):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


@lru_cache(maxsize=256)  # each holds a file descriptor; a process may have 1,024
def _mapped(path: Path, dtype: np.dtype[Any], stamp: tuple[int, ...]) -> np.ndarray:
    """The numbers of a file; `stamp` tells it from others that lay or will lie at the same path."""
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


@dataclass(frozen=True, eq=False)
class TokenStore:
    """All shards of one split of one corpus, as one array of tokens. Holds paths only, so it can go to a worker."""

    paths: tuple[Path, ...]
    counts: tuple[int, ...]  # tokens of each shard
    kind: Kind
    dtype: np.dtype[Any]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)]).astype(np.int64)

    @cached_property
    def _documents(self) -> np.ndarray:  # (documents, 2): tokens, bytes
        found = [np.fromfile(path.with_suffix(".docs"), "<u4").reshape(-1, 2) for path in self.paths]
        return np.concatenate(found) if found else np.zeros((0, 2), np.uint32)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def document_offsets(self) -> np.ndarray:
        """int64, documents + 1: where each starts; the last is the number of tokens."""
        return np.concatenate([[0], np.cumsum(self._documents[:, 0], dtype=np.int64)]).astype(np.int64)

    @property
    def documents(self) -> int:
        return len(self._documents)

    @property
    def document_bytes(self) -> np.ndarray:
        """int64, documents."""
        return self._documents[:, 1].astype(np.int64)

    @property
    def bytes(self) -> int:
        return int(self.document_bytes.sum())

    def turns(self) -> np.ndarray:
        """int64, documents: how many answers each chat has, which are runs of learned tokens. Reads the whole mask."""
        learned = self.mask(0, len(self))
        begins = learned & ~np.concatenate([[False], learned[:-1]])
        return np.add.reduceat(begins, self.document_offsets[:-1], dtype=np.int64)

    @cached_property
    def good(self) -> np.ndarray:
        """bool, documents: whether people found the answer good, where they said so. Reads the whole mask."""
        if not self.documents:
            return np.zeros(0, bool)
        return np.maximum.reduceat(self.marks(0, len(self)), self.document_offsets[:-1]) == GOOD

    @cached_property
    def prompts(self) -> np.ndarray:
        """int64, documents: tokens of each answer's prompt, which are those before the first that is learned. Reads the
        whole mask."""
        learned = np.flatnonzero(self.marks(0, len(self)))
        starts = self.document_offsets[:-1]
        return learned[np.searchsorted(learned, starts)] - starts

    @cached_property
    def _stamps(self) -> tuple[tuple[int, ...], ...]:
        """Which file each shard is: inode, bytes, time of writing. Asked once; a store made later asks anew."""
        return tuple((found.st_ino, found.st_size, found.st_mtime_ns) for found in (p.stat() for p in self.paths))

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens start … stop − 1, over the borders of shards, in the type of the file."""
        return self._slice(start, stop, "", self.dtype)

    def mask(self, start: int, stop: int) -> np.ndarray:
        """bool: which of them the loss may count as targets. All of a text."""
        return self.marks(start, stop).astype(bool)

    def marks(self, start: int, stop: int) -> np.ndarray:
        """uint8: the same as the file has it, which tells answers that people found bad."""
        if self.kind == "text":
            return np.ones(stop - start, np.uint8)
        return self._slice(start, stop, ".mask", np.dtype(np.uint8))

    def stretches(self, tokens: int, group: int = 1) -> Iterator[tuple[int, int]]:
        """All documents in order as (first, stop), of at most `tokens` or of one document (of `group` of them)."""
        ends, first = self.document_offsets[::group], 0
        while first < len(ends) - 1:
            stop = max(first + 1, int(np.searchsorted(ends, ends[first] + tokens, "right")) - 1)
            yield first * group, stop * group
            first = stop

    def _slice(self, start: int, stop: int, suffix: str, dtype: np.dtype[Any]) -> np.ndarray:
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of {len(self)}")
        found, shard = [], int(np.searchsorted(self._starts, start, "right")) - 1
        while start < stop:
            path = self.paths[shard].with_suffix(suffix) if suffix else self.paths[shard]
            first, end = int(self._starts[shard]), int(self._starts[shard + 1])
            found.append(_mapped(path, dtype, self._stamps[shard])[start - first : min(stop, end) - first])
            start, shard = min(stop, end), shard + 1
        return found[0] if len(found) == 1 else np.concatenate([np.empty(0, dtype), *found])


def usual_turns(stores: Iterable[TokenStore]) -> int:
    """So many answers as nine of ten chats have at most; 0 where there is no chat.

    A few longer chats teach nothing about the many questions that were only ever asked alone. Preferences and rated
    answers count as one: of what is before such an answer nobody wrote down how many turns it has.
    """
    found = [store.turns() for store in stores if store.kind != "text" and store.documents]
    return int(np.quantile(np.concatenate(found), 0.9, method="lower")) if found else 0


def _not_prepared(path: Path) -> InputError:
    """What lies at `path` instead, and how prepared data come about."""
    if path.is_file():
        made = f"babyllama prepare out=runs/corpus tokenizer=runs/tokenizer 'corpora=[{{path: {path}}}]'"
        return InputError(f"{path}: is a file, no prepared data; make them of it with: {made}")
    if (path / "run.json").is_file() and (verb := Run(path).info.get("verb")) != "prepare":
        return InputError(f"{path}: holds a {verb} run, no prepared data; give a folder that babyllama prepare made")
    return InputError(f"{path}: no prepared data (no manifest.json); make it with: {maker('prepare', path)}")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A complete prepared folder."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Prepared:
        """Read the manifest and check that every file is there in full.

        Raises:
            InputError: no prepared folder, an interrupted one, another version, a missing or truncated shard.
        """
        path = Path(path)
        if not (path / "manifest.json").is_file():
            if (path / "shards").is_dir():
                raise InputError(f"{path}: prepare was interrupted; run the same command again and it continues")
            raise _not_prepared(path)
        try:
            manifest = json.loads((path / "manifest.json").read_text("utf-8"))
            version = manifest["version"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}/manifest.json: damaged ({error}); prepare the data again") from None
        if version != VERSION:
            raise InputError(f"{path}: prepared data of version {version}, not {VERSION}; prepare it again")
        prepared = cls(path, manifest)
        prepared._check_files()
        return prepared

    def _check_files(self) -> None:
        size = self.dtype.itemsize
        for label, corpus in self.manifest["corpora"].items():
            for shard in (shard for split in corpus["splits"].values() for shard in split["shards"]):
                expected = {".bin": shard["tokens"] * size, ".docs": shard["documents"] * 8}
                if corpus["kind"] != "text":
                    expected[".mask"] = shard["tokens"]
                for suffix, wanted in expected.items():
                    file = (self.path / "shards" / label / shard["name"]).with_suffix(suffix)
                    found = file.stat().st_size if file.is_file() else None
                    if found != wanted:
                        what = "is missing" if found is None else f"has {found} bytes instead of {wanted}"
                        raise InputError(f"{file}: {what}; prepare the data again")

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.manifest["dtype"])

    @property
    def eos(self) -> int:
        """The id of the end token."""
        return self.manifest["eos"]

    @cached_property
    def hash(self) -> str:
        """32 hex digits of all that a training reads: tokens, borders, masks and their corpora; not the path.

        A folder of before the manifest held the shards' digests is read once in full.
        """
        content = {
            label: {
                "kind": corpus["kind"],
                **{
                    split: [self._digest(label, shard) for shard in corpus["splits"][split]["shards"]]
                    for split in SPLITS
                },
            }
            for label, corpus in self.manifest["corpora"].items()
        }
        decides = {key: self.manifest[key] for key in ("version", "tokenizer", "eos", "dtype", "chat_template")}
        return xxhash.xxh3_128_hexdigest(json.dumps({**decides, "corpora": content}).encode())

    def _digest(self, label: str, shard: dict[str, Any]) -> str:
        if "xxh3" in shard:
            return shard["xxh3"]
        path = self.path / "shards" / label / shard["name"]
        mask = path.with_suffix(".mask")
        return shard_digest(
            path.read_bytes(), path.with_suffix(".docs").read_bytes(), mask.read_bytes() if mask.is_file() else b""
        )

    @cached_property
    def corpora(self) -> dict[str, dict[str, TokenStore]]:
        """Label → split ("train", "val") → its tokens."""
        return {
            label: {split: self._store(label, corpus["kind"], corpus["splits"][split]["shards"]) for split in SPLITS}
            for label, corpus in self.manifest["corpora"].items()
        }

    def _store(self, label: str, kind: Kind, shards: Sequence[dict[str, Any]]) -> TokenStore:
        paths = tuple(self.path / "shards" / label / shard["name"] for shard in shards)
        return TokenStore(paths, tuple(shard["tokens"] for shard in shards), kind, self.dtype)

    def store(self, label: str, split: str) -> TokenStore:
        """One split of one corpus. Raises InputError for a label that is not there."""
        if label not in self.corpora:
            raise InputError(f"{self.path}: no corpus {label!r}; it has {', '.join(self.corpora)}")
        return self.corpora[label][split]

    def check_tokenizer(self, hash: str) -> None:
        """Raise InputError unless the data were made with this tokenizer."""
        mine = self.manifest["tokenizer"]
        if mine != hash:
            raise InputError(
                f"{self.path}: made with tokenizer {mine}, but the model's is {hash}; prepare the data again with it, "
                "or change the model's: babyllama retokenize"
            )
