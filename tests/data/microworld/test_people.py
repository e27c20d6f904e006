"""Who is where, whose aunt, what is told: worked out from the passage alone."""

from __future__ import annotations

import re

from babyllama.data.microworld.people import PEOPLE

BY_NAME = {skill.name: skill for skill in PEOPLE}
MANY = 400


def examples(name):
    return list(BY_NAME[name].examples(MANY, 3, held_out=False))


def test_places_by_walking() -> None:
    for e in examples("places"):
        where, holder = {}, {}
        for line in e.passage.split("。")[:-1]:
            if "去了" in line:
                name, room = line.split("去了")
                where[name] = room
            else:
                name, thing = re.match(r"(小.)拿起了一.(\w+)", line).groups()
                holder[thing] = name
        about = e.question.removesuffix("在哪里？")
        assert e.answer.endswith(f"在{where[holder.get(about, about)]}。")


KIN = {
    "爷爷": "爸爸的爸爸", "奶奶": "爸爸的妈妈", "外公": "妈妈的爸爸", "外婆": "妈妈的妈妈", "嫂子": "哥哥的妻子",
    "舅妈": "舅舅的妻子", "姑父": "姑姑的丈夫", "侄女": "哥哥的女儿", "姐夫": "姐姐的丈夫", "婶婶": "叔叔的妻子",
}  # fmt: skip


def test_families_by_following_the_facts() -> None:
    for e in examples("family"):
        facts = {(one, what): other for one, what, other in re.findall(r"(\w+?)的(\w+?)是(\w+?)。", e.passage)}
        (first, second), result = re.match(r"(\w+)的(\w+)是(\w+)，", e.answer).group(1, 2), e.answer[-3:-1]
        child = e.asked[0]
        assert facts[facts[child, first], second] in e.question and child in e.question
        assert KIN.get(result, f"{first}的{second}") == f"{first}的{second}"


def test_what_is_not_told_is_said_to_be_unknown() -> None:
    known = 0
    for e in examples("unknown"):
        stem = re.sub(r"什么(颜色|天气)?.*", "", e.question)
        told = stem in e.passage
        assert told != (e.answer == "不知道，短文里没有说。")
        assert not told or e.answer in e.passage
        known += told
    assert 0.4 < known / MANY < 0.6


def test_causes_and_reading_answer_from_the_passage() -> None:
    for e in examples("causes"):
        assert e.answer.removeprefix("因为").removeprefix("后来，").rstrip("。") in e.passage
    for e in examples("reading"):
        child = str(e.asked[0])
        parts = re.split(f"和{child}一起去|{child}|去了|去", e.answer.rstrip("。"))
        assert all(set(part) <= set(e.passage) for part in parts) and any(part[:2] in e.passage for part in parts)
