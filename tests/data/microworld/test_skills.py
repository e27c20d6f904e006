"""The micro-world: right answers by other means, and a split that nothing leaks through."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from babyllama.data.microworld.skills import HELD_OUT, Example, Skill, chats, texts
from babyllama.data.sources.corpora import SKILLS, CorpusChoice, read_documents

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


def test_sums_reckon_right() -> None:
    for e in examples(BY_NAME["sums"]):
        first, second = map(int, re.findall(r"\d+", e.question))
        less = any(word in e.question for word in ("-", "减", "送给", "少了"))
        assert e.answer.endswith(f"等于{first - second if less else first + second}。")
        for left, right in re.findall(r"([\d+-]+)=(\d+)", e.answer):
            signed = re.findall(r"[+-]?\d+", left)
            assert sum(map(int, signed)) == int(right)


def test_comparing_names_the_right_one() -> None:
    for e in examples(BY_NAME["comparing"]):
        told = dict(re.findall(r"(小.)\D{2}(\d+)", e.passage))
        best = (min if e.question[-2] in "小少" else max)(told, key=lambda name: int(told[name]))
        assert e.answer.split("，")[-1].startswith(best)


def test_counting_goes_round() -> None:
    import datetime

    monday = datetime.date(2024, 1, 1)
    for e in examples(BY_NAME["calendar"]):
        steps = int(re.findall(r"(\d)(?:天|个)", e.question)[-1]) * (-1 if "前" in e.question else 1)
        if found := re.search(r"星期(.)", e.question):
            day = monday + datetime.timedelta("一二三四五六日".index(found[1]) + steps)
            right = "星期" + "一二三四五六日"[day.weekday()]
        else:
            start, unit = re.findall(r"(\d+)(月|点)", e.question)[0]
            right = f"{(int(start) - 1 + steps) % 12 + 1}{unit}"
        assert e.answer.endswith(f"是{right}。")


def test_places_by_walking() -> None:
    for e in examples(BY_NAME["places"]):
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
    for e in examples(BY_NAME["family"]):
        facts = {(one, what): other for one, what, other in re.findall(r"(\w+?)的(\w+?)是(\w+?)。", e.passage)}
        (first, second), result = re.match(r"(\w+)的(\w+)是(\w+)，", e.answer).group(1, 2), e.answer[-3:-1]
        child = e.asked[0]
        assert facts[facts[child, first], second] in e.question and child in e.question
        assert KIN.get(result, f"{first}的{second}") == f"{first}的{second}"


def test_what_is_not_told_is_said_to_be_unknown() -> None:
    known = 0
    for e in examples(BY_NAME["unknown"]):
        stem = re.sub(r"什么(颜色|天气)?.*", "", e.question)
        told = stem in e.passage
        assert told != (e.answer == "不知道，短文里没有说。")
        assert not told or e.answer in e.passage
        known += told
    assert 0.4 < known / MANY < 0.6


def test_causes_and_reading_answer_from_the_passage() -> None:
    for e in examples(BY_NAME["causes"]):
        assert e.answer.removeprefix("因为").removeprefix("后来，").rstrip("。") in e.passage
    for e in examples(BY_NAME["reading"]):
        child = str(e.asked[0])
        parts = re.split(f"和{child}一起去|{child}|去了|去", e.answer.rstrip("。"))
        assert all(set(part) <= set(e.passage) for part in parts) and any(part[:2] in e.passage for part in parts)


def test_sentences_are_turned_and_keep_their_words() -> None:
    for e in examples(BY_NAME["rewriting"]):
        given = re.search(r"“(\w+)。”", e.question)[1]
        if e.answer.count("没有"):
            assert e.answer.replace("没有", "").rstrip("。") + "了" == given
        else:
            assert Counter(e.answer.strip("。")) - Counter("把被") == Counter(given) - Counter("把被")
    for e in examples(BY_NAME["opposites"]):
        given, wanted = re.match(r"(\w+)的反义词是(\w+)，", e.answer).groups()
        said = re.search(r"“(\w+)”", e.question)[1]
        assert e.answer.endswith(f"，{said.removesuffix(given)}{wanted}。") and given != wanted
    for e in examples(BY_NAME["measure_words"]):
        amount, noun = re.search(r"“(.)”和“(\w+)”|：(.)（）(\w+)。", e.question).group(1, 2) if "“" in e.question else \
            re.search(r"：(.)（）(\w+)。", e.question).groups()  # fmt: skip
        assert re.fullmatch(rf"{amount}\w{noun}。", e.answer)
