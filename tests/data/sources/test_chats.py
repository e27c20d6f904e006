"""What is recognised of a chat is used, what is not is named: keys that people use, and anything at all."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babyllama.data.sources.blobs import Blob
from babyllama.data.sources.calls import BadRecord
from babyllama.data.sources.chats import read_chat
from babyllama.data.sources.documents import Chat, Text, stored
from babyllama.data.sources.records import Shape, kind_of, parse
from babyllama.errors import InputError
from babyllama.tokenizer.chat import check_messages

ASK, ANSWER = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}


def blob(*records: Any) -> Blob:
    return Blob("a.jsonl:", 1, "\n".join(json.dumps(r, ensure_ascii=False) for r in records).encode(), 0)


def read(record: Any, kind: Any = "chat") -> tuple[Any, dict[str, int]]:
    """The one document of a record, and what was not used."""
    parsed = parse(blob(record), Shape(kind))
    (document,) = parsed.documents
    return document, dict(parsed.notes)


@pytest.mark.parametrize(
    "record",
    [
        {"question": "问", "answer": "答"},
        {"ask": "问", "answer": "答"},
        {"问题": "问", "答案": "答"},
        {"提问": "问", "回答": "答"},
        {"query": "问", "response": "答"},
        {"prompt": "问", "completion": "答"},
        {"prompt": "问", "response": "答"},
        {"input": "问", "output": "答"},
        {"human": "问", "assistant": "答"},
        {"messages": [{"role": "用户", "content": "问"}, {"role": "助手", "content": "答"}]},
        {"conversations": json.dumps([ASK, ANSWER])},
        {"instruction": "问", "context": "", "response": "答"},
        {"instruction": "问", "input": None, "target": "答"},
        {"instruction": "问", "output": "答", "text": None},
        [ASK, ANSWER],
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "问"}]}, {**ANSWER, "tool_calls": None}]},
    ],
)
def test_usual_keys_are_the_same_chat(record: Any) -> None:
    assert kind_of(blob(record), None) == "chat"
    assert read(record) == (Chat((ASK, ANSWER)), {})


def test_what_stands_beside_is_named() -> None:
    record = {"instruction": "问", "output": "答", "text": "### 问 ### 答", "tools": "[]", "id": 7, "tags": []}
    assert kind_of(blob(record), None) == "chat" and kind_of(blob(record), "text") == "text"
    assert read(record) == (Chat((ASK, ANSWER)), {"key text": 1, "key id": 1})
    answer = {**ANSWER, "thought": "想", "name": ""}
    assert read({"messages": [ASK, answer], "tags": [{}]})[1] == {"key tags": 1, "message key thought": 1}
    marked = "<|im_start|>user\n问<|im_end|>"
    assert read({"text": marked}, "text") == (
        Text(marked), {"markers such as <|im_start|> in a text, which stay text": 1})  # fmt: skip
    assert read({"text": "a <| b"}, "text") == (Text("a <| b"), {})
    assert read({"title": "题", "content": "文"}, "text") == (Text("文"), {"key title": 1})
    assert read({"conversations": [ANSWER, ASK, ANSWER, ASK]})[1] == {
        "answers before the first question": 1, "messages after the last answer": 1,
    }  # fmt: skip


def test_system_beside_the_messages() -> None:
    system = {"role": "system", "content": "你是诗人。"}
    assert read({"system": "你是诗人。", "messages": [ASK, ANSWER]}) == (Chat((system, ASK, ANSWER)), {})
    found, notes = read({"system": "别的", "messages": [system, ASK, ANSWER]})
    assert found == Chat((system, ASK, ANSWER)) and notes == {"key system": 1}


@pytest.mark.parametrize("mark", [{"weight": 0}, {"loss": False}, {"train": False}])
def test_answers_that_are_not_learned(mark: dict[str, Any]) -> None:
    found, _ = read({"messages": [ASK, {**ANSWER, **mark}, ASK, {**ANSWER, "weight": 1, "content": "又答"}]})
    assert found.learned == ("又答",) and found.size == 2 and found.text == "问\n答\n问\n又答"
    assert parse(blob({"messages": [ASK, {**ANSWER, **mark}]}), Shape("chat")).dropped == 1
    with pytest.raises(BadRecord, match=r"must be 0 or 1, got 0\.5"):
        read_chat({"messages": [ASK, {**ANSWER, "weight": 0.5}]}, Counter())


def called(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_tools_calls_and_thoughts() -> None:
    """OpenAI's form, the same as JSON inside JSON (minimind's rows), ShareGPT's turns: one chat."""
    tool = {"name": "天气", "description": "说天气", "parameters": {"type": "object"}}
    wanted = Chat((ASK, {"role": "assistant", "content": "", "tool_calls": [called("天气", a=1)],
                         "reasoning_content": "想"}, {"role": "tool", "content": "晴"}, ANSWER),
                  tools=({"type": "function", "function": tool},))  # fmt: skip
    call = {"role": "assistant", "content": None, "reasoning_content": "想",
            "tool_calls": [{"id": "1", "function": {"name": "天气", "arguments": '{"a": 1}'}}]}  # fmt: skip
    result = {"role": "tool", "content": "晴", "tool_call_id": "1"}
    assert read({"messages": [ASK, call, result, ANSWER], "tools": [{"type": "function", "function": tool}]}) == (
        wanted, {})  # fmt: skip
    system = {"role": "system", "content": "", "tools": json.dumps([tool])}
    flat = {**call, "content": "", "tool_calls": json.dumps([{"name": "天气", "arguments": {"a": 1}}])}
    assert read({"conversations": [system, ASK, flat, result, ANSWER]}) == (wanted, {})
    turns = [("human", "问"), ("function_call", '{"name": "天气", "arguments": {"a": 1}}'), ("observation", "晴"),
             ("gpt", "答")]  # fmt: skip
    found, notes = read({"conversations": [{"from": who, "value": text} for who, text in turns],
                         "tools": json.dumps([tool])})  # fmt: skip
    assert [{k: v for k, v in m.items() if k != "reasoning_content"} for m in wanted.messages] == list(found.messages)
    assert found.tools == wanted.tools and not notes
    assert found.learned == ('<tool_call>\n{"name": "天气", "arguments": {"a": 1}}\n</tool_call>', "答")
    odd = [("human", "问"), ("function_call", "天气(1)"), ("observation", "晴"), ("gpt", "答")]
    found, _ = read({"conversations": [{"from": who, "value": text} for who, text in odd]})
    assert found.learned == ("天气(1)", "答")


