"""Sets made by rules: right by an oracle of their own, balanced, the same each time."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from babyllama.evals.items import checked
from babyllama.evals.made import MADE, made
from babyllama.evals.statistics import LEVEL, Pick, above_chance
from babyllama.evals.tasks import TASKS

CHOICES = [name for name in MADE if not TASKS[name].free]  # the others: test_free.py, test_marks.py


@pytest.mark.parametrize("name", CHOICES)
def test_the_same_each_time_and_well_formed(name):
    items = made(name)
    assert items == made(name) != made(name, seed=1)
    assert checked((name, item) for item in items) == tuple(items)
    assert all(len(set(item.options)) == len(item.options) and item.answer is not None for item in items)
    assert all(len({len(option) for option in item.options}) == 1 for item in items)


def parts(item):
    """The options' parts: what of each no other option has at its place; of an order, which comes first."""
    if Counter(item.options[0]) == Counter(item.options[1]):
        return ("order",)
    return tuple("".join(c for at, c in enumerate(option) if len({o[at] for o in item.options}) > 1)
                 for option in item.options)  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_in_a_block_each_part_is_right_as_often_as_any_other(name):
    blocks = defaultdict(list)
    for item in made(name):
        blocks[item.block].append(item)
    assert len(blocks) >= 10
    for block in blocks.values():
        assert len({parts(item) for item in block}) == 1
        answers = Counter(item.answer for item in block)
        if name == "word_order":  # no part to prefer: the words of each item are others
            assert len(answers) == 1
        else:
            assert len(set(answers.values())) == 1 and len(answers) == len(block[0].options)


@pytest.mark.parametrize("name", CHOICES)
def test_a_preference_whatever_is_asked_gives_exactly_chance(name):
    """For one part of each block, drawn as a model's weights are."""
    items = made(name)
    first = [Pick((1,) * len(item.options), 0, item.answer, item.block) for item in items]
    if name != "word_order":
        assert sum(pick.right == 0 for pick in first) == pytest.approx(sum(1 / len(pick.sizes) for pick in first))
    assert above_chance(first) > LEVEL
    knows = [pick._replace(taken=pick.right) for pick in first]
    assert above_chance(knows) < 1e-6


def test_arithmetic_is_right():
    for item in made("arithmetic"):
        left = item.question.removesuffix("=").replace("×", "*")
        assert [int(option) == eval(left) for option in item.options].index(True) == item.answer
        assert not set(item.question) & {option[-1] for option in item.options}


def test_measure_words_differ_in_the_measure_word_and_no_noun_is_in_two_blocks():
    nouns = Counter()
    for item in made("measure_words"):
        right, wrong = item.options[item.answer], item.options[1 - item.answer]
        assert right[2:] == wrong[2:] and right[0] == wrong[0] == "一"
        nouns[right[2:]] += 1
    assert set(nouns.values()) == {1}


def test_word_order_changes_the_order_alone():
    for item in made("word_order"):
        assert Counter(item.options[0]) == Counter(item.options[1])


def test_the_row_tells_what_comes_next():
    for item in made("induction"):
        row, again = item.question.split("，")
        assert item.options[item.answer] == row[row.index(again) + 2] and again in row
        assert set(item.options) <= set(row) - set(again)
    for item in made("copying"):
        assert [option in item.question for option in item.options].index(True) == item.answer


def test_hanzi_by_parts_are_none_of_them():
    for item in made("hanzi_parts"):
        assert not set(item.question) & set(item.options)
