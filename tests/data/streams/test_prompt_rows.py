"""Prompts of prepared chats."""

import numpy as np
import pytest
from small_data import CHATS, prepared, recipe, save_tokenizer, write_lines

from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import DataRecipe
from babyllama.data.streams.prompts import Prompts, last_answers, prompt_of
from babyllama.errors import InputError
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer

DEEP = [{"messages": [{"role": "user", "content": "一加一等于几？"}, {"role": "assistant", "content": "等于2。"},
                      {"role": "user", "content": f"加{i}呢？"}, {"role": "assistant", "content": f"等于{i + 2}。"}]}
        for i in range(8)]  # fmt: skip


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("prompts")
    tokenizer, single = save_tokenizer(folder / "tok"), write_lines(folder / "single.jsonl", CHATS)
    deep = write_lines(folder / "deep.jsonl", DEEP)
    corpora = [{"path": str(single)}, {"path": str(deep)}]
    prepare(recipe(folder / "out", tokenizer, corpora, "workers=1", "validation=0.2"))
    return Prepared.open(folder / "out")


def of(prepared, room=64, split="train", **choice):
    return Prompts(prepared, split, DataRecipe(path=prepared.path, **choice), room, 1)


def test_a_prompt_ends_where_the_last_answer_begins(chats):
    """The oracle is the template: a chat without its last answer, ready to be answered."""
    tokenizer, prompts = Tokenizer.load(chats.path), of(chats)
    known = {}
    for chat in [*CHATS, *DEEP]:
        messages = chat["messages"]
        asked = render_chat(tokenizer, messages[:-1], add_generation_prompt=True).tokens
        known[tuple(asked)] = messages[-1]["content"]
    taken = prompts.taken(0, prompts.count)
    assert len({tuple(p.tokens) for p in taken}) == prompts.count  # each once an epoch
    for prompt in taken:
        assert tokenizer.decode(prompt.answer) == known[tuple(prompt.tokens)]
        assert prompt.answer[-1] in tokenizer.stop_ids
    assert prompts.longest == max(len(p.tokens) for p in taken) and prompts.passed_over == 0


def test_numbers_are_shuffled_anew_and_mixed_by_weight(chats):
    prompts = of(chats)
    first, second = (prompts.taken(epoch * prompts.count, prompts.count) for epoch in (0, 1))
    assert first != second and sorted(map(str, first)) == sorted(map(str, second))
    assert prompts.taken(3, 4) == first[3:7]
    deep = of(chats, weights={"single": 1.0, "deep": 3.0}).taken(0, 1000)
    assert sum(len(p.tokens) > prompts.longest - 6 for p in deep) >= 750
    assert of(chats).spread(5) == of(chats).spread(5) and len(of(chats).spread(5)) == 10


def test_without_an_answer_the_stretch_is_empty(chats, monkeypatch):
    store = chats.store("single", "train")
    mask = store.mask(0, len(store))
    second = slice(*store.document_offsets[1:3])
    mask[second] = False
    monkeypatch.setattr(type(store), "mask", lambda self, start, stop: mask[start:stop])
    found = last_answers(store)
    assert found[1].tolist() == [second.start, *[second.stop] * 3] and np.all(found[2:, 3] > found[2:, 2])
    assert prompt_of(store, found[1]).answer == []


def test_what_holds_no_prompts_is_said(chats, tmp_path):
    with pytest.raises(InputError, match="no prompt fits into 3 tokens"):
        of(chats, room=3)
    with pytest.raises(InputError, match=r"text of .* holds texts"):
        of(prepared(tmp_path))
    single = {"weights": {"single": 1.0}}
    short = of(chats, room=of(chats, **single).longest - 1, **single)
    assert short.passed_over > 0


def test_with_tools_a_prompt_ends_before_the_first_call(tmp_path):
    """The oracle is the template: the chat up to its last question, ready to be answered."""
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    asked = [[*DEEP[i]["messages"], {"role": "user", "content": f"再加{i}呢？"}] for i in range(4)]
    more = [[{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "二"}] * n
            for n in range(4)]  # fmt: skip
    answer = {"role": "assistant", "content": "好。"}
    lines = [{"messages": [*chat, *calls, answer]} for chat, calls in zip(asked, more, strict=True)]
    tokenizer = save_tokenizer(tmp_path / "tok")
    corpora = [{"path": str(write_lines(tmp_path / "tools.jsonl", lines))}]
    prepare(recipe(tmp_path / "out", tokenizer, corpora, "workers=1", "validation=0"))
    vocabulary = Tokenizer.load(tmp_path / "out")
    prompts = Prompts(Prepared.open(tmp_path / "out"), "train", DataRecipe(path=tmp_path / "out"), 200, 1,
                      vocabulary.role_ids["user"])  # fmt: skip
    found = prompts.taken(0, 4)
    assert sorted(p.tokens for p in found) == sorted(render_chat(vocabulary, chat, True).tokens for chat in asked)
    assert {vocabulary.decode(p.answer) for p in found} == {"好。"}
