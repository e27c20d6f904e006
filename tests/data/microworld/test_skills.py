"""The micro-world: right answers by other means, and a split that nothing leaks through."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from babyllama.data.microworld.skills import HELD_OUT, Example, Skill, chats, texts
from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.data.sources.known import SKILLS

BY_NAME = {skill.name: skill for skill in SKILLS}
MANY = 400


def examples(skill: Skill, *, held_out: bool = False, count: int = MANY) -> list[Example]:
    return list(skill.examples(count, 3, held_out=held_out))


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_what_is_held_out_occurs_nowhere_in_training(skill: Skill) -> None:
    trained = {c for e in examples(skill) for c in (e.asked, *e.others)}
    asked = {e.asked for e in examples(skill, held_out=True)}
    assert not trained & asked and not any(map(skill.holds_out, trained)) and all(map(skill.holds_out, asked))
    assert {c for e in examples(skill, held_out=True) for c in e.others}.isdisjoint(asked)
    drawn = {skill.draw(rng).asked for rng in [Random(0)] for _ in range(3000)}
    share = sum(map(skill.holds_out, drawn)) / len(drawn)
    assert len(drawn) > 60 and abs(share - HELD_OUT) < 4 * (HELD_OUT / len(drawn)) ** 0.5


def test_the_split_holds_in_the_words_too() -> None:
    """By reading the texts, without the combinations that the skills name."""

    def found(skill: str, pattern: str, *, held_out: bool) -> set[tuple[str, ...]]:
        made = examples(BY_NAME[skill], held_out=held_out, count=1500)
        return {
            tuple(sorted(m)) for e in made for m in re.findall(pattern, e.passage + e.question if held_out else e.text)
        }

    for skill, pattern in (
        ("rewriting", r"“(?:(小.|..)(?:没有)?把(\w+?)(?:吃|喝|打|弄|洗|关|拿|藏|撕|推|画|修))"),
        ("sums", r"^(\d+)(?:\+|加)(\d+)"),
        ("measure_words", r"(?:“(.)”和“(\w+)”|：(.)（）(\w+))"),
    ):
        seen, unseen = (found(skill, pattern, held_out=apart) for apart in (False, True))
        assert len(seen) > 50 and len(unseen) > 10
        if skill != "rewriting":  # there, the verb belongs to the combination
            assert not seen & unseen
    moves = {m for e in examples(BY_NAME["places"], count=1500) for m in re.findall(r"(小.)去了(\w+?)。", e.text)}
    asked = {(e.asked[0], e.asked[1]) for e in examples(BY_NAME["places"], held_out=True, count=1500)}
    assert len(moves) > 100 and not moves & asked


def test_training_texts_and_chats_say_of_themselves_which_they_are() -> None:
    told = {record["text"] for record in texts(SKILLS, 2200)}
    for skill in SKILLS:
        made = list(chats(skill, 60, 20))
        assert Counter(record["held_out"] for record in made) == {False: 60, True: 20}
        apart = {"".join(m["content"] for m in r["messages"]) for r in made if r["held_out"]}
        assert not apart & told
    documents = list(read_documents(CorpusChoice(name="sums", max_documents=300)))
    assert {d.held_out for d in documents} == {True, False}


def test_the_same_on_every_machine() -> None:
    first = [e.text for e in BY_NAME["sums"].examples(2, 0, held_out=False)]
    assert first == ["小虎有8个玻璃球，又得到83个，现在有多少个？个位8+3=11，十位0+8+1=9，等于91。",
                     "18+42等于多少？个位8+2=10，十位1+4+1=6，等于60。"]  # fmt: skip
