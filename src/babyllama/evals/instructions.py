"""Instructions whose keeping a rule can check, in Chinese, after IFEval's idea (arXiv 2311.07911): written here.

An item's `options` are its checks, ``most:30`` for "at most 30 characters"; all must hold. Every answer must also end
by itself and not go round in circles. Not here: how answers are made (free.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from babyllama.atomic import parse_json
from babyllama.evals.items import Item

_TOPICS = ("春天", "大海", "读书", "友谊", "运动", "茶", "月亮", "火车", "猫", "下雨天", "早餐", "家乡", "电脑", "音乐",
           "睡眠", "苹果")  # fmt: skip


def _length(text: str) -> int:
    return len("".join(text.split()))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _numbered(text: str, count: str) -> bool:
    lines = _lines(text)
    return len(lines) == int(count) and all(
        re.match(rf"{n}\s*[.、．)）]", line) for n, line in enumerate(lines, start=1)
    )


def _json(text: str, keys: str) -> bool:
    try:
        value = parse_json(text)
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == set(keys.split(","))


def _language(text: str, name: str) -> bool:
    """Nine of ten letters are of it."""
    hanzi, latin = len(re.findall(r"[\u4e00-\u9fff]", text)), len(re.findall(r"[A-Za-z]", text))
    return (hanzi if name == "zh" else latin) > 0.9 * (hanzi + latin)


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "most": lambda text, count: 0 < _length(text) <= int(count),
    "least": lambda text, count: _length(text) >= int(count),
    "lines": lambda text, count: len(_lines(text)) == int(count),
    "numbered": _numbered,
    "has": lambda text, word: word in text,
    "without": lambda text, word: bool(text.strip()) and word not in text,
    "begins": lambda text, words: text.strip().startswith(words),
    "ends": lambda text, words: text.strip().endswith(words),
    "times": lambda text, said: text.count(said.partition("*")[0]) >= int(said.partition("*")[2]),
    "json": _json,
    "language": _language,
}


def keeps(text: str, check: str) -> bool:
    kind, _, argument = check.partition(":")
    return CHECKS[kind](text, argument)


def loops(text: str) -> bool:
    """Something is said four times or more in a row, 20 characters in all."""
    return any(len(found[0]) >= 20 for found in re.finditer(r"(.{1,40}?)\1{3,}", text, re.DOTALL))


_ASKED: tuple[tuple[str, str, tuple[str, ...]], ...] = (  # (group, words with {t}, checks with {t})
    ("长度", "用不超过30个字介绍{t}。", ("most:30",)),
    ("长度", "请写一段关于{t}的话，不少于60个字。", ("least:60",)),
    ("长度", "用10到40个字谈谈{t}。", ("least:10", "most:40")),
    ("格式", "写三行关于{t}的话，每行一句，不要空话。", ("lines:3",)),
    ("格式", "列出关于{t}的三点，用“1.”“2.”“3.”编号，每点一行。", ("numbered:3",)),
    ("格式", "用JSON回答，只有“名称”和“说明”两个键，介绍{t}，不要写别的。", ("json:名称,说明",)),
    ("关键词", "写一句关于{t}的话，必须出现“快乐”这个词。", ("has:快乐",)),
    ("关键词", "介绍{t}，但不要出现“的”字。", ("without:的",)),
    ("关键词", "写一段话，“{t}”至少出现三次。", ("times:{t}*3",)),
    ("开头结尾", "谈谈{t}，第一句以“我认为”开头。", ("begins:我认为",)),
    ("开头结尾", "谈谈{t}，最后以“谢谢。”结尾。", ("ends:谢谢。",)),
    ("语言", "请用英文写一句关于{t}的话。", ("language:en",)),
    ("语言", "请只用中文介绍{t}，不超过50个字。", ("language:zh", "most:50")),
)


def instructions(draw: Random) -> list[Item]:
    """Every instruction with six of the topics."""
    items = []
    for number, (group, words, checks) in enumerate(_ASKED):
        for topic in draw.sample(_TOPICS, 6):
            kept = tuple(check.replace("{t}", topic) for check in checks)
            items.append(Item(f"{group}/{number}-{topic}", words.replace("{t}", topic), kept, 0, group))
    return items
