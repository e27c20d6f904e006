"""Events of one answer → what clients are told of it: text, log-probabilities in both of OpenAI's forms, the end."""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from babyllama.infer.request import Event
from babyllama.infer.text import Text
from babyllama.serve.prompts import Prompt
from babyllama.tokenizer.answers import Thoughts
from babyllama.tokenizer.token_bytes import token_bytes
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.tools import Calls, ToolForm

Json = dict[str, Any]


class Fed(NamedTuple):
    """What became certain of an answer: text, the tokens that are part of it, calls as OpenAI has them, and what was
    thought before."""

    text: str
    events: list[Event]
    calls: Sequence[Json] = ()
    thought: str = ""


class Choice:
    """One answer."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, stop: Sequence[str],
                 tools: ToolForm | None = None) -> None:  # fmt: skip
        self.tokenizer, self._calls = tokenizer, None if tools is None else Calls(tools)
        self._thoughts = None if prompt.thinks is None else Thoughts(prompt.thinks)
        self._text, self._length = Text(tokenizer, stop, prompt.after), 0
        self._ended: str | None = None

    @property
    def tokens(self) -> int:
        """How many came, the one that ended it included."""
        return self._text.tokens

    @property
    def finish(self) -> str | None:
        """Why it ended; None while it goes on."""
        found = self._ended or self._text.finish
        return "tool_calls" if found == "stop" and self._calls is not None and self._calls.count else found

    def feed(self, events: Sequence[Event]) -> Fed:
        """What became certain."""
        text, counted = "", list[Event]()
        whole = Event.joined(events)
        for event in whole.split() if self._text.stop else (whole,):
            if self.finish is not None:
                break
            if (kept := event.unstopped()).tokens:
                counted.append(kept)
            text += self._text.feed(event)
        return self._fed(text, counted)

    def cut(self) -> Fed:
        """End it here, as where max_tokens are reached; the rest of the text."""
        rest = "" if self.finish is not None else self._text.feed(Event(0, finish="length"))
        self._ended = self.finish or "length"
        return self._fed(rest, [])

    def _fed(self, text: str, events: list[Event]) -> Fed:
        ended, thought = (self._ended or self._text.finish) is not None, ""
        if self._thoughts is not None:
            thought, text = self._thoughts.feed(text, ended)
        if self._calls is None:
            return Fed(text, events, thought=thought)
        before = self._calls.count
        said, calls = self._calls.feed(text, ended)
        return Fed(said, events, [
            {"index": i, "id": f"call_{secrets.token_hex(12)}", "type": "function",
             "function": {"name": call.name, "arguments": call.arguments}} for i, call in enumerate(calls, before)
        ], thought)  # fmt: skip

    # ── log-probabilities ──────────────────────────────────────────────────────────────────────────────────────
    def chat_logprobs(self, events: Sequence[Event]) -> Json:
        """As chat completions have them."""
        content = [{**self._entry(token, logprob), "top_logprobs": [self._entry(*pair) for pair in top]}
                   for token, logprob, top in _told(events)]  # fmt: skip
        return {"content": content, "refusal": None}

    def text_logprobs(self, events: Sequence[Event]) -> Json:
        """As text completions have them; offsets count characters from the answer's beginning."""
        found: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, logprob, likeliest in _told(events):
            entry = self._entry(token, logprob)
            found["tokens"].append(entry["token"])
            found["token_logprobs"].append(entry["logprob"])
            top = {self._entry(*pair)["token"]: _finite(pair[1]) for pair in likeliest}
            found["top_logprobs"].append(top or None)
            found["text_offset"].append(self._length)
            self._length += len(entry["token"])
        return found

    def _entry(self, token: int, logprob: float) -> Json:
        raw = token_bytes(self.tokenizer, token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(raw)}


def _told(events: Iterable[Event]) -> Iterator[tuple[int, float, Sequence[tuple[int, float]]]]:
    """Each token with its log-probability and the likeliest ones with theirs."""
    return itertools.chain.from_iterable(zip(e.tokens, e.logprobs, e.tops, strict=True) for e in events)


def _finite(logprob: float) -> float:
    """−∞ has no JSON; OpenAI says −9999."""
    return logprob if math.isfinite(logprob) else -9999.0
