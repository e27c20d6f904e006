"""The text of an answer, as the built-in templates write it: what was thought, what is said, which tools are called.

    <think>            where it thinks; empty where it was told not to
    …
    </think>

    what is said
    <tool_call>
    {"name": …, "arguments": …}
    </tool_call>

All of it is ordinary text, so that every vocabulary can have it. Not here: special tokens around it (chat.py), calls in
a text that comes piece by piece (tools.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from babyllama.atomic import parse_json
from babyllama.tokenizer.messages import Message, Vocabulary

THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"
OPENING = {True: f"{THINK}\n", False: f"{THINK}\n\n{THOUGHT}\n\n"}  # of an answer that has to think, or has not to
_WHOLE = re.compile(rf"\s*{THINK}\n?(.*?)\n?{THOUGHT}\n*(.*)", re.DOTALL)


def answer_text(message: Message) -> str:
    """An answer as one text; of a message without thinking and calls its content."""
    thought = message.get("reasoning_content")
    said = [message["content"]] if message["content"] else []
    text = "\n".join([*said, *map(call_text, message.get("tool_calls", ()))])
    return text if thought is None else f"{THINK}\n{thought}\n{THOUGHT}\n\n{text}"


def call_text(call: dict[str, Any]) -> str:
    """One call; its arguments are an object, or JSON that is written as it is."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    written = arguments if isinstance(arguments, str) else _json(arguments)
    return f'{CALL}\n{{"name": {_json(name)}, "arguments": {written}}}\n{CALLED}'


def system_text(content: str, tools: Sequence[dict[str, Any]]) -> str:
    """The system message with the tools that may be called, one a line."""
    listed = "\n".join(["<tools>", *(_json(tool["function"]) for tool in tools), "</tools>"])
    return f"{content}\n\n{listed}" if content else listed


def offered(text: str) -> frozenset[str]:
    """The names of the tools that a prompt's text lists."""
    found = set[str]()
    for block in re.findall(r"<tools>\n(.*?)\n</tools>", text, re.DOTALL):
        for line in block.splitlines():
            try:
                found.add(str(parse_json(line)["name"]))
            except (ValueError, KeyError, TypeError):
                continue
    return frozenset(found)


def without_thought(text: str) -> str:
    """What is said; a thought that never ends is all of the answer."""
    if not text.lstrip().startswith(THINK):
        return text
    match = _WHOLE.fullmatch(text)
    return match[2] if match else ""


def opens_thought(vocabulary: Vocabulary, prompt: Sequence[int]) -> bool:
    """Whether a rendered prompt ends inside a thought, which the answer goes on with."""
    return vocabulary.decode(prompt[-12:], skip_special=False).rstrip().endswith(THINK)


def in_thought(text: str) -> bool:
    """Whether an answer that has come so far still thinks."""
    return text.lstrip().startswith(THINK) and THOUGHT not in text


class Thoughts:
    """The text of one answer as it comes → what is thought, and what is said after it.

    Args:
        inside: whether the prompt has opened the thought.
    """

    def __init__(self, inside: bool = False) -> None:
        self._held, self._state = "", "thinks" if inside else "begins"

    def feed(self, text: str, ended: bool) -> tuple[str, str]:
        """What became certain: of the thought, and of what is said. `ended`: no more text comes."""
        self._held += text
        thought = ""
        if self._state == "begins":
            start = self._held.lstrip()
            if not ended and THINK.startswith(start):
                return "", ""
            self._state = "thinks" if start.startswith(THINK) else "says"
            if self._state == "thinks":
                self._held = start.removeprefix(THINK)
                self._state = "opened"
        if self._state == "opened" and (self._held or ended):
            self._held, self._state = self._held.removeprefix("\n"), "thinks"
        if self._state == "thinks":
            thought = self._thought(ended)
        if self._state == "thought":
            self._held = self._held.lstrip("\n")
            self._state = "says" if self._held else "thought"
        if self._state != "says":
            return thought, ""
        said, self._held = self._held, ""
        return thought, said

    def _thought(self, ended: bool) -> str:
        """What is certainly thought; what may be its end stays."""
        at = self._held.find(THOUGHT)
        if at >= 0:
            found, self._held, self._state = self._held[:at], self._held[at + len(THOUGHT) :], "thought"
            return found.removesuffix("\n")
        sure = len(self._held) if ended else len(self._held) - self._open()
        found, self._held = self._held[:sure], self._held[sure:]
        return found

    def _open(self) -> int:
        """How many last characters may be the end of the thought, with the line break before it."""
        end = "\n" + THOUGHT
        sizes = (size for size in range(1, len(end)) if self._held.endswith((end[:size], THOUGHT[:size])))
        return max(sizes, default=0)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
