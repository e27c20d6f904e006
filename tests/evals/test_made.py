"""Sets made by rules: right by an oracle of their own, balanced, the same each time."""

from __future__ import annotations

from collections import Counter

import pytest

from babyllama.evals.items import checked
from babyllama.evals.made import MADE, made


@pytest.mark.parametrize("name", MADE)
def test_the_same_each_time_and_well_formed(name):
    items = made(name)
    assert items == made(name) and (name == "common_knowledge" or items != made(name, seed=1))
    assert checked((name, item) for item in items) == tuple(items)
    assert all(len(set(item.options)) == len(item.options) and item.answer is not None for item in items)


@pytest.mark.parametrize("name", [name for name in MADE if name != "common_knowledge"])
def test_no_place_is_right_much_more_often(name):
    items = made(name)
    places = Counter(item.answer for item in items)
    expected = len(items) / len(items[0].options)
    assert all(abs(count - expected) < 4 * expected**0.5 for count in places.values())


def test_arithmetic_is_right():
    for item in made("arithmetic"):
        left = item.question.removesuffix("=").replace("×", "*")
        assert [int(option) == eval(left) for option in item.options].index(True) == item.answer


def test_each_measure_word_is_right_as_often_as_the_one_beside_it():
    pairs = Counter()
    for item in made("measure_words"):
        right, wrong = item.options[item.answer], item.options[1 - item.answer]
        assert right[2:] == wrong[2:] and right[0] == wrong[0] == "一"
        pairs[right[1], wrong[1]] += 1
    assert all(pairs[one, other] == pairs[other, one] == 1 for one, other in pairs)


def test_word_order_changes_the_order_alone():
    for item in made("word_order"):
        assert Counter(item.options[0]) == Counter(item.options[1])


def test_the_row_tells_what_comes_next():
    for item in made("induction"):
        row, again = item.question.split("，")
        assert item.options[item.answer] == row[len(again)]
        assert set(item.options) <= set(row) and again[-1] not in item.options
    for item in made("copying"):
        assert [option in item.question for option in item.options].index(True) == item.answer
