"""Answers in several turns, by a sampler that says what it is told to: the turns are looked at, no model's wit."""

import pytest
from small import SMALL_TEXT

from babyllama.data.streams.prompts import Prompt
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.train import train_bpe
from babyllama.train.rl import agents
from babyllama.train.rl.agents import Agents, Asked, ToolUse, seen
from babyllama.train.rl.rewards import Exact, ValidCalls
from babyllama.train.rl.sampler import Drawn

TOKENIZER = train_bpe(SMALL_TEXT, 400)
SPEC = agents.TOOLS["calculator"].spec
QUESTION = [{"role": "user", "content": "2*3?"}]


def calling(expression, name="calculator"):
    function = {"name": name, "arguments": {"expression": expression}}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def text_of(message):
    """The template's own words for an answer, its end apart."""
    rendered = render_chat(TOKENIZER, [*QUESTION, message])
    return [token for token, on in zip(rendered.tokens, rendered.mask, strict=True) if on]


@pytest.fixture
def told(monkeypatch):
    """[turns] of each answer → (the prompt, what agents make of them); only the first may have several."""

    def play(*answers, room=2000, rounds=4, tools=(SPEC,), use=True):
        prompt = render_chat(TOKENIZER, QUESTION, True, list(tools)).tokens
        left = [list(turns) for turns in answers]

        def draw(self, model, prompts, temperature, told=False, meanwhile=None, goes_on=None):
            texts = [turns.pop(0) for turns, _ in zip(left, prompts, strict=False)]
            return [Drawn(text, text[-1] == TOKENIZER.eos_id, [-1.0] * len(text)) for text in texts]

        monkeypatch.setattr(agents.Sampler, "__call__", draw)
        agent = Agents(TOKENIZER, 60, ToolUse(rounds=rounds) if use else None, room)
        return prompt, agent(None, [(prompt, i) for i in range(len(answers))], 1.0, True)

    return play


def test_an_answer_with_calls_is_what_training_renders(told):
    """Tokens and mask of the chat as the template writes it whole: learned is what the model wrote."""
    turns = [calling("2*3"), calling("6+1"), {"role": "assistant", "content": "7"}]
    prompt, (found,) = told([text_of(turn) for turn in turns])
    results = [{"role": "tool", "content": content} for content in "67"]
    chat = [*QUESTION, turns[0], results[0], turns[1], results[1], turns[2]]
    wanted = render_chat(TOKENIZER, chat, tools=[SPEC])
    assert prompt + found.tokens == wanted.tokens
    assert [False] * len(prompt) + found.own == wanted.mask
    assert len(found.logprobs) == sum(found.own) and (found.calls, found.answered, found.ended) == (2, 2, True)
    (marked,) = seen(TOKENIZER, [found], [Asked.of(TOKENIZER, Prompt(prompt, TOKENIZER.encode("7")))])
    assert marked.text == "7" and Exact()(marked) == ValidCalls()(marked) == 1


@pytest.mark.parametrize(("first", "more", "share"), [
    (calling("2*"), {}, 0), (calling("1", "weather"), {}, 0), (calling("2*3"), {"tools": ()}, 0),
    (calling("2*3"), {}, 1)])  # fmt: skip
def test_a_call_that_fails_is_told_and_counted(told, first, more, share):
    last = {"role": "assistant", "content": "<think>\n6\n</think>\n\n好"}
    _, (found,) = told([text_of(first), text_of(last)], **more)
    results = TOKENIZER.decode([t for t, own in zip(found.tokens, found.own, strict=True) if not own])
    assert ("错误" in results) == (not share)
    (marked,) = seen(
        TOKENIZER, [found], [Asked.of(TOKENIZER, Prompt([1], TOKENIZER.encode("<think>\n7\n</think>\n\n好")))]
    )
    assert ValidCalls()(marked) == share and (marked.text, marked.reference) == ("好", "好")


def test_where_an_answer_ends(told):
    call, said = text_of(calling("2*3")), text_of({"role": "assistant", "content": "6"})
    _, (rounds,) = told([call, call, said], rounds=1)
    assert rounds.calls == 1 and rounds.last == call
    (marked,) = seen(TOKENIZER, [rounds], [Asked.of(TOKENIZER, Prompt([1], said))])
    assert ValidCalls()(marked) == 0.5  # its last words are a call that nobody answered
    _, (narrow,) = told([call, said], room=0)
    assert narrow.tokens == call and narrow.calls == 0
    _, (cut, plain) = told([call[:-1], said], [said])
    assert cut.tokens == call[:-1] and not cut.ended and plain.tokens == said
    _, (without,) = told([call, said], use=False)
    assert without.tokens == call and without.own == [True] * len(call)
