"""One JSON object → the messages of a chat; the forms are told apart by their keys.

    messages | conversations | conversation: [{role | from, content | value}]      OpenAI, ShareGPT, BELLE, most others;
                                                                                   also as JSON in a text (records.py)
    conversation: [{human, assistant}]                                             MOSS
    chat: {turn_1: {Human: "<|Human|>: …<eoh>", MOSS: "<|MOSS|>: …<eom>"}}         MOSS
    instruction | question | query | prompt | input (a text or messages) with      Alpaca, BELLE, many others
        output | response | answer | completion | target (also)                    [input | context, history, system]
    ask | human | 问题 | 提问 | 问 with answer | assistant | 答案 | 回答 | 答          tables that people made
    data: ["问：…", "答：…", "问：…", …]                                             HuatuoGPT
    instruction: "Human:…\\nAssistant:…\\nHuman:…\\nAssistant:", output               BELLE, several turns

A message's content is text or a list of text parts. An answer may call tools (``tool_calls``, ``function_call``, or a
turn of that role) and have thought before (``reasoning_content``); which tools there are the record says, or its system
message (``tools``, as objects or as JSON). ``weight: 0`` (or ``loss: false``, ``train: false``) marks an answer that is
not learned. Chats are put in the order that every template can render. What is not read, is named in `notes`. Not here:
tools and calls (calls.py), answers that people compared or rated (preferences.py), lines and files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from babyllama.data.sources.calls import BadRecord, Record, calls_of, thought_of, tools_in
from babyllama.data.sources.documents import Chat
from babyllama.tokenizer.chat import Message

Notes = Counter[str]  # what was left out, in plain words → in how many records

_MOST_NOTES = 50  # keys may be anything, even numbers
LISTS = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "question", "query", "prompt", "input", "Question", "ask", "human", "问题", "提问", "问")
_ANSWERS = ("output", "response", "answer", "completion", "target", "Response", "assistant", "答案", "回答", "答")
MORE = ("input", "context")
_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "function_call": "assistant",
    "tool_call": "assistant", "tool": "tool", "observation": "tool", "function": "tool", "tool_response": "tool",
    "系统": "system", "用户": "user", "助手": "assistant",
}  # fmt: skip
_TURN_KEYS = {
    "role", "from", "content", "value", "weight", "loss", "train", "tool_calls", "function_call", "human", "assistant",
    "reasoning_content", "reasoning", "tools", "tool_call_id", "name",
}  # fmt: skip
_CALLING = ("function_call", "tool_call")  # roles whose text is a call
_SAID = {"问：": "user", "问:": "user", "答：": "assistant", "答:": "assistant"}
_TURN = re.compile(r"(?:^|\n)\s*(Human|Assistant)[:：]")
_MOSS_MARKS = re.compile(r"^\s*<\|(?:Human|MOSS)\|>[:：]\s*|<eo[hm]>\s*$|<sup><\|\d+\|></sup>")


def is_chat(record: Record) -> bool:
    """Whether its keys are those of a chat; whether it can be read, `read_chat` finds out."""
    return _form(record) is not None


def is_message(value: object) -> bool:
    """Whether it has the keys of one message."""
    return isinstance(value, dict) and (
        ("role" in value and ("content" in value or "tool_calls" in value)) or ("from" in value and "value" in value)
    )


def read_chat(record: Record, notes: Notes) -> Chat | None:
    """The chat of a record, perhaps without messages; None if its keys are those of no chat.

    Raises:
        BadRecord: what is wrong with its messages.
    """
    form = _form(record)
    if form is None:
        return None
    used: set[str] = set()
    messages = list(form(record, used, notes))
    tools = tools_in(record, used)
    note_unread(record, used, notes)
    return Chat(tuple(in_order(messages, notes)), tools=tools)


def note_unread(record: Record, used: set[str], notes: Notes, what: str = "key") -> None:
    """Name the keys that hold something and were not read."""
    for key in record.keys() - used:
        if record[key] not in (None, "", "[]", [], {}):
            name = f"{what} {key:.40}"
            notes[name if name in notes or len(notes) < _MOST_NOTES else "other keys"] += 1


def _form(record: Record) -> Callable[[Record, set[str], Notes], Iterable[Message]] | None:
    if any(isinstance(record.get(key), list) for key in LISTS):
        return _turns
    if isinstance(record.get("chat"), dict):
        return _moss
    said = record.get("data")
    if isinstance(said, list) and said and all(isinstance(turn, str) and turn[:2] in _SAID for turn in said):
        return _asked_and_answered
    answer = first_key(record, _ANSWERS)
    if answer and first_key(record, QUESTIONS):
        return _pair
    return None


def first_key(record: Record, keys: Iterable[str]) -> str | None:
    """The first of the keys that holds something."""
    return next((key for key in keys if record.get(key) is not None), None)


def _turns(record: Record, used: set[str], notes: Notes) -> list[Message]:
    key = next(key for key in LISTS if isinstance(record.get(key), list))
    used.add(key)
    messages = [message for turn in record[key] for message in _turn(turn, notes)]
    if not messages or messages[0]["role"] != "system":  # a second one stays unread, and is named
        system = text_of(record, "system", used)
        if system.strip():
            messages.insert(0, {"role": "system", "content": system})
    return messages


def _asked_and_answered(record: Record, used: set[str], notes: Notes) -> Iterator[Message]:
    used.add("data")
    for turn in record["data"]:
        yield {"role": _SAID[turn[:2]], "content": turn[2:].strip()}


def _moss(record: Record, used: set[str], notes: Notes) -> Iterator[Message]:
    used.add("chat")
    for turn in record["chat"].values():
        yield from _two(turn, "Human", "MOSS", _without_marks)
        note_unread(turn, {"Human", "MOSS"}, notes, "turn key")


def _without_marks(text: str) -> str:
    return _MOSS_MARKS.sub("", text).strip()


def _turn(turn: Any, notes: Notes) -> list[Message]:
    if not isinstance(turn, dict):
        raise BadRecord(f"a message must be an object with role and content, not a {type(turn).__name__}")
    note_unread(turn, _TURN_KEYS, notes, "message key")
    if "human" in turn and "assistant" in turn:
        return _two(turn, "human", "assistant", str.strip)
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise BadRecord(f"unknown role {role!r:.40}; known are {', '.join(_ROLES)}")
    message: Message = {"role": _ROLES[role.lower()], "content": _content(turn)}
    if message["role"] == "assistant":
        if not _is_learned(turn):
            message["learned"] = False
        if calls := calls_of(turn, message["content"] if role.lower() in _CALLING else None):
            message["tool_calls"] = calls
            message["content"] = "" if role.lower() in _CALLING else message["content"]
        if (thought := thought_of(turn)) is not None:
            message["reasoning_content"] = thought
    return [message]


def _is_learned(turn: Record) -> bool:
    for key in ("weight", "loss", "train"):
        value = turn.get(key)
        if value is not None and value not in (0, 1):
            raise BadRecord(f"{key} of a message must be 0 or 1, got {value!r:.40}")
    return all(turn.get(key) in (None, 1) for key in ("weight", "loss", "train"))


def _content(turn: Record) -> str:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = "".join(map(_part, content))
    if content is None and (turn.get("tool_calls") or turn.get("function_call")):
        return ""
    if not isinstance(content, str):
        raise BadRecord(f"a message's content must be text, got {content!r:.40}")
    return content


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise BadRecord(f"a part of a message's content must be text, not {kind!r:.40}")


def _two(turn: Any, user: str, assistant: str, clean: Callable[[str], str]) -> list[Message]:
    if not isinstance(turn, dict) or not isinstance(turn.get(user), str) or not isinstance(turn.get(assistant), str):
        raise BadRecord(f"a turn must hold the texts {user} and {assistant}, got {turn!r:.60}")
    return [
        {"role": "user", "content": clean(turn[user])},
        {"role": "assistant", "content": clean(turn[assistant])},
    ]


def _pair(record: Record, used: set[str], notes: Notes) -> Iterator[Message]:
    asks, answers = first_key(record, QUESTIONS), first_key(record, _ANSWERS)
    assert asks and answers
    if isinstance(record[asks], list) or isinstance(record[answers], list):
        yield from _apart(record, asks, answers, used, notes)
        return
    question, answer = text_of(record, asks, used), text_of(record, answers, used)
    extra = next((key for key in MORE if key != asks and record.get(key) is not None), "input")
    more = text_of(record, extra, used) if extra != asks else ""
    system = text_of(record, "system", used)
    if system.strip():
        yield {"role": "system", "content": system}
    yield from history(record, used)
    question = f"{question}\n{more}" if more.strip() and question.strip() else question or more
    parts = _TURN.split(question)
    if parts[-2:-1] == ["Assistant"] and not parts[-1].strip() and not parts[0].strip():
        for speaker, content in zip(parts[1:-2:2], parts[2:-1:2], strict=True):
            yield {"role": "user" if speaker == "Human" else "assistant", "content": content.strip()}
    else:
        yield {"role": "user", "content": question}
    yield {"role": "assistant", "content": answer}


def _apart(record: Record, asks: str, answers: str, used: set[str], notes: Notes) -> Iterator[Message]:
    """A prompt and the answer to it, of which one at least is a list of messages."""
    used |= {asks, answers}
    messages = continuation(record[asks], notes, "user")
    system = text_of(record, "system", used)
    if system.strip() and (not messages or messages[0]["role"] != "system"):
        yield {"role": "system", "content": system}
    yield from messages
    yield from continuation(record[answers], notes)


def history(record: Record, used: set[str]) -> Iterator[Message]:
    """Earlier turns, as pairs of question and answer. Raises BadRecord."""
    used.add("history")
    for turn in record.get("history") or ():
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise BadRecord(f"history must hold pairs of question and answer, got {turn!r:.60}")
        yield {"role": "user", "content": turn[0]}
        yield {"role": "assistant", "content": turn[1]}


def text_of(record: Record, key: str, used: set[str]) -> str:
    """The text under a key, empty where there is none. Raises BadRecord."""
    used.add(key)
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise BadRecord(f"key {key!r} must hold text, not a {type(value).__name__}")
    return value or ""


def continuation(value: Any, notes: Notes, role: str = "assistant") -> list[Message]:
    """A text, a message or several → messages; a text is said by `role`. Raises BadRecord."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    turns = value if isinstance(value, list) else [value]
    return [message for turn in turns for message in _turn(turn, notes)]


