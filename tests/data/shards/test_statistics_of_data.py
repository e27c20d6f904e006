"""Figures of a prepared folder against counts of the source documents: by Python's own means, one at a time."""

from __future__ import annotations

import statistics as by_python
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_data import recipe, save_tokenizer, write_lines

from babyllama.commands.prepare import main as prepare
from babyllama.data.shards import statistics as module
from babyllama.data.shards.shards import Prepared
from babyllama.data.shards.statistics import Words, histogram, statistics
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer

TEXTS = ["春眠不觉晓，处处闻啼鸟。",
         "abc 123 カタカナ 𠮷野家😀", "春眠不觉晓，处处闻啼鸟。", "一" * 300, "第二天 was über 9 o'clock\n好。",
         "只在训练里", "也在训练里"]  # fmt: skip
HELD = ["只在验证里", "也在训练里"]
TOOL = {"type": "function", "function": {"name": "find", "description": "找", "parameters": {"type": "object"}}}


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


CHATS = [
    chat(("user", "一？"), ("assistant", "一。")),
    chat(("system", "简短。"), ("user", "a < b？"), ("assistant", "<tool_call> 是标签。"), ("user", "二？"),
         ("assistant", "二。")),
    {**chat(("user", "查！"), ("assistant", ""), ("tool", "<think>三</think>"), ("assistant", "是三。")),
     "system": "你会查。", "tools": [TOOL]},
    {"messages": [{"role": "user", "content": "想？"},
                  {"role": "assistant", "content": "四。", "reasoning_content": "二加二"}]},
    {"messages": [{"role": "user", "content": "一？"}, {"role": "assistant", "content": "错。", "weight": 0},
                  {"role": "user", "content": "再来？"}, {"role": "assistant", "content": "一。"}]},
]  # fmt: skip
CHATS[2]["messages"][1]["tool_calls"] = [{"function": {"name": "find", "arguments": {"q": "<"}}}]
PAIRS = [{"prompt": f"{i}？", "chosen": "好" * (i + 1), "rejected": "坏" * (5 - i)} for i in range(5)] * 2
RATED = [{"prompt": f"{i}？", "completion": "答" * (i + 1), "label": i % 3 == 0} for i in range(7)]


@pytest.fixture(scope="module", params=["roles", "bos"])
def made(request, tmp_path_factory) -> tuple[Prepared, Tokenizer]:
    """Tiny vocabularies have most characters in pieces."""
    folder = tmp_path_factory.mktemp("stats")
    texts = [{"text": text, "held_out": False} for text in TEXTS] + [{"text": text, "held_out": True} for text in HELD]
    kept = CHATS if request.param == "roles" else [c for c in CHATS if "tools" not in c]
    corpora = {"a": texts, "b": [{"text": TEXTS[3], "held_out": False}, {"text": "只在乙里", "held_out": False}],
               "chats": kept, "pairs": PAIRS, "rated": RATED}  # fmt: skip
    given = [{"path": str(write_lines(folder / f"{name}.jsonl", records))} for name, records in corpora.items()]
    prepare(recipe(folder / "out", save_tokenizer(folder / "tok"), given, "workers=1", "validation=0",
                   f"template={request.param}"))  # fmt: skip
    return Prepared.open(folder / "out"), Tokenizer.load(folder / "tok").with_template(request.param)


@pytest.fixture(params=[module.STRETCH, 7])
def found(request, made, monkeypatch) -> dict[str, Any]:
    """In one stretch, and in as many as there are documents."""
    monkeypatch.setattr(module, "STRETCH", request.param)
    return statistics(*made, contexts=(20, 100))["corpora"]


def of_name(character: str) -> str | None:
    """The script of a character by its name in Unicode; None for blanks."""
    name = unicodedata.name(character, "")
    if character.isspace():
        return None
    starts = {"CJK UNIFIED": "hanzi", "KATAKANA": "kana", "HIRAGANA": "kana", "DIGIT": "digits", "LATIN": "latin"}
    return next((script for start, script in starts.items() if name.startswith(start)), "signs")


def test_texts(made, found):
    tokenizer = made[1]
    lengths = [len(tokenizer.encode(text)) + 1 for text in TEXTS + HELD]
    a = found["a"]
    assert (a["documents"], a["tokens"]) == (len(lengths), sum(lengths)) and a["splits"]["val"]["documents"] == len(
        HELD
    )
    assert a["characters"] == sum(map(len, TEXTS + HELD)) and a["bytes"] == sum(len(t.encode()) for t in TEXTS + HELD)
    assert a["learned"] == 1 and "chats" not in a
    assert a["lengths"]["most"] == max(lengths) and a["lengths"]["mean"] == pytest.approx(by_python.mean(lengths))
    assert a["lengths"]["percentiles"]["50"] == by_python.median_low(lengths)
    assert a["longer"] == {"20": sum(n > 21 for n in lengths), "100": sum(n > 101 for n in lengths)}
    assert sum(corpus["share"] for corpus in found.values()) == pytest.approx(1)
    counted = Counter(filter(None, map(of_name, "".join(TEXTS + HELD))))
    seen = Counter({name: value["characters"] for name, value in a["scripts"].items()})
    assert {name: seen.pop(name) for name in ("hanzi", "kana", "digits", "latin")} | {"signs": seen.total()} == counted


