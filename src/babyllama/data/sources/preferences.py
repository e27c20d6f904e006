"""One JSON object → answers that people compared or rated: preference pairs, single answers with a label.

    chosen | response_chosen, rejected | response_rejected [, a prompt]    pairs: TRL, LLaMA-Factory, HH-RLHF, our votes
    label | kto_tag: true | false, with a chat of any form                rated answers: TRL, LLaMA-Factory, our ratings

Each answer is a text, a message or a list of messages; the prompt any form of chats.py, or the turns that both
answers begin with. All before the answers is the prompt. Not here: chats (chats.py), lines and files.
"""

from __future__ import annotations

from collections.abc import Iterator

from babyllama.data.sources.calls import BadRecord, Record, tools_in
from babyllama.data.sources.chats import (
    LISTS,
    MORE,
    QUESTIONS,
    Notes,
    continuation,
    first_key,
    history,
    in_order,
    is_chat,
    note_unread,
    read_chat,
    text_of,
)
from babyllama.data.sources.documents import Preference, Rated
from babyllama.tokenizer.chat import Message

_CHOSEN, _REJECTED = ("chosen", "response_chosen"), ("rejected", "response_rejected")
_LABELS = ("label", "kto_tag")
_NOTED = {"chosen_model", "rejected_model", "model", "time"}  # whose answers they are and when, as the web app notes it


def is_preference(record: Record) -> bool:
    """Whether its keys are those of a preference pair."""
    return all(first_key(record, keys) is not None for keys in (_CHOSEN, _REJECTED))


def is_rated(record: Record) -> bool:
    """Whether its keys are those of an answer that people found good or bad."""
    return any(isinstance(record.get(key), bool) for key in _LABELS) and (is_chat(record) or _in_parts(record))


def read_preference(record: Record, notes: Notes) -> Preference:
    """The pair of a record for which `is_preference` holds; an answer may be empty. Raises BadRecord."""
    keys = [key for key in (first_key(record, _CHOSEN), first_key(record, _REJECTED)) if key]
    used = {*keys, *_NOTED}
    chosen, rejected = (continuation(record[key], notes) for key in keys)
    prompt = list(_asked(record, used, notes))
    given = bool(prompt)
    while chosen and rejected and chosen[0] == rejected[0] and len(chosen) > 1 and len(rejected) > 1:
        if not given or chosen[0] not in prompt:
            prompt.append(chosen[0])
        chosen, rejected = chosen[1:], rejected[1:]
    tools = tools_in(record, used)
    note_unread(record, used, notes)
    wrong = "a preference pair needs a question and two answers, in chosen and rejected"
    (asked, better), (_, other) = (_split(prompt, answer, wrong, notes) for answer in (chosen, rejected))
    if not (better and other):
        notes["preference pairs with an empty answer"] += 1
    elif better == other:
        notes["preference pairs with two equal answers"] += 1
    return Preference(asked, better, other, tools=tools)


def read_rated(record: Record, notes: Notes) -> Rated:
    """The answer of a record for which `is_rated` holds; it may be empty. Raises BadRecord."""
    key = next(key for key in _LABELS if isinstance(record.get(key), bool))
    rest = {name: value for name, value in record.items() if name != key}
    if _in_parts(record):
        used = {"completion", *_NOTED}
        prompt, answer = list(_asked(rest, used, notes)), continuation(record["completion"], notes)
        tools = tools_in(rest, used)
        note_unread(rest, used, notes)
    else:
        chat = read_chat(rest, notes)
        prompt, answer = (list(chat.messages[:-1]), list(chat.messages[-1:])) if chat else ([], [])
        tools = chat.tools if chat else ()
    found = _split(prompt, answer, "a rated answer needs a question and an answer", notes)
    return Rated(*found, good=record[key], tools=tools)


def _in_parts(record: Record) -> bool:
    """Whether prompt and completion stand apart, as lists of messages."""
    return isinstance(record.get("completion"), list) and record.get("prompt") is not None


def _asked(record: Record, used: set[str], notes: Notes) -> Iterator[Message]:
    """What was said before an answer that stands apart: system, history, and messages or a question."""
    system = text_of(record, "system", used)
    if system.strip():
        yield {"role": "system", "content": system}
    yield from history(record, used)
    key = first_key(record, (*LISTS, *QUESTIONS))
    if key is None:
        return
    used.add(key)
    more = next((other for other in MORE if other != key and isinstance(record.get(other), str)), None)
    if isinstance(record[key], str) and more:
        used.add(more)
        yield {"role": "user", "content": "\n".join(filter(str.strip, (record[key], record[more])))}
    else:
        yield from continuation(record[key], notes, "user")


def _split(prompt: list[Message], answer: list[Message], wrong: str, notes: Notes
           ) -> tuple[tuple[Message, ...], tuple[Message, ...]]:  # fmt: skip
    """Prompt and answer in an order that every template can render; the answer is empty where it says nothing."""
    marked: Message = {"role": "assistant", "content": "-"}
    *before, last = in_order([*prompt, marked], notes) or [marked]
    said = [message for message in answer if message["content"].strip() or message.get("tool_calls")]
    if not before or last != marked or any(m["role"] == "system" for m in answer):  # an answer ends the prompt
        raise BadRecord(wrong)
    if said and said[0]["role"] != "assistant":
        raise BadRecord(wrong)
    return tuple(before), tuple(in_order([*before, *said], notes)[len(before) :])
