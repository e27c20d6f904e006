"""Shards of documents that are there once: read and clean, decide, write what stays.

1. Workers read blobs, clean them, and keep the documents and their marks in files (``clean/LABEL/NNNNN.*``).
2. This process decides over all marks which documents stay (clean/duplicates.py): sorted arrays, the same every time.
3. Workers write the shards of what stays, as encode.py does.

Each blob of either pass has a record with a key of all that decides it, so a run that is killed continues; the files of
the first pass are removed when the run is complete. ``duplicates.jsonl`` lists the clusters.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xxhash

from babyllama.atomic import replace_file, write_atomic, write_json
from babyllama.data.clean.cleaning import Cleaning
from babyllama.data.clean.duplicates import (
    ALIKE,
    DUPLICATES,
    KEPT,
    SAME,
    Decision,
    Lines,
    Marked,
    common_lines,
    decide,
    line_hash,
    write_marks,
)
from babyllama.data.clean.ledger import Entry, excerpt
from babyllama.data.shards.encode import Done, Job, Plan, jobs_of, write_shards
from babyllama.data.shards.ids import write_ids
from babyllama.data.shards.workers import Part, spread
from babyllama.data.sources.blobs import json_of
from babyllama.data.sources.corpora import Source
from babyllama.data.sources.documents import Document, Text
from babyllama.data.sources.records import loads, parse

FOLDER = "clean"
_KINDS = {kind.kind: kind for kind in get_args(Document)}
_SHOWN = 20  # members of a cluster in duplicates.jsonl


@dataclass(frozen=True)
class Read:
    """What the first pass made of a blob; as `Done`, but for the splits."""

    label: str
    index: int
    position: int
    key: str
    documents: int
    bad: int
    dropped: int
    first_bad: str
    notes: dict[str, int]
    cleaning: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Rest:
    """One blob of the second pass. `fate` has a byte a document, `first` is the number of the first among all."""

    plan: Plan
    folder: Path
    read: Read
    first: int
    fate: bytes
    lines: str  # the hash of what lies at ``clean/lines.npy``; empty where no lines are cut

    @property
    def record(self) -> Path:
        return self.folder / "shards" / self.read.label / f"{self.read.index:05d}.json"

    @property
    def key(self) -> str:
        return xxhash.xxh3_128_hexdigest(json.dumps([self.read.key, self.first, self.lines]).encode() + self.fate)


def encode_distinct(
    sources: Iterable[Source], folder: Path, plan: Plan, workers: int, part: Part | None = None
) -> Iterator[Read | Done]:
    """Every blob twice: as it is read, then as it is written. A part ends in between where others have not read theirs.

    Raises InputError as `encode_corpora`.
    """
    reads, jobs = [], jobs_of(sources, folder, plan)
    for read in _spread(read_blob, part.share(jobs, _known) if part else jobs, _known, workers):
        reads.append(read)
        yield read
    if part and part.missing:
        return
    documents = Marked([_path(folder, read.label, read.index) for read in reads])
    decision = decide(documents, plan.dedup, lambda line: restored(line).text)
    lines = next((choice for choice in plan.dedup if isinstance(choice, Lines)), None)
    found = common_lines(documents, decision.fate, lines) if lines else np.zeros(0)
    digest = xxhash.xxh3_128_hexdigest(found.tobytes()) if lines else ""
    if lines:
        write_atomic(folder / FOLDER / "lines", found.tobytes())
    _write_clusters(folder, reads, documents, decision)
    starts = documents.starts.tolist()
    rest = (
        Rest(plan, folder, read, start, decision.fate[start : start + read.documents].tobytes(), digest)
        for read, start in zip(reads, starts, strict=False)
    )
    yield from _spread(write_blob, part.share(rest, _written) if part else rest, _written, workers)


def remove_marks(folder: Path) -> None:
    """The files of the first pass, of a run that is complete."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _spread(work: Any, jobs: Iterator[Any], known: Any, workers: int) -> Iterator[Any]:
    first = list(islice(jobs, 2))
    if workers == 1 or len(first) < 2:
        for job in chain(first, jobs):
            yield known(job) or work(job)
    else:
        yield from spread(work, chain(first, jobs), known, workers)


def _path(folder: Path, label: str, index: int) -> Path:
    return folder / FOLDER / label / f"{index:05d}.jsonl"


# ── first pass ─────────────────────────────────────────────────────────────────────────────────────────────────────
def read_blob(job: Job) -> Read:
    """Parse, clean, keep the documents and their marks; the record comes last."""
    path, parsed, cleaning = (
        _path(job.folder, job.label, job.index),
        parse(job.blob, job.shape),
        Cleaning(job.plan.clean),
    )
    write_ids(job.record.with_suffix(".ids"), parsed.ids)
    documents = list(cleaning(parsed.documents))
    lines = [kept(document) for document in documents]
    write_atomic(path, b"".join(line + b"\n" for line in lines))
    records = [
        (line, document.text, len(document.text), document.held_out is True, document.kind in ("text", "chat"))
        for line, document in zip(lines, documents, strict=True)
    ]
    write_marks(path, records, job.plan.dedup)
    record = {"documents": len(documents), "bad": parsed.bad, "dropped": parsed.dropped,
              "first_bad": parsed.first_bad, "notes": dict(parsed.notes), "cleaning": cleaning.ledger}  # fmt: skip
    write_json(path.with_suffix(".json"), {"key": job.key, **record}, indent=None)
    return Read(job.label, job.index, job.blob.position, job.key, **record)


