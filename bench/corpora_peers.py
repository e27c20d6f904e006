"""What corpora.py compares with, in an environment of its own: lines of its table, in processor time with all children.

    python corpora_peers.py TEXTS.jsonl TOKENIZER.model SLOW WORKERS FOLDER

datasketch: MinHash of runs of 5 characters and its index, by the bands that babyllama takes. datatrove: its pipelines
for Chinese (words by spaCy and jieba), MinHash in four steps, and its filters with FineWeb-2's numbers for Chinese.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path


def measured(what: str, count: int, work: Callable[[], object], size: float = 0) -> None:
    def used() -> float:
        who = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(found.ru_utime + found.ru_stime for found in who)

    started, before = time.perf_counter(), used()
    work()
    seconds, real = used() - before, time.perf_counter() - started
    megabytes = f" ({size / seconds:.1f} MB/s)" if size else ""
    print(f"| {what} | {count:,} | {count / seconds:,.0f}{megabytes}; {real:.1f} s |", flush=True)


def datasketch(texts: list[str]) -> None:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(params=(42, 3), num_perm=128)
    for number, text in enumerate(texts):
        said = "".join(c for c in text.lower() if c.isalnum())
        minima = MinHash(num_perm=128)
        minima.update_batch([run.encode() for run in {said[i : i + 5] for i in range(len(said) - 4)}])
        index.query(minima)
        index.insert(number, minima)


def datatrove(folder: Path, workers: int, filters: bool) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    source, chinese = JsonlReader(str(folder / "in"), compression=None), "cmn_Hani"

    def run(tasks: int, *steps: object) -> None:
        LocalPipelineExecutor(list(steps), tasks=tasks, workers=min(tasks, workers), start_method="fork").run()

    if filters:
        run(workers, source, GopherRepetitionFilter(language=chinese),
            FineWebQualityFilter(language=chinese, line_punct_thr=0.106, new_line_ratio=0.178),
            GopherQualityFilter(min_avg_word_length=1, max_avg_word_length=10, min_stop_words=0, language=chinese),
            JsonlWriter(str(folder / "filtered")))  # fmt: skip
        return
    at = [str(folder / name) for name in ("signatures", "buckets", "clusters", "out")]
    run(workers, source, MinhashDedupSignature(at[0], language=chinese))
    run(14, MinhashDedupBuckets(at[0], at[1]))
    run(1, MinhashDedupCluster(at[1], at[2]))
    run(workers, source, MinhashDedupFilter(at[2]), JsonlWriter(at[3]))


def sentencepiece(texts: list[str], model: str) -> None:
    from sentencepiece import SentencePieceProcessor

    encode = SentencePieceProcessor(model_file=model).encode
    for start in range(0, len(texts), 500):
        encode(texts[start : start + 500], num_threads=1)


def main(lines: str, model: str, slow: str, workers: str, name: str) -> None:
    records = Path(lines).read_text("utf-8").split("\n")[:-1]
    texts = [json.loads(record)["text"] for record in records]
    part, folder = texts[: int(slow)], Path(name) / "datatrove"
    (folder / "in").mkdir(parents=True)
    for number in range(int(workers)):
        mine = records[: int(slow)][number :: int(workers)]
        (folder / "in" / f"{number}.jsonl").write_text("".join(record + "\n" for record in mine), "utf-8")
    measured(f"datasketch {version('datasketch')}: MinHash and index", len(part), lambda: datasketch(part))
    known = f"datatrove {version('datatrove')}"
    measured(f"{known}: MinHash, four steps", len(part), lambda: datatrove(folder, int(workers), False))
    measured(f"{known}: Gopher's and FineWeb's filters", len(part), lambda: datatrove(folder, int(workers), True))
    size = sum(len(text.encode()) for text in texts) / 1e6
    known = f"SentencePiece {version('sentencepiece')}"
    measured(f"{known}: tokens", len(texts), lambda: sentencepiece(texts, model), size)


if __name__ == "__main__":
    main(*sys.argv[1:])
