"""More clients than a server has room for: each is answered or told to come again, and nobody hangs."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from .conftest import KEY, on_and_on, started

SLOTS, QUEUE, TOKENS = 2, 4, 100  # little room and long answers: clients come faster than they are answered


async def crowd(url: str, clients: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120,
                                 limits=limits) as client:  # fmt: skip
        asked = (client.post("/v1/completions", json=on_and_on(max_tokens=TOKENS, stream=i % 2 == 0))
                 for i in range(clients))  # fmt: skip
        return await asyncio.gather(*asked)


@pytest.mark.parametrize("clients", [40, pytest.param(256, marks=pytest.mark.slow)])
def test_everybody_is_answered_or_told_to_come_again(folders, tmp_path, clients):
    with started(tmp_path, str(folders / "endless"), f"slots={SLOTS}", f"queue={QUEUE}") as server:
        found = asyncio.run(crowd(server.url, clients))
        done = [answer for answer in found if answer.status_code == 200]
        busy = [answer for answer in found if answer.status_code == 429]
        assert len(done) + len(busy) == clients and len(done) >= SLOTS + QUEUE and busy
        for answer in busy:
            assert answer.headers["Retry-After"] and f"limit is {SLOTS + QUEUE}" in answer.json()["error"]["message"]
        lines = server.answered(0, clients)
        assert sum(line["tokens_out"] for line in lines) == TOKENS * len(done)
        again = asyncio.run(crowd(server.url, SLOTS))  # and the server is as before
        assert [answer.status_code for answer in again] == [200] * SLOTS
