"""A client's connection: against a server of a few lines that answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from babyllama.serve.line import Events, Line, Place

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FAULT = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 4\r\n\r\nbusy"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def talk(answers: list[list[bytes]], work: Callable[[Line], Awaitable[None]]) -> list[bytes]:
    """`work` with a line to a server that gives these answers, piece by piece; [] closes the connection. How many
    connections there were, and the requests."""
    asked, connections = list[bytes](), list[int]()

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        while answers and not reader.at_eof():
            head = await reader.readuntil(b"\r\n\r\n")
            size = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
            asked.append(head + await reader.readexactly(size))
            pieces = answers.pop(0)
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.001)
            if not pieces:
                break
        writer.close()

    async def both() -> None:
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            line = Line(Place.of(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1/", "sk-key"))
            await work(line)
            line.close()

    asyncio.run(asyncio.wait_for(both(), 20))
    return [b"%d" % len(connections), *asked]


def test_events_come_whole_however_they_are_cut():
    body = 'data: {"text": "春天"}\n\ndata: {"text": "来了\\n"}\r\n\r\n: no event\n\ndata: [DONE]\n\n'.encode()
    told = list[dict]()

    async def work(line: Line) -> None:
        events = Events(told.append)
        assert await line.ask("POST", "/completions", {"prompt": "春"}, events.read) == 200
        assert events.beside == ": no event"
        assert await line.ask("POST", "/completions", {"prompt": "春"}, Events(told.append).read) == 200

    whole = CHUNKED + chunk(body[:9]) + chunk(body[9:20]) + chunk(body[20:]) + b"0\r\n\r\n"
    connections, *asked = talk([[whole[i : i + 7] for i in range(0, len(whole), 7)], [whole]], work)
    assert told == 2 * [{"text": "春天"}, {"text": "来了\n"}]
    assert connections == b"1" and asked[0] == asked[1]
    assert (
        asked[0].startswith(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:") and b"Bearer sk-key\r\n" in asked[0]
    )
    assert asked[0].endswith('\r\n\r\n{"prompt":"春"}'.encode())


def test_a_status_and_its_words():
    async def work(line: Line) -> None:
        events = Events(lambda _: None)
        assert await line.ask("GET", "/models", None, events.read) == 429
        assert (line.headers[b"retry-after"], events.beside) == (b"3", "busy")

    assert talk([[FAULT]], work)[1].startswith(b"GET /v1/models HTTP/1.1\r\n")


@pytest.mark.parametrize(("answer", "fault"), [
    ([], ConnectionError), ([CHUNKED + chunk(b"data: {\n")], ValueError), ([b"SSH-2.0-OpenSSH\r\n"], ValueError),
    ([CHUNKED + chunk(b"data: {}\n")], KeyError)])  # fmt: skip
def test_after_a_fault_the_next_request_has_a_connection_of_its_own(answer, fault):
    async def work(line: Line) -> None:
        with pytest.raises(fault):
            await line.ask("GET", "/", None, Events(lambda event: event["choices"]).read)
        assert await line.ask("GET", "/", None, bytearray().extend) == 429

    assert talk([answer, [FAULT]], work)[0] == b"2"


def test_who_says_close_is_not_asked_there_again():
    async def work(line: Line) -> None:
        for _ in range(2):
            assert await line.ask("GET", "/", None, bytearray().extend) == 429

    closing = FAULT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert talk([[closing], [closing]], work)[0] == b"2"


def test_places():
    assert Place.of("https://example.org/api/v1/", "")[:4] == ("example.org", 443, True, "/api/v1")
    assert Place.of("http://[::1]:8000/v1", "k").headers == b"Host: [::1]:8000\r\nAuthorization: Bearer k\r\n"
    for wrong in ("example.org/v1", "ftp://example.org", "http:///v1", "http://example.org:port"):
        with pytest.raises(ValueError):
            Place.of(wrong, "")