def test_what_is_there_twice(found):
    """In a: a text twice, one that b has, too, one that is held out although it is trained on; in pairs each twice."""
    assert found["a"]["duplicates"] == {"documents": 2, "share": 2 / 9, "elsewhere": 1, "held_out_in_training": 1}
    assert found["b"]["duplicates"] == {"documents": 1, "share": 1 / 2, "elsewhere": 1, "held_out_in_training": 0}
    assert found["pairs"]["duplicates"]["documents"] == 5 and found["rated"]["duplicates"]["documents"] == 0


def test_chats(made, found):
    tokenizer, chats = made[1], found["chats"]["chats"]
    roles = tokenizer.chat_template == "roles"
    some = [c for c in CHATS if roles or "tools" not in c]
    said = [[m["role"] for m in c["messages"]] for c in some]
    answers = [turns.count("assistant") for turns in said]
    assert chats["answers"]["mean"] == by_python.mean(answers) and chats["answers"]["most"] == max(answers)
    assert chats["answers_not_learned"] == 1 and chats["with_thinking"] == 1
    messages = Counter(role for turns in said for role in turns) + Counter(system=1)  # one is a key of its record
    assert chats["messages"] == (dict(messages) if roles else None)
    assert [chats[key] for key in ("with_system", "with_tools", "with_calls")] == (
        [2, 1, 1] if roles else [None, None, 0]
    )
    rendered = [render_chat(tokenizer, [dict(m) for m in c["messages"]]) for c in CHATS[:2]]
    learned = sum(sum(r.mask) for r in rendered) / sum(len(r.tokens) for r in rendered)
    assert 0 < learned < 1 and 0 < found["chats"]["learned"] < 1


def test_pairs_and_rated_answers(made, found):
    tokenizer, pairs, rated = made[1], found["pairs"]["pairs"], found["rated"]["rated"]
    sizes = {
        text: len(tokenizer.encode(text)) + 1
        for text in [*(p["chosen"] for p in PAIRS), *(p["rejected"] for p in PAIRS)]
    }
    assert pairs["pairs"] == len(PAIRS) and found["pairs"]["documents"] == 2 * len(PAIRS)
    for key in ("chosen", "rejected"):
        assert pairs[key]["mean"] == pytest.approx(by_python.mean(sizes[p[key]] for p in PAIRS))
    longer = [sizes[p["chosen"]] > sizes[p["rejected"]] for p in PAIRS]
    assert pairs["chosen_longer"] == pytest.approx(by_python.mean(longer))
    assert pairs["prompt"]["most"] == len(tokenizer.encode("4？")) + (2 if tokenizer.chat_template == "roles" else 1)
    good = [len(tokenizer.encode(r["completion"])) + 1 for r in RATED if r["label"]]
    assert (rated["good"], rated["bad"]) == (len(good), len(RATED) - len(good))
    assert rated["good_answer"]["mean"] == pytest.approx(by_python.mean(good))
    assert found["rated"]["chats"]["answers"]["most"] == 1


def test_the_histogram_goes_by_powers_of_two():
    lengths = [1, 2, 3, 4, 7, 8, 1023, 1024]
    found = histogram(np.array(lengths))
    assert [row[:2] for row in found[:3]] == [[1, 1], [2, 3], [4, 7]] and len(found) == 11
    assert [count for _, _, count in found] == [sum(low <= n <= high for n in lengths) for low, high, _ in found]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=6))
def test_scripts_of_any_texts(words, texts):
    tokenizer, known = words
    ids = [token for text in texts for token in [*tokenizer.encode(text), tokenizer.eos_id]]
    expected = sum((Counter(module.script_of(text)) for text in texts), Counter())
    expected.pop("blanks", None)
    counted = zip(module._NAMES, known.scripts(np.array(ids, np.uint16)).tolist(), strict=True)
    assert {name: count for name, count in counted if count} == dict(expected)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> tuple[Tokenizer, Words]:
    tokenizer = Tokenizer.load(save_tokenizer(tmp_path_factory.mktemp("words") / "tok"))
    return tokenizer, Words.of(tokenizer)


def test_a_label_that_is_not_there(made, tmp_path: Path):
    with pytest.raises(ValueError, match="no corpus 'x'"):
        statistics(*made, labels=["x"])
