"""From files to tokens, stage by stage: documents and megabytes in and out, and how fast, beside what others use.

    python bench/corpora.py tokenizer=tokenizer.model corpora='[data/a.jsonl.zst, data/b.jsonl]' peers=ENV/bin/python

First `prepare` whole, with clean=zh-web and dedup=[exact, near, lines], on `workers` processes; then its stages one by
one in this process, in processor time, so that a busy machine tells the same; then the same records as JSON lines, a
JSON array and parquet; then others on the same texts (corpora_peers.py), by the Python of an environment that has
datasketch, datatrove[processing], spacy, jieba and sentencepiece.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from babyllama.data.clean.cleaning import Cleaning
from babyllama.data.clean.duplicates import ALIKE, KEPT, SAME, Exact, Lines, Marked, common_lines, decide, write_marks
from babyllama.data.clean.near import Clusters, Near, join_near, sign
from babyllama.data.clean.presets import PRESETS
from babyllama.data.shards.distinct import kept, restored, without
from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.data.sources.documents import Document, Text
from babyllama.recipe import Recipe, load_recipe, validate
from babyllama.tokenizer.tokenizer import Tokenizer

DEDUP: tuple[Any, ...] = (Exact(), Near(), Lines())  # pyright: ignore[reportCallIssue]
BLOB = 4_000  # documents whose marks are in one file


class Bench(Recipe):
    """Which texts by which vocabulary, and beside whom."""

    corpora: tuple[str, ...]
    tokenizer: Path
    peers: str | None = None
    workers: int = 2
    texts: int = 20_000  # drawn of all, for the formats and for SentencePiece
    slow: int = 1_000  # of these, for datasketch and datatrove


def size_of(documents: Sequence[Document]) -> int:
    return sum(len(document.text.encode()) for document in documents)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    return work(), time.process_time() - started


def tell(what: str, before: tuple[int, int], after: tuple[int, int], seconds: float) -> None:
    """A line of a table in Markdown; pairs are documents and bytes."""
    rate = f"{before[0] / seconds:,.0f} | {before[1] / seconds / 1e6:,.1f}" if seconds else "|"
    print(f"| {what} | {before[0]:,} | {after[0]:,} | {before[1] / 1e6:,.2f} | {after[1] / 1e6:,.2f} | {rate} |")
    sys.stdout.flush()


# ── prepare, whole ─────────────────────────────────────────────────────────────────────────────────────────────────
def whole(bench: Bench, folder: Path) -> None:
    """The verb on several processes: what it says, in real and in processor time."""
    corpora = ", ".join(f"{{path: {path}}}" for path in bench.corpora)
    words = [f"out={folder / 'out'}", f"tokenizer={bench.tokenizer}", f"corpora=[{corpora}]", "clean=zh-web",
             "dedup=[exact, near, lines]", f"workers={bench.workers}", "on_bad=skip"]  # fmt: skip
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "babyllama.cli", "prepare", *words], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    corpora_of = json.loads((folder / "out" / "manifest.json").read_text("utf-8"))["corpora"].values()
    total = sum((Counter(_figures(split)) for corpus in corpora_of for split in corpus["splits"].values()), Counter())
    print(f"prepare, {bench.workers} processes: {seconds:.0f} s, {used:.0f} s of processors; {total['documents']:,} "
          f"documents, {total['bytes'] / 1e6:.1f} MB learned, {total['tokens']:,} tokens")  # fmt: skip
    print("\n| filter | documents in | left out | changed | characters in | out |\n|---|---|---|---|---|---|")
    ledger: dict[str, Counter[str]] = {}
    for corpus in corpora_of:
        for entry in corpus["cleaning"]:
            numbers = {key: value for key, value in entry.items() if isinstance(value, int)}
            ledger.setdefault(entry["filter"], Counter()).update(numbers)
    for name, c in ledger.items():
        print(f"| {name} | {c['documents']:,} | {c['dropped']:,} | {c['changed']:,} | {c['characters']:,} "
              f"| {c['characters_out']:,} |")  # fmt: skip


def _figures(split: dict[str, Any]) -> dict[str, int]:
    return {key: split[key] for key in ("documents", "bytes", "tokens")}


# ── stages ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def stages(bench: Bench, folder: Path) -> None:
    """Each stage on what the one before left."""
    print(
        "\n| stage, one core | documents in | out | MB in | out | documents/s | MB/s |\n|---|---|---|---|---|---|---|"
    )
    documents, seconds = timed(lambda: [found for path in bench.corpora for found in read_documents(choice(path))])
    now = len(documents), size_of(documents)
    tell("read (zst, JSON)", now, now, seconds)
    for filter in PRESETS["zh-web"]:
        documents, seconds = timed(lambda f=filter, all=documents: list(Cleaning((f,))(all)))
        before, now = now, (len(documents), size_of(documents))
        tell(filter.name, before, now, seconds)
    signed, signing = timed(lambda: sign([document.text for document in documents], DEDUP[1]))
    clusters = Clusters(len(documents))
    _, joining = timed(lambda: join_near(clusters, DEDUP[1], iter(signed.bands), signed.minima.__getitem__,
                                         lambda number: documents[number].text))  # fmt: skip
    tell("near, in memory: signatures", now, now, signing)
    tell("near, in memory: clusters", now, now, joining)
    tell("near, in memory, together", now, now, signing + joining)
    documents, now = distinct(documents, folder, now)
    encode = Tokenizer.load(bench.tokenizer).encode_much
    encode(["热"])
    ids, seconds = timed(lambda: [len(found) for i in range(0, len(documents), 500)
                                  for found in encode([d.text for d in documents[i : i + 500]])])  # fmt: skip
    tell(f"tokens ({sum(ids):,})", now, now, seconds)


def choice(path: str | Path) -> CorpusChoice:
    return validate(CorpusChoice, {"path": str(path)}, "corpora")


def distinct(documents: list[Document], folder: Path, now: tuple[int, int]) -> tuple[list[Document], tuple[int, int]]:
    """Exact, near and lines through files, as prepare has it."""
    paths = [folder / f"{start}.jsonl" for start in range(0, len(documents), BLOB)]

    def write() -> None:
        for number, path in enumerate(paths):
            part = documents[number * BLOB : (number + 1) * BLOB]
            lines = [kept(document) for document in part]
            path.write_bytes(b"".join(line + b"\n" for line in lines))
            write_marks(path, [(line, d.text, len(d.text), d.held_out is True, d.kind in ("text", "chat"))
                               for line, d in zip(lines, part, strict=True)], DEDUP)  # fmt: skip

    _, writing = timed(write)
    marked = Marked(paths)
    decision, deciding = timed(lambda: decide(marked, DEDUP, lambda line: restored(line).text))
    tell("exact, near, lines: marks in files", now, now, writing)
    fate = decision.fate
    for name, gone in (("exact", (SAME,)), ("near", (SAME, ALIKE))):
        left = [document for document, fate in zip(documents, fate.tolist(), strict=True) if fate not in gone]
        before, now = now, (len(left), size_of(left))
        tell(f"{name}: which stays (time: both)" if name == "near" else name, before, now,
             deciding if name == "near" else 0)  # fmt: skip
    common, counting = timed(lambda: common_lines(marked, fate, DEDUP[2]))
    first = dict(zip(common["hash"].tolist(), common["document"].tolist(), strict=True))

    def cut() -> list[Document]:
        staying = ((number, documents[number]) for number in np.flatnonzero(fate == KEPT).tolist())
        shorter = (replace(d, text=without(d.text, first, n)) if isinstance(d, Text) else d for n, d in staying)
        return [document for document in shorter if document.size]

    left, cutting = timed(cut)
    before, now = now, (len(left), size_of(left))
    tell("lines", before, now, counting + cutting)
    return left, now


# ── formats and others ─────────────────────────────────────────────────────────────────────────────────────────────
def drawn(bench: Bench) -> list[str]:
    texts = [document.text for path in bench.corpora for document in read_documents(choice(path))]
    return random.Random(0).sample(texts, min(bench.texts, len(texts)))


def formats(texts: list[str], folder: Path) -> Path:
    """How fast the same records are read from each; gives the JSON lines."""
    lines, array, parquet = (folder / f"texts.{end}" for end in ("jsonl", "json", "parquet"))
    records = [{"text": text} for text in texts]
    lines.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    array.write_text(json.dumps(records, ensure_ascii=False), "utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), parquet)
    size = sum(len(text.encode()) for text in texts)
    print("\n| format | documents/s | MB/s | of JSON lines |\n|---|---|---|---|")
    first = 0.0
    for path in (lines, array, parquet):
        found, seconds = min((timed(lambda p=path: list(read_documents(choice(p)))) for _ in range(3)),
                             key=lambda pair: pair[1])  # fmt: skip
        assert [document.text for document in found] == texts
        first = first or seconds
        print(f"| {path.suffix} | {len(texts) / seconds:,.0f} | {size / seconds / 1e6:.1f} | {first / seconds:.2f} |")
    return lines


def ours(texts: list[str], slow: int, tokenizer: Path) -> None:
    """The same texts that the others get."""
    part, encode = texts[:slow], Tokenizer.load(tokenizer).encode_much
    documents = [Text(text) for text in part]
    encode(texts[:10]), sign(texts[:10], DEDUP[1]), list(Cleaning(PRESETS["zh-web"])(documents[:10]))
    signed, seconds = timed(lambda: sign(part, DEDUP[1]))
    clusters = Clusters(len(part))
    _, more = timed(lambda: join_near(clusters, DEDUP[1], iter(signed.bands), signed.minima.__getitem__,
                                      part.__getitem__))  # fmt: skip
    print(f"| babyllama: near-duplicates | {len(part):,} | {len(part) / (seconds + more):,.0f} |")
    _, seconds = timed(lambda: list(Cleaning(PRESETS["zh-web"])(documents)))
    print(f"| babyllama: zh-web, twelve filters | {len(part):,} | {len(part) / seconds:,.0f} |")
    _, seconds = timed(lambda: [encode(texts[i : i + 500]) for i in range(0, len(texts), 500)])
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"| babyllama: tokens | {len(texts):,} | {len(texts) / seconds:,.0f} ({size / seconds:.1f} MB/s) |")
    sys.stdout.flush()


def main(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole(bench, folder)
        stages(bench, folder)
        texts = drawn(bench)
        lines = formats(texts, folder)
        print("\n| on the same texts, one core | documents | documents/s |\n|---|---|---|", flush=True)
        ours(texts, bench.slow, bench.tokenizer)
        if bench.peers:
            script = Path(__file__).with_name("corpora_peers.py")
            words = [str(lines), str(bench.tokenizer), str(bench.slow), str(bench.workers), name]
            subprocess.run([bench.peers, str(script), *words], check=True, env={**os.environ, "LOGURU_LEVEL": "ERROR"})


if __name__ == "__main__":
    main(load_recipe(Bench, None, sys.argv[1:]))
