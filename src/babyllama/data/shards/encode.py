"""Documents → shards, on all cores, in flat memory; an interrupted run continues where it stopped.

The main process cuts the corpora into blobs of raw lines and hands them to worker processes; each makes one pair of
shards of a blob and then the blob's record (NNNNN.json), whose key is a hash of the lines and of all else that decides
the shards' bytes. A blob whose record has the right key is not encoded again. Neither the number of workers nor an
interruption changes a byte. Not here: the format (shards.py), parsing (records.py), processes
(workers.py).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from babyllama.atomic import write_atomic, write_json
from babyllama.data.clean.cleaning import Cleaning
from babyllama.data.clean.duplicates import Exact, Lines
from babyllama.data.clean.filters import Filter
from babyllama.data.clean.ledger import added
from babyllama.data.clean.near import Near
from babyllama.data.shards.ids import repeated_ids, write_ids
from babyllama.data.shards.shards import SPLITS, VERSION, shard_digest, token_dtype
from babyllama.data.shards.workers import Part, spread
from babyllama.data.sources.blobs import Blob
from babyllama.data.sources.corpora import Source
from babyllama.data.sources.documents import Document, Rendered, Stored, held_out, render_all, stored
from babyllama.data.sources.records import Shape, parse
from babyllama.errors import InputError
from babyllama.tokenizer.tokenizer import Tokenizer

_READING = 6  # raised when the same lines become other documents or marks of them: an interrupted run mixes no two
_BATCH_CHARACTERS = 1 << 20  # encoded at a time: bounds the lists of ids in memory


@dataclass(frozen=True)
class Plan:
    """What all shards of a prepared folder share."""

    tokenizer: Path
    template: str
    hash: str
    validation: float
    clean: tuple[Filter, ...] = ()
    dedup: tuple[Exact | Near | Lines, ...] = ()  # more than none: distinct.py writes the shards

    @property
    def cleaning(self) -> list[Any]:
        """Of the filters and of what is there more than once, all that decides what becomes of them."""
        filters = [[filter.model_dump(mode="json"), filter.fingerprint()] for filter in self.clean]
        return [*filters, *(choice.model_dump(mode="json") for choice in self.dedup)]


@dataclass(frozen=True)
class Job:
    """One blob of one corpus, to become ``shards/LABEL/{train,val}-NNNNN.*`` under `folder`."""

    plan: Plan
    folder: Path
    label: str
    index: int
    shape: Shape
    blob: Blob

    @property
    def record(self) -> Path:
        return self.folder / "shards" / self.label / f"{self.index:05d}.json"

    @property
    def key(self) -> str:
        shape = asdict(replace(self.shape, on_bad="stop"))  # see `_finished`
        decides = [VERSION, _READING, self.plan.hash, self.plan.template, self.plan.validation, shape]
        decides += self.plan.cleaning
        digest = xxhash.xxh3_128(json.dumps([*decides, self.blob.first]).encode())
        digest.update(self.blob.lines)
        return digest.hexdigest()


@dataclass(frozen=True)
class Done:
    """What became of a blob; `splits` is {split: {name, tokens, documents, bytes, characters, xxh3}}.

    `notes` counts records by what was left out of them; `first_bad` is the first bad record's place and fault;
    `cleaning` is the ledger of the filters.
    """

    label: str
    index: int
    position: int
    bad: int
    dropped: int
    first_bad: str
    notes: dict[str, int]
    splits: dict[str, dict[str, Any]]
    cleaning: list[dict[str, Any]] = field(default_factory=list)

    @property
    def documents(self) -> int:
        return sum(split["documents"] for split in self.splits.values())


def encode_corpora(
    sources: Iterable[Source], folder: Path, plan: Plan, workers: int, part: Part | None = None
) -> Iterator[Done]:
    """Every blob of every source, in order; of a part its own and what is there already.

    Raises:
        InputError: a bad record (file:line), a full disk, a worker that was killed.
    """
    jobs = jobs_of(sources, folder, plan)
    jobs = part.share(jobs, _finished) if part else jobs
    first = list(islice(jobs, 2))
    if workers == 1 or len(first) < 2:
        for job in chain(first, jobs):
            yield _finished(job) or encode_blob(job)
        return
    yield from spread(encode_blob, chain(first, jobs), _finished, workers)


def jobs_of(sources: Iterable[Source], folder: Path, plan: Plan) -> Iterator[Job]:
    """A job for every blob, in order; the blobs are read as they are asked for."""
    return (
        Job(plan, folder, source.label, index, source.shape, blob)
        for source in sources
        for index, blob in enumerate(source.blobs())
    )


def _finished(job: Job) -> Done | None:
    try:
        record = json.loads(job.record.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if record.pop("key", None) != job.key or (record["bad"] and job.shape.on_bad == "stop"):
        return None
    return Done(job.label, job.index, job.blob.position, **record)


@lru_cache(maxsize=1)
def _load(plan: Plan) -> Tokenizer:
    """The plan holds the tokenizer's hash, so another one at the same path is read anew."""
    return Tokenizer.load(plan.tokenizer).with_template(plan.template)


