"""Events on their way to who asked: when who fetches them is woken."""

from __future__ import annotations

import asyncio
import pickle
import time

import pytest

from babyllama.infer.request import Event, Request
from babyllama.serve.faults import Refused
from babyllama.serve.link import LOOK, Answers, Link, Model
from babyllama.serve.wire import frame


def asked(work, count: int = 1):
    """What `work` gives, of a link and what was asked over it."""

    async def run():
        link = Link(["model"], 0)
        model = Model("model", "mark", 64, None)  # type: ignore[arg-type]
        return await work(link, link.ask(model, [Request([1])] * count))

    return asyncio.run(run())


def told(link: Link, *events: tuple[int, Event]) -> None:
    link.data_received(frame(("events", [(0, which, event) for which, event in events])))


async def settled(waiting: asyncio.Task) -> bool:
    for _ in range(3):
        await asyncio.sleep(0)
    return waiting.done()


def test_one_message_wakes_once_what_it_brings():
    async def work(link: Link, answers: Answers):
        waiting = asyncio.ensure_future(answers.batch())
        assert not await settled(waiting)
        told(link, (0, Event(5, [7])), (1, Event(6, [8])), (0, Event(5, [9])))
        assert await settled(waiting)
        assert waiting.result() == {0: [Event(5, [7]), Event(5, [9])], 1: [Event(6, [8])]}

    asked(work, 2)


def test_events_gather_until_the_end_of_all():
    async def work(link: Link, answers: Answers):
        waiting = asyncio.ensure_future(answers.batch(60))
        told(link, (0, Event(5, [7], "stop")))
        assert not await settled(waiting)
        told(link, (1, Event(6, [8], "length")))
        assert await settled(waiting)
        assert len(waiting.result()) == 2 and answers.open == 0

    asked(work, 2)


def test_gathered_events_come_when_their_time_is_over_though_no_step_ends():
    async def work(link: Link, answers: Answers):
        began = time.monotonic()
        waiting = asyncio.ensure_future(answers.batch(LOOK / 2))
        told(link, (0, Event(5, [7])))
        assert not await settled(waiting)
        assert await asyncio.wait_for(waiting, 10) == {0: [Event(5, [7])]}
        assert time.monotonic() - began >= LOOK / 2

    asked(work)


def test_nothing_came_until_then():
    async def work(link: Link, answers: Answers):
        answers.until = time.monotonic() + LOOK / 2
        assert await asyncio.wait_for(answers.batch(60), 10) == {}
        told(link, (0, Event(5, [7])))
        assert await answers.batch(60) == {0: [Event(5, [7])]}

    asked(work)


def test_a_fault_comes_after_what_came_before_it():
    async def work(link: Link, answers: Answers):
        told(link, (0, Event(5, [7])))
        link.data_received(frame(("fault", 0, Refused(503, "gone"))))
        assert await answers.batch(60) == {0: [Event(5, [7])]}
        with pytest.raises(Refused, match="gone"):
            await answers.batch(60)

    asked(work)


def test_many_who_need_a_model_at_once_have_it_opened_once():
    """Also where the first of them goes away meanwhile. Where it cannot be opened all are told, and the next one asks
    again."""

    async def run():
        link, calls = Link(["model"], 0), list[tuple]()
        link._send = lambda *message: calls.append(message)  # type: ignore[method-assign]
        first, *others = (asyncio.ensure_future(link.open("model")) for _ in range(5))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        link.data_received(frame(("fault", calls[0][1], Refused(503, "it is damaged"))))
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert [str(one) for one in found[1:]] == 4 * ["it is damaged"] and len(calls) == 1
        again = [asyncio.ensure_future(link.open("model")) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        link.data_received(frame(("done", calls[1][1], ("mark", pickle.dumps((64, None))))))
        models = await asyncio.gather(*again, link.open("model"))
        assert len(calls) == 2 and all(one is models[0] for one in models) and models[0].context == 64

    asyncio.run(run())
