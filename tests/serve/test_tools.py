"""Tools over HTTP: an engine that says what it is told to, so that the shapes are looked at and not a model's wit."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from small import SMALL_TEXT
from test_tools import HERMES, WEATHER, called, tokenizer_with

from babyllama.infer.engine import Engine
from babyllama.infer.request import Event, Request
from babyllama.model.config import ModelConfig
from babyllama.serve.models import Models, Served
from babyllama.serve.worker import Worker
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe
from conftest import sharp_model

from .conftest import talked, told_here

QUESTION = {"role": "user", "content": "ab?"}


class Told:
    """An engine whose answers are all the same."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.context, self.slots = tokens, 4096, SimpleNamespace(most=8)
        self.open: dict[int, list[int]] = {}
        self.requests: list[Request] = []

    @property
    def busy(self) -> bool:
        return bool(self.open)

    def add(self, request: Request) -> int:
        self.requests.append(request)
        self.open[len(self.requests)] = list(self.tokens)
        return len(self.requests)

    def remove(self, id: int) -> bool:
        return self.open.pop(id, None) is not None

    def step(self) -> list[Event]:
        events = [Event(id, (left.pop(0),), None if left else "stop") for id, left in self.open.items()]
        self.open = {id: left for id, left in self.open.items() if left}
        return events


def asked(tokenizer: Tokenizer, answer: str, *bodies: dict[str, Any]) -> tuple[list[httpx.Response], list[Request]]:
    """What a server says whose model answers so, and what its engine was asked."""
    engine = Told([*tokenizer.encode_rendered(answer, [], HERMES)[0], tokenizer.eos_id])
    models = Models({"m": lambda: [Served("m", Worker(engine), tokenizer)]})  # type: ignore[arg-type]
    posted = [("/v1/chat/completions", {"model": "m", **body}) for body in bodies]
    return told_here(models, ["m"], posted), engine.requests


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return tokenizer_with(tmp_path_factory.mktemp("hermes"), HERMES)


def test_calls_whole_and_as_a_stream(tokenizer):
    body = {"messages": [QUESTION], "tools": [WEATHER], "tool_choice": "auto"}
    answer = "ab\n" + called("weather", {"town": "a"}) + "\n" + called("weather", {"town": "b"})
    (whole, stream), requests = asked(tokenizer, answer, body, {**body, "stream": True})
    choice = whole.json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "ab"
    calls = choice["message"]["tool_calls"]
    assert [(call["type"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls] == [
        ("function", "weather", {"town": "a"}), ("function", "weather", {"town": "b"})]  # fmt: skip
    assert len({call["id"] for call in calls}) == 2
    events = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    told = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [(call["index"], call["function"]) for call in told] == [(i, c["function"]) for i, c in enumerate(calls)]
    assert "".join(delta.get("content") or "" for delta in deltas).strip() == "ab"
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert "weather" in tokenizer.decode(requests[0].prompt, skip_special=False)


def test_an_answer_that_calls_nothing_and_a_chat_that_goes_on(tokenizer):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "a"}'}}
    chat = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "b", "tool_call_id": "1"}]  # fmt: skip
    plain = {"messages": [QUESTION], "tools": [WEATHER], "tool_choice": "none"}
    (told, none), requests = asked(tokenizer, "ab", {"messages": chat, "tools": [WEATHER]}, plain)
    for answer in (told, none):
        choice = answer.json()["choices"][0]
        assert choice["finish_reason"] == "stop" and choice["message"]["content"] == "ab"
        assert "tool_calls" not in choice["message"]
    texts = [tokenizer.decode(request.prompt, skip_special=False) for request in requests]
    assert '{"name": "weather", "arguments": {"town": "a"}}' in texts[0] and "weather" not in texts[1]


@pytest.mark.parametrize("kind", ["own", "hermes"])
def test_a_call_that_is_demanded_comes_by_a_model_that_knows_nothing(tokenizer, kind):
    """With OpenAI's own client, whole and as a stream. In hermes' vocabulary what stands around a call are tokens."""
    if kind == "own":
        tokenizer = train_bpe(SMALL_TEXT, 460)
    model = sharp_model(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024))  # fmt: skip
    models = Models({"m": lambda: [Served("m", Worker(Engine(model, tokenizer.vocab_size)), tokenizer)]})
    forecast = {"type": "object", "required": ["town", "days"], "properties": {
        "town": {"type": "string", "maxLength": 3},
        "days": {"type": "integer", "minimum": 1, "maximum": 9}}}  # fmt: skip
    tools: Any = [{"type": "function", "function": {"name": "forecast", "parameters": forecast}},
                  {"type": "function", "function": {"name": "now"}}]  # fmt: skip
    named: Any = {"type": "function", "function": {"name": "forecast"}}

    async def story(client: httpx.AsyncClient) -> list[list[tuple[str, str]]]:
        found = list[list[tuple[str, str]]]()
        official = openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=client)
        for seed in range(2):
            given = {"model": "m", "messages": [QUESTION], "tools": tools, "seed": seed}
            for more in ({"tool_choice": "required"}, {"tool_choice": named},
                         {"tool_choice": "required", "parallel_tool_calls": False}):  # fmt: skip
                whole = (await official.chat.completions.create(**given, **more)).choices[0]
                assert whole.finish_reason == "tool_calls" and not whole.message.content
                calls = [(c.function.name, c.function.arguments) for c in whole.message.tool_calls or ()]
                pieces = list[tuple[str, str]]()
                async for event in await official.chat.completions.create(**given, **more, stream=True):
                    pieces += [(c.function.name, c.function.arguments)
                               for c in event.choices[0].delta.tool_calls or ()]  # fmt: skip
                assert pieces == calls
                found.append(calls)
        return found

    found = talked(models, ["m"], story)
    for calls in found:
        for name, text in calls:
            arguments = json.loads(text)
            assert arguments.keys() == ({"town", "days"} if name == "forecast" else set())
            assert name == "now" or (len(arguments["town"]) <= 3 and arguments["days"] in range(1, 10))
    assert all(len(calls) == 1 for calls in [*found[1::3], *found[2::3]]) and all(found)
    assert {calls[0][0] for calls in found[1::3]} == {"forecast"}


