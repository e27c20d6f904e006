"""The processes of a server: this one has the engines, and others, which share its port, speak HTTP.

So decoding never waits for Python's lock while text is written, and text is written on as many cores as it needs. An
HTTP process that dies, or stands still and is left (host.py), is replaced: its clients lose their connections, the
engines and all others go on. They end together: on Ctrl-C or SIGTERM HTTP lets open answers end first, and a process
whose engines are gone, by SIGKILL for example, ends at once. Not here: messages (wire.py), models, routes.
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
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from babyllama.infer.sampling import Unsaid
from babyllama.interrupts import held
from babyllama.serve.api import application
from babyllama.serve.faults import Refused
from babyllama.serve.link import Link
from babyllama.serve.pages import Hints
from babyllama.serve.pieces import Connection
from babyllama.serve.reply import Limits
from babyllama.serve.wire import Ends, pair

if TYPE_CHECKING:
    from babyllama.serve.host import Host

KEPT_OPEN = 75  # seconds for a client's next request: clients who give up after 5 must be the first to do so
TOLD = 2  # seconds beyond the grace in which open answers say that they end
LATE = 10  # seconds beyond the grace after which a process that should have ended is killed
STOPS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Speech:
    """What a process that speaks HTTP is told; see `application` and `Link`. `grace`: seconds for open answers."""

    names: tuple[str, ...]
    created: int
    limits: Limits
    defaults: Mapping[str, Unsaid]
    keys: tuple[str, ...]
    body: int
    cors: tuple[str, ...]
    log: bool
    runs: Path | None
    grace: int
    hints: Mapping[str, Hints]


# ── HTTP ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def speak(speech: Speech, listener: socket.socket, ends: Ends, first: bool) -> None:
    """Such a process. `first`: the one that says what is to be said once."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def stop(gone: bool) -> None:
        if gone and first and not server.should_exit:
            print("babyllama: the process of the engines has ended, and so does the server", file=sys.stderr)
        server.should_exit, server.force_exit = True, gone
        if not gone:
            over = f"the server stops, and the {speech.grace} seconds that it leaves open answers (grace) are over"
            asyncio.get_running_loop().call_later(speech.grace, link.refuse, Refused(503, over))

    link = Link(speech.names, speech.created, stop)
    app = application(link, speech.limits, speech.defaults, speech.keys, speech.body, speech.cors,
                      sys.stdout if speech.log else None, speech.runs, speech.hints)  # fmt: skip
    config = uvicorn.Config(app, http=Connection, log_level="warning", access_log=False,
                            timeout_graceful_shutdown=speech.grace + TOLD, timeout_keep_alive=KEPT_OPEN, lifespan="off",
                            ws="none", server_header=False)  # fmt: skip
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
class Speaker:
    """The process that speaks HTTP on one socket, and our ends to it. The socket stays open here, so that who connects
    while the process is being replaced waits and is not turned away."""

    def __init__(self, speech: Speech, listener: socket.socket, first: bool) -> None:
        self.speech, self.listener, self.first = speech, listener, first
        self.begin()

    def begin(self) -> None:
        """Start it, or another one in its place."""
        self.ends, theirs = pair()
        arguments = self.speech, self.listener, theirs, self.first
        self.process = multiprocessing.get_context("spawn").Process(target=speak, args=arguments, daemon=True)
        with held():  # Ctrl-C is this process's to handle
            self.process.start()
        for end in theirs:
            end.close()

    def end(self) -> int | None:
        """End it by force, also where it stands still. The exit code, of one that had ended its own."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode


@contextmanager
def speakers(speech: Speech, listeners: Sequence[socket.socket]) -> Iterator[list[Speaker]]:
    """A process that speaks HTTP for each socket. None outlives the block."""
    found = list[Speaker]()
    try:
        for listener in listeners:
            found.append(Speaker(speech, listener, not found))
        yield found
    finally:
        for speaker in found:
            speaker.end()
        for listener in listeners:
            listener.close()


def serve(host: Host, speaking: Sequence[Speaker], grace: int, ready: Callable[[], None]) -> int:
    """Answer until a signal, then let open answers end. Returns the exit code.

    Args:
        ready: called once all processes take connections.
    """
    gc.collect()
    gc.freeze()
    fault = asyncio.run(_serve(host, speaking, grace, ready))
    for speaker in speaking:
        speaker.process.join(1)
    if fault:
        print(f"babyllama: {fault}, and so does the server", file=sys.stderr)
    return 1 if fault else 0


async def _serve(host: Host, speaking: Sequence[Speaker], grace: int, ready: Callable[[], None]) -> str:
    """Why it ends; nothing where it was asked to."""

    def stop() -> None:
        for speaker in speaking if host.stopping else ():  # asked twice: at once
            speaker.process.kill()
        end()

    def end() -> None:
        host.stop()
        for speaker in speaking:
            speaker.listener.close()  # HTTP has closed its own: who connects now is turned away

    with _signals(stop):
        tidy = asyncio.create_task(host.models.tidy())
        tasks = [asyncio.create_task(_kept(host, speaker)) for speaker in speaking]
        began = asyncio.create_task(_all_ready(host, len(tasks)))
        await asyncio.wait({began, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if began.done():
            ready()
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        end()
        await asyncio.wait(tasks, timeout=grace + LATE)
        faults = [task.result() if task.done() else "a process of the server does not end" for task in tasks]
        for task in (tidy, began, *tasks):
            task.cancel()
        await host.models.close()
    return next(filter(None, faults), "")


async def _kept(host: Host, speaker: Speaker) -> str:
    """Answer it, and another one whenever it is gone, until the server is to end; why, where nobody asked for it."""
    while True:
        client = await host.serve(speaker.ends)
        if host.stopping:
            return ""
        died = f"died (exit code {speaker.end()})"
        if not client.ready:  # the next one would fare no better
            return f"a process of the server {died} before it was ready"
        print(f"babyllama: a process that speaks HTTP {client.fault or died}; its clients lose their connections, and "
              "another one takes its place", file=sys.stderr, flush=True)  # fmt: skip
        speaker.begin()


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
