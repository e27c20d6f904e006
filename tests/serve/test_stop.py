"""The end of a server, and its limits: a process of its own."""

from __future__ import annotations

import asyncio
import json
import signal

import httpx

from .conftest import KEY, on_and_on, started

STREAMS = 20


async def read(client: httpx.AsyncClient, started: asyncio.Semaphore) -> tuple[str, str]:
    """(finish reason, last event) of a long stream."""
    finish, last = "", ""
    async with client.stream("POST", "/v1/completions", json=on_and_on(stream=True, max_tokens=600)) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                started.release()
                finish = json.loads(line[6:])["choices"][0]["finish_reason"] or finish
            last = line or last
    return finish, last


async def talk(server) -> list[tuple[str, str]]:
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60, limits=limits) as client:
        begun = [asyncio.Semaphore(0) for _ in range(STREAMS)]
        streams = [asyncio.create_task(read(client, one)) for one in begun]
        for one in begun:
            await one.acquire()
        refused = await client.post("/v1/completions", json=on_and_on())
        assert refused.status_code == 429 and refused.headers["Retry-After"]
        assert f"limit is {STREAMS}" in refused.json()["error"]["message"]
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*streams)


def test_sigterm_lets_open_streams_finish_and_a_full_server_says_so(folders, tmp_path):
    with started(tmp_path, str(folders / "endless"), f"slots={STREAMS}", "queue=0") as server:
        assert asyncio.run(talk(server)) == [("length", "data: [DONE]")] * STREAMS
        assert server.process.wait(timeout=30) == 0


def test_answers_that_outlast_the_grace_are_told_so(folders, tmp_path):
    """In a stream and as a whole; a stream has its end, and the server's log no traceback."""
    with started(tmp_path, str(folders / "endless"), "slots=512", "queue=0", "grace=1") as server:
        asked = on_and_on(n=128, stop=["�!�"])

        async def both() -> tuple[list[str], httpx.Response]:
            headers = {"Authorization": f"Bearer {KEY}"}
            async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
                whole = asyncio.create_task(client.post("/v1/completions", json=asked))
                async with client.stream("POST", "/v1/completions", json={**asked, "stream": True}) as answer:
                    lines = aiter(answer.aiter_lines())
                    await anext(lines)
                    server.process.send_signal(signal.SIGTERM)
                    return [line async for line in lines if line], await whole

        events, whole = asyncio.run(both())
        assert server.process.wait(timeout=30) == 0
    told = [json.loads(events[-2].removeprefix("data: ")), whole.json()]
    assert all("1 seconds that it leaves open answers" in one["error"]["message"] for one in told)
    assert events[-1] == "data: [DONE]" and whole.status_code == 503
    assert (tmp_path / "errors.txt").read_text() == ""
