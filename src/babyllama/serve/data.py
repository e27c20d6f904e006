"""The data of a run as the web app shows them: what is in them, and documents with what the loss covers.

As for runs, only what lies inside their folder is read and nothing is written; figures are kept while the server runs.
Imports no PyTorch. Not here: HTTP (pages.py), which run (runs.py).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from babyllama.data.shards.samples import Selection
from babyllama.data.shards.shards import SPLITS, Prepared
from babyllama.data.shards.statistics import statistics
from babyllama.errors import InputError
from babyllama.serve.faults import Refused
from babyllama.serve.runs import Runs
from babyllama.tokenizer.tokenizer import Tokenizer

MOST = 50_000_000  # tokens of a split that are looked at
COUNT, TOKENS = 20, 2000  # documents of one answer, and tokens of each
Json = dict[str, Any]


def figures(runs: Runs, id: str) -> Json:
    """All of `statistics`; `run` is the one that holds them. Raises Refused (404)."""
    folder = runs.data(id)
    return {**_figures(folder, _stamp(folder)), "run": runs.id(folder)}


def documents(runs: Runs, id: str, corpus: str, split: str, least: int, most: int, count: int, seed: int) -> list[Json]:
    """Some documents at random, the same ones for a seed; none where none fits.

    Args:
        corpus, split: empty for all.  least, most: tokens of each; `most` 0: no limit.

    Raises:
        Refused: no such run, data or corpus (404).
    """
    folder = runs.data(id)
    prepared, tokenizer = _opened(folder, _stamp(folder))
    labels = [corpus] if corpus else list(prepared.corpora)
    if corpus and corpus not in prepared.corpora:
        raise Refused(404, f"corpus: {id} has no {corpus!r:.60}; it has {', '.join(prepared.corpora)}")
    try:
        chosen = Selection(prepared, labels, [split] if split in SPLITS else SPLITS, max(least, 0), most or None)
    except InputError:  # nothing of these lengths
        return []
    return [shown.json(tokenizer, TOKENS) for shown in chosen.drawn(min(max(count, 1), COUNT), abs(seed))]


def _stamp(folder: Path) -> int:
    return (folder / "manifest.json").stat().st_mtime_ns


@lru_cache(maxsize=4)
def _opened(folder: Path, stamp: int) -> tuple[Prepared, Tokenizer]:
    try:
        prepared = Prepared.open(folder)
        return prepared, Tokenizer.load(folder).with_template(prepared.manifest["chat_template"])
    except InputError as error:
        raise Refused(404, str(error)) from None


@lru_cache(maxsize=16)
def _figures(folder: Path, stamp: int) -> Json:
    found = statistics(*_opened(folder, stamp), most=MOST)
    return {key: value for key, value in found.items() if key != "path"}
