"""The scaling law at its anchors; what must grow with what."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workloads import SEED, V

from babyllama.foresight.scaling import expected_loss, worth
from babyllama.model.config import ModelChoice, Moe


@pytest.mark.parametrize(("optimizer", "measured"), [("muon", 1.633), ("adamw", 1.688)])
def test_the_anchors(optimizer, measured):
    assert expected_loss(SEED, 40e6, 30e6, optimizer=optimizer).bits_per_byte == pytest.approx(measured, rel=0.005)


def test_worth_of_repeated_tokens():
    assert worth(5e6, 1e7) == 5e6 and worth(1e12, None) == 1e12
    assert 0.90 < worth(4e7, 1e7) / 4e7 < 0.95  # four epochs: nearly new
    values = [worth(epochs * 1e7, 1e7) for epochs in range(1, 60)]
    assert values == sorted(values) and values[-1] < 1e7 * (1 + 15.39)


@given(st.floats(1e7, 1e11), st.integers(2, 24))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_more_of_anything_is_better(tokens, depth):
    small, large = (ModelChoice(depth=d).build(V) for d in (depth, depth + 1))
    loss = expected_loss(small, tokens)
    assert expected_loss(large, tokens).bits_per_byte < loss.bits_per_byte
    assert expected_loss(small, 2 * tokens).bits_per_byte < loss.bits_per_byte
    assert expected_loss(small, tokens, tokens / 4).bits_per_byte > loss.bits_per_byte
    assert 0.4 < loss.low < loss.bits_per_byte < loss.high


def test_idle_experts_help_but_less_than_busy_ones():
    moe = Moe(experts=8, active=2, width=1376)
    few, more, all_of_them = (
        ModelChoice(preset="seed", moe=moe.model_copy(update={"experts": experts, "active": active})).build(V)
        for experts, active in ((2, 2), (8, 2), (8, 8))
    )
    losses = [expected_loss(config, 1e9).bits_per_byte for config in (all_of_them, more, few)]
    assert losses == sorted(losses) and len(set(losses)) == 3