def in_order(messages: list[Message], notes: Notes) -> list[Message]:
    """Join neighbours of one role, drop empty ones, and what stands before the first question or after the last answer.

    A system message in the middle, or a tool's without an answer before it, has no place in any template.
    """
    ordered: list[Message] = []
    early = 0
    for message in messages:
        role, content = message["role"], message["content"]
        last = ordered[-1]["role"] if ordered else ""
        if not content.strip() and not message.get("tool_calls"):
            continue
        if role in ("assistant", "tool") and last in ("", "system"):
            early += 1
        elif role == last and role != "tool":
            ordered[-1] = _joined(ordered[-1], message)
        elif (role == "system" and last) or (role == "tool" and last == "user"):
            raise BadRecord(f"a {role} message cannot stand after {last}")
        elif role == "user" and last == "tool":
            raise BadRecord("a user message cannot stand after tool; an answer must come between")
        else:
            ordered.append(message)
    late = len(ordered)
    while ordered and ordered[-1]["role"] != "assistant":
        ordered.pop()
    if ordered and early:
        notes["answers before the first question"] += 1
    if ordered and len(ordered) < late:
        notes["messages after the last answer"] += 1
    return ordered


def _joined(first: Message, second: Message) -> Message:
    if first.get("learned", True) != second.get("learned", True):
        raise BadRecord("two answers in a row, of which only one is in the loss; put a question between them")
    found: Message = {**first, "content": "\n".join(filter(None, (first["content"], second["content"])))}
    if calls := [*first.get("tool_calls", ()), *second.get("tool_calls", ())]:
        found["tool_calls"] = calls
    thoughts = [m["reasoning_content"] for m in (first, second) if "reasoning_content" in m]
    if thoughts:
        found["reasoning_content"] = "\n".join(thoughts)
    return found
