"""One JSON object → one document: a text, or a list of messages. All shapes are told apart by their keys.

    text    text | content | completion (or the key `field`)                          most corpora
            title, summary, sections: [{title, content}]                              Baidu Baike, 5.63 million articles
    chat    messages | conversations: [{role, content}]                               OpenAI and most others
            conversations: [{from, value}]                                            ShareGPT, BELLE
            instruction, output[, input, history, system]                             Alpaca, BELLE
            instruction: "Human:…\\nAssistant:…\\nHuman:…\\nAssistant:", output          BELLE, several turns
            conversation: [{human, assistant}]                                        MOSS
            chat: {turn_1: {Human: "<|Human|>: …<eoh>", MOSS: "<|MOSS|>: …<eom>"}}    MOSS

Chats are put in the order that every template can render: neighbours of one role are joined by a line break, answers
before the first question and what follows the last answer are dropped. MOSS's ``meta_instruction`` is left out: it
names another model and its plugins. Not here: files, lines, tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from babyllama.data.sources.files import not_utf8
from babyllama.data.sources.readers import Blob
from babyllama.errors import InputError
from babyllama.tokenizer.chat import Message

try:
    from orjson import loads
except ImportError:  # babyllama[data] is not installed
    from json import loads

Kind = Literal["text", "chat"]
Document = str | list[Message]
OnBad = Literal["stop", "skip"]

_TEXT_FIELDS = ("text", "content", "completion")
_ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "tool": "tool", "observation": "tool",
}  # fmt: skip
_TURN = re.compile(r"(?:^|\n)\s*(Human|Assistant)[:：]")
_MOSS_MARKS = re.compile(r"^\s*<\|(?:Human|MOSS)\|>[:：]\s*|<eo[hm]>\s*$|<sup><\|\d+\|></sup>")


class BadRecord(ValueError):
    """Why one record is no document; `parse` adds file and line."""


@dataclass(frozen=True)
class Shape:
    """How the records of one corpus become documents.

    `max_characters` drops longer documents; of a chat, the longest answer counts. A record without any text (or
    answer) is dropped too; one that cannot be understood stops the work or, with ``on_bad: skip``, is counted.
    """

    kind: Kind
    field: str | None = None
    max_characters: int | None = None
    on_bad: OnBad = "stop"


@dataclass
class Parsed:
    """The documents of one blob, with what was left out."""

    documents: list[Document] = field(default_factory=list)
    bad: int = 0
    dropped: int = 0


def text_of(document: Document) -> str:
    """A chat's text is the content of its messages, joined by line breaks."""
    return document if isinstance(document, str) else "\n".join(message["content"] for message in document)


def answers_of(messages: list[Message]) -> list[str]:
    """What the model is to learn of a chat."""
    return [message["content"] for message in messages if message["role"] == "assistant"]


def parse(blob: Blob, shape: Shape) -> Parsed:
    """All documents of a blob, in order. Raises InputError with file:line."""
    parsed = Parsed()
    for _, document in parse_lines(blob, shape, parsed):
        if document is not None:
            parsed.documents.append(document)
    return parsed


def parse_lines(blob: Blob, shape: Shape, counts: Parsed) -> Iterator[tuple[bytes, Document | None]]:
    """Every line with its document, or None where there is none; bad and dropped records are added to `counts`."""
    for number, line in enumerate(blob.lines.split(b"\n"), start=blob.first):
        document = None
        if line.strip():
            try:
                document = _document(_record(line), shape)
                counts.dropped += document is None
            except BadRecord as error:
                if shape.on_bad == "stop":
                    remedy = "mend it, or leave such records out with on_bad=skip"
                    raise InputError(f"{blob.where}{number}: {error}; {remedy}") from None
                counts.bad += 1
        yield line, document


def kind_of(blob: Blob, field: str | None) -> Kind:
    """The kind of the first record that can be read; text if there is none."""
    for line in blob.lines.split(b"\n"):
        if line.strip():
            try:
                record = _record(line)
            except BadRecord:
                continue
            return "text" if _text_field(record, field) is not None or _messages(record) is None else "chat"
    return "text"


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = loads(line)
    except ValueError as error:
        try:
            line.decode()
        except UnicodeDecodeError:
            raise BadRecord(str(not_utf8("")).removeprefix(": ")) from None
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise BadRecord(f"not valid JSON ({reason})") from None
    if isinstance(record, str):
        return {"text": record}
    if not isinstance(record, dict):
        raise BadRecord(f"a record is a JSON object, not a {type(record).__name__}")
    return record


def _document(record: dict[str, Any], shape: Shape) -> Document | None:
    document: Document
    if shape.kind == "chat":
        messages = _messages(record)
        if messages is None:
            keys = ", ".join(record)
            raise BadRecord(
                f"no chat in it: keys are {keys}; known are messages, conversations, instruction and output"
            )
        document = _in_order(messages)
        size = max((len(answer.strip()) for answer in answers_of(document)), default=0)
    else:
        document = _text(record, shape.field)
        size = len(document) if document.strip() else 0
    try:
        text_of(document).encode()
    except UnicodeEncodeError:
        raise BadRecord("holds half a surrogate pair, which is no character") from None
    return document if 0 < size <= (shape.max_characters or size) else None


