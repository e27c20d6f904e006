"""The processes of one server: they share a port and what is counted, and end together."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from babyllama.commands import serve
from babyllama.serve.gate import Record
from babyllama.serve.link import Link
from babyllama.serve.wire import Frames, Outbox, frame, pair

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


async def read(client: httpx.AsyncClient, begun: asyncio.Semaphore) -> str:
    """How a long stream of a connection of its own ended."""
    finish = ""
    try:
        async with client.stream("POST", "/v1/completions", json=on_and_on(stream=True, max_tokens=800)) as answer:
            async for line in answer.aiter_lines():
                begun.release()
                if line.startswith("data: {"):
                    finish = json.loads(line[6:])["choices"][0]["finish_reason"] or finish
    except (httpx.RemoteProtocolError, httpx.ReadError):
        return "lost"
    return finish


async def hurt(server: Server, process: int, how: signal.Signals) -> list[str]:
    """How 16 streams end, all of which have begun when a signal goes to one of the processes."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, headers=HEADERS, timeout=60, limits=limits) as client:
        begun = [asyncio.Semaphore(0) for _ in range(16)]
        streams = [asyncio.create_task(read(client, one)) for one in begun]
        for one in begun:
            await one.acquire()
        os.kill(process, how)
        ends = await asyncio.gather(*streams)
        after = [await client.post("/v1/completions", json=on_and_on(max_tokens=2)) for _ in range(8)]
        assert [answer.status_code for answer in after] == [200] * 8
        page = (await client.get("/metrics")).text
        assert 'babyllama_requests_running{model="endless"} 0.0' in page
    return ends


def test_two_share_a_port_and_one_that_stands_still_or_dies_is_replaced(folders, tmp_path):
    """The engine and the streams of the other process go on; what the one was asked for is given up."""
    with started(tmp_path, str(folders / "endless"), "workers=2", "silence=4") as server:
        for seed in range(24):  # connections of their own: a half each goes to either process
            answer = httpx.post(f"{server.url}/v1/completions", json=on_and_on(max_tokens=2, seed=seed),
                                headers=HEADERS)  # fmt: skip
            assert answer.json()["usage"]["completion_tokens"] == 2
        server.answered(0, 24)
        for _ in range(6):  # from either
            page = httpx.get(f"{server.url}/metrics", headers=HEADERS).text
            assert 'babyllama_requests_total{route="/v1/completions",status="200"} 24.0' in page
            assert 'babyllama_tokens_total{model="endless",side="out"} 48.0' in page
        assert not [one for one in speaking(server) if "torch" in Path(f"/proc/{one}/maps").read_text()]
        assert server.process.stderr is not None
        for how, why in ((signal.SIGSTOP, "gave no sign of life for 4 seconds"),
                         (signal.SIGKILL, "died (exit code -9)")):  # fmt: skip
            processes = speaking(server)
            assert len(processes) == 2 and set(asyncio.run(hurt(server, processes[0], how))) == {"length", "lost"}
            assert server.process.stderr.readline() == (
                f"babyllama: a process that speaks HTTP {why}; its clients lose their connections, and another one "
                "takes its place\n"
            )
            assert gone(processes[0]) and processes[1] in speaking(server)


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


def test_what_nobody_waits_for_goes_with_the_next_message_or_soon_by_itself():
    async def talk() -> tuple[int, list[tuple], list[tuple]]:
        (up, down), theirs = pair()
        link, frames, loop = Link(["m"], 0), Frames(), asyncio.get_running_loop()
        await link.connect(theirs)
        up.setblocking(False)
        begun = len(await loop.sock_recv(up, 1 << 16))
        link.note(Record(status=201))
        link.note(Record(status=202))
        with pytest.raises(BlockingIOError):
            up.recv(1)
        called = asyncio.create_task(link.call("state"))
        together = list(frames.feed(await loop.sock_recv(up, 1 << 16)))
        link.note(Record(status=203))
        alone = list(frames.feed(await asyncio.wait_for(loop.sock_recv(up, 1 << 16), 5)))
        called.cancel()
        link.close()
        up.close(), down.close()
        return begun, together, alone

    begun, together, alone = asyncio.run(talk())
    assert begun and [message[0] for message in together] == ["note", "note", "call"]
    assert [message[1].status for message in together[:2]] == [201, 202] and alone[0][1].status == 203


def test_nobody_waits_for_one_that_reads_nothing():
    """All messages come in their order once it reads; beyond the limit no more is held, and that is said once."""

    async def story() -> None:
        mine, theirs = socket.socketpair()
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        said = list[str]()
        outbox = Outbox(mine, 1 << 20, lambda: said.append("full"))
        messages = [("events", number, "x" * 997) for number in range(1500)]
        for message in messages[:700]:
            outbox.send(message)
        found, frames, loop = list[object](), Frames(), asyncio.get_running_loop()
        theirs.setblocking(False)
        while len(found) < 700:
            found += frames.feed(await loop.sock_recv(theirs, 1 << 16))
        assert found == messages[:700] and not said
        for message in messages:
            outbox.send(message)
        await asyncio.sleep(0.05)
        assert said == ["full"]
        outbox.close()
        while data := await loop.sock_recv(theirs, 1 << 16):
            found += frames.feed(data)
        assert found[700:] == messages[: len(found) - 700] and len(found) < 1500
        theirs.close()

    asyncio.run(story())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_a_connection_whose_client_reads_nothing_is_dropped(monkeypatch):
    """Within the time that the listener gives to its connections."""
    monkeypatch.setattr(serve, "UNREAD", 1)
    (listener,) = serve._listen(serve.ServeRecipe(models=(Path("x"),), port=0), 1)
    with listener, socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as ours:
        ours.settimeout(30)  # far above what it takes
        with pytest.raises(OSError) as fault:
            while True:
                ours.sendall(b"x" * (1 << 20))
        assert fault.value.errno == errno.ETIMEDOUT
        assert client.recv(10) == b"x" * 10
