"""An answer's head goes out with what follows it."""

from __future__ import annotations

import asyncio

from babyllama.serve.pieces import WithItsHead


class Kept:
    """A transport that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append("close")

    def is_closing(self) -> bool:
        return "close" in self.told


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


def written(work) -> list[bytes | str]:
    async def run() -> list[bytes | str]:
        kept = Kept()
        await work(WithItsHead(kept, asyncio.get_running_loop()), kept)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return kept.told

    return asyncio.run(run())


def test_a_head_waits_for_what_follows_and_nothing_else_waits():
    async def work(transport: WithItsHead, kept: Kept) -> None:
        transport.write(HEAD)
        assert kept.told == [] and not transport.is_closing()
        transport.write(b"words")
        transport.write(b"more")
        assert kept.told == [HEAD + b"words", b"more"]

    assert written(work) == [HEAD + b"words", b"more"]


def test_a_head_alone_goes_out_at_the_turns_end():
    async def work(transport: WithItsHead, _: Kept) -> None:
        transport.write(HEAD)
        await asyncio.sleep(0)
        transport.write(b"late")

    assert written(work) == [HEAD, b"late"]


def test_nothing_is_lost_by_closing():
    async def work(transport: WithItsHead, _: Kept) -> None:
        transport.write(HEAD)
        transport.close()

    assert written(work) == [HEAD, "close"]
