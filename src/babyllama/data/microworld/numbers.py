"""Skills with numbers: sums with their written steps, comparing, counting on through days, months and hours."""

from __future__ import annotations

from random import Random

from babyllama.data.microworld.skills import Example, Skill
from babyllama.data.microworld.world import CHILDREN, FRUIT, HOURS, MONTHS, WEEKDAYS


def _steps_of_sum(a: int, b: int) -> str:
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    carry = ones // 10
    carried = f"{a // 10}+{b // 10}+1={tens + 1}" if carry else f"{a // 10}+{b // 10}={tens}"
    return f"个位{a % 10}+{b % 10}={ones}，十位{carried}，"


def _steps_of_difference(a: int, b: int) -> str:
    borrow = int(a % 10 < b % 10)
    top, tens = a % 10 + 10 * borrow, a // 10 - b // 10 - borrow
    borrowed = f"{a // 10}-{b // 10}-1={tens}" if borrow else f"{a // 10}-{b // 10}={tens}"
    return f"个位{top}-{b % 10}={top - b % 10}，十位{borrowed}，"


def _sum(rng: Random) -> Example:
    """a + b and c − b, where c = a + b, are one combination: who knows the one could tell the other."""
    a, b = rng.randint(1, 89), rng.randint(1, 89)
    while a + b > 99:
        a, b = rng.randint(1, 89), rng.randint(1, 89)
    asked = tuple(sorted((a, b)))
    child, thing = rng.choice(CHILDREN), rng.choice(FRUIT)
    if rng.random() < 0.5:
        question = rng.choice((f"{a}+{b}等于多少？", f"{a}加{b}是多少？",
                               f"{child}有{a}个{thing}，又得到{b}个，现在有多少个？",
                               f"{child}有{a}个{thing}，妈妈有{b}个，一共有多少个？"))  # fmt: skip
        return Example("", question, f"{_steps_of_sum(a, b)}等于{a + b}。", asked)
    c = a + b
    question = rng.choice((f"{c}-{b}等于多少？", f"{c}减{b}是多少？",
                           f"{child}有{c}个{thing}，送给别人{b}个，还剩多少个？",
                           f"{child}有{c}个{thing}，少了{b}个，还有多少个？"))  # fmt: skip
    return Example("", question, f"{_steps_of_difference(c, b)}等于{a}。", asked)


# What is compared, its unit, and the two words of the questions
_MEASURES = (("今年", "岁", "年纪大", "年纪小"), ("跳了", "下", "跳得多", "跳得少"),
             ("读了", "页", "读得多", "读得少"), ("拍了", "下", "拍得多", "拍得少"))  # fmt: skip


def _steps_of_comparison(one: str, other: str, a: int, b: int) -> str:
    """The first digits that differ, then each name with its mark, so that the last step has but to look it up."""
    marks = ("大", "小") if a > b else ("小", "大")
    tens = a // 10 != b // 10
    first, second = (a // 10, b // 10) if tens else (a % 10, b % 10)
    place = "十位" if tens else "十位一样，个位"
    return f"{place}{first}比{second}{marks[0]}，{one}{marks[0]}，{other}{marks[1]}，"


def _comparison(rng: Random) -> Example:
    numbers, names = rng.sample(range(10, 100), 2), rng.sample(CHILDREN, 2)
    verb, unit, more, less = rng.choice(_MEASURES)
    passage = "，".join(f"{name}{verb}{number}{unit}" for name, number in zip(names, numbers, strict=True)) + "。"
    high = rng.random() < 0.5
    word = more if high else less
    best = names[numbers.index(max(numbers) if high else min(numbers))]
    told = f"{_steps_of_comparison(names[0], names[1], numbers[0], numbers[1])}{best}{word}。"
    return Example(passage, f"谁{word}？", told, tuple(sorted(numbers)))


# A round of names, what one step is called, and the words of the question
_ROUNDS = ((WEEKDAYS, "天", "今天是", "星期几"), (MONTHS, "个月", "现在是", "几月"),
           (HOURS, "个小时", "现在是", "几点"))  # fmt: skip
_MOST_STEPS = 6


def _counting(rng: Random) -> Example:
    names, unit, now, what = rng.choice(_ROUNDS)
    start, steps = rng.randrange(len(names)), rng.randint(1, _MOST_STEPS)
    forward = rng.random() < 0.6
    word, sign = ("后", 1) if forward else ("前", -1)
    path = [names[(start + sign * step) % len(names)] for step in range(1, steps + 1)]
    told = "，".join(f"{step}{unit}{word}{name}" for step, name in enumerate(path, 1))
    question = rng.choice((f"{now}{names[start]}，{steps}{unit}{word}是{what}？",
                           f"{names[start]}的{steps}{unit}{word}是{what}？"))  # fmt: skip
    return Example("", question, f"{told}。是{path[-1]}。", (names[start], word, steps))


NUMBERS = (
    Skill("sums", "sums and word problems", 0.01, _sum),
    Skill("comparing", "who has more or less", 1 / 2, _comparison),
    Skill("calendar", "days, months and hours", 0.1, _counting),
)
