"""Every measure against a count by hand or by plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babyllama.data.clean.filters import Drop
from babyllama.data.clean.measures import (
    DuplicateGrams,
    DuplicateLines,
    HanziShare,
    Length,
    LineBreaks,
    PunctuatedLines,
    SymbolShare,
    rolling,
)


@pytest.mark.parametrize(("measure", "text", "value"), [
    (Length(), "春 眠\n不觉晓", 5), (Length(), "", 0),
    (HanziShare(), "汉字 ab，1", 2 / 6), (HanziShare(), "𠀀〇a𝐀", 2 / 4), (HanziShare(), "", 0),
    (SymbolShare(), "好★→😀，a", 3 / 6), (SymbolShare(), "1+1=2，$3", 0), (SymbolShare(), "\ufffd\ue000好", 2 / 3),
    (LineBreaks(), "甲\n乙\n丙\n", 2 / 6),
    (PunctuatedLines(), "题目\n\n正文。\n“话。”\n菜单\n完", 2 / 5), (PunctuatedLines(), "题目\n菜单", 1),
    (DuplicateLines(), "甲甲\n乙\n甲甲\n", 2 / 5), (DuplicateLines(), "", 0),
    (DuplicateGrams(size=2), "甲乙丙 甲乙", 2 / 5), (DuplicateGrams(size=2), "甲甲甲甲", 3 / 4),
    (DuplicateGrams(), "短", 0),
])  # fmt: skip
def test_values(measure, text: str, value: float) -> None:
    assert measure.measure(text) == pytest.approx(value)


def test_limits() -> None:
    assert Length(at_least=3)("春眠") == Drop("below 3") and Length(at_least=2, at_most=2)("春眠") == "春眠"
    assert Length(at_least=None, at_most=1)("春眠") == Drop("above 1")
    assert HanziShare()("all in English, no hanzi") == Drop("below 0.3")


@settings(max_examples=60)
@given(st.text("甲乙丙", max_size=30), st.integers(1, 7))
def test_hashes_are_equal_where_runs_are(text: str, size: int) -> None:
    found = rolling(np.array([ord(c) for c in text], np.uint32), size).tolist()
    runs = [text[i : i + size] for i in range(len(text) - size + 1)]
    assert len(found) == len(runs) and len(set(found)) == len(set(runs)) == len(set(zip(found, runs, strict=True)))


@settings(max_examples=60)
@given(st.text("甲乙", max_size=40), st.integers(2, 5))
def test_duplicate_grams_by_plain_python(text: str, size: int) -> None:
    seen, covered = set(), set()
    for i in range(len(text) - size + 1):
        run = text[i : i + size]
        covered |= set(range(i, i + size)) if run in seen else set()
        seen.add(run)
    assert DuplicateGrams(size=size).measure(text) == pytest.approx(len(covered) / max(len(text), 1))
