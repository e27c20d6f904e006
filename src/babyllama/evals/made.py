"""Sets made here, from a seed: small signals that move early in training. Everything is written here and in the public
domain.

Each set of choices is made of blocks of items whose options are the same, in which each option is right as often as any
other: so a preference for a word, for short options or for the first place gains nothing, and a model that has learned
nothing scores at chance by symmetry. Drawn here: characters, numbers and passkeys; grammar.py, knowledge.py,
problems.py, instructions.py and safety.py hold what is written. Not here: how items are scored (choices.py, free.py),
items of published tests (sources.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from random import Random

from babyllama.evals.grammar import measure_words, minimal_pairs, word_order
from babyllama.evals.instructions import instructions
from babyllama.evals.items import Item
from babyllama.evals.knowledge import block, common_knowledge, hanzi_parts, idioms, verses
from babyllama.evals.problems import word_problems
from babyllama.evals.safety import refusals

_HANZI = list("天地人山水火木金土日月星云风雨雪花草树鸟鱼马牛羊春夏秋冬东西南北红黄蓝白黑高低大小长短")
_SUMS = {
    "加法": [(f"{a}+{b}=", a + b) for a in range(1, 50) for b in range(1, 50)],
    "减法": [(f"{a}-{b}=", a - b) for a in range(10, 100) for b in range(1, a - 4)],
    "乘法": [(f"{a}×{b}=", a * b) for a in range(2, 13) for b in range(2, 13)],
}


def arithmetic(draw: Random) -> list[Item]:
    """Sums, differences and products. The options of a block are of one ten, so their last digits tell them apart, and
    these stand in none of its questions: a model that repeats digits gains nothing."""
    items: list[Item] = []
    for group, tasks in _SUMS.items():
        size = 2 if group == "乘法" else 4  # there are too few products of one ten for four
        of_ten: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for task in tasks:
            of_ten[task[1] // 10].append(task)
        tens = [ten for ten, held in of_ten.items() if len(held) >= size]
        found = 0
        while found < 24:
            drawn = draw.sample(of_ten[draw.choice(tens)], size)
            last = {str(result % 10) for _, result in drawn}
            if len(last) == size and not last & set("".join(question for question, _ in drawn)):
                items += block(group, found, [(question, str(result)) for question, result in drawn], draw)
                found += 1
    return items


def induction(draw: Random) -> list[Item]:
    """A row of drawn hanzi, then two of them again: which one comes next? No option is among the two."""
    items: list[Item] = []
    for n in range(50):
        row = "".join(draw.sample(_HANZI, 12))
        pairs = [(f"{row}，{row[at - 2 : at]}", row[at]) for at in (2, 5, 8, 11)]
        items += block("归纳", n, pairs, draw)
    return items


def copying(draw: Random) -> list[Item]:
    """A word that was said, against words that were not: 请跟我说：… 。我说：…"""
    items: list[Item] = []
    for n in range(50):
        drawn = draw.sample(_HANZI, 8)
        words = [drawn[i] + drawn[i + 4] for i in range(4)]
        items += block("复述", n, [(f"请跟我说：{word}。我说：", word) for word in words], draw)
    return items


def passkey(draw: Random) -> list[Item]:
    """A number of four digits among sentences that say nothing, in texts of three lengths (characters) and at five
    places; it is asked for at the end. By tokens and for other lengths: ``babyllama longcontext``."""
    filler = ("天很蓝。", "草很绿。", "风轻轻地吹。", "路上没有人。", "鸟在树上叫。", "河水慢慢地流。")
    items: list[Item] = []
    for length in (30, 100, 300):
        for place in range(5):
            for n in range(4):
                text = list[str]()
                while sum(map(len, text)) < length:
                    text.append(draw.choice(filler))
                key = str(draw.randrange(1000, 10000))
                text.insert(round(place / 4 * len(text)), f"请记住：密码是{key}。")
                items.append(
                    Item(f"{length}/{place}-{n}", f"{''.join(text)}请问密码是多少？密码是", (key,), 0, f"{length}")
                )
    return items


MADE: dict[str, Callable[[Random], list[Item]]] = {
    "minimal_pairs": minimal_pairs, "measure_words": measure_words, "word_order": word_order, "induction": induction,
    "copying": copying, "arithmetic": arithmetic, "hanzi_parts": hanzi_parts, "common_knowledge": common_knowledge,
    "idioms": idioms, "verses": verses, "word_problems": word_problems, "instructions": instructions,
    "refusals": refusals, "passkey": passkey,
}  # fmt: skip


def made(name: str, seed: int = 0) -> list[Item]:
    """The set of this name; the same for the same seed, on any machine."""
    return MADE[name](Random(f"{name} {seed}"))
