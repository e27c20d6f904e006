"""What HTTP costs beside a fast device: the server and the engine alone over a decoder that only waits.

    python bench/http_cost.py RUN --clients 256 --workers 1 --rounds 3

The engine is the real one, with a model so small that it costs nothing; a decoder in place of a GPU's gives up to 16
tokens of every row after `--ms` milliseconds a token, during which it leaves Python to others. 0.73 ms is what an H200
takes for 256 rows of the seed model. RUN gives the vocabulary and the text. As in serve_speed.py as many requests as
there are clients are always at work. Processor time a token is that of the processes that speak HTTP, and the engine's.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from record import RESULTS, append, facts, table
from serve_speed import offline, processes, used

from babyllama.commands.bench_serve import BenchServeRecipe, measure
from babyllama.commands.serve import ServeRecipe, _listen
from babyllama.infer.engine import Engine
from babyllama.infer.rows import Sampled
from babyllama.infer.sampling import Sampling, Unsaid
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.serve.host import Host
from babyllama.serve.models import Models, Served
from babyllama.serve.processes import Speech, serve, speakers
from babyllama.serve.reply import Limits
from babyllama.serve.worker import Worker
from babyllama.tokenizer.tokenizer import Tokenizer

TEXT = "感冒是由病毒引起的上呼吸道感染，应多喝水、多休息，必要时服用退烧药。画蛇添足比喻做了多余的事，反而有害无益。"


class Waiting:
    """A `Step` that takes `ms` milliseconds a token, however many rows there are."""

    most = 16

    def __init__(self, rows: Any, text: torch.Tensor, ms: float) -> None:
        self.rows, self.text, self.ms, self.at = rows, text, ms, 0

    def __call__(self, which: slice, end: int, uses: Any, limit: int) -> Sampled:
        count = 1 << (min(limit, self.most).bit_length() - 1)
        time.sleep(self.ms * count / 1000)
        self.at = (self.at + count) % (len(self.text) - self.most)
        tokens = self.text[self.at : self.at + count, None].expand(count, which.stop - which.start)
        for state in (self.rows.position, self.rows.counter):
            state[which] += count
        self.rows.token[which] = tokens[-1]
        return Sampled(tokens)


def engine_of(tokenizer: Tokenizer, clients: int, ms: float) -> Engine:
    config = ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=512)  # fmt: skip
    model = Transformer(config)
    initialise(model, 0)
    text = torch.tensor(tokenizer.encode(TEXT * 8))
    return Engine(model.eval().requires_grad_(False), tokenizer.vocab_size, slots=clients,
                  make_step=lambda model, rows, cache: Waiting(rows, text, ms))  # fmt: skip


def host(tokenizer: Tokenizer, given: argparse.Namespace) -> int:
    recipe = ServeRecipe(models=(given.run,), port=given.port)
    models = Models({"waiting": lambda: [
        Served("waiting", Worker(engine_of(tokenizer, given.clients, given.ms)), tokenizer)]})  # fmt: skip
    limits, defaults = Limits(None, 60, 600), {"waiting": Unsaid(Sampling(), Sampling())}
    speech = Speech(("waiting",), 0, limits, defaults, (), 1 << 20, (), True, None, 60, {})
    with speakers(speech, _listen(recipe, given.workers)) as speaking:
        return serve(Host(models, given.clients), speaking, 60, lambda: print("ready", file=sys.stderr, flush=True))


def processors(process: int) -> tuple[float, float]:
    """Seconds so far: of those that speak HTTP, of the engine's process."""
    engine, *http = (used(one)[0] for one in processes(process))
    return sum(http), engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--ms", type=float, default=0.73)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=0, help="be the server")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(given.run)
    if given.port:
        sys.exit(host(tokenizer, given))
    loaded, engine = SimpleNamespace(tokenizer=tokenizer), engine_of(tokenizer, given.clients, given.ms)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, *sys.argv, f"--port={port}"]
    rounds = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        try:
            assert server.stderr is not None and server.stderr.readline() == b"ready\n"
            for i in range(given.rounds + 1):  # the first one warms up
                before, seconds = processors(server.pid), given.seconds if i else 3
                recipe = BenchServeRecipe(url=f"http://127.0.0.1:{port}/v1", clients=given.clients,
                                          max_tokens=given.tokens, seconds=seconds, temperature=0)  # fmt: skip
                found = measure(recipe)
                http, engines = (after - then for after, then in zip(processors(server.pid), before, strict=True))
                alone, work = offline(loaded, engine, given.clients, seconds, given.tokens)
                rounds.append({
                    "HTTP": found["tokens a second"], "engine alone": round(alone),
                    "ratio": round(found["tokens a second"] / alone, 3), "errors": found["errors"],
                    "tokens an event": found["tokens an event"],
                    "first token, ms, p50": found["first token, ms, p50"],
                    "us a token, HTTP": round(1e6 * http / found["tokens"], 2),
                    "engine's process": round(1e6 * engines / found["tokens"], 2),
                    "engine alone, us": round(1000 * work, 2),
                })  # fmt: skip
                print(rounds[-1], flush=True)
        finally:
            server.terminate()
    rounds = rounds[1:]
    line = {**facts(torch.device("cpu")), "rounds": rounds, "ratio": statistics.median(r["ratio"] for r in rounds)}
    append(RESULTS / "http_cost.jsonl", line)
    table(list(rounds[0]), [list(one.values()) for one in rounds])
    print(f"ratio, median: {line['ratio']}; exit code of the server: {server.returncode}")


if __name__ == "__main__":
    main()
