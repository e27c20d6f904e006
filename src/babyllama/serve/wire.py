"""Messages between the process of the engines and those that speak HTTP, over sockets that nobody else holds.

HTTP writes from its event loop; the engines write by an `Outbox`, which never makes an engine wait.

A message is a tuple. To the engines (host.py answers them):
``("call", number, what, arguments)`` · ``("ask", number, model, mark, requests, form)`` · ``("leave", number)`` ·
``("note", record)`` · ``("ready",)`` · ``("beat",)``.
To HTTP (link.py): ``("done", number, value)`` · ``("fault", number, error)`` · ``("events", [(number, which request,
Event), …])``, once for each step · ``("stop",)`` · ``("beat",)``, which HTTP answers with the same, as a sign of life.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

LENGTH = 4  # bytes of a message's length
ROOM = 1 << 22  # bytes that the system keeps for a process that is busy
PIECE = 1 << 18  # bytes that are given to the system at a time, of those that it did not take at once


def frame(message: tuple[Any, ...]) -> bytes:
    """A message as bytes. It is pickled: both ends are processes of this program."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return len(body).to_bytes(LENGTH, "little") + body


class Frames:
    """Bytes as they come → messages."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Any, ...]]:
        """Those that are whole now."""
        self._held += data
        while len(self._held) >= LENGTH:
            end = LENGTH + int.from_bytes(self._held[:LENGTH], "little")
            if len(self._held) < end:
                return
            message = pickle.loads(memoryview(self._held)[LENGTH:end].tobytes())
            del self._held[:end]
            yield message


Ends = tuple[socket.socket, socket.socket]  # upwards, to the engines, and down


def pair() -> tuple[Ends, Ends]:
    """The engines' ends and HTTP's. Two connections: each side writes to one and reads from the other."""
    (up, http_up), (down, http_down) = socket.socketpair(), socket.socketpair()
    down.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
    return (up, down), (http_up, http_down)


class Outbox:
    """Messages down a socket, from any thread, in their order. Nobody waits: what the system does not take at once is
    held here, and the event loop sends it.

    Args:
        most: bytes that may be held; beyond them nothing is sent any more.
        full: called then, once, on the event loop, where this is made.
    """

    def __init__(self, end: socket.socket, most: int, full: Callable[[], None]) -> None:
        end.setblocking(False)
        self._end, self._most, self._full = end, most, full
        self._loop, self._lock = asyncio.get_running_loop(), threading.Lock()
        self._held, self._holding, self._closed = bytearray(), False, False
        self._sending: asyncio.Task[None] | None = None

    def send(self, message: tuple[Any, ...]) -> None:
        """Nothing where the other side is gone."""
        body = frame(message)
        with self._lock:
            if self._closed:
                return
            if not self._holding:
                sent = self._tried(body)
                if sent == len(body):
                    return
                body, self._holding = body[sent:], True
                self._loop.call_soon_threadsafe(self._begin)
            self._held += body
            if len(self._held) > self._most:
                self._drop()
                self._loop.call_soon_threadsafe(self._full)

    def close(self) -> None:
        """Nothing is sent from now on. On the event loop."""
        with self._lock:
            self._drop()
        if self._sending is not None:
            self._sending.cancel()
        self._end.close()

    def _tried(self, body: bytes) -> int:
        """How much of it the system takes at once."""
        try:
            return self._end.send(body)
        except BlockingIOError:
            return 0
        except OSError:  # it is gone
            return len(body)

    def _drop(self) -> None:
        self._closed, self._held = True, bytearray()

    def _begin(self) -> None:
        if not self._closed:
            self._sending = self._loop.create_task(self._send_held())

    async def _send_held(self) -> None:
        with suppress(OSError):
            while True:
                with self._lock:
                    piece = bytes(self._held[:PIECE])
                    del self._held[:PIECE]
                    self._holding = bool(piece)
                if not piece:
                    return
                await self._loop.sock_sendall(self._end, piece)
