"""What HTTP costs: `babyllama serve` under many streams, and the same engine without it, in turns.

    python bench/serve_speed.py RUN --seconds 40 --rounds 3

Offline, as many requests as there are clients are always at work, of the same prompts, seeds and lengths. Each round
measures the server, whose client is this process, and then the engine alone; the ratio is the median of the rounds'
ratios. Where the client has no cores of its own it takes them from the server: "without it" is the ratio with the
server's rate raised by the client's share. Processor time a token is that of the server's process with the engine, of
those for HTTP and, alone, of the engine: where others use the machine too, it says more than the wall clock. Memory is
what they hold after each round.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import RESULTS, append, facts, table

from babyllama.commands.bench_serve import BenchServeRecipe, measure
from babyllama.data.shards.workers import cores
from babyllama.infer.engine import Engine
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling
from babyllama.load import load, pick_device

TICKS = os.sysconf("SC_CLK_TCK")


def asked(loaded: Any, number: int, tokens: int) -> Request:
    """What client `number` of bench-serve asks for."""
    text = f"{number}。{BenchServeRecipe().prompt}"
    tokenizer = loaded.tokenizer
    prompt = [*tokenizer.start_ids, *tokenizer.encode(text)]
    return Request(prompt, Sampling(), tokens, tokenizer.stop_ids, number)


def offline(loaded: Any, engine: Engine, clients: int, seconds: float, tokens: int) -> tuple[float, float]:
    """Of the engine alone: tokens a second, ms of processor a token."""
    number = clients
    for i in range(clients):
        engine.add(asked(loaded, i, tokens))
    began, before, made = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        for event in engine.step():
            made += len(event.tokens)
            if event.finish is not None:
                engine.add(asked(loaded, number, tokens))
                number += 1
    wall, processor = time.perf_counter() - began, time.process_time() - before
    for slot in engine.slots.active:
        if slot.job is not None:
            engine.remove(slot.job.id)
    while engine.busy:
        engine.step()
    return made / wall, 1000 * processor / made


def used(process: int) -> tuple[float, float]:
    """Seconds of processor time so far, MB in memory."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return (int(fields[11]) + int(fields[12])) / TICKS, pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def processes(server: int) -> list[int]:
    """Its own process, which has the engine, and those that speak HTTP; none that compiles something meanwhile."""
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return [server, *(int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, help="processes for HTTP; as many as `serve` chooses when absent")
    parser.add_argument("--out", default="serve_speed.jsonl", help="in bench/results, or a path of its own")
    given = parser.parse_args()
    loaded = load(given.run, pick_device(given.device))
    engine = Engine(loaded.model, loaded.tokenizer.vocab_size)
    engine.warm()
    offline(loaded, engine, given.clients, 5, given.tokens)
    command = [
        sys.executable,
        "-m",
        "babyllama",
        "serve",
        str(given.run),
        "port=0",
        f"device={given.device}",
        "log=false",
        *([] if given.workers is None else [f"workers={given.workers}"]),
    ]
    rounds = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url, said = None, list[str]()
            while url is None:
                said.append(server.stderr.readline())
                if not said[-1]:
                    raise SystemExit(f"the server did not start:\n{''.join(said)}")
                url = re.search(r"at (http://\S+/v1) ", said[-1])
            for i in range(given.rounds + 1):  # the first one warms up
                before = [used(one)[0] for one in processes(server.pid)]
                recipe = BenchServeRecipe(url=url[1], clients=given.clients, max_tokens=given.tokens,
                                          seconds=given.seconds if i else min(10, given.seconds))  # fmt: skip
                found = measure(recipe)
                after = [used(one) for one in processes(server.pid)]
                engine_s, *http_s = (now - then for (now, _), then in zip(after, before, strict=True))
                alone, work = offline(loaded, engine, given.clients, given.seconds if i else 1, given.tokens)
                ratio = found["tokens a second"] / alone
                rounds.append({
                    "server": found["tokens a second"], "offline": round(alone, 1), "ratio": round(ratio, 3),
                    "client's core": (share := found["client's share of a core"]),
                    "without it": round(ratio / (1 - share / cores()), 3),
                    "errors": found["errors"], "refused": found["refused (429)"],
                    "tokens an event": found["tokens an event"],
                    "first token, ms, p50": found["first token, ms, p50"],
                    "ms of processor a token": round(1000 * engine_s / max(found["tokens"], 1), 3),
                    "for HTTP": round(1000 * sum(http_s) / max(found["tokens"], 1), 3),
                    "alone": round(work, 3),
                    "MB": round(after[0][1], 1), "MB, HTTP": round(sum(memory for _, memory in after[1:]), 1),
                })  # fmt: skip
                print(rounds[-1], flush=True)
        finally:
            server.terminate()
    rounds = rounds[1:]
    line = {**facts(pick_device(given.device)), "clients": given.clients, "seconds": given.seconds, "rounds": rounds,
            "ratio": statistics.median(one["ratio"] for one in rounds)}  # fmt: skip
    append(RESULTS / given.out, line)
    names = list(rounds[0])
    table(names, [[one[name] for name in names] for one in rounds])
    print(f"ratio, median: {line['ratio']}; exit code of the server: {server.returncode}")


if __name__ == "__main__":
    main()
