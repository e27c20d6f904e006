"""A chat that uses tools: an engine that writes what it is told to, so that the turns are looked at and not wit."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from babyllama.commands import chat
from babyllama.commands.chat import ChatRecipe, tools_of
from babyllama.data.toolworld.tools import TOOLS
from babyllama.errors import InputError
from babyllama.infer.request import Event, Request
from babyllama.infer.sampling import Sampling
from babyllama.recipe import load_recipe
from babyllama.serve.chat_commands import run_command
from babyllama.serve.conversation import Conversation, Used
from babyllama.serve.terminal import Talk
from babyllama.tokenizer.chat import render_chat
from babyllama.train.rl.agents import ToolUse

from .small_run import small_tokenizer

QUESTION = "12乘以31？"
SPECS = [tool.spec for tool in TOOLS.values()]


def written(name: str, **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


class Scripted:
    """Writes these texts one after the other, a token at a time, whatever it is asked."""

    def __init__(self, texts: Sequence[str], context: int = 4096) -> None:
        self.texts, self.context, self.prompts = iter(texts), context, list[str]()

    def events(self, request: Request) -> Iterator[Event]:
        tokenizer = small_tokenizer()
        self.prompts.append(tokenizer.decode(request.prompt, skip_special=False))
        for token in tokenizer.encode(next(self.texts)):
            yield Event(0, (token,))
        yield Event(0, (tokenizer.eos_id,), "stop")


def conversation(*texts: str, rounds: int = 4, context: int = 4096) -> tuple[Conversation, Scripted]:
    engine: Any = Scripted(texts, context)
    return Conversation(engine, small_tokenizer(), Sampling(), tools=tools_of(ToolUse(rounds=rounds))), engine


def prompt_of(*messages: Any) -> str:
    return small_tokenizer().decode(render_chat(small_tokenizer(), messages, True, SPECS).tokens, skip_special=False)


CALLS = "看一下。\n" + written("calculator", expression="12*31") + "\n" + written("weather", city="月亮", day="x")
CALLED = {"role": "assistant", "content": "看一下。", "tool_calls": [
    {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "12*31"}}},
    {"type": "function", "function": {"name": "weather", "arguments": {"city": "月亮", "day": "x"}}}]}  # fmt: skip
RESULTS = [{"role": "tool", "content": "372"}, {"role": "tool", "content": "错误：没有城市 月亮"}]
ASKED, ANSWERED = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": "得372 < 400"}


def test_calls_are_answered_and_the_model_goes_on(tmp_path):
    talk, engine = conversation(CALLS, "得372 < 400", "好")
    pieces = list(talk.ask(QUESTION))
    used = [piece for piece in pieces if isinstance(piece, Used)]
    assert used == [("calculator", '{"expression": "12*31"}', "372"),
                    ("weather", '{"city": "月亮", "day": "x"}', "错误：没有城市 月亮")]  # fmt: skip
    at = pieces.index(used[0])
    said = ["".join(map(str, part)) for part in (pieces[:at], pieces[at + 2 :])]
    assert said == ["看一下。", "得372 < 400"]
    assert talk.messages == [ASKED, CALLED, *RESULTS, ANSWERED]
    ids = small_tokenizer().encode
    assert talk.tokens == len(ids(CALLS)) + len(ids("得372 < 400")) + 2  # and two end tokens
    list(talk.ask("谢谢"))
    assert engine.prompts == [prompt_of(ASKED), prompt_of(ASKED, CALLED, *RESULTS),
                              prompt_of(*talk.messages[:-1])]  # fmt: skip

    on, file = Talk(talk, lambda path: pytest.fail("opens a model"), None, True), tmp_path / "a.jsonl"
    run_command(on, f"/save {file}")
    assert json.loads(file.read_text("utf-8")) == {"messages": talk.messages, "tools": SPECS}
    kept = [*talk.turns]
    run_command(on, "/reset")
    run_command(on, f"/load {file}")
    assert talk.turns == kept and talk.question == "谢谢"
    assert talk.take_back() == "谢谢" and talk.messages == [ASKED, CALLED, *RESULTS, ANSWERED]


def test_an_answer_that_was_stopped_goes_on_after_its_tools():
    talk, engine = conversation(CALLS, "得372 < 400", " < 400", "好")
    with closing(talk.ask(QUESTION)) as pieces:
        next(piece for piece in pieces if piece == "得")
    assert talk.turns[-1].answer == "得"
    assert "".join(map(str, talk.ask(*talk.unfinished()))) == " < 400"
    assert talk.messages == [ASKED, CALLED, *RESULTS, {"role": "assistant", "content": "得 < 400"}]
    assert engine.prompts[-1] == prompt_of(ASKED, CALLED, *RESULTS) + "得"


def test_rounds_have_an_end_and_then_a_call_is_shown_as_it_is():
    call = written("calculator", expression="1+1")
    talk, engine = conversation(call, call, call, rounds=2)
    first, second, *rest = talk.ask(QUESTION)
    assert [first, second] == [("calculator", '{"expression": "1+1"}', "2")] * 2 and "".join(map(str, rest)) == call
    assert len(engine.prompts) == 3 and talk.turns[0].answer == call


def test_what_the_tools_said_may_not_fit():
    room = len(render_chat(small_tokenizer(), [ASKED], True, SPECS).tokens) + 40
    talk, _ = conversation(CALLS, "x", context=room)
    with pytest.raises(InputError, match=f"context of {room} tokens is full"):
        list(talk.ask(QUESTION))
    assert talk.messages == [ASKED, CALLED, *RESULTS, {"role": "assistant", "content": ""}]


def test_tools_and_a_system_message_that_fill_the_context_are_named():
    """Shortening the question, which the engine would ask for, is no remedy."""
    with pytest.raises(InputError, match=r"tools: \d+ tokens leave no room .* context of 128; leave that out"):
        conversation(context=128)
    with pytest.raises(InputError, match=r"system message: \d+ tokens leave no room"):
        Conversation(Scripted([], 16), small_tokenizer(), Sampling(), system="说" * 30)  # type: ignore[arg-type]


def test_a_template_without_tools_is_refused():
    with pytest.raises(InputError, match="knows no tools"):
        Conversation(Scripted([]), small_tokenizer().with_template("bos"), Sampling(), tools=tools_of(ToolUse()))  # type: ignore[arg-type]


def test_the_verb_answers_piped_questions_with_tools(tmp_path, monkeypatch, capsys):
    """Answers on stdout, calls and results apart from them."""
    engine = Scripted([CALLS, "得372", "你好"])
    (tmp_path / "config.json").write_text("{}")  # a model's folder
    monkeypatch.setattr(ChatRecipe, "open", lambda _: (engine, small_tokenizer()))
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n你好\n"))
    chat.main(load_recipe(ChatRecipe, None, [f"model={tmp_path}", "tools.kind=toolworld"]))
    shown = capsys.readouterr()
    assert shown.out == "看一下。\n得372\n你好\n"
    assert shown.err.splitlines()[1:] == [
        "it may call: calculator, calendar, city_facts, weather, convert", '→ calculator {"expression": "12*31"}',
        "← 372", '→ weather {"city": "月亮", "day": "x"}', "← 错误：没有城市 月亮"]  # fmt: skip