def _known(job: Job) -> Read | None:
    try:
        record = json.loads(_path(job.folder, job.label, job.index).with_suffix(".json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if record["key"] != job.key or (record["bad"] and job.shape.on_bad == "stop"):
        return None
    return Read(job.label, job.index, job.blob.position, **record)


def kept(document: Document) -> bytes:
    """A document as one line of JSON."""
    return json_of({"kind": document.kind, **vars(document)})


def restored(line: bytes) -> Document:
    """The document that `kept` wrote."""
    try:
        record = loads(line)
    except ValueError:
        record = json.loads(line)  # NaN in a tool's arguments
    kind = _KINDS[record.pop("kind")]
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in record.items()})


# ── second pass ────────────────────────────────────────────────────────────────────────────────────────────────────
def write_blob(rest: Rest) -> Done:
    """The shards of one blob's documents that stay; its record comes last."""
    chosen = {choice.kind for choice in rest.plan.dedup}
    read, entries = rest.read, [Entry(kind) for kind in DUPLICATES if kind in chosen]
    documents = _staying(rest, {entry.filter: entry for entry in entries})
    splits = write_shards(rest.plan, rest.record, documents)
    record = {"bad": read.bad, "dropped": read.dropped, "first_bad": read.first_bad, "notes": read.notes,
              "splits": splits, "cleaning": [*read.cleaning, *(entry.json() for entry in entries)]}  # fmt: skip
    write_json(rest.record, {"key": rest.key, **record}, indent=None)
    return Done(read.label, read.index, read.position, **record)


def _written(rest: Rest) -> Done | None:
    try:
        record = json.loads(rest.record.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if record.pop("key", None) != rest.key:
        return None
    return Done(rest.read.label, rest.read.index, rest.read.position, **record)


def _staying(rest: Rest, entries: dict[str, Entry]) -> Iterator[Document]:
    common = _common(rest.folder / FOLDER / "lines", rest.lines) if rest.lines else {}
    stages = [("exact", (SAME,)), ("near", (ALIKE,))] if "exact" in entries else [("near", (SAME, ALIKE))]
    stages = [(name, gone) for name, gone in stages if name in entries]
    with _path(rest.folder, rest.read.label, rest.read.index).open("rb") as file:
        for number, (line, fate) in enumerate(zip(file, rest.fate, strict=True), start=rest.first):
            document = restored(line)
            text = document.text
            for name, gone in stages:
                entries[name].saw(text, None if fate in gone else text, "there already" * (fate in gone))
                if fate in gone:
                    break
            if fate != KEPT:
                continue
            if common and isinstance(document, Text):
                document = replace(document, text=without(text, common, number))
            if "lines" in entries:
                left = document.text if document.size else None
                entries["lines"].saw(text, text if left == text else left, "" if left else "nothing left")
            if document.size:
                yield document


@lru_cache(maxsize=1)
def _common(path: Path, digest: str) -> dict[int, int]:
    """Hash of a line → the first document that has it. The digest tells it from others at the same path."""
    found = np.fromfile(path, [("hash", "<u8"), ("document", "<u8")])
    return dict(zip(found["hash"].tolist(), found["document"].tolist(), strict=True))


def without(text: str, common: dict[int, int], number: int) -> str:
    """Document `number` without the lines that another document has first."""
    lines = text.split("\n")
    left = [line for line in lines if common.get(line_hash(line.strip()), number) == number]
    return text if len(left) == len(lines) else "\n".join(left)


def _write_clusters(folder: Path, reads: Sequence[Read], documents: Marked, decision: Decision) -> None:
    """``duplicates.jsonl``: a line for each cluster, the kept document first, then the first of the others."""
    fate, gone = decision.fate, np.flatnonzero(decision.fate != KEPT)
    gone = gone[np.lexsort((fate[gone], decision.root[gone]))]
    roots, begins = np.unique(decision.root[gone], return_index=True)
    several = np.zeros(len(fate), bool)
    several[roots] = True
    stays = np.flatnonzero(several[decision.root] & (fate == KEPT))
    stays = stays[np.argsort(decision.root[stays])]  # one of each of `roots`
    edges = [*begins.tolist(), len(gone)]

    def fill(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for one, (begin, end) in zip(stays.tolist(), pairwise(edges), strict=True):
                members = [one, *gone[begin:end][: _SHOWN - 1].tolist()]
                kept, *shown = (_member(number, decision, reads, documents) for number in members)
                cluster = {"documents": end - begin + 1, "kept": kept, "others": shown}
                file.write(json.dumps(cluster, ensure_ascii=False) + "\n")

    replace_file(folder / "duplicates.jsonl", fill)


def _member(number: int, decision: Decision, reads: Sequence[Read], documents: Marked) -> dict[str, Any]:
    text = restored(documents.line(number)).text
    how = {} if decision.fate[number] == KEPT else {"how": "same" if decision.fate[number] == SAME else "alike"}
    label = reads[int(documents.owner(number))].label
    return {"corpus": label, **how, "characters": len(text), "text": excerpt(text, 0)}
