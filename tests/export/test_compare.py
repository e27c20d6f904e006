"""What is told of two programs' answers, on answers made by hand; and the questions that they are asked."""

from __future__ import annotations

import pytest

from babyllama.export.compare import compared
from babyllama.export.peers import Answer
from babyllama.export.prompts import prompts

SAME = Answer([1, 2, 3], {7: -0.5, 8: -1.5}, [7, 9], "ab", True)


def told(*theirs, mine=SAME):
    return compared([mine] * len(theirs), theirs, lambda i: {7: "a", 8: "b"}[i], 1e-3)


def test_equal_answers():
    result = told(SAME, SAME._replace(first={7: -0.5004, 8: -1.5, 9: -9.0}))
    assert (result.prompts, result.answers, result.ends, result.remarks) == (2, 2, 2, [])
    assert result.first == pytest.approx(4e-4) and result.holds(1e-3, 1.0) and not result.holds(1e-4, 1.0)


def test_the_first_difference_of_each_kind_is_named():
    result = told(SAME, SAME._replace(prompt=[1, 5, 3]), SAME._replace(prompt=[1]), SAME._replace(tokens=[7, 9, 4]),
                  SAME._replace(tokens=[7, 6]), SAME._replace(ended=False), SAME._replace(first={8: -2.0}))  # fmt: skip
    assert (result.prompts, result.answers, result.ends) == (5, 5, 6) and not result.holds(1, 1.0)
    assert result.remarks == [
        "prompt 2: ids differ at position 1: 2 here, 5 there",
        "prompt 4: answers differ at position 2: nothing here, 4 there",
        "prompt 6: ours ends, theirs does not",
        "prompt 7: log-probabilities of the first token differ by 0.5",
    ]


def test_a_share_of_answers_may_differ():
    result = told(*[SAME] * 9, SAME._replace(tokens=[7], text="a"))
    assert result.holds(1e-3, 0.9) and not result.holds(1e-3, 0.95)


def test_a_server_tells_texts():
    theirs = Answer(None, {"a": -0.5, "b": -1.75}, None, "ab", True)
    result = told(theirs, theirs._replace(text="ax"), theirs._replace(first={}))
    assert result.prompts is None and result.first == pytest.approx(0.25) and result.answers == 2
    assert result.remarks[-1] == "prompt 2: answers differ at position 1: 'b' here, 'x' there"
    assert told(theirs._replace(first={})).first is None


def test_questions_are_many_and_the_same_each_time():
    found = prompts(200)
    assert found == prompts(200) and len(set(found)) == 200 and prompts(20) == found[:20]
    assert sum(any("一" <= c <= "龥" for c in text) for text in found) > 80
    assert sum(text.isascii() for text in found) > 80 and any("\n" in text for text in found)
