"""synthesize: prompts → answers by a teacher, any server that speaks OpenAI's protocol, as chats to be trained on.

Every answer is kept in ``calls.jsonl`` as it comes, so the same command goes on where it was stopped and asks nothing
twice; ``chats.jsonl``, for prepare, is made of those that the filters keep. Not here: one question (asking.py).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TextIO

import xxhash
from pydantic import Field, field_validator
from rich.console import Console
from rich.progress import track

from babyllama.amounts import amount
from babyllama.atomic import disk_errors, json_text, parse_json, write_atomic
from babyllama.commands.asking import NoReply, Reply, Teacher
from babyllama.data.sources.remote import reach
from babyllama.errors import InputError, cause
from babyllama.recipe import Recipe, Seed

KEY = "OPENAI_API_KEY"
CALLS, CHATS = "calls.jsonl", "chats.jsonl"
GIVE_UP = 20  # questions in a row without an answer


class SynthesizeRecipe(Recipe):
    """What is asked of whom, and which answers are kept."""

    out: Path = Field(description="a folder for calls.jsonl and chats.jsonl", examples=["out=data/synthetic"])
    prompts: Path = Field(description="a text, a prompt a line, or JSON lines with prompt or messages")
    url: str = Field(description="the teacher's server, up to /v1", examples=["url=http://127.0.0.1:8000/v1"])
    model: str = Field(description="the teacher's name on it")
    system: str = Field(default="", description="a system message before every prompt; it is not kept in the chats")
    answers: int = Field(default=1, ge=1, le=64, description="to each prompt, with different seeds")
    temperature: float = Field(default=0.7, ge=0, le=2, description="of the teacher's draws")
    max_tokens: int = Field(default=512, ge=1, description="of an answer")
    seed: Seed = Field(default=1, description="of the first answer to a prompt; the next has the next one")
    parallel: int = Field(default=4, ge=1, le=256, description="questions at the same time")
    retries: int = Field(default=4, ge=0, le=20, description="of a question that fails, each after twice the time")
    timeout: float = Field(default=120.0, gt=0, description="seconds for one answer")
    most_tokens: int | None = Field(default=None, ge=1, description="stop once the teacher read and wrote so many")
    price: tuple[float, float] | None = Field(default=None, description="of a million tokens read and written")
    min_characters: int = Field(default=1, ge=0, description="of an answer that is kept")
    max_characters: int | None = Field(default=None, ge=1, description="of an answer that is kept")
    whole: bool = Field(default=True, description="keep only answers that ended by themselves")
    leave_out: tuple[str, ...] = Field(
        default=(), description="regular expressions: answers that match one are not kept"
    )
    api_key: str = Field(default="", description=f"empty: from ${KEY}")

    @field_validator("leave_out")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"leave_out: {pattern!r} is no regular expression: {error}") from None
        return patterns


def main(recipe: SynthesizeRecipe) -> None:
    """Ask what was not asked yet, then write the chats; interrupted, the same command goes on."""
    console = Console(highlight=False)
    asked = list(questions(recipe))
    known = calls_in(recipe.out / CALLS)
    waiting = [one for one in asked if one[0] not in known]
    body = {"model": recipe.model, "temperature": recipe.temperature, "max_tokens": recipe.max_tokens}
    teacher = Teacher(recipe.url, recipe.api_key or os.environ.get(KEY, ""), body, recipe.retries, recipe.timeout)
    if waiting:
        try:
            reach(recipe.url)
        except OSError as error:  # each question would be tried for many seconds
            raise InputError(f"url: nobody answers at {recipe.url} ({cause(error)}); start the teacher's server"
                             ) from None  # fmt: skip
    with disk_errors(recipe.out):
        recipe.out.mkdir(parents=True, exist_ok=True)
    failed, in_a_row = list[str](), 0
    path = recipe.out / CALLS
    with disk_errors(path), path.open("a", encoding="utf-8") as file:
        given = _answers(recipe, teacher, waiting, known)
        for key, messages, reply in track(given, "asking", len(waiting), console=console,
                                          disable=not console.is_terminal):  # fmt: skip
            in_a_row = in_a_row + 1 if isinstance(reply, NoReply) else 0
            if isinstance(reply, NoReply):
                failed.append(str(reply))
                if in_a_row == GIVE_UP:
                    given.close()
                    break
                continue
            known[key] = {"key": key, "messages": messages, **reply._asdict()}
            _append(file, known[key])
    mine = [known[key] for key, *_ in asked if key in known]
    chats, dropped = kept(recipe, mine)
    write_atomic(recipe.out / CHATS, "".join(json_text(chat) + "\n" for chat in chats))
    for line in _told(recipe, mine, len(asked), chats, dropped, failed, in_a_row == GIVE_UP):
        console.print(line, markup=False, soft_wrap=True)
    if failed and not mine:
        raise InputError(f"url={recipe.url}: no question was answered; mend what is said above, then the same command")


def questions(recipe: SynthesizeRecipe) -> Iterator[tuple[str, list[dict[str, Any]], int]]:
    """(key, messages, seed) of every answer that is wanted. The key holds all that decides it.

    Raises:
        InputError: the file cannot be read, holds nothing, or a line is no prompt.
    """
    try:
        lines = recipe.prompts.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts: {recipe.prompts} cannot be read ({cause(error)}); give a text file, "
                         "one prompt a line") from None  # fmt: skip
    found = [_messages(recipe, line, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"prompts: {recipe.prompts} is empty; give a prompt a line")
    for messages in found:
        for seed in range(recipe.seed, recipe.seed + recipe.answers):
            decides = (recipe.url, recipe.model, recipe.system, recipe.temperature, recipe.max_tokens, seed, messages)
            yield xxhash.xxh3_128_hexdigest(json_text(decides).encode()), messages, seed


def _messages(recipe: SynthesizeRecipe, line: str, number: int) -> list[dict[str, Any]]:
    """Of one line, its last answers cut off."""
    if recipe.prompts.suffix not in (".jsonl", ".json"):
        return [{"role": "user", "content": line.strip()}]
    try:
        record = parse_json(line)
        messages = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if messages and all(isinstance(message["content"], str) for message in messages):
            return messages
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise InputError(f"{recipe.prompts}:{number}: no prompt in it; give prompt, a text, or messages")


def calls_in(path: Path) -> dict[str, dict[str, Any]]:
    """What was asked before, by key; half a line at the end, of a program that was killed, is cut off."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with disk_errors(path):
            os.truncate(path, len(whole))
    try:
        return {call["key"]: call for call in map(parse_json, whole.splitlines())}
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); remove it to ask everything again") from None