@dataclass
class _Split:
    """The growing shard of one split."""

    tokens: list[np.ndarray] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    rows: list[tuple[int, int]] = field(default_factory=list)
    characters: int = 0


def encode_blob(job: Job) -> Done:
    """Parse, clean, tokenise and write one blob; its record comes last."""
    parsed, cleaning = parse(job.blob, job.shape), Cleaning(job.plan.clean)
    write_ids(job.record.with_suffix(".ids"), parsed.ids)
    written = write_shards(job.plan, job.record, cleaning(parsed.documents))
    record = {"bad": parsed.bad, "dropped": parsed.dropped, "first_bad": parsed.first_bad,
              "notes": dict(parsed.notes), "splits": written, "cleaning": cleaning.ledger}  # fmt: skip
    write_json(job.record, {"key": job.key, **record}, indent=None)
    return Done(job.label, job.index, job.blob.position, **record)


def write_shards(plan: Plan, record: Path, documents: Iterable[Document]) -> dict[str, dict[str, Any]]:
    """Tokenise documents and write the shards beside `record`: what `Done.splits` says of them."""
    tokenizer = _load(plan)
    splits = {name: _Split() for name in SPLITS}
    for batch in _batches(documents, plan.validation):
        parts = [part for part, _ in batch]
        for (part, name), found in zip(batch, _encode(tokenizer, parts), strict=True):
            split = splits[name]
            split.tokens.append(np.asarray(found.tokens, np.uint32).astype(token_dtype(tokenizer.vocab_size)))
            split.rows.append((len(found.tokens), sum(len(text.encode()) for text in part.learned)))
            split.characters += len(part.text)
            if found.mask is not None:
                split.masks.append(np.asarray(found.mask, np.uint8))
    return {name: _write(record, name, split) for name, split in splits.items() if split.rows}


def _batches(documents: Iterable[Document], validation: float) -> Iterator[list[tuple[Stored, str]]]:
    """What is stored of the documents, each with its split, some of it at a time."""
    batch, size = [], 0
    for document in documents:
        split = "val" if held_out(document, validation) else "train"
        batch += [(part, split) for part in stored(document)]
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, batch: list[Stored]) -> Iterator[Rendered]:
    for found in render_all(batch, tokenizer):
        highest = int(np.max(found.tokens))
        if highest >= tokenizer.vocab_size:
            raise InputError(f"the tokenizer gave id {highest}, but says it has {tokenizer.vocab_size}; damaged?")
        yield found


def _write(record: Path, name: str, split: _Split) -> dict[str, Any]:
    path = record.with_name(f"{name}-{record.stem}.bin")
    tokens, rows = np.concatenate(split.tokens), np.array(split.rows, "<u4")
    mask = np.concatenate(split.masks).tobytes() if split.masks else b""
    write_atomic(path, tokens.tobytes())
    write_atomic(path.with_suffix(".docs"), rows.tobytes())
    if mask:
        write_atomic(path.with_suffix(".mask"), mask)
    size = int(rows[:, 1].sum(dtype=np.int64))
    return {"name": path.name, "tokens": len(tokens), "documents": len(rows), "bytes": size,
            "characters": split.characters, "xxh3": shard_digest(tokens.tobytes(), rows.tobytes(), mask)}  # fmt: skip


