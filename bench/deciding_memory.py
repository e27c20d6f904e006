"""Memory of deciding which documents stay, by their number: the marks of some real ones, over and over.

    python bench/deciding_memory.py corpora='[data/a.jsonl.zst]' folder=/big/disk times='[6, 12, 25]'

The marks are made once, as `prepare` makes them; each round has them again with other hashes, so that every round has
its own duplicates and none is one of another. What is linked and not copied are the texts and their signatures. Memory
is VmHWM of Linux in a process of its own, which decides, then counts common lines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from babyllama.data.clean.duplicates import Exact, Lines, Marked, common_lines, decide, write_marks
from babyllama.data.clean.near import Near
from babyllama.data.shards.distinct import kept, restored
from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.recipe import Recipe, load_recipe, validate

DEDUP = (Exact(), validate(Near, {}, "dedup"), validate(Lines, {}, "dedup"))
BLOB = 4_000  # documents whose marks are in one file


class Bench(Recipe):
    """Which documents, and how often; `one` is how this program calls itself."""

    corpora: tuple[str, ...]
    folder: Path
    times: tuple[int, ...] = (6, 12, 25)
    one: bool = False


def make(bench: Bench, folder: Path) -> list[Path]:
    """The marks of the real documents."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    choices = [validate(CorpusChoice, {"path": name}, "corpora") for name in bench.corpora]
    documents = [document for choice in choices for document in read_documents(choice, "skip")]
    for start in range(0, len(documents), BLOB):
        part, path = documents[start : start + BLOB], folder / f"{start:08d}.jsonl"
        lines = [kept(document) for document in part]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        records = [(line, d.text, len(d.text), d.held_out is True, d.kind in ("text", "chat"))
                   for line, d in zip(lines, part, strict=True)]  # fmt: skip
        write_marks(path, records, DEDUP)
    return sorted(folder.glob("*.jsonl"))


def again(paths: list[Path], folder: Path, times: int) -> None:
    """The same marks so many times, with other hashes each time."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for turn in range(times):
        other = rng.integers(1, 1 << 63, 3).astype(np.uint64)
        for path in paths:
            to = folder / f"{turn:04d}-{path.name}"
            for ending in (".jsonl", ".minima"):
                os.link(path.with_suffix(ending), to.with_suffix(ending))
            marks = np.fromfile(path.with_suffix(".marks"), np.uint8).reshape(-1, 37)
            marks[:, :16] ^= other[:2].view(np.uint8)
            bands = np.fromfile(path.with_suffix(".bands"), np.uint64)
            bands[bands != 0] ^= other[2]
            lines = np.fromfile(path.with_suffix(".lines"), [("hash", "<u8"), ("document", "<u8")])
            lines["hash"] ^= other[0]
            for name, array in (("marks", marks), ("bands", bands), ("lines", lines)):
                array.tofile(to.with_suffix(f".{name}"))


def most() -> float:
    """MB resident at most, so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def one(folder: Path) -> None:
    before, started = most(), time.process_time()
    documents = Marked(sorted(folder.glob("*.jsonl")))
    decision = decide(documents, DEDUP, lambda line: restored(line).text)
    decided, deciding = most(), time.process_time()
    found = common_lines(documents, decision.fate, DEDUP[2])
    kept, same, alike = np.bincount(decision.fate, minlength=3).tolist()
    print(f"{len(documents):,} documents: {before:.0f} MB before; decided with {decided:.0f} MB in "
          f"{deciding - started:.0f} s ({kept:,} kept, {same:,} the same, {alike:,} alike); {len(found):,} common "
          f"lines with {most():.0f} MB in {time.process_time() - deciding:.0f} s", flush=True)  # fmt: skip


def main(bench: Bench) -> None:
    rounds = bench.folder / "rounds"
    if bench.one:
        one(rounds)
        return
    paths = make(bench, bench.folder / "marks")
    for times in bench.times:
        again(paths, rounds, times)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "one=true"], check=True)
    shutil.rmtree(rounds)


if __name__ == "__main__":
    main(load_recipe(Bench, None, sys.argv[1:]))
