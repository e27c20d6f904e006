"""What fits a card, and the choice of a plan. The forecasts that it chooses by are in test_forecast.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workloads import H100, RTX3060, SEED, SHAPES, V, workload

from babyllama.errors import InputError
from babyllama.foresight.budget import (
    MOST_ROWS,
    Terms,
    best,
    ladder,
    largest_micro_batch,
    propose,
    round_down,
    usable_gib,
)
from babyllama.foresight.forecast import (
    block_parameters,
    memory_gib,
)
from babyllama.hardware import Card, find_card
from babyllama.model.config import ModelChoice
from babyllama.train.engines.mesh import Mesh


@given(SHAPES, st.sampled_from([RTX3060, find_card("4090"), H100]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_largest_micro_batch_fits_and_one_more_does_not(work, card):
    rows = largest_micro_batch(work, card)
    if rows:
        assert memory_gib(replace(work, micro_batch_size=rows)) <= 0.92 * card.memory_gib
    if rows < MOST_ROWS:
        assert memory_gib(replace(work, micro_batch_size=rows + 1)) > 0.92 * card.memory_gib


# ── the choice ─────────────────────────────────────────────────────────────────────────────────────────────────────
@given(st.sampled_from(["RTX 3060", "4090", "A100 40G", "H100"]), st.floats(0.1, 200), st.floats(1e6, 1e11),
       st.integers(2, 12), st.sampled_from([Mesh(), Mesh(4), Mesh(1, 4), Mesh(2, 2), Mesh(4, context=2)]))  # fmt: skip
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_proposal_keeps_its_terms(card, hours, unique, depth, mesh):
    terms = Terms(find_card(card), seconds=hours * 3600, unique=int(unique), mesh=mesh)
    found = propose(ModelChoice(depth=2 * depth).build(V), terms)
    assert found.memory_gib <= usable_gib(terms.card)
    assert 1 <= found.work.micro_batch_size <= found.largest_micro_batch
    if found.steps > 1:
        assert found.seconds <= terms.seconds * (1 + 1e-9)
        assert found.tokens <= 4 * terms.unique
    assert found.work.step_tokens <= 2 * 524_288


def test_wishes_are_kept():
    terms = Terms(H100, context=256, tokens=10**9, micro_batch_size=48, global_batch_tokens=98_304, recompute=True)
    found = propose(SEED, terms)
    assert found.work.micro_batch_size == 48 and found.work.micro_batches == 8 and found.work.recompute
    assert 0 <= found.tokens - 10**9 < found.work.step_tokens
    with pytest.raises(InputError, match=r"micro_batch_size 5000 × 256 tokens .*; at most \d+ rows fit"):
        propose(SEED, replace(terms, micro_batch_size=5000, recompute=False))


def test_without_a_time_the_corpus_is_the_length():
    found = propose(SEED, Terms(H100, unique=50_000_000, max_epochs=2))
    assert 0 <= found.tokens - 100_000_000 < found.work.step_tokens
    with pytest.raises(InputError, match="the length is not known"):
        propose(SEED, Terms(H100))
    with pytest.raises(InputError, match="over before the first step"):
        propose(SEED, Terms(H100, seconds=1))


def test_a_slow_machine_and_a_short_time_get_a_small_batch():
    slow = Card("CPU", 0.05, 16, 20, bf16=False)
    found = propose(ModelChoice(depth=2).build(400), Terms(slow, context=128, seconds=60, compiled=False))
    assert found.steps > 50 and found.work.step_tokens < 10_000


def test_recompute_only_where_nothing_else_fits():
    card = Card("small", 26, 2.5, 360)
    config = ModelChoice(depth=8, max_position_embeddings=16_384).build(1000)
    assert largest_micro_batch(workload(config, 16_384), card) == 0
    assert propose(config, Terms(card, tokens=10**8)).work.recompute
    assert not propose(config, Terms(H100, tokens=10**8)).work.recompute
    with pytest.raises(InputError, match=r"needs .* GiB, 2\.3 of 2\.5 GiB can be used; choose a smaller model"):
        propose(ModelChoice(depth=30).build(V), Terms(card, tokens=10**8))


def test_the_best_of_the_ladder():
    terms = Terms(find_card("4090"), seconds=24 * 3600, unique=10**10)
    (_, chosen), *others = best(ladder(None), V, terms)
    lowest = min([chosen, *(p for _, p in others)], key=lambda p: p.loss.bits_per_byte)
    assert chosen.loss.bits_per_byte <= 1.005 * lowest.loss.bits_per_byte
    assert chosen.work.config.parameters <= lowest.work.config.parameters
    sizes = [p.work.config.parameters for _, p in others]
    assert sizes == sorted(sizes) and sizes[0] < chosen.work.config.parameters < sizes[-1]
    (_, longer), *_ = best(ladder(None), V, replace(terms, seconds=10 * terms.seconds))
    assert longer.work.config.parameters > chosen.work.config.parameters
    assert longer.loss.bits_per_byte < chosen.loss.bits_per_byte


def test_a_small_corpus_gets_a_small_model():
    (_, chosen), *_ = best(ladder(None), V, Terms(H100, seconds=50 * 3600, unique=10_000_000))
    assert block_parameters(chosen.work.config) <= 50_000_000 and chosen.tokens <= 40_000_000
    (choice, smallest), *_ = best(ladder(None), 1000, Terms(H100, seconds=3600, unique=1000))
    assert choice.depth == 2 and smallest.steps == 1


def test_nothing_fits():
    with pytest.raises(InputError, match="smaller model"):
        best(ladder(None), V, Terms(Card("toy", 1, 0.5, 100), seconds=3600))


@given(st.integers(1, MOST_ROWS))
def test_round_down(rows):
    rounded = round_down(rows)
    assert rounded <= rows < rounded * 1.25 + 1 and rounded >> max(0, rounded.bit_length() - 3) <= 7
    assert math.log2(rounded & -rounded) >= max(0, rows.bit_length() - 3)
