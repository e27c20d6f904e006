"""Questions that need tools, as chats with the calls that answer them: one call, or several that build on each other.

Of every kind 15 % of what can be asked is held out, by the combination alone (which numbers, which cities); and some
ways to put calls together are never trained on at all (`UNSEEN`): their calls are known, their order is new. Not here:
what a call gets back (tools.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import Any

import xxhash

from babyllama.data.toolworld.tools import CITIES, PROPERTIES, TOOLS, UNITS, call

HELD_OUT, _TRIES = 0.15, 500
Steps = Generator[tuple[str, dict[str, Any]], str, str]
"""Yields a call, is sent what it gets back, returns the answer."""
_FIRST_DAY = date(2026, 1, 1)


@dataclass(frozen=True)
class Question:
    """`asked`: the combination that is held out or is not."""

    text: str
    asked: tuple[Any, ...]
    steps: Callable[[], Steps]


Kind = Callable[[Random], Question]


def records(kinds: dict[str, Kind], count: int, seed: int = 1, unseen: bool = False) -> Iterator[dict[str, Any]]:
    """`count` chats, the kinds in turns, each question once; a kind of which nothing new is found any more is passed
    over. `unseen`: all are held out."""
    rng, names, told = Random(f"tools {seed} {sorted(kinds)}"), list(kinds), set[str]()
    while len(told) < count and names:
        name = names[len(told) % len(names)]
        question = next((q for q in (kinds[name](rng) for _ in range(_TRIES)) if q.text not in told), None)
        if question is None:
            names.remove(name)
            continue
        told.add(question.text)
        apart = xxhash.xxh3_64_intdigest(f"{name}:{question.asked}".encode()) < HELD_OUT * 2.0**64
        yield {**_chat(question, rng), "held_out": unseen or apart}


def _chat(question: Question, rng: Random) -> dict[str, Any]:
    """The chat as the one who knows would lead it, with the tools that it needs and one or two more."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question.text}]
    steps, used, result = question.steps(), list[str](), None
    while True:
        try:
            name, arguments = steps.send(result)  # type: ignore[arg-type]
        except StopIteration as end:
            messages.append({"role": "assistant", "content": end.value})
            break
        used.append(name)
        result = call(name, arguments, TOOLS).text
        made = {"type": "function", "function": {"name": name, "arguments": arguments}}
        messages += [{"role": "assistant", "content": "", "tool_calls": [made]}, {"role": "tool", "content": result}]
    others = [name for name in TOOLS if name not in used]
    offered = [*dict.fromkeys(used), *rng.sample(others, min(len(others), rng.randint(1, 2)))]
    rng.shuffle(offered)
    return {"messages": messages, "tools": [TOOLS[name].spec for name in offered]}


def number_of(result: str) -> str:
    """The first number of a result."""
    found = re.search(r"-?\d+(?:\.\d+)?", result)
    return found[0] if found else ""


def degrees_of(result: str) -> str:
    """The temperature of a day's weather."""
    return result.rpartition("，")[2].removesuffix("度")


# ── one call ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _sum(rng: Random) -> Question:
    a, b, c = rng.randint(11, 999), rng.randint(11, 99), rng.randint(2, 99)
    text, expression = rng.choice((
        (f"{a}乘以{b}是多少？", f"{a}*{b}"), (f"{a}加{b}再乘以{c}等于几？", f"({a}+{b})*{c}"),
        (f"{a}减去{b}是多少？", f"{a}-{b}"), (f"算一算{a}×{b}+{c}。", f"{a}*{b}+{c}"),
    ))  # fmt: skip

    def steps() -> Steps:
        return (yield "calculator", {"expression": expression})

    return Question(text, (expression,), steps)


def _date(rng: Random) -> Question:
    day, days = _drawn_day(rng), rng.randint(2, 99)

    def steps() -> Steps:
        found = yield "calendar", {"day": day, "days": days}
        return found.split()[1] if weekday else found.split()[0]

    weekday = rng.random() < 0.5
    what = "星期几" if weekday else "哪一天"
    return Question(f"{day}之后{days}天是{what}？", (day, days), steps)


