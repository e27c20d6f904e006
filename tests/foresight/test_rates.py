"""Rates by width and length: the trials' own settings where they were found, what is usual in long trainings."""

import pytest
from workloads import BASE, SEED

from babyllama.foresight.rates import muon, objective, stages
from babyllama.recipe import validate
from babyllama.train.losses.objectives import NextToken
from babyllama.train.optimizers.optim import Muon


def test_where_they_were_found_they_are_what_was_found():
    assert muon(SEED, 600) == {"kind": "muon", "lr": 0.022, "momentum": 0.85, "beta2": 0.9, "weight_decay": 0.1,
                               "adam_lr": 0.01}  # fmt: skip


def test_shorter_ones_are_set_as_the_shortest_that_was_tried():
    assert muon(SEED, 60) == muon(SEED, 600)


def test_by_hand():
    """Nine times the steps: a ninth of the decay, a third of Adam's rate; twice the width: its root less."""
    assert muon(SEED, 5400) == {"kind": "muon", "lr": 0.022, "momentum": 0.95, "beta2": 0.95, "weight_decay": 0.011,
                                "adam_lr": 0.0033}  # fmt: skip
    assert muon(BASE, 5400)["adam_lr"] == pytest.approx(0.0033 / 2**0.5, rel=0.05)
    assert muon(SEED, 900)["momentum"] == 0.9


def test_a_large_vocabulary_is_sampled_and_a_small_one_whole():
    assert objective(SEED)["sampled"] == {"stages": [list(stage) for stage in stages(SEED)]} != {"stages": []}
    small = SEED.model_copy(update={"vocab_size": 8_000})
    assert objective(small) == {"fp8_head": True} and not stages(small)
    for config in (SEED, small):
        validate(NextToken, objective(config), "objective")


@pytest.mark.parametrize("steps", [1, 600, 2000, 10**6])
def test_an_optimizer_takes_them(steps):
    Muon.model_validate(muon(SEED, steps))