def write_manifest(folder: Path, sources: list[Source], done: list[Done], plan: Plan) -> dict[str, Any]:
    """Sum up, remove shards that no blob of this run stands for, and write manifest.json last.

    Raises:
        InputError: a corpus without a single document.
    """
    tokenizer = _load(plan)
    corpora = {
        source.label: _corpus(source, [d for d in done if d.label == source.label], folder) for source in sources
    }
    for other in (folder / "shards").iterdir():
        if other.name not in corpora:  # of a recipe that was mended before it ended
            shutil.rmtree(other)
    if not plan.dedup:
        (folder / "duplicates.jsonl").unlink(missing_ok=True)
    for label in corpora:
        current = {name for d in done if d.label == label for name in _names(d)}
        for path in (folder / "shards" / label).iterdir():
            if path.stem not in current:
                path.unlink()
    manifest = {
        "version": VERSION, "tokenizer": plan.hash, "vocab_size": tokenizer.vocab_size, "eos": tokenizer.eos_id,
        "dtype": token_dtype(tokenizer.vocab_size).name, "chat_template": plan.template,
        "validation": plan.validation, **_filters(plan), "corpora": corpora,
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    return manifest


def _filters(plan: Plan) -> dict[str, Any]:
    """What filters that go by a file have gone by: the hash of its content and their limits."""
    found = [{"filter": filter.name, "hash": mark, **filter.model_dump(mode="json", include={"at_least", "at_most"})}
             for filter in plan.clean if (mark := filter.fingerprint())]  # fmt: skip
    return {"filters": found} if found else {}


def _names(done: Done) -> set[str]:
    """The blob's files without their endings."""
    return {f"{done.index:05d}", *(f"{split}-{done.index:05d}" for split in done.splits)}


def _corpus(source: Source, done: list[Done], folder: Path) -> dict[str, Any]:
    splits = {}
    for name in SPLITS:
        shards = [d.splits[name] for d in done if name in d.splits]
        totals = {key: sum(shard[key] for shard in shards) for key in ("documents", "tokens", "bytes", "characters")}
        splits[name] = {**totals, "shards": shards}
    bad, dropped = sum(d.bad for d in done), sum(d.dropped for d in done)
    first = next((d.first_bad for d in done if d.first_bad), "")
    told = f", the first: {first}" if first else ""
    notes = sum((Counter(d.notes) for d in done), Counter[str]())
    cleaning = added(d.cleaning for d in done)
    if not any(split["documents"] for split in splits.values()):
        raise InputError(
            f"corpus {source.label}: no document in {source.source} ({dropped} too long or with nothing to learn, "
            f"{bad} bad{told}{_cleaned_away(cleaning)}{'; not used: ' if notes else ''}{', '.join(notes)})"
        )
    fetched = {"files": source.fetched} if source.fetched else {}
    again, places = repeated_ids(folder / "shards" / d.label / f"{d.index:05d}.ids" for d in done)
    return {"kind": source.kind, "licence": source.licence, "source": source.source, **fetched, "part": source.part,
            "bad": bad, "dropped": dropped, "first_bad": first,
            **({"repeated_ids": {"records": again, "first": places}} if again else {}),
            "notes": dict(notes.most_common()), **({"cleaning": cleaning} if cleaning else {}),
            "splits": splits}  # fmt: skip


def _cleaned_away(ledger: list[dict[str, Any]]) -> str:
    dropped = {entry["filter"]: entry["dropped"] for entry in ledger if entry["dropped"]}
    return f", left out by cleaning: {', '.join(f'{name} {count}' for name, count in dropped.items())}" * bool(dropped)
