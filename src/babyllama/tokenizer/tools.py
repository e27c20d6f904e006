"""Calls in an answer's text; and whether and how a folder's own chat template writes tools and calls.

Foreign templates say nothing about themselves, so a made-up chat with a call is rendered and the call is looked for in
what comes out: the text around its JSON object is the form, ``<tool_call>`` … ``</tool_call>`` in many. Not here: what
markers in a tool's texts would do (jinja.py), OpenAI's shapes (serve/).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from babyllama.atomic import parse_json
from babyllama.errors import InputError
from babyllama.tokenizer.answers import CALL, CALLED, Thoughts
from babyllama.tokenizer.chat import ChatTemplate, template_of
from babyllama.tokenizer.jinja import JinjaTemplate
from babyllama.tokenizer.messages import NO_TOOLS, Asked, Message

if TYPE_CHECKING:
    from babyllama.tokenizer.tokenizer import Tokenizer

NAME = "made_up_tool"
TOOL = {"type": "function", "function": {"name": NAME, "description": "made up", "parameters": {
    "type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}}}  # fmt: skip
ARGUMENTS = {"town": "y"}


@dataclass(frozen=True)
class ToolForm:
    """How an answer calls a tool: `before`, a JSON object with `name` and `arguments` under the key `key`, `after`.

    written: a call as training wrote it, to the letter: what stands before the name, between it and the arguments, and
        after them; None where the arguments come first.
    """

    before: str
    after: str
    key: str
    written: tuple[str, str, str] | None = field(default=None, compare=False)


OWN = ToolForm(CALL, CALLED, "arguments",
               (f'{CALL}\n{{"name": "', '", "arguments": ', f"}}\n{CALLED}"))  # of the built-in templates  # fmt: skip


@dataclass(frozen=True)
class Call:
    """`arguments` as JSON."""

    name: str
    arguments: str


@lru_cache(maxsize=16)
def tool_form(tokenizer: Tokenizer) -> ToolForm:
    """Of the tokenizer's chat template.

    Raises:
        InputError: it writes no tools, or calls in a form that is no JSON object between two texts.
    """
    template = template_of(tokenizer.chat_template)
    asked: list[Message] = [{"role": "user", "content": "x"}]
    call = {"type": "function", "function": {"name": NAME, "arguments": ARGUMENTS}}
    called: list[Message] = [*asked, {"role": "assistant", "content": "", "tool_calls": [call]}]
    if isinstance(template, ChatTemplate) and template.tools:
        return OWN
    if not isinstance(template, JinjaTemplate):
        raise InputError(NO_TOOLS)
    try:
        before, whole = (template.text(tokenizer, chat, Asked(len(chat) == 1, [TOOL])) for chat in (asked, called))
    except InputError:
        raise InputError(NO_TOOLS) from None
    if NAME not in before:
        raise InputError(NO_TOOLS)
    special = {tokenizer.backend.id_to_token(token) for token in tokenizer.special_ids}
    found = _found(whole[len(before) :]) if whole.startswith(before) else None
    if found is None or special & {found.before, found.after}:  # special tokens end answers
        raise InputError("this model's chat template writes tool calls in a form that is not understood here (a JSON "
                         "object between two texts is); leave tools out")  # fmt: skip
    return found


def _found(answer: str) -> ToolForm | None:
    """The call in the text of an answer."""
    for at in (i for i, character in enumerate(answer) if character == "{"):
        try:
            value, end = json.JSONDecoder().raw_decode(answer, at)
        except ValueError:
            continue
        key = next((key for key in ("arguments", "parameters") if isinstance(value, dict) and key in value), None)
        if key is not None and value.get("name") == NAME and value[key] == ARGUMENTS:
            before, after = answer[:at].strip(), answer[end:].lstrip()
            after = after.split()[0] if after.strip() else ""
            close = after[: after.index(">") + 1] if before.startswith("<") and ">" in after else after
            last = answer.index(close, end) + len(close)
            written = _written(answer[:last].lstrip())
            return ToolForm(before, close, key, written) if before and close else None
    return None


def _written(call: str) -> tuple[str, str, str] | None:
    """The parts of a call around the made-up name and arguments."""
    first = call.index(NAME)
    rest = call[first + len(NAME) :]
    for at in (i for i, character in enumerate(rest) if character == "{"):
        with suppress(ValueError):
            value, end = json.JSONDecoder().raw_decode(rest, at)
            if value == ARGUMENTS:
                return call[:first], rest[:at], rest[end:]
    return None


def read_answer(text: str, form: ToolForm = OWN) -> Message:
    """The whole text of an answer as a message: what was thought, what is said, which tools are called."""
    thoughts, calls = Thoughts(), Calls(form)
    thought, rest = thoughts.feed(text, True)
    said, called = calls.feed(rest, True)
    found: Message = {"role": "assistant", "content": said.strip() if called else said}
    if rest != text:
        found["reasoning_content"] = thought
    if called:
        found["tool_calls"] = [{"type": "function", "function": {"name": c.name, "arguments": parse_json(c.arguments)}}
                               for c in called]  # fmt: skip
    return found


class Calls:
    """The text of one answer as it comes → what is said and which tools are called.

    What may be the beginning of a call is held back; what begins as one and is none is said after all.
    """

    def __init__(self, form: ToolForm) -> None:
        self.form, self.count = form, 0
        self._held, self._inside = "", False

    def feed(self, text: str, ended: bool) -> tuple[str, list[Call]]:
        """What became certain: text, and calls that are whole. `ended`: no more text comes."""
        self._held += text
        said, calls = "", list[Call]()
        for piece in self._pieces(ended):
            if isinstance(piece, Call):
                calls.append(piece)
            else:
                said += piece
        self.count += len(calls)
        return said, calls

    def _pieces(self, ended: bool) -> Iterator[str | Call]:
        before, after = self.form.before, self.form.after
        while True:
            if not self._inside:
                at = self._held.find(before)
                if at < 0:
                    sure = len(self._held) if ended else len(self._held) - self._open(before)
                    told, self._held = self._held[:sure], self._held[sure:]
                    yield told
                    return
                yield self._held[:at]
                self._held, self._inside = self._held[at + len(before) :], True
            at = self._held.find(after)
            if at < 0 and not ended:
                return
            body, self._held = (self._held, "") if at < 0 else (self._held[:at], self._held[at + len(after) :])
            self._inside = False
            yield self._call(body) or before + body + (after if at >= 0 else "")

    def _call(self, body: str) -> Call | None:
        try:
            value = parse_json(body)
        except ValueError:
            return None
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get(self.form.key, {})
        return Call(value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None

    def _open(self, before: str) -> int:
        """How many last characters may be the beginning of a call."""
        return max((size for size in range(1, len(before)) if self._held.endswith(before[:size])), default=0)
