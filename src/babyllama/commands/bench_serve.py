"""bench-serve: how fast a server answers, whichever it is, as long as it speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from pydantic import Field

from babyllama.atomic import check_writable, write_json
from babyllama.errors import InputError, needs_extra, remedy_for
from babyllama.recipe import Recipe

if TYPE_CHECKING:
    from babyllama.serve.line import Line, Place

KEY = "OPENAI_API_KEY"
BUSY = 0.9  # of a core: beyond it the figures say as much of this client as of the server


class BenchServeRecipe(Recipe):
    """So many clients ask one after the other until so many requests or seconds are over."""

    url: str = Field(default="http://127.0.0.1:8000/v1", description="up to /v1")
    model: str = Field(default="", description="empty: the first that the server has")
    clients: int = Field(default=8, ge=1, le=4096, description="at the same time")
    requests: int | None = Field(default=None, ge=1, description="in all, at most; default: until the seconds are over")
    seconds: float = Field(default=30, gt=0, description="after which no new request begins")
    prompt: str = Field(default="春天来了，", description="each request gets a number before it, so that none is known")
    max_tokens: int = Field(default=128, ge=1, description="of each answer, at most")
    temperature: float = Field(default=1.0, ge=0, le=2, description="of each answer; 0: always the likeliest token")
    chat: bool = Field(default=False, description="ask chat completions, not text completions")
    timeout: float = Field(default=120, gt=0, description="seconds for one request")
    api_key: str = Field(default="", description=f"empty: from ${KEY}")
    out: Path | None = Field(default=None, description="a JSON file for the figures")


@dataclass
class Seen:
    """What the clients saw. Times are in seconds.

    Attributes:
        first: from a request to its first text.
        gaps: between two events of a stream, which may each carry several tokens.
        tokens: of all answers, as the server counts them; of those that it does not count, as many as events came.
        uncounted: answers that it did not count.
    """

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    done: int = 0
    uncounted: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)


def main(recipe: BenchServeRecipe) -> None:
    """Ask, then print the figures.

    Raises:
        InputError: nobody answers at the URL, a wrong key, no request that succeeded.
    """
    if recipe.out is not None:
        check_writable(recipe.out)
    found = measure(recipe)
    for name, value in found.items():
        print(f"{name:28} {value}")
    if recipe.out is not None:
        write_json(recipe.out, {**recipe.model_dump(mode="json", exclude={"api_key"}), **found})


def measure(recipe: BenchServeRecipe) -> dict[str, Any]:
    """The figures by name, by an event loop of its own.

    Raises:
        InputError: as `main`.
    """
    try:
        from babyllama.serve.line import Place
    except ImportError as error:
        raise needs_extra(error.name or "httptools", "serve") from None
    try:
        place = Place.of(recipe.url, recipe.api_key or os.environ.get(KEY, ""))
    except ValueError as error:
        raise InputError(f"url={recipe.url}: {error}") from None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:  # there is none for Windows
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_measure(recipe, place))


async def _measure(recipe: BenchServeRecipe, place: Place) -> dict[str, Any]:
    model = recipe.model or await _first_model(recipe, place)
    seen, numbers = Seen(), itertools.islice(itertools.count(), recipe.requests)
    began, used = time.perf_counter(), time.process_time()
    until = began + recipe.seconds
    await asyncio.gather(*(_client(place, recipe, model, numbers, until, seen) for _ in range(recipe.clients)))
    wall, used = time.perf_counter() - began, time.process_time() - used
    if not seen.done:
        raise InputError(f"url={recipe.url}: no request succeeded; the first fault: {(seen.errors or ['busy'])[0]}")
    return _figures(model, recipe, seen, wall, used / wall)


async def _first_model(recipe: BenchServeRecipe, place: Place) -> str:
    from babyllama.serve.line import Line

    line, body, status = Line(place), bytearray(), 0
    try:
        async with asyncio.timeout(recipe.timeout):
            status = await line.ask("GET", "/models", None, body.extend)
        if status != 200:
            raise ValueError(f"HTTP {status}: {body[:200].decode('utf-8', 'replace')}")
        return json.loads(body)["data"][0]["id"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        remedy = remedy_for(status, "start one with: babyllama serve RUN")
        raise InputError(f"url={recipe.url}: no server with models answers there ({error}); {remedy}") from None
    finally:
        line.close()


async def _client(place: Place, recipe: BenchServeRecipe, model: str, numbers: Iterator[int], until: float,
                  seen: Seen) -> None:  # fmt: skip
    from babyllama.serve.line import Line

    line = Line(place)
    for number in numbers:
        if time.perf_counter() >= until:
            break
        try:
            async with asyncio.timeout(recipe.timeout):
                busy = await _ask(line, recipe, model, number, seen)
        except TimeoutError:
            seen.errors.append(f"no whole answer within timeout={recipe.timeout:g} seconds")
            busy = 1.0
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            seen.errors.append(f"{type(error).__name__}: {error}")
            busy = 1.0
        if busy:
            await asyncio.sleep(busy)
    line.close()


async def _ask(line: Line, recipe: BenchServeRecipe, model: str, number: int, seen: Seen) -> float:
    """One request as a stream. A server that is busy (429), or at fault, is to be left alone for so many seconds."""
    from babyllama.serve.line import Events

    text = f"{number}。{recipe.prompt}"
    asked = {"messages": [{"role": "user", "content": text}]} if recipe.chat else {"prompt": text}
    body = {"model": model, "stream": True, "stream_options": {"include_usage": True}, "seed": number,
            "max_tokens": recipe.max_tokens, "temperature": recipe.temperature, **asked}  # fmt: skip
    began, last, came, usage, finish = time.perf_counter(), 0.0, 0, None, None

    def told(event: Any) -> None:
        nonlocal last, came, usage, finish
        if (error := event.get("error")) is not None:
            raise ValueError(str(error.get("message", "an error") if isinstance(error, dict) else error))
        if event.get("usage"):  # some servers tell it with each event
            usage = int(event["usage"]["completion_tokens"])
        if event["choices"]:
            now = time.perf_counter()
            (seen.gaps.append(now - last) if last else seen.first.append(now - began))
            last, came, finish = now, came + 1, event["choices"][0].get("finish_reason") or finish

    events = Events(told)
    status = await line.ask("POST", f"/{'chat/' if recipe.chat else ''}completions", body, events.read)
    if status == 200 and not (events.done or finish):
        raise ValueError("the stream ended before the answer")
    if status == 200:
        seen.done += 1
        seen.tokens += came if usage is None else usage
        seen.uncounted += usage is None
    elif status == 429:
        seen.refused += 1
        return min(float(line.headers.get(b"retry-after", b"1")), 10)
    else:
        seen.errors.append(f"{status}: {events.beside:.200}")
        return 1
    return 0


def _figures(model: str, recipe: BenchServeRecipe, seen: Seen, wall: float, busy: float) -> dict[str, Any]:
    first, gaps = _spread(seen.first), _spread(seen.gaps)
    faults = {"first error": seen.errors[0]} if seen.errors else {}
    if seen.uncounted:
        faults["tokens are events"] = "the server does not count them (usage); an event may carry several"
    if busy > BUSY:
        faults["note"] = "this client was busy all the time: the server may be faster than these figures"
    return {
        "model": model, "clients": recipe.clients, "answers": seen.done, "refused (429)": seen.refused,
        "errors": len(seen.errors), **faults,
        "seconds": round(wall, 2), "tokens": seen.tokens,
        "tokens a second": round(seen.tokens / wall, 1), "answers a second": round(seen.done / wall, 2),
        "first token, ms, p50": first[0], "first token, ms, p99": first[1],
        "between events, ms, p50": gaps[0], "between events, ms, p99": gaps[1],
        "tokens an event": round(seen.tokens / max(len(seen.first) + len(seen.gaps), 1), 2),
        "client's share of a core": round(busy, 2),
    }  # fmt: skip


def _spread(times: list[float]) -> tuple[float, float]:
    """Median and 99th percentile, in milliseconds."""
    if len(times) < 2:
        return round(1000 * sum(times), 2), round(1000 * sum(times), 2)
    cuts = quantiles(times, n=100, method="inclusive")
    return round(1000 * cuts[49], 2), round(1000 * cuts[98], 2)
