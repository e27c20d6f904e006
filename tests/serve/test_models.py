"""Models by name: loaded when asked for, unloaded to make room or when idle, never while they answer."""

from __future__ import annotations

import asyncio

import pytest
from small_run import small_tokenizer, taught_model

from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.request import Request
from babyllama.serve import models as module
from babyllama.serve.faults import Refused
from babyllama.serve.models import Models, Served
from babyllama.serve.worker import Worker

from .conftest import Mailbox


class Opener:
    """Loads a model, and remembers how often."""

    def __init__(self, name: str) -> None:
        self.name, self.times = name, 0

    def __call__(self) -> list[Served]:
        self.times += 1
        engine = Engine(taught_model(), small_tokenizer().vocab_size, slots=4)
        return [Served(self.name, Worker(engine), small_tokenizer())]


def openers() -> dict[str, Opener]:
    return {name: Opener(name) for name in ("a", "b", "c")}


async def answer(served: Served) -> int:
    """How many tokens came."""
    mailbox = Mailbox()
    asked = served.worker.ask([Request(small_tokenizer().start_ids, max_tokens=5)], mailbox)
    (tokens,) = await mailbox.answers(1)
    served.worker.give_up(asked)
    return len(tokens)


def test_the_longest_unused_makes_room():
    made = openers()

    async def story() -> list[list[str]]:
        models, seen = Models(made, most=2), []
        for name in ("a", "b", "a", "c", "b"):
            async with models.use(name) as served:
                assert await answer(served) > 0
            seen.append(sorted(models.loaded))
        await models.close()
        return seen

    assert asyncio.run(story()) == [["a"], ["a", "b"], ["a", "b"], ["a", "c"], ["b", "c"]]
    assert [made[name].times for name in "abc"] == [1, 2, 1]


def test_one_that_answers_stays():
    async def story() -> None:
        models = Models(openers(), most=1)
        async with models.use("a") as served:
            with pytest.raises(Refused, match="loaded=1"):
                await models.use("b").__aenter__()
            assert await answer(served) > 0
        async with models.use("b"):
            assert list(models.loaded) == ["b"]
        await models.close()

    asyncio.run(story())


def test_who_finds_no_place_waits_for_one():
    """As two columns of a page ask, each for another model, where one at a time is loaded."""

    async def ask(models: Models, name: str) -> int:
        async with models.use(name) as served:
            return await answer(served)

    async def story() -> None:
        models = Models(openers(), most=1, wait=30)
        assert all(await asyncio.gather(*(ask(models, name) for name in "abcab")))
        await models.close()

    asyncio.run(story())


def test_many_who_ask_at_once_load_it_once():
    made = openers()

    async def ask(models: Models) -> int:
        async with models.use("a") as served:
            return await answer(served)

    async def story() -> None:
        models = Models(made)
        assert all(await asyncio.gather(*(ask(models) for _ in range(5))))
        await models.close()

    asyncio.run(story())
    assert made["a"].times == 1


def test_idle_ones_go():
    async def story() -> None:
        models = Models(openers(), idle=0.05)
        tidy = asyncio.create_task(models.tidy())
        async with models.use("a"):
            await asyncio.sleep(0.2)
            assert list(models.loaded) == ["a"]
        for _ in range(200):
            await asyncio.sleep(0.05)
            if not models.loaded:
                break
        assert not models.loaded
        tidy.cancel()

    asyncio.run(story())


def test_what_is_left_of_conversations_goes_after_a_while(monkeypatch):
    monkeypatch.setattr(module, "REST", 0.05)

    async def story() -> None:
        models = Models(openers())
        tidy = asyncio.create_task(models.tidy())
        async with models.use("a") as served:
            await answer(served)
            held = served.worker.engine.slots
            assert any(slot.tokens for slot in held.all)
        for _ in range(200):
            await asyncio.sleep(0.05)
            if not any(slot.tokens for slot in held.all):
                break
        assert not any(slot.tokens for slot in held.all) and list(models.loaded) == ["a"]
        tidy.cancel()
        await models.close()

    asyncio.run(story())


def test_a_model_that_cannot_be_read_any_more():
    def gone() -> list[Served]:
        raise InputError("runs/a: is not there")

    async def story() -> None:
        with pytest.raises(Refused, match="runs/a: is not there"):
            await Models({"a": gone}).use("a").__aenter__()

    asyncio.run(story())