@pytest.mark.parametrize(("more", "said"), [
    ({"tools": [{}]}, "a tool must be an object with a name"), ({"tools": "[{"}, "tools is no JSON"),
    ({"messages": [ASK, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "arguments .* are no JSON"),
    ({"messages": [ASK, {**ANSWER, "tool_calls": [3]}]}, "a tool call must be"),
    ({"messages": [ASK, {**ANSWER, "reasoning_content": 3}]}, "must be text"),
])  # fmt: skip
def test_bad_tools_and_calls_are_said(more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRecord, match=said):
        read_chat({"messages": [ASK, ANSWER], **more}, Counter())


def test_the_longest_answer_counts() -> None:
    """Of a chat the longest answer, not its text and not its questions, is held against `max_characters`."""
    long = {"messages": [{"role": "user", "content": "问" * 50}, ANSWER, ASK, {**ANSWER, "content": "答" * 9}]}
    assert len(parse(blob(long), Shape("chat", max_characters=9)).documents) == 1
    parsed = parse(blob(long), Shape("chat", max_characters=8))
    assert not parsed.documents and parsed.dropped == 1 and parsed.notes["longer than 8 characters"] == 1


KEYS = st.sampled_from(
    [
        *("messages", "conversations", "conversation", "chat", "role", "from", "content", "value", "system", "human"),
        *("assistant", "weight", "instruction", "input", "output", "history", "prompt", "chosen", "rejected", "text"),
        *("completion", "label", "title", "sections", "tool_calls", "function_call", "name", "arguments", "type"),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats() | st.sampled_from(["", "问", "user", "gpt", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(record=VALUES, kind=st.sampled_from(["text", "chat", "preference", "rated"]))
def test_any_record_is_a_document_or_bad(record: Any, kind: Any) -> None:
    """Never a traceback; what comes out can be rendered, and skipping leaves out exactly what stopping names."""
    kind_of(blob(record), None)
    parsed = parse(blob(record), Shape(kind, on_bad="skip"))
    assert len(parsed.documents) + parsed.bad + parsed.dropped == 1
    for document in parsed.documents:
        for part in stored(document):
            assert part.size and part.learned
            if not isinstance(part, Text):
                check_messages(part.messages if isinstance(part, Chat) else part.chat.messages)
    if parsed.bad:
        with pytest.raises(InputError, match=r"^a\.jsonl:1: .*on_bad=skip$"):
            parse(blob(record), Shape(kind))


@given(line=st.binary(max_size=60).filter(lambda b: b"\n" not in b))
def test_any_bytes_are_a_document_or_bad(line: bytes) -> None:
    parsed = parse(Blob("a:", 1, line, 0), Shape("text", on_bad="skip"))
    assert len(parsed.documents) + parsed.bad + parsed.dropped == bool(line.strip())
