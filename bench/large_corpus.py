"""A corpus of many gigabytes through prepare: the most memory that each of its processes has had.

    python bench/large_corpus.py tokenizer=tokenizer.model corpora='[data/a.jsonl.zst]' gigabytes=20 folder=/big/disk

The corpus is made of the given ones, over and over, each time with a part of its hanzi exchanged for others, so that no
round is a near-duplicate of another; one document in fifty is, with two characters more, that of a line before. Memory
is VmHWM of Linux: what was resident at most, with mapped files.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import zstandard

from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.recipe import Recipe, load_recipe, validate

HANZI = range(0x4E00, 0x9FA6)
AGAIN = 50  # one document in so many comes twice


class Bench(Recipe):
    """How much of what, and how it is prepared."""

    corpora: tuple[str, ...]
    tokenizer: Path
    folder: Path
    gigabytes: float = 20
    workers: int = 2
    clean: str = "[]"


def varied(texts: list[str]) -> Iterator[str]:
    rng = random.Random(0)
    for turn in range(1 << 30):
        others = rng.sample(HANZI, len(HANZI))
        table = {old: new for old, new in zip(HANZI, others, strict=True) if turn and rng.random() < 0.5}
        for number, text in enumerate(texts):
            yield text.translate(table)
            if number % AGAIN == 0:
                yield text.translate(table) + "又及"


def make(bench: Bench, path: Path) -> tuple[int, int]:
    """Documents and bytes of JSON."""
    choices = [validate(CorpusChoice, {"path": name}, "corpora") for name in bench.corpora]
    texts, size, count = [document.text for choice in choices for document in read_documents(choice)], 0, 0
    with path.open("wb") as raw, zstandard.ZstdCompressor(level=1).stream_writer(raw) as file:
        for text in varied(texts):
            line = orjson.dumps({"text": text}) + b"\n"
            file.write(line)
            size, count = size + len(line), count + 1
            if size >= bench.gigabytes * 1e9:
                return count, size
    raise AssertionError


def peaks(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """MB by process: 0 is the main one, then its workers in the order in which they began."""
    found: dict[int, float] = {}
    while process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            for pid in (process.pid, *map(int, children.read_text().split())):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                found[pid] = max(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))
        except (OSError, ValueError):
            pass  # it has ended meanwhile
        time.sleep(0.3)
    return {str(number): most for number, most in enumerate(found.values())}


def main(bench: Bench) -> None:
    bench.folder.mkdir(parents=True, exist_ok=True)
    corpus = bench.folder / "large.jsonl.zst"
    count, size = make(bench, corpus)
    print(f"{count:,} documents, {size / 1e9:.2f} GB of JSON, {corpus.stat().st_size / 1e9:.2f} GB on disk", flush=True)
    words = [f"out={bench.folder / 'out'}", f"tokenizer={bench.tokenizer}", f"corpora=[{{path: {corpus}}}]",
             f"clean={bench.clean}", "dedup=[exact, near, lines]", f"workers={bench.workers}"]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "babyllama.cli", "prepare", *words])
    for number, most in peaks(process).items():
        print(f"process {number}: {most:,.0f} MB at most")
    print(f"{time.perf_counter() - started:.0f} s, exit code {process.returncode}")


if __name__ == "__main__":
    main(load_recipe(Bench, None, sys.argv[1:]))
