"""The processes of a server: this one has the engines, and others, which share its port, speak HTTP.

So decoding never waits for Python's lock while text is written, and text is written on as many cores as it needs. They
end together: on Ctrl-C or SIGTERM HTTP lets open answers end first, a process that dies takes the server with it, and
one whose engines are gone, by SIGKILL for example, ends at once. Not here: messages (wire.py), models, routes.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from babyllama.infer.sampling import Sampling
from babyllama.interrupts import held
from babyllama.serve.api import application
from babyllama.serve.link import Link
from babyllama.serve.reply import Limits
from babyllama.serve.wire import Ends, pair

if TYPE_CHECKING:
    from babyllama.serve.host import Host

KEPT_OPEN = 75  # seconds for a client's next request: clients who give up after 5 must be the first to do so
LATE = 10  # seconds beyond the grace after which a process that should have ended is killed
STOPS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Speech:
    """What a process that speaks HTTP is told; see `application` and `Link`. `grace`: seconds for open answers."""

    names: tuple[str, ...]
    created: int
    limits: Limits
    defaults: Sampling
    keys: tuple[str, ...]
    body: int
    cors: tuple[str, ...]
    log: bool
    runs: Path | None
    grace: int
    memory: Mapping[str, int]


# ── HTTP ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def speak(speech: Speech, listener: socket.socket, ends: Ends, first: bool) -> None:
    """Such a process. `first`: the one that says what is to be said once."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def stop(gone: bool) -> None:
        if gone and first and not server.should_exit:
            print("babyllama: the process of the engines has ended, and so does the server", file=sys.stderr)
        server.should_exit, server.force_exit = True, gone

    link = Link(speech.names, speech.created, stop)
    app = application(link, speech.limits, speech.defaults, speech.keys, speech.body, speech.cors,
                      sys.stdout if speech.log else None, speech.runs, speech.memory)  # fmt: skip
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=speech.grace,
                            timeout_keep_alive=KEPT_OPEN, lifespan="off", ws="none", server_header=False)  # fmt: skip
    server = uvicorn.Server(config)

    async def work() -> None:
        await link.connect(ends)
        gc.collect()
        gc.freeze()  # what is there now stays: to look through it again and again would hold answers up
        await server.serve(sockets=[listener])

    for number in STOPS:  # the server has its own handlers; afterwards it repeats the signal, which then means nothing
        signal.signal(number, lambda *_: None)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(work())


# ── the engines ────────────────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def speakers(speech: Speech, listeners: Sequence[socket.socket]) -> Iterator[list[tuple[SpawnProcess, Ends]]]:
    """A process that speaks HTTP for each socket, and our ends to it. None outlives the block."""
    context, found = multiprocessing.get_context("spawn"), list[tuple[SpawnProcess, Ends]]()
    try:
        for listener in listeners:
            mine, theirs = pair()
            process = context.Process(target=speak, args=(speech, listener, theirs, not found), daemon=True)
            with held():  # Ctrl-C is this process's to handle
                process.start()
            for end in (*theirs, listener):
                end.close()
            found.append((process, mine))
        yield found
    finally:
        for process, _ in found:
            process.kill()
            process.join()


def serve(host: Host, speaking: Sequence[tuple[SpawnProcess, Ends]], grace: int, ready: Callable[[], None]) -> int:
    """Answer until a signal, then let open answers end. Returns the exit code.

    Args:
        ready: called once all processes take connections.
    """
    gc.collect()
    gc.freeze()
    processes = [process for process, _ in speaking]
    asked = asyncio.run(_serve(host, speaking, grace, ready))
    for process in processes:
        process.join(1)
    codes = [process.exitcode for process in processes]
    if asked and None not in codes:
        return 0
    died = next((code for code in codes if code), codes[0])
    if died == 0:  # it was asked to end, this one was not
        return 0
    print(f"babyllama: a process of the server died (exit code {died}), and so does the server", file=sys.stderr)
    return 1


async def _serve(host: Host, speaking: Sequence[tuple[SpawnProcess, Ends]], grace: int,
                 ready: Callable[[], None]) -> bool:  # fmt: skip
    """Whether it was asked to end."""
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        host.stop()
        for process, _ in speaking if asked > 1 else ():  # twice: at once
            process.kill()

    with _signals(stop):
        tidy = asyncio.create_task(host.models.tidy())
        tasks = [asyncio.create_task(host.serve(ends)) for _, ends in speaking]
        began = asyncio.create_task(_all_ready(host, len(tasks)))
        await asyncio.wait({began, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if began.done():
            ready()
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        host.stop()
        await asyncio.wait(tasks, timeout=grace + LATE)
        for task in (tidy, began, *tasks):
            task.cancel()
        await host.models.close()
    return asked > 0


async def _all_ready(host: Host, count: int) -> None:
    for _ in range(count):
        await host.ready.acquire()


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM call it on the event loop."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in STOPS}
    for number in STOPS:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(TypeError):  # a handler that Python does not know
                signal.signal(number, handler)
