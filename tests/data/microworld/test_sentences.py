"""Turned sentences keep their words."""

from __future__ import annotations

import re
from collections import Counter

from babyllama.data.microworld.sentences import SENTENCES

BY_NAME = {skill.name: skill for skill in SENTENCES}
MANY = 400


def examples(name):
    return list(BY_NAME[name].examples(MANY, 3, held_out=False))


def test_sentences_are_turned_and_keep_their_words() -> None:
    for e in examples("rewriting"):
        given = re.search(r"“(\w+)。”", e.question)[1]
        if e.answer.count("没有"):
            assert e.answer.replace("没有", "").rstrip("。") + "了" == given
        else:
            assert Counter(e.answer.strip("。")) - Counter("把被") == Counter(given) - Counter("把被")
    for e in examples("opposites"):
        given, wanted = re.match(r"(\w+)的反义词是(\w+)，", e.answer).groups()
        said = re.search(r"“(\w+)”", e.question)[1]
        assert e.answer.endswith(f"，{said.removesuffix(given)}{wanted}。") and given != wanted
    for e in examples("measure_words"):
        amount, noun = re.search(r"“(.)”和“(\w+)”|：(.)（）(\w+)。", e.question).group(1, 2) if "“" in e.question else \
            re.search(r"：(.)（）(\w+)。", e.question).groups()  # fmt: skip
        assert re.fullmatch(rf"{amount}\w{noun}。", e.answer)
