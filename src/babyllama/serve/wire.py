"""Messages between the process of the engines and those that speak HTTP, over sockets that nobody else holds.

A message is a tuple. To the engines (host.py answers them):
``("call", number, what, arguments)`` · ``("ask", number, model, mark, requests, form)`` · ``("leave", number)`` ·
``("note", record)`` · ``("ready",)``. To HTTP (link.py): ``("done", number, value)`` · ``("fault", number, error)`` ·
``("events", [(number, which request, Event), …])``, once for each step · ``("stop",)``.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from typing import Any

LENGTH = 4  # bytes of a message's length
ROOM = 1 << 22  # bytes that may be on their way: an engine does not wait for a process that is busy


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
    """The engines' ends and HTTP's. Two connections: one side reads without waiting where it writes with waiting."""
    (up, http_up), (down, http_down) = socket.socketpair(), socket.socketpair()
    down.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
    return (up, down), (http_up, http_down)
