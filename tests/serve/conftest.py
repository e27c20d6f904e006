"""A server in a process of its own, as people start it, with two models made here."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
import torch
from small_run import save_taught, small_tokenizer

from babyllama.infer.request import Event
from babyllama.infer.sampling import Sampling, Unsaid
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.serve.api import application
from babyllama.serve.host import Host
from babyllama.serve.link import Link
from babyllama.serve.models import Models
from babyllama.serve.reply import Limits
from babyllama.serve.wire import Ends, pair
from babyllama.serve.worker import Told

KEY = "sk-of-the-tests"
T = TypeVar("T")
LONG = 4096  # the context of the model that writes on and on
POISON = 7  # a token of that model whose embedding is NaN


@dataclass
class Server:
    """`log`: the access log, a line for each request that has ended."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def answered(self, since: int, count: int = 1) -> list[dict]:
        """The log's lines of completions after line `since`; a line comes just after its answer has ended."""
        until = time.monotonic() + 30
        while True:
            lines = [json.loads(line) for line in self.log.read_text("utf-8").splitlines()[since:]]
            found = [line for line in lines if line["route"].endswith("completions")]
            if len(found) >= count or time.monotonic() > until:
                return found
            time.sleep(0.02)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)


@contextmanager
def started(folder: Path, *words: str) -> Iterator[Server]:
    """`babyllama serve` until the end, by force if need be."""
    log = folder / "access.jsonl"
    command = [sys.executable, "-m", "babyllama", "serve", *words, "port=0", "device=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BABYLLAMA_API_KEYS": KEY}
    with log.open("w") as out, (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            found = re.search(r"at (http://\S+)/v1 ", said)
            assert found, said + process.stderr.read()
            yield Server(found[1], process, log)
        finally:
            process.kill()
            errors.write(process.communicate()[1])


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """`taught`: knows the CHATS of small_run by heart. `steady`: writes anything, for long. `endless`: the same, but
    one of its tokens breaks an answer, see POISON."""
    root = tmp_path_factory.mktemp("served")
    save_taught(root / "taught")
    tokenizer = small_tokenizer()
    endless = Transformer(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=LONG,
        tie_word_embeddings=False))  # fmt: skip
    initialise(endless, 0)
    with torch.no_grad():
        for special in tokenizer.special_ids:
            endless.lm_head.weight[special] = 0
    for name in ("steady", "endless"):
        (root / name).mkdir()
        save_model(endless, root / name, **tokenizer.config_ids)
        tokenizer.save(root / name)
        endless.embed_tokens.weight.data[POISON] = torch.nan
    return root


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A small pipeline: tokenizer and corpus in a folder of their own, a base that is trained, a sft that has ended."""
    root = tmp_path_factory.mktemp("work") / "runs"
    recipes = {"small/tok": ("tokenizer", {}), "small/corpus": ("prepare", {"tokenizer": "runs/small/tok"}),
               "base": ("train", {"data": {"path": "runs/small/corpus"}, "plan": {"steps": 40}}),
               "sft": ("train", {"data": {"path": "runs/small/corpus"}, "init": {"path": "runs/base/model"}}),
               }  # fmt: skip
    for i, (name, (verb, recipe)) in enumerate(recipes.items()):
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(json.dumps({"out": f"runs/{name}", **recipe}))
        info = {"verb": verb, "status": "started" if name == "base" else "finished", "summary": {"loss": 1.5},
                "created": f"2026-01-0{i + 1}T00:00:00+0000", "parent": "runs/base" if name == "sft" else None,
                }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(info))
        (folder / "env.json").write_text('{"torch": "2.11"}')
    lines = [{"step": step, "kind": "train", "loss": 4 - step / 10, "lr": 0.001} for step in range(1, 11)]
    lines.append({"step": 10, "kind": "sample", "prompt": "春", "text": "天<b>来了"})
    (root / "base" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "sft" / "evals").mkdir()
    (root / "sft" / "evals" / "exam.json").write_text('{"corpora": {"qa": {"exact": 0.5}}}')
    return root


@pytest.fixture(scope="session")
def server(folders, runs) -> Iterator[Server]:
    with started(folders, str(folders / "taught"), str(folders / "endless"), "body=100000", f"runs={runs}") as found:
        yield found


@pytest.fixture
def client(server) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found


class Mailbox:
    """Reads a worker's events in a test's own event loop."""

    def __init__(self) -> None:
        self.loop, self.mail = asyncio.get_running_loop(), asyncio.Queue[list[tuple[int, Event]] | Exception]()

    def told(self, events: Told) -> None:
        self.put([(which, event) for _, which, event in events])

    def failed(self, number: int, fault: Exception) -> None:
        self.put(fault)

    def put(self, found: list[tuple[int, Event]] | Exception) -> None:
        self.loop.call_soon_threadsafe(self.mail.put_nowait, found)

    async def answers(self, count: int) -> list[list[int]]:
        """The tokens of so many requests, all of them."""
        tokens, going = [list[int]() for _ in range(count)], count
        while going:
            found = await self.mail.get()
            if isinstance(found, Exception):
                raise found
            for which, event in found:
                tokens[which] += event.tokens
                going -= event.finish is not None
        return tokens


@contextmanager
def hosted(models: Models, queue: int = 64) -> Iterator[Ends]:
    """HTTP's ends of a host on a thread of its own."""
    mine, theirs = pair()

    async def serve() -> None:
        await Host(models, queue).serve(mine)
        await models.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield theirs
    finally:
        for end in theirs:
            end.close()
        thread.join(30)
    assert not thread.is_alive()


def talked(models: Models, names: list[str], story: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
    """What comes of a story with a client of a server in this process that has these models."""

    async def told(ends: Ends) -> T:
        link = Link(names, 0)
        await link.connect(ends)
        app = application(link, Limits(None, 60, 60), dict.fromkeys(names, Unsaid(Sampling(), Sampling())))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            found = await story(client)
        link.close()
        return found

    with hosted(models) as ends:
        return asyncio.run(told(ends))


def told_here(models: Models, names: list[str], posted: list[tuple[str, dict]]) -> list[httpx.Response]:
    """What it answers to bodies by route."""

    async def story(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post(route, json=body) for route, body in posted]

    return talked(models, names, story)


def on_and_on(**more) -> dict:
    """A request whose answer fills a long context."""
    ban = {str(token): -100 for token in [POISON, *small_tokenizer().special_ids]}
    return {"model": "endless", "prompt": [20, 21], "logit_bias": ban, **more}
