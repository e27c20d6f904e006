"""Preference pairs and rated answers in every form that people store them in."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from babyllama.data.sources.blobs import Blob
from babyllama.data.sources.calls import BadRecord
from babyllama.data.sources.documents import Chat, Preference, Rated, held_out, stored
from babyllama.data.sources.preferences import read_preference, read_rated
from babyllama.data.sources.records import Parsed, Shape, kind_of, parse

ASK = {"role": "user", "content": "问"}
ANSWER, OTHER = ({"role": "assistant", "content": text} for text in ("答", "不"))
SYSTEM = {"role": "system", "content": "系"}


def blob(record: Any) -> Blob:
    return Blob("a.jsonl:", 1, json.dumps(record, ensure_ascii=False).encode(), 0)


def read(record: Any, kind: Any) -> Parsed:
    return parse(blob(record), Shape(kind))


PAIRS = {
    "TRL": {"prompt": "问", "chosen": "答", "rejected": "不"},
    "messages": {"messages": [ASK], "chosen": ANSWER, "rejected": OTHER},
    "without a prompt": {"chosen": [ASK, ANSWER], "rejected": [ASK, OTHER]},
    "UltraFeedback": {"prompt": "问", "chosen": [ASK, ANSWER], "rejected": [ASK, OTHER]},
    "LLaMA-Factory, ShareGPT": {"conversations": [{"from": "human", "value": "问"}],
                                "chosen": {"from": "gpt", "value": "答"}, "rejected": {"from": "gpt", "value": "不"}},
    "MedicalGPT": {"system": "", "history": [], "question": "问", "response_chosen": "答", "response_rejected": "不"},
    "the web app's votes": {"prompt": [ASK], "chosen": [ANSWER], "rejected": [OTHER], "chosen_model": "a",
                            "rejected_model": "b", "time": "2026-11-30T10:00:00.000Z"},
}  # fmt: skip


@pytest.mark.parametrize("form", PAIRS)
def test_forms_of_pairs(form: str) -> None:
    assert kind_of(blob(PAIRS[form]), None) == "preference"
    parsed = read(PAIRS[form], "preference")
    assert parsed.documents == [Preference((ASK,), (ANSWER,), (OTHER,))] and not parsed.notes
    better, other = stored(parsed.documents[0])
    assert better == Rated((ASK,), (ANSWER,), True) and other == Rated((ASK,), (OTHER,), False)
    assert better.learned == ("答",) and other.learned == ("不",)
    as_chat = read(PAIRS[form], "chat")
    assert as_chat.documents == [Chat((ASK, ANSWER))]
    assert as_chat.notes == {"rejected answers of preference pairs": 1}


def test_all_that_both_answers_share_is_the_prompt() -> None:
    """Several turns: the earlier answers are not learned, whoever gave them."""
    before = [SYSTEM, ASK, {"role": "assistant", "content": "早"}, {"role": "user", "content": "再问"}]
    for record in (
        {"chosen": [*before, ANSWER], "rejected": [*before, OTHER]},
        {"system": "系", "history": [["问", "早"]], "prompt": "再问", "chosen": "答", "rejected": "不"},
        {
            "system": "系",
            "history": [["问", "早"]],
            "instruction": "再",
            "input": "问",
            "chosen": "答",
            "rejected": "不",
        },
    ):
        (pair,) = read(record, "preference").documents
        assert isinstance(pair, Preference)
        assert [m["content"].replace("\n", "") for m in pair.prompt] == [m["content"] for m in before]
        better, _ = pair.answers
        assert better.learned == ("答",) and [m.get("learned") for m in better.chat.messages] == [
            None, None, False, None, True]  # fmt: skip


@pytest.mark.parametrize("record,reason", [
    ({"prompt": "问", "chosen": "答", "rejected": " "}, "an empty answer"),
    ({"prompt": "问", "chosen": "", "rejected": "不"}, "an empty answer"),
    ({"prompt": "问", "chosen": "答", "rejected": "答"}, "two equal answers"),
])  # fmt: skip
def test_pairs_that_teach_nothing_are_left_out_and_counted(record: dict[str, Any], reason: str) -> None:
    parsed = read(record, "preference")
    assert not parsed.documents and parsed.dropped == 1 and parsed.notes == {f"preference pairs with {reason}": 1}


@pytest.mark.parametrize("record", [
    {"chosen": "答", "rejected": "不"}, {"prompt": [ASK, ANSWER], "chosen": "答", "rejected": "不"},
    {"prompt": "问", "chosen": [ASK], "rejected": "不"},
    {"prompt": "问", "chosen": [ANSWER, ASK], "rejected": [SYSTEM]},
])  # fmt: skip
def test_what_is_no_pair_is_bad(record: dict[str, Any]) -> None:
    with pytest.raises(BadRecord, match="a question and two answers"):
        read_preference(record, Counter())


RATED = [
    {"prompt": "问", "completion": "答", "label": True},
    {"prompt": [ASK], "completion": [ANSWER], "label": True},
    {"instruction": "问", "input": "", "output": "答", "kto_tag": True},
    {"prompt": [ASK], "completion": [ANSWER], "label": True, "model": "a", "time": "2026-11-30T10:00:00.000Z"},
    {"messages": [ASK, ANSWER], "label": True},
]


@pytest.mark.parametrize("record", RATED)
def test_forms_of_rated_answers(record: dict[str, Any]) -> None:
    assert kind_of(blob(record), None) == "rated"
    parsed = read(record, "rated")
    assert parsed.documents == [Rated((ASK,), (ANSWER,), True)] and not parsed.notes
    key = next(key for key in ("label", "kto_tag") if key in record)
    assert read({**record, key: False}, "rated").documents == [Rated((ASK,), (ANSWER,), False)]


def test_of_several_answers_the_last_is_rated() -> None:
    (found,) = read({"messages": [ASK, ANSWER, ASK, OTHER], "label": False}, "rated").documents
    assert found == Rated((ASK, ANSWER, ASK), (OTHER,), False) and found.learned == ("不",)
    with pytest.raises(BadRecord, match="a question and an answer"):
        read_rated({"prompt": [ANSWER], "completion": [ANSWER], "label": True}, Counter())
    assert kind_of(blob({"text": "问", "label": True}), None) == "text"  # a label of something else
    assert kind_of(blob({"messages": [ASK, ANSWER], "label": 1}), None) == "chat"


def test_answers_to_one_prompt_are_held_out_together() -> None:
    pairs = [Preference(({**ASK, "content": f"问{n}"},), (ANSWER,), (OTHER,)) for n in range(200)]
    others = [Rated(pair.prompt, ({**ANSWER, "content": "又"},), True) for pair in pairs]
    sides = [held_out(pair, 0.5) for pair in pairs]
    assert sides == [held_out(other, 0.5) for other in others] and 60 < sum(sides) < 140