def _fact(rng: Random) -> Question:
    city, item = rng.choice(CITIES), rng.choice(list(PROPERTIES))

    def steps() -> Steps:
        return (yield "city_facts", {"city": city, "item": item})

    return Question(rng.choice((f"{city}的{item}是多少？", f"请查一下{city}的{item}。")), (city, item), steps)


def _sky(rng: Random) -> Question:
    city, day = rng.choice(CITIES), _drawn_day(rng)

    def steps() -> Steps:
        return (yield "weather", {"city": city, "day": day})

    return Question(rng.choice((f"{city}{day}天气怎么样？", f"{day}那天{city}的天气如何？")), (city, day), steps)


def _unit(rng: Random) -> Question:
    source = rng.choice(list(UNITS))
    target = rng.choice([unit for unit in UNITS if UNITS[unit][0] == UNITS[source][0] and unit != source])
    value = rng.randint(2, 999)

    def steps() -> Steps:
        return (yield "convert", {"value": value, "source": source, "target": target})

    return Question(f"{value}{source}是多少{target}？", (value, source, target), steps)


# ── several ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _difference(rng: Random) -> Question:
    (one, other), item = rng.sample(CITIES, 2), rng.choice(list(PROPERTIES))

    def steps() -> Steps:
        first = yield "city_facts", {"city": one, "item": item}
        second = yield "city_facts", {"city": other, "item": item}
        found = yield "calculator", {"expression": f"{number_of(first)}-{number_of(second)}"}
        return found + PROPERTIES[item][0]

    return Question(f"{one}的{item}比{other}多多少？", (*sorted((one, other)), item), steps)


def _later_sky(rng: Random) -> Question:
    city, day, days = rng.choice(CITIES), _drawn_day(rng), rng.randint(2, 40)

    def steps() -> Steps:
        found = yield "calendar", {"day": day, "days": days}
        return (yield "weather", {"city": city, "day": found.split()[0]})

    return Question(f"{day}之后{days}天，{city}天气怎么样？", (city, day, days), steps)


def _far(rng: Random) -> Question:
    city, (item, source) = rng.choice(CITIES), rng.choice((("距离", "千米"), ("海拔", "米")))
    target = rng.choice([unit for unit in UNITS if UNITS[unit][0] == "长度" and unit != source])

    def steps() -> Steps:
        found = yield "city_facts", {"city": city, "item": item}
        return (yield "convert", {"value": int(number_of(found)), "source": source, "target": target})

    return Question(f"{city}的{item}是多少{target}？", (city, item, target), steps)


def _warmer(rng: Random) -> Question:
    (one, other), day = rng.sample(CITIES, 2), _drawn_day(rng)

    def steps() -> Steps:
        first = yield "weather", {"city": one, "day": day}
        second = yield "weather", {"city": other, "day": day}
        found = yield "calculator", {"expression": f"{degrees_of(first)}-({degrees_of(second)})"}
        return found + "度"

    return Question(f"{day}那天{one}比{other}高多少度？", (*sorted((one, other)), day), steps)


def _weighed(rng: Random) -> Question:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    source, target = rng.sample(["吨", "千克", "克", "斤"], 2)

    def steps() -> Steps:
        found = yield "calculator", {"expression": f"{a}*{b}"}
        return (yield "convert", {"value": int(found), "source": source, "target": target})

    return Question(f"{a}箱苹果，每箱{b}{source}，一共多少{target}？", (a, b, source, target), steps)


def _drawn_day(rng: Random) -> str:
    return (_FIRST_DAY + timedelta(rng.randrange(365))).isoformat()


SEEN: dict[str, Kind] = {"sum": _sum, "date": _date, "fact": _fact, "sky": _sky, "unit": _unit,
                         "difference": _difference, "later_sky": _later_sky, "far": _far}  # fmt: skip
UNSEEN: dict[str, Kind] = {"warmer": _warmer, "weighed": _weighed}
