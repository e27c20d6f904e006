"""Files on a real HTTP server of this machine."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec


class Server(ThreadingHTTPServer):
    """Files by their path. `ranges`: whether a part of one can be asked for. `breaks`: answers that are cut off.

    `pages`: what paths give one call after the other. `headers`: of the last call.
    """

    files: dict[str, bytes]
    pages: dict[str, list[bytes]]
    headers: dict[str, str]
    ranges = True
    breaks = 0
    asked: list[tuple[str, str | None]]


class Answer(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        part = self.headers.get("Range") if self.server.ranges else None
        self.server.asked.append((self.path, part))
        self.server.headers = dict(self.headers)
        path = self.path.partition("?")[0]
        data = self.server.pages[path].pop(0) if self.server.pages.get(path) else self.server.files.get(path)
        if data is None:
            self.send_error(404)
            return
        start, stop = map(int, re.findall(r"(\d+)-(\d+)", part)[0]) if part else (0, len(data) - 1)
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(min(stop + 1, len(data)) - start))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {start}-{min(stop, len(data) - 1)}/{len(data)}")
        self.end_headers()
        found = data[start : stop + 1]
        if body and self.server.breaks and len(found) > 1000:
            self.server.breaks -= 1
            found = found[: len(found) // 2]
        self.wfile.write(found if body else b"")


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    """The files at their paths."""
    found = Server(("127.0.0.1", 0), Answer)
    found.files, found.pages, found.asked = files, {}, []
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    fsspec.filesystem("http").clear_instance_cache()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()
