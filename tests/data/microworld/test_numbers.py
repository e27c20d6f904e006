"""Sums, comparisons and calendars, reckoned by other means."""

from __future__ import annotations

import datetime
import re

from babyllama.data.microworld.numbers import NUMBERS

BY_NAME = {skill.name: skill for skill in NUMBERS}
MANY = 400


def examples(name):
    return list(BY_NAME[name].examples(MANY, 3, held_out=False))


def test_sums_reckon_right() -> None:
    for e in examples("sums"):
        first, second = map(int, re.findall(r"\d+", e.question))
        less = any(word in e.question for word in ("-", "减", "送给", "少了"))
        assert e.answer.endswith(f"等于{first - second if less else first + second}。")
        for left, right in re.findall(r"([\d+-]+)=(\d+)", e.answer):
            signed = re.findall(r"[+-]?\d+", left)
            assert sum(map(int, signed)) == int(right)


def test_comparing_names_the_right_one() -> None:
    for e in examples("comparing"):
        told = dict(re.findall(r"(小.)\D{2}(\d+)", e.passage))
        best = (min if e.question[-2] in "小少" else max)(told, key=lambda name: int(told[name]))
        assert e.answer.split("，")[-1].startswith(best)


def test_counting_goes_round() -> None:
    monday = datetime.date(2024, 1, 1)
    for e in examples("calendar"):
        steps = int(re.findall(r"(\d)(?:天|个)", e.question)[-1]) * (-1 if "前" in e.question else 1)
        if found := re.search(r"星期(.)", e.question):
            day = monday + datetime.timedelta("一二三四五六日".index(found[1]) + steps)
            right = "星期" + "一二三四五六日"[day.weekday()]
        else:
            start, unit = re.findall(r"(\d+)(月|点)", e.question)[0]
            right = f"{(int(start) - 1 + steps) % 12 + 1}{unit}"
        assert e.answer.endswith(f"是{right}。")
