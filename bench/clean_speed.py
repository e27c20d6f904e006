"""How fast prepare's cleaning and deduplication are by stage, in one process, beside datasketch on the same texts.

    python bench/clean_speed.py corpora='[data/a.jsonl, data/b.jsonl]' texts=20000

Times are of the processor, so that a busy machine tells the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from babyllama.data.clean.cleaning import Cleaning
from babyllama.data.clean.near import Clusters, Near, join_near, sign
from babyllama.data.clean.presets import PRESETS
from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.data.sources.documents import Document
from babyllama.recipe import Recipe, load_recipe, validate


class Bench(Recipe):
    """Which texts, and how many of each file."""

    corpora: tuple[str, ...]
    texts: int = 20_000
    peer: int = 1_000  # texts for datasketch, which is slow
    near: Near = Near()  # pyright: ignore[reportCallIssue]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    return work(), time.process_time() - started


def tell(what: str, seconds: float, count: int, size: int) -> None:
    print(f"{what:28s} {count / seconds:12,.0f} docs/s {size / seconds / 1e6:9.1f} MB/s", flush=True)


def deduplicate(texts: list[str], near: Near) -> tuple[int, float, float]:
    """How many are near-duplicates, and the seconds of signatures and of clusters."""
    found, signing = timed(lambda: sign(texts, near))
    clusters = Clusters(len(texts))
    _, joining = timed(
        lambda: join_near(clusters, near, iter(found.bands), lambda n: found.minima[n], texts.__getitem__)
    )
    return len(texts) - len(set(clusters.roots().tolist())), signing, joining


def by_datasketch(texts: list[str], near: Near) -> float:
    from datasketch import MinHash, MinHashLSH

    def work() -> None:
        index = MinHashLSH(params=(near.bands, near.height), num_perm=near.permutations)
        for number, text in enumerate(texts):
            said = "".join(c for c in text.lower() if c.isalnum())
            minima = MinHash(num_perm=near.permutations)
            runs = {said[i : i + near.characters].encode() for i in range(len(said) - near.characters + 1)}
            minima.update_batch(list(runs))
            index.query(minima)
            index.insert(number, minima)

    return timed(work)[1]


def main(bench: Bench) -> None:
    documents: list[Document] = []
    for path in bench.corpora:
        choice = validate(CorpusChoice, {"path": path, "kind": "text"}, "corpora")
        documents += islice(read_documents(choice), bench.texts)
    texts = [document.text for document in documents]
    size = sum(len(text.encode()) for text in texts)
    print(f"{len(texts):,} texts, {size / 1e6:.1f} MB, {sum(map(len, texts)) / len(texts):.0f} characters a text")
    deduplicate(texts[:100], bench.near)
    list(Cleaning(PRESETS["zh-web"])(documents[:50]))
    for filter in PRESETS["zh-web"]:
        tell(filter.name, timed(lambda filter=filter: list(Cleaning((filter,))(documents)))[1], len(texts), size)
    tell("zh-web, together", timed(lambda: list(Cleaning(PRESETS["zh-web"])(documents)))[1], len(texts), size)
    found, signing, joining = deduplicate(texts, bench.near)
    tell("near: signatures", signing, len(texts), size)
    tell("near: clusters", joining, len(texts), size)
    tell("near, end to end", signing + joining, len(texts), size)
    print(f"{found:,} near-duplicates")
    part = texts[:: max(len(texts) // bench.peer, 1)]
    tell("datasketch, end to end", by_datasketch(part, bench.near), len(part), sum(len(t.encode()) for t in part))


if __name__ == "__main__":
    main(load_recipe(Bench, None, sys.argv[1:]))
