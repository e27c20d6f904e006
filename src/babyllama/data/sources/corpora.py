"""How a recipe chooses a corpus: a name of the table `CORPORA`, files of a data set on the hub, or a path of one's own.

Not here: which are known by name (known.py), tokens, shards.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
from pydantic import Field, model_validator

from babyllama.data.sources.blobs import Blob, pack_records
from babyllama.data.sources.documents import Document, Kind, Text
from babyllama.data.sources.finding import Format, find_files, passed_over
from babyllama.data.sources.hub import SCHEMES, Fetched, HubFile, expand, fetch, hub_file, streamed, usual_hub
from babyllama.data.sources.known import CORPORA, Corpus
from babyllama.data.sources.readers import encoding_of, read_blobs
from babyllama.data.sources.records import Known, OnBad, Parsed, Shape, kind_of, parse, parse_lines
from babyllama.data.sources.remote import RemoteFile, find_remote, is_remote
from babyllama.errors import InputError
from babyllama.recipe import Recipe

_SHOWN = 1000  # files whose encodings are told beforehand


@dataclass(frozen=True)
class Source:
    """A choice made ready to read: `blobs` starts over at each call; `size` is in bytes on disk where that is known.

    `guessed`: the kind was told by the first record. `passed_over` names the files of a folder that are not read,
    and `hints` say how they are read, and what the user may have meant. `part`: the recipe may leave some of its
    documents out. `fetched`: what names each file from the hub: its name, commit and sha256.
    """

    label: str
    kind: Kind
    licence: str
    source: str
    shape: Shape
    size: int | None
    blobs: Callable[[], Iterator[Blob]]
    guessed: bool = False
    passed_over: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    part: bool = False
    fetched: tuple[dict[str, str | None], ...] = ()


class CorpusChoice(Recipe):
    """One corpus of a recipe: `name` or `path`; both only for a named corpus whose file the user must bring.

    `path` is a file, a folder or a glob. `kind` is told by the first record unless it is given; ``text`` also takes
    chats, as their messages joined by line breaks. `max_documents` keeps the first ones: files are read in their
    order, corpora made from packages are put in the order of a hash first, so a part of them is a fair sample.
    """

    name: str | None = Field(None, description="a corpus known by name, such as idioms")
    path: str | None = Field(None, description="your own file, folder or glob; or files of a data set on the hub, "
                             "hf://OWNER/NAME/data/*.parquet (ms:// for ModelScope); or https://… or s3://…, "
                             "read as they come")  # fmt: skip
    files: int | None = Field(None, ge=1, description="keep only the first ones of the hub's files; default: all, of "
                              "large corpora known by name one")  # fmt: skip
    revision: str | None = Field(None, description="commit of a corpus from the hub; default: the newest, which is "
                                 "recorded in manifest.json")  # fmt: skip
    stream: bool = Field(False, description="read the hub's files as they come, without keeping them on this disk")
    field: str | None = Field(None, description="the key with the text; default: text, content or completion")
    columns: dict[Known, str] | None = Field(None, description="what your own keys are, by names that are known: "
        "text; question, answer, system, input, history; messages; chosen, rejected; label; then no other key is read",
        examples=["'corpora=[{path: my.csv, columns: {question: 提问, answer: 医生回复}}]'"])  # fmt: skip
    format: Format = Field("auto", description="auto: by the file's name; a .txt file is one document, lines "
                           "makes each of its lines one, blocks each run of lines between blank ones")  # fmt: skip
    encoding: str = Field("utf-8", description="of the files: gb18030 (for GBK too), big5, …; auto: of each file by "
                          "itself, told by its bytes; a byte order mark always decides")  # fmt: skip
    kind: Kind | None = Field(None, description="text, chat, preference (pairs) or rated (answers with a label); "
                              "default: told by the first record's keys")  # fmt: skip
    label: str | None = Field(None, description="its folder in the prepared data; default: the file's name")
    max_documents: int | None = Field(None, ge=1, description="keep only the first ones")
    max_characters: int | None = Field(None, ge=1, description="skip longer documents; of a chat, the "
                                       "longest answer counts")  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> CorpusChoice:
        corpus = CORPORA.get(self.name or "")
        if self.name is None and self.path is None:
            raise ValueError("give a name or a path")
        if self.name is not None and corpus is None:
            raise ValueError(f"unknown corpus {self.name!r}; known are {', '.join(CORPORA)}; or give a path")
        if corpus and (corpus.files or corpus.records) and self.path is not None:
            raise ValueError(f"give name or path, not both: {self.name!r} has its own files")
        if corpus and not (corpus.files or corpus.records) and self.path is None:
            raise ValueError(f"{self.name!r} cannot be fetched: download it from {corpus.source} and give its path")
        for key in ("revision", "files", "stream"):
            if getattr(self, key) and not (self._hub or (corpus and corpus.files)):
                raise ValueError(f"{key} is for a corpus from the hub, but {self.stored_as!r} is none")
        if (self.path or "").startswith(tuple(SCHEMES)) and not self._hub:
            scheme = (self.path or "")[:5]
            raise ValueError(f"{self.path!r} must be {scheme}OWNER/NAME/FILES: {scheme}owner/name/data/*.parquet")
        if self.field is not None and self.columns is not None:
            raise ValueError("give field or columns, not both: field: KEY says what columns: {text: KEY} says")
        try:
            "".encode("utf-8" if self._codec == "auto" else self._codec)  # refuses codecs that are not of text, too
        except (LookupError, ValueError):
            raise ValueError(f"encoding {self.encoding!r} is unknown; examples are utf-8, gb18030, auto") from None
        if not re.fullmatch(r"[\w.-]+", self.stored_as) or self.stored_as.startswith("."):
            raise ValueError(f"label {self.stored_as!r} must be a plain folder name; set label")
        return self

    @property
    def stored_as(self) -> str:
        """The folder's name in the prepared data: `label`, the entry's name, or the file's name without endings.

        Of ``data/*.jsonl`` it is ``data``.
        """
        parts = [re.sub(r"[^\w-]+", "-", part.split(".")[0]).strip("-") for part in Path(self.path or "").parts]
        return self.label or self.name or next((part for part in reversed(parts) if part), "corpus")

    @property
    def _hub(self) -> HubFile | None:
        return hub_file(self.path or "")

    def open(self, on_bad: OnBad = "stop") -> Source:
        """Find or fetch the files. Raises InputError: no such file, offline, unknown format, nothing in it."""
        corpus = CORPORA.get(self.name or "") or Corpus(self.kind or "text", "not stated", self.path or "",
                                                        (self._hub,) if self._hub else ())  # fmt: skip
        guessed, origin, encoding = self.kind is None and self.name is None, corpus.source, self._codec
        size, files, remote, fetched = None, list[Path | RemoteFile](), list[HubFile](), list[Fetched]()
        if corpus.records is not None:
            blobs = partial(_made_blobs, corpus.records, self.name or "")
        else:
            remote = _remote(corpus, self.files, self.revision, self.stream)
            fetched = [] if self.stream else _fetched(remote)
            files += [streamed(file) for file in remote] if self.stream else [file.path for file in fetched]
            files += [] if files else (find_remote if is_remote(self.path or "") else find_files)(self.path or "")
            commits = sorted({file.revision[:12] for file in fetched or remote if file.revision})
            if any(file.on_modelscope for file in remote):
                origin = origin.replace("Hugging Face", "ModelScope")
            origin = f"{origin} at {', '.join(commits)}" if commits else origin
            size = sum(file.stat().st_size for file in files)
            blobs = partial(read_blobs, files, self.format, encoding=encoding, on_bad=on_bad)
        kind = self.kind or (
            _kind(files, self.format, (self.field, self.columns), encoding, on_bad) if guessed else corpus.kind
        )
        shape = Shape(kind, self.field or corpus.field, self.max_characters, on_bad, encoding, self.columns)
        if self.max_documents is not None:
            blobs = partial(_first_documents, blobs, shape, self.max_documents)
        left = tuple(passed_over(self.path)) if self.path and not self._hub else ()
        whole = self.format == "auto" and any(".txt" in file.suffixes for file in files)
        hints = ("a .txt file is one document; format: lines makes each of its lines one",) if whole else ()
        if encoding == "auto":
            local = [file for file in files if isinstance(file, Path)]
            counts = Counter(map(encoding_of, local[:_SHOWN]))
            some = f" (the first {_SHOWN:,})" if len(local) > _SHOWN else ""
            shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            hints += (f"files by the encodings that they show{some}: {shown}",)
        part = self.max_documents is not None or self.max_characters is not None or bool(self.files or corpus.most)
        from_hub = zip(remote, fetched or remote, strict=True)
        named = tuple({"file": one.name, "revision": file.revision, "sha256": file.sha256} for one, file in from_hub)
        return Source(
            self.stored_as, kind, corpus.licence, origin, shape, size, blobs, guessed, left, hints, part, named
        )

    @property
    def _codec(self) -> str:
        if self.encoding == "auto":
            return "auto"
        name = codecs.lookup(self.encoding).name
        return "utf-8" if name in ("utf-8", "utf-8-sig", "ascii") else name


def read_documents(choice: CorpusChoice, on_bad: OnBad = "stop") -> Iterator[Document]:
    """Every document of one corpus in order, in this process. Raises InputError as `parse`."""
    source = choice.open(on_bad)
    for blob in source.blobs():
        yield from parse(blob, source.shape).documents


def read_texts(choices: Iterable[CorpusChoice], on_bad: OnBad = "stop", tools: bool = False) -> Iterator[str]:
    """The plain text of every document; a chat's is its messages joined by line breaks.

    Args:
        tools: before a chat's also the tools that it lists, as JSON, which its template writes too.

    Raises:
        InputError: as `read_documents`; or a corpus without a single document.
    """
    for choice in choices:
        empty = True
        for document in read_documents(choice, on_bad):
            empty = False
            if tools and not isinstance(document, Text):
                yield from (json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in document.tools)
            yield document.text
        if empty:
            raise InputError(f"corpus {choice.stored_as}: no document in {choice.path or choice.name}")


def _kind(files: list[Path | RemoteFile], format: Format, keys: tuple[str | None, Mapping[Known, str] | None],
          encoding: str, on_bad: OnBad) -> Kind:  # fmt: skip
    """Of the first record that can be read."""
    blobs = read_blobs(files, format, blob_bytes=1 << 16, encoding=encoding, on_bad=on_bad)
    for blob in blobs:
        if kind := kind_of(blob, *keys):
            return kind
    return "text"


def _remote(corpus: Corpus, count: int | None, revision: str | None, pin: bool) -> list[HubFile]:
    """The files of a corpus that are to be fetched, by name."""
    most, found = count or corpus.most, list[HubFile]()
    for file in corpus.files:
        named = file if corpus.source.startswith(tuple(SCHEMES)) else replace(file, hub=usual_hub())
        found += expand(replace(named, revision=revision or file.revision), pin)
    return found[:most]


def _fetched(files: list[HubFile]) -> list[Fetched]:
    instead = f"download {', '.join(file.name for file in files[:3])} by hand and give its path instead"
    return [fetch(file, instead) for file in files]


def _made_blobs(records: Callable[[], Iterable[dict[str, Any]]], name: str) -> Iterator[Blob]:
    def order(record: dict[str, Any]) -> int:
        return xxhash.xxh3_64_intdigest(json.dumps(record, ensure_ascii=False).encode())

    ordered = sorted(records(), key=order)
    return pack_records(ordered, f"{name}, record ")


def _first_documents(blobs: Callable[[], Iterator[Blob]], shape: Shape, count: int) -> Iterator[Blob]:
    """Cut after the line of document `count`."""
    left = count
    for blob in blobs():
        lines = []
        for line, document in parse_lines(blob, shape, Parsed()):
            lines.append(line)
            left -= document is not None
            if left == 0:
                break
        yield replace(blob, lines=b"\n".join(lines) + b"\n")
        if left == 0:
            return