def _answers(recipe: SynthesizeRecipe, teacher: Teacher, waiting: list[tuple[str, list[dict[str, Any]], int]],
             known: dict[str, dict[str, Any]]) -> Generator[tuple[str, Any, Reply | NoReply]]:  # fmt: skip
    """Answers as they come, `parallel` at a time, until all are there or enough tokens were spent."""
    system = [{"role": "system", "content": recipe.system}] if recipe.system else []
    left, open_ones = iter(waiting), dict[Future[Reply], tuple[str, list[dict[str, Any]]]]()
    spent = sum(call["read"] + call["written"] for call in known.values())
    with ThreadPoolExecutor(recipe.parallel) as pool:
        try:
            while True:
                enough = recipe.most_tokens is not None and spent >= recipe.most_tokens
                while len(open_ones) < recipe.parallel and not enough and (one := next(left, None)):
                    open_ones[pool.submit(teacher, [*system, *one[1]], one[2])] = one[:2]
                if not open_ones:
                    return
                for done in wait(open_ones, return_when=FIRST_COMPLETED).done:
                    key, messages = open_ones.pop(done)
                    try:
                        reply = done.result()
                    except NoReply as fault:
                        yield key, messages, fault
                    else:
                        spent += reply.read + reply.written
                        yield key, messages, reply
        finally:
            pool.shutdown(cancel_futures=True)


def _append(file: TextIO, call: dict[str, Any]) -> None:
    file.write(json_text(call) + "\n")
    file.flush()


def kept(recipe: SynthesizeRecipe, calls: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Chats of the answers that the filters keep; why others are left out."""
    chats, dropped, seen = list[dict[str, Any]](), Counter[str](), set[str]()
    for call in calls:
        text = call["message"].get("content") or ""
        chat = {"messages": [*call["messages"], {"role": "assistant", "content": "", **call["message"]}]}
        written, calls_tools = json_text(chat), bool(call["message"].get("tool_calls"))
        why = (
            "that did not end" if recipe.whole and call["finish"] not in ("stop", "tool_calls")
            else "too short" if len(text.strip()) < recipe.min_characters and not calls_tools
            else "too long" if recipe.max_characters is not None and len(text) > recipe.max_characters
            else "that match leave_out" if any(re.search(pattern, text) for pattern in recipe.leave_out)
            else "said before" if written in seen else ""
        )  # fmt: skip
        seen.add(written)
        if why:
            dropped[why] += 1
        else:
            chats.append(chat)
    return chats, dropped


def _told(recipe: SynthesizeRecipe, calls: list[dict[str, Any]], wanted: int, chats: list[dict[str, Any]],
          dropped: Counter[str], failed: list[str], gave_up: bool) -> Iterator[str]:  # fmt: skip
    read, written = (sum(call[name] for call in calls) for name in ("read", "written"))
    cost = ""
    if recipe.price is not None:
        cost = f", cost {(read * recipe.price[0] + written * recipe.price[1]) / 1e6:.4f}"
    yield f"{len(calls):,} of {amount(wanted, 'answer')}, {read:,} tokens read and {written:,} written{cost}"
    for why, count in dropped.most_common():
        yield f"left out: {count:,} {why}"
    if failed:
        yield f"{amount(len(failed), 'question')} without an answer, the last: {failed[-1]}"
        why = f"stopped after {GIVE_UP} in a row; " if gave_up else ""
        yield f"{why}the same command asks them again"
    elif len(calls) < wanted:
        yield f"stopped at most_tokens={recipe.most_tokens:,}; the same command with more goes on"
    path = recipe.out / CHATS
    onward = f": babyllama prepare out=… 'corpora=[{{path: {path}}}]'" if chats else ""
    yield f"{amount(len(chats), 'chat')} in {path}{onward}"
