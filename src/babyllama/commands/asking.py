"""One question to a server that speaks OpenAI's protocol, with retries. Not here: which questions (synthesize.py)."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from babyllama.atomic import parse_json
from babyllama.errors import InputError, remedy_for

BUSY = (408, 409, 429)  # what may go over; so may all from 500 on
ALL = (401, 402, 403, 404, 405)  # what every other question would be told, too


class Reply(NamedTuple):
    """An answer: its message, why it ended, tokens that were read and written."""

    message: dict[str, Any]
    finish: str
    read: int
    written: int


class NoReply(Exception):
    """A question that has no answer: it was asked again in vain, or is refused; in words."""


@dataclass(frozen=True)
class Teacher:
    """A model of a server. `url` goes up to /v1; `body` is common to all questions; `wait`: seconds before the second
    try, twice as many before each further one, or as long as the server says."""

    url: str
    key: str
    body: dict[str, Any]
    retries: int = 4
    timeout: float = 120.0
    wait: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    def __call__(self, messages: list[dict[str, Any]], seed: int) -> Reply:
        """Its answer.

        Raises:
            InputError: the server refuses whatever is asked.
            NoReply: it refuses this question, or fails, is busy or is not there, every time.
        """
        fault = ""
        asked = json.dumps({**self.body, "messages": messages, "seed": seed}, ensure_ascii=False).encode()
        for attempt in range(self.retries + 1):
            try:
                return self._read(self._sent(asked))
            except urllib.error.HTTPError as error:
                said = error.read()[:300].decode("utf-8", "replace")
                fault = f"HTTP {error.code}: {' '.join(said.split())}"
                if error.code in ALL:
                    raise InputError(f"url: {self.url} refuses the question ({fault}); "
                                     f"{remedy_for(error.code, 'mend the recipe')}") from None  # fmt: skip
                if error.code not in BUSY and error.code < 500:  # too long for the teacher, or filtered
                    raise NoReply(fault) from None
                wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, ValueError) as error:  # no connection, a time-out, half an answer
                fault, wait = f"{type(error).__name__}: {error}", None
            if attempt < self.retries:
                self.sleep(self.wait * 2**attempt if wait is None else wait)
        raise NoReply(fault)

    def _sent(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return parse_json(response.read())

    @staticmethod
    def _read(found: Any) -> Reply:
        try:
            choice, usage = found["choices"][0], found.get("usage") or {}
            message = {key: choice["message"][key] for key in ("reasoning_content", "content", "tool_calls")
                       if choice["message"].get(key)}  # fmt: skip
            return Reply(message, choice.get("finish_reason") or "", int(usage.get("prompt_tokens", 0)),
                         int(usage.get("completion_tokens", 0)))  # fmt: skip
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"no answer in {str(found)[:200]} ({type(error).__name__})") from None


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header, at most a minute; None where it says none."""
    try:
        return None if text is None else min(60.0, max(0.0, float(text)))
    except ValueError:
        return None
