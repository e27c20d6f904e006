"""What a turn of the event loop writes to a connection goes out in one piece."""

from __future__ import annotations

import asyncio

from babyllama.serve.pieces import InOnePiece


class Kept:
    """A transport that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[bytes | str] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.told.append("close")
        self.closing = True


def written(work) -> list[bytes | str]:
    async def run() -> list[bytes | str]:
        kept = Kept()
        await work(InOnePiece(kept, asyncio.get_running_loop()), kept)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return kept.told

    return asyncio.run(run())


def test_one_turn_is_one_piece():
    async def work(transport: InOnePiece, kept: Kept) -> None:
        transport.write(b"head ")
        transport.write(b"words")
        assert kept.told == [] and not transport.is_closing()
        await asyncio.sleep(0)
        transport.write(b"more")

    assert written(work) == [b"head words", b"more"]


def test_nothing_is_lost_by_closing_and_nothing_comes_after_it():
    async def work(transport: InOnePiece, _: Kept) -> None:
        transport.write(b"last")
        transport.close()
        transport.write(b"late")

    assert written(work) == [b"last", "close"]
