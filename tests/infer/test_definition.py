"""Penalties, bias, cuts and draws as they are defined, in float64 and a row at a time, for requests in one batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from babyllama.infer.engine import Engine
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling
from conftest import sharp_model, tiny_config

V = 67


@pytest.fixture(scope="module")
def model():
    return sharp_model(tiny_config())


def penalised(model, sampling: Sampling, prompt: list[int], answer: list[int], stop: set[int]) -> np.ndarray:
    """(V,) float64 logits of the next token after repetition, presence and frequency penalty and bias."""
    logits = model(torch.tensor([[*prompt, *answer]]))[0, -1, :V].double().numpy().copy()
    for token in {*(set(prompt) - stop), *answer}:
        value = logits[token]
        logits[token] = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
    for token in set(answer):
        logits[token] -= sampling.presence_penalty + sampling.frequency_penalty * answer.count(token)
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    return logits


def chances(sampling: Sampling, logits: np.ndarray) -> np.ndarray:
    """(V,) float64: temperature, then top-k, top-p and min-p, each over what is left."""
    odds = np.exp((logits - logits.max()) / sampling.temperature)
    if sampling.top_k:
        odds[odds < np.sort(odds)[-sampling.top_k]] = 0
    if sampling.top_p < 1:
        order = np.argsort(-odds, kind="stable")
        before = np.cumsum(odds[order]) - odds[order]
        last = odds[order][before < sampling.top_p * odds.sum()][-1]
        odds[odds < last] = 0
    odds[odds < sampling.min_p * odds.max()] = 0
    return odds / odds.sum()


def together(model, requests: list[Request]) -> list[list[int]]:
    engine = Engine(model, V, slots=64)
    ids = [engine.add(request) for request in requests]
    found: dict[int, list[int]] = {id: [] for id in ids}
    while engine.busy:
        for event in engine.step():
            found[event.id] += event.tokens
    return [found[id] for id in ids]


penalties = st.builds(
    Sampling, temperature=st.just(0.0), repetition_penalty=st.sampled_from([1.0, 0.5, 1.3, 4.0]),
    presence_penalty=st.sampled_from([0.0, -1.5, 0.8, 2.0]), frequency_penalty=st.sampled_from([0.0, -0.7, 0.4, 2.0]),
    logit_bias=st.dictionaries(st.integers(0, V - 1), st.sampled_from([-100.0, -3.0, 2.5, 6.0]), max_size=4),
)  # fmt: skip
prompts = st.lists(st.integers(0, V - 1), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(asked=st.lists(st.tuples(prompts, penalties), min_size=1, max_size=6))
def test_penalties_and_bias_equal_their_definition_in_one_batch(model, asked):
    stop = {0, 13}
    answers = together(model, [Request(prompt, sampling, 12, stop) for prompt, sampling in asked])
    for (prompt, sampling), answer in zip(asked, answers, strict=True):
        assert len(answer) == 12 or answer[-1] in stop
        for i, token in enumerate(answer):
            logits = penalised(model, sampling, prompt, answer[:i], stop)
            assert logits[token] > logits.max() - 1e-4  # the likeliest, or equal to it in float32


def chi_square(found: np.ndarray, expected: np.ndarray) -> float:
    """How likely counts are that differ from the expected ones as much as these or more."""
    statistic = ((found - expected) ** 2 / expected).sum()
    halves = torch.tensor([(len(found) - 1) / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(*halves).item()


SAMPLINGS = (
    Sampling(),
    Sampling(temperature=2.5, repetition_penalty=1.4),
    Sampling(temperature=0.7, top_k=12),
    Sampling(temperature=1.5, top_p=0.8, logit_bias={5: 3.0}),
    Sampling(temperature=3.0, top_k=40, top_p=0.9, min_p=0.05, frequency_penalty=1.0, presence_penalty=-0.5),
)


def test_draws_are_distributed_as_defined_in_a_mixed_batch(model):
    """Chi-square of the second token of 600 answers each, all in company, against the float64 definition."""
    prompt, count, stop = [5, 9, 2, 9], 600, set[int]()
    requests = [Request(prompt, sampling, 2, stop, seed=1000 * i + which)
                for i in range(count) for which, sampling in enumerate(SAMPLINGS)]  # fmt: skip
    answers = together(model, requests)
    for which, sampling in enumerate(SAMPLINGS):
        mine = answers[which :: len(SAMPLINGS)]
        expected = np.zeros(V)
        first = chances(sampling, penalised(model, sampling, prompt, [], stop))
        for token in np.flatnonzero(first):
            expected += first[token] * chances(sampling, penalised(model, sampling, prompt, [int(token)], stop))
        found = np.bincount([answer[1] for answer in mine], minlength=V)
        assert not found[expected == 0].any()
        often = expected * count >= 5
        seen = [*found[often], found[~often].sum()]
        wanted = [*expected[often] * count, expected[~often].sum() * count]
        if wanted[-1] < 5:  # too few for a class of their own
            seen, wanted = [*seen[:-2], sum(seen[-2:])], [*wanted[:-2], sum(wanted[-2:])]
        assert math.isclose(sum(wanted), count, rel_tol=1e-9)
        assert chi_square(np.array(seen), np.array(wanted)) > 1e-4, sampling
