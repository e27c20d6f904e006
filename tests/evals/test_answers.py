"""Answers beside their references. (What is asked, and how: tests/commands/test_evaluate.py.)"""

from __future__ import annotations

import pytest

from babyllama.evals.answers import Answer, AnswerSums, character_f1, compared


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [("你好", "你好", 1.0), ("好 你\n", "你好", 1.0), ("你你", "你好", 0.5), ("你", "你好吗", 0.5), ("是", "否", 0.0),
     ("", "否", 0.0), ("", " ", 1.0)],
)  # fmt: skip
def test_character_f1(answer, reference, expected):
    assert character_f1(answer, reference) == expected


def test_scores_add_up():
    good, poor = Answer("q", " 是的 ", "是的", 3, True), Answer("q", "不", "是的", 9, False)
    sums = sum(map(compared, (good, poor)), AnswerSums())
    figures = sums.figures
    assert sums.asked == 2 and figures["exact"] == figures["f1"] == figures["ended"] == 0.5
    assert figures["tokens"] == 6 and figures["characters"] == 2.5 and figures["reference_characters"] == 2
