"""The processes of one server: they share a port and what is counted, and end together."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from babyllama.serve.wire import Frames, frame

from .conftest import KEY, Server, on_and_on, started

HEADERS = {"Authorization": f"Bearer {KEY}"}


def speaking(server: Server) -> list[int]:
    """Those of its processes that speak HTTP."""
    pid = server.process.pid
    below = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [one for one in below if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def gone(process: int) -> bool:
    """Within some seconds."""
    for _ in range(200):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_two_share_a_port_and_one_that_dies_takes_all_along(folders, tmp_path):
    with started(tmp_path, str(folders / "endless"), "workers=2") as server:
        processes = speaking(server)
        assert len(processes) == 2
        for seed in range(24):  # connections of their own: a half each goes to either process
            answer = httpx.post(f"{server.url}/v1/completions", json=on_and_on(max_tokens=2, seed=seed),
                                headers=HEADERS)  # fmt: skip
            assert answer.json()["usage"]["completion_tokens"] == 2
        server.answered(0, 24)
        for _ in range(6):  # from either
            page = httpx.get(f"{server.url}/metrics", headers=HEADERS).text
            assert 'babyllama_requests_total{route="/v1/completions",status="200"} 24.0' in page
            assert 'babyllama_tokens_total{model="endless",side="out"} 48.0' in page
        os.kill(processes[0], signal.SIGKILL)
        assert server.process.wait(timeout=30) == 1
        assert all(map(gone, processes))
        assert server.process.stderr is not None
        assert server.process.stderr.read() == (
            "babyllama: a process of the server died (exit code -9), and so does the server\n"
        )


def test_nobody_outlives_the_engines(folders, tmp_path):
    with started(tmp_path, str(folders / "endless"), "workers=2") as server:
        processes = speaking(server)
        asked = on_and_on(stream=True, max_tokens=3000)
        with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, headers=HEADERS, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.kill()
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError, StopIteration)):
                while True:
                    next(lines)
        assert all(map(gone, processes))
        assert server.process.stderr is not None
        said = server.process.stderr.read()
        assert said == "babyllama: the process of the engines has ended, and so does the server\n"


def test_interrupting_ends_in_good_order(folders, tmp_path):
    with started(tmp_path, str(folders / "endless"), "workers=2") as server:
        processes = speaking(server)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 0
        assert all(map(gone, processes)) and server.process.stderr is not None
        assert server.process.stderr.read() == ""


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_messages_come_whole_however_they_are_cut(size):
    sent = [("leave", 3), ("events", [(1, 0, "春" * n) for n in range(60)]), ("ready",)]
    stream, frames = b"".join(map(frame, sent)), Frames()
    found = [m for at in range(0, len(stream), size) for m in frames.feed(stream[at : at + size])]
    assert found == sent