def _text_field(record: dict[str, Any], field: str | None) -> str | None:
    """The key that holds the text."""
    return next((key for key in ((field,) if field else _TEXT_FIELDS) if key in record), None)


def _text(record: dict[str, Any], field: str | None) -> str:
    key = _text_field(record, field)
    if key is not None:
        if record[key] is not None and not isinstance(record[key], str):
            raise BadRecord(f"key {key!r} must hold text, not a {type(record[key]).__name__}")
        return record[key] or ""
    if field is None and isinstance(record.get("sections"), list) and "title" in record:
        return "\n".join(_article(record)).replace("\r\n", "\n")
    messages = _messages(record) if field is None else None
    if messages is None:
        wanted = repr(field) if field else " or ".join(map(repr, _TEXT_FIELDS))
        raise BadRecord(f"no key {wanted}: keys are {', '.join(record) or 'none'}; name the one with the text in field")
    return text_of(messages)


def _article(record: dict[str, Any]) -> Iterator[str]:
    for part in (record, *record["sections"]):
        if not isinstance(part, dict):
            raise BadRecord(f"sections must hold objects with title and content, not a {type(part).__name__}")
        for key in ("title", "summary", "content"):
            if part.get(key):
                yield str(part[key]).strip()


def _messages(record: dict[str, Any]) -> list[Message] | None:
    """The messages as they stand; None if the record is no chat."""
    for key in ("messages", "conversations", "conversation"):
        if isinstance(record.get(key), list):
            return [message for turn in record[key] for message in _turn(turn)]
    if isinstance(record.get("chat"), dict):
        turns = record["chat"].values()
        return [message for turn in turns for message in _pair(turn, "Human", "MOSS", _without_marks)]
    if "instruction" in record and "output" in record:
        return list(_alpaca(record))
    return None


def _without_marks(text: str) -> str:
    return _MOSS_MARKS.sub("", text).strip()


def _turn(turn: Any) -> Iterable[Message]:
    if not isinstance(turn, dict):
        raise BadRecord(f"a message must be an object with role and content, not a {type(turn).__name__}")
    if "human" in turn and "assistant" in turn:
        return _pair(turn, "human", "assistant", str.strip)
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise BadRecord(f"unknown role {role!r:.40}; known are {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise BadRecord(f"a message's content must be text, got {content!r:.40}")
    return [{"role": _ROLES[role.lower()], "content": content}]


def _pair(turn: Any, user: str, assistant: str, clean: Callable[[str], str]) -> list[Message]:
    if not isinstance(turn, dict) or not isinstance(turn.get(user), str) or not isinstance(turn.get(assistant), str):
        raise BadRecord(f"a turn must hold the texts {user} and {assistant}, got {turn!r:.60}")
    return [
        {"role": "user", "content": clean(turn[user])},
        {"role": "assistant", "content": clean(turn[assistant])},
    ]


def _alpaca(record: dict[str, Any]) -> Iterator[Message]:
    instruction, output = record["instruction"], record["output"]
    more, system = record.get("input") or "", record.get("system") or ""
    for key, value in {"instruction": instruction, "output": output, "input": more, "system": system}.items():
        if not isinstance(value, str):
            raise BadRecord(f"key {key!r} must hold text, not a {type(value).__name__}")
    if system.strip():
        yield {"role": "system", "content": system}
    for turn in record.get("history") or ():
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise BadRecord(f"history must hold pairs of question and answer, got {turn!r:.60}")
        yield {"role": "user", "content": turn[0]}
        yield {"role": "assistant", "content": turn[1]}
    question = f"{instruction}\n{more}" if more.strip() and instruction.strip() else instruction or more
    parts = _TURN.split(question)
    if parts[-2:-1] == ["Assistant"] and not parts[-1].strip() and not parts[0].strip():
        for speaker, content in zip(parts[1:-2:2], parts[2:-1:2], strict=True):
            yield {"role": "user" if speaker == "Human" else "assistant", "content": content.strip()}
    else:
        yield {"role": "user", "content": question}
    yield {"role": "assistant", "content": output}


def _in_order(messages: list[Message]) -> list[Message]:
    """Join neighbours of one role, drop empty ones, and what stands before the first question or after the last answer.

    A system message in the middle, or a tool's without an answer before it, has no place in any template.
    """
    ordered: list[Message] = []
    for message in messages:
        role, content = message["role"], message["content"]
        last = ordered[-1]["role"] if ordered else ""
        if not content.strip() or (role in ("assistant", "tool") and last in ("", "system")):
            continue
        if role == last and role != "tool":
            ordered[-1] = {"role": role, "content": f"{ordered[-1]['content']}\n{content}"}
        elif (role == "system" and last) or (role == "tool" and last == "user"):
            raise BadRecord(f"a {role} message cannot stand after {last}")
        elif role == "user" and last == "tool":
            raise BadRecord("a user message cannot stand after tool; an answer must come between")
        else:
            ordered.append({"role": role, "content": content})
    while ordered and ordered[-1]["role"] != "assistant":
        ordered.pop()
    return ordered