@pytest.mark.parametrize(("more", "param", "said"), [
    ({"tool_choice": "any"}, "tool_choice", "should be 'auto', 'none' or 'required'"),
    ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, "tool_choice", "tools are: weather"),
    ({"tool_choice": {"type": "custom"}}, "tool_choice.type", "should be 'function'"),
    ({"tool_choice": "required", "tools": []}, "tool_choice", "tools are: none"),
    ({"tool_choice": "required", "tools": [{"type": "function", "function": {
        "name": "f", "parameters": {"type": "string"}}}]}, "tools", "the parameters of f must describe an object"),
    ({"tool_choice": "required", "tools": [{"type": "function", "function": {
        "name": "f", "parameters": {"properties": {"a": {"type": "odd"}}}}}]}, "tools", "parameters: "),
    ({"tool_choice": "required", "messages": [QUESTION, {"role": "assistant", "content": "a"}]}, "tool_choice",
     "an answer that goes on"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
    ({"messages": [QUESTION, {"role": "assistant", "tool_calls": [
        {"id": "1", "function": {"name": "f", "arguments": "[]"}}]}]}, "messages", "must be a JSON object"),
])  # fmt: skip
def test_what_cannot_be_is_said(tokenizer, more, param, said):
    (answer,), _ = asked(tokenizer, "ab", {"messages": [QUESTION], "tools": [WEATHER], **more})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and said in error["message"]


@pytest.mark.parametrize("more", [{}, {"tool_choice": "required"}])
def test_a_template_without_tools_says_so(tokenizer, more):
    (answer,), _ = asked(tokenizer.with_template("bos"), "ab", {"messages": [QUESTION], "tools": [WEATHER], **more})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == "tools" and "knows no tools" in error["message"]


def test_a_thought_whole_and_as_a_stream(tokenizer):
    """Apart from what is said; the switch decides how the prompt ends, and with it where the answer begins."""
    body, answer = {"messages": [QUESTION]}, "<think>\nab\n</think>\n\nba"
    (whole, stream), _ = asked(tokenizer, answer, body, {**body, "stream": True})
    message = whole.json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("ab", "ba")
    events = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "ab"
    assert "".join(delta.get("content") or "" for delta in deltas) == "ba"


def test_a_thought_goes_on_as_a_thought(tmp_path):
    """Of an answer that was cut off while it thought; after it what comes is said, also where that has a mark in it."""
    own = train_bpe(SMALL_TEXT, 460)
    begun = [{"content": "<think>\na"}, {"content": "", "reasoning_content": "a"}, {"content": "b<think>"}]
    bodies = [{"messages": [QUESTION, {"role": "assistant", **message}]} for message in begun]
    answers, requests = asked(own, "b\n</think>\n\nba", *bodies)
    told = [answer.json()["choices"][0]["message"] for answer in answers]
    assert [(one.get("reasoning_content"), one["content"]) for one in told] == [
        ("b", "ba"), (None, "b\n</think>\n\nba"), (None, "b\n</think>\n\nba")]  # fmt: skip
    ends = [own.decode(request.prompt, skip_special=False).rpartition("<|assistant|>")[2] for request in requests]
    assert ends == ["<think>\na", "<think>\na\n</think>\n\n", "b<think>"]


def test_the_switch_of_the_built_in_template(tmp_path):
    own = train_bpe(SMALL_TEXT, 460)
    body = {"messages": [QUESTION, {"role": "assistant", "content": "b", "reasoning_content": "a"}, QUESTION],
            "tools": [WEATHER]}  # fmt: skip
    bodies = [{**body, "chat_template_kwargs": {"enable_thinking": on}} for on in (True, False, None)]
    answers, requests = asked(own, "ab\n</think>\n\n" + called("weather", {"town": "a"}), *bodies)
    ends = [own.decode(request.prompt, skip_special=False).rpartition("<|assistant|>")[2] for request in requests]
    assert ends == ["<think>\n", "<think>\n\n</think>\n\n", ""]
    first, second = (answer.json()["choices"][0] for answer in answers[:2])
    assert first["message"]["reasoning_content"] == "ab" and first["finish_reason"] == "tool_calls"
    assert "reasoning_content" not in second["message"] and second["message"]["content"].startswith("ab\n</think>")
    assert "<think>\na\n</think>\n\nb</s>" in own.decode(requests[0].prompt, skip_special=False)
