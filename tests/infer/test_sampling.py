"""Sampling against transformers' logits processors, and the distribution of many draws."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import LongTensor, Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from babyllama.errors import InputError
from babyllama.infer.choosing import NOT_FINITE, _searched_floor, begin, uniforms
from babyllama.infer.sampling import ANSWERS, AnswerSampling, Drawn, Sampling, SamplingRecipe, carried_sampling
from babyllama.keys import describe
from babyllama.recipe import dump_recipe, load_recipe, read_recipe

V = 97


def random_logits(rows: int = 16, size: int = V, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(1)) * spread


def chances(sampling: Sampling, logits: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    return sampling.scores(logits, seen).softmax(-1)


CASES = [
    ({"temperature": 0.3}, [TemperatureLogitsWarper(0.3)]),
    ({"temperature": 2.5}, [TemperatureLogitsWarper(2.5)]),
    ({"top_k": 1}, [TopKLogitsWarper(1)]),
    ({"top_k": 7}, [TopKLogitsWarper(7)]),
    ({"top_k": 500}, [TopKLogitsWarper(V)]),
    ({"top_p": 0.5}, [TopPLogitsWarper(0.5)]),
    ({"top_p": 0.95}, [TopPLogitsWarper(0.95)]),
    ({"top_p": 0.01}, [TopPLogitsWarper(0.01)]),
    ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
    ({"min_p": 1.0}, [MinPLogitsWarper(1.0)]),
    (
        {"temperature": 1.7, "top_k": 20, "top_p": 0.8, "min_p": 0.03},
        [TemperatureLogitsWarper(1.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8), MinPLogitsWarper(0.03)],
    ),
]


def ids(tokens: Tensor) -> LongTensor:
    return cast(LongTensor, tokens.long())


@pytest.mark.parametrize(("fields", "processors"), CASES, ids=lambda case: str(case) if isinstance(case, dict) else "")
def test_same_distribution_as_transformers(fields, processors):
    logits = random_logits()
    expected = LogitsProcessorList(processors)(ids(torch.zeros(16, 1)), logits).softmax(-1)
    actual = chances(Sampling(**fields), logits)
    assert torch.equal(actual > 0, expected > 0)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("spread", [0.1, 3.0, 8.0])
@pytest.mark.parametrize("top_k", [0, 2000])
def test_the_nucleus_of_a_large_vocabulary(spread, top_k):
    """Flat: far more than the 1,024 likeliest are needed; peaked: far fewer; the rows of a batch may differ."""
    logits = torch.cat([random_logits(2, 5000, spread), random_logits(2, 5000, 5.0)])
    processors = [TopKLogitsWarper(top_k), TopPLogitsWarper(0.9)] if top_k else [TopPLogitsWarper(0.9)]
    expected = LogitsProcessorList(processors)(ids(torch.zeros(4, 1)), logits).softmax(-1)
    actual = chances(Sampling(top_k=top_k, top_p=0.9), logits)
    assert ((actual > 0) != (expected > 0)).sum() <= 4  # float32 sums over thousands differ at the border
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_repetition_penalty_as_transformers(penalty, temperature):
    logits = random_logits()
    history = torch.randint(V, (16, 30), generator=torch.Generator().manual_seed(2))
    seen = torch.zeros(16, V, dtype=torch.bool).scatter(1, history, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids(history), logits)
    sampling = Sampling(repetition_penalty=penalty, temperature=temperature)
    if temperature == 0:
        assert torch.equal(sampling(logits, torch.zeros(16), seen), expected.argmax(-1))
    else:
        expected = TemperatureLogitsWarper(temperature)(ids(history), expected)
        torch.testing.assert_close(chances(sampling, logits, seen), expected.softmax(-1))


@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
def test_the_search_of_a_gpu_finds_the_same_nucleus(spread):
    scores = (spread * torch.randn(6, 5000, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    scores[0, :50] = scores[0].max()  # equal ones
    top_p = torch.tensor([0.1, 0.5, 0.8, 0.9, 0.95, 0.999])[:, None]
    found = scores >= _searched_floor(scores, scores.exp(), top_p)
    for row, p in enumerate(top_p.flatten().tolist()):
        order = scores[row].double().sort(descending=True).values
        before = order.exp().cumsum(0) - order.exp()  # of the likelier ones
        last = order[before < p - 1e-5].min(), order[before < p + 1e-5].min()
        kept = scores[row][found[row]].double().min()
        assert last[1] <= kept <= last[0]


def test_equal_logits_stay_together():
    """bf16 logits are often equal: a sort must not decide which of them may be drawn."""
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.6), Sampling(top_k=2, top_p=0.9)):
        assert (chances(sampling, logits) > 0).tolist() == [[True, False, True, True, True, False]]


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.5}, {"top_p": 0.7}, {"top_k": 3}, {"min_p": 0.2}], ids=str)
def test_frequencies_of_many_draws(fields):
    """Fault 6, a sampler that is always argmax: every allowed token comes as often as its probability says."""
    n, sampling = 200_000, Sampling(**fields)
    logits = random_logits(1, 8, spread=1.0)
    expected = chances(sampling, logits)[0].double()
    tokens = sampling(logits.expand(n, -1), uniforms(7, n))
    found = torch.bincount(tokens, minlength=8).double()
    assert torch.equal(found > 0, expected > 0)
    error = (found / n - expected).abs() / (expected * (1 - expected) / n).sqrt().clamp(min=1e-12)
    assert error.max() < 5  # standard deviations


def test_the_edges_of_the_uniform_number():
    """Tokens without probability at either end are never drawn, not even by 0 or by the largest number."""
    logits = torch.tensor([[0.0, 5.0, 5.0, 0.0]]).repeat(2, 1)
    tokens = Sampling(top_k=2)(logits, torch.tensor([0.0, 1 - 2**-32], dtype=torch.float64))
    assert tokens.tolist() == [1, 2]
    wide = torch.zeros(1, 70_000)
    assert Sampling()(wide, torch.tensor([1 - 2**-32], dtype=torch.float64)).tolist() == [69_999]


def test_greedy_and_extreme_temperatures():
    logits = random_logits()
    draws = uniforms(0, 16)
    assert torch.equal(Sampling(temperature=0.0)(logits, draws), logits.argmax(-1))
    assert torch.equal(Sampling(temperature=1e-30)(logits * 1e3, draws), logits.argmax(-1))
    assert torch.equal(Sampling(temperature=0.0, top_k=5)(logits.bfloat16(), draws), logits.bfloat16().argmax(-1))


def test_a_row_does_not_depend_on_the_others():
    logits, draws, sampling = random_logits(), uniforms(3, 16), Sampling(top_p=0.9, top_k=30)
    alone = torch.cat([sampling(logits[i : i + 1], draws[i : i + 1]) for i in range(16)])
    assert torch.equal(sampling(logits, draws), alone)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_logits_are_marked(broken):
    logits = random_logits(3)
    logits[1, 5] = broken
    for sampling in (Sampling(), Sampling(temperature=0.0), Sampling(top_k=3, top_p=0.5)):
        tokens = sampling(logits, uniforms(0, 3)).tolist()
        assert tokens[1] == NOT_FINITE and NOT_FINITE not in (tokens[0], tokens[2])


def test_large_half_precision_logits_are_not_broken():
    assert Sampling(temperature=0.0)(torch.full((1, 5000), 60.0).half(), uniforms(0, 1)).tolist() != [NOT_FINITE]


def test_random_numbers_are_splitmix64s():
    """As its authors' C program computes it: seed 0 begins with 0xE220A8397B1DCDAF."""

    def mixed(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    golden = 0x9E3779B97F4A7C15
    assert mixed(golden) == 0xE220A8397B1DCDAF == begin(0) % 2**64
    for seed in (0, 7, 2**63, 2**64 - 1, -5):
        first = mixed((seed + golden) % 2**64)
        want = [(mixed((first + (n + 1) * golden) % 2**64) >> 32) / 2**32 for n in range(40)]
        assert uniforms(seed, 40).tolist() == want and uniforms(seed, 9, 31).tolist() == want[31:]


def test_uniforms():
    short, long = uniforms(5, 10), uniforms(5, 10_000)
    assert torch.equal(short, long[:10]) and not torch.equal(short, uniforms(6, 10))
    assert long.min() >= 0 and long.max() < 1
    assert abs(long.mean().item() - 0.5) < 0.02 and abs(long.var().item() - 1 / 12) < 0.005


@pytest.mark.parametrize(
    "override",
    ["temperature=-0.1", "temperature=.nan", "top_k=-1", "top_p=0", "top_p=1.1", "min_p=-0.1", "min_p=2",
     "repetition_penalty=0", "seed=-1", "top_k=2.5", "temperature=warm"],
)  # fmt: skip
def test_ranges(override):
    with pytest.raises(InputError, match=override.split("=")[0]):
        load_recipe(Sampling, None, [override])


class Answering(SamplingRecipe):
    """A verb's recipe as `chat` has it."""

    sampling: Drawn = AnswerSampling()
    count: int = 1


def test_the_sampling_keys_need_no_prefix():
    recipe = load_recipe(Answering, None, ["temperature=0.5", "sampling.top_k=4", "count=2", "seed=9"])
    assert recipe == Answering(sampling=AnswerSampling(temperature=0.5, top_k=4, seed=9), count=2)
    assert load_recipe(Answering).sampling.temperature == 0.7
    assert load_recipe(Answering, None, ["logit_bias={2: -100, '7': 3}"]).sampling.logit_bias == {2: -100, 7: 3}
    with pytest.raises(InputError, match=r"sampling\.top_p: .*got 3"):
        load_recipe(Answering, None, ["top_p=3"])


# ── a model's own defaults ─────────────────────────────────────────────────────────────────────────────────────────
def test_said_comes_before_the_models_own_and_that_before_ours(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 1, "do_sample": true, "top_p": 0.8, "top_k": 20,'
                                                     ' "temperature": 0.6, "min_p": null}')  # fmt: skip
    own = carried_sampling(tmp_path)
    assert own == {"temperature": 0.6, "top_k": 20, "top_p": 0.8}
    said = load_recipe(AnswerSampling, None, ["temperature=1", "seed=5"])
    assert said.over(own) == Sampling(temperature=1, top_p=0.8, top_k=20, seed=5)
    assert load_recipe(AnswerSampling, None, ["temperature=0.7"]).over(own) == Sampling(
        temperature=0.7, top_p=0.8, top_k=20
    )
    assert AnswerSampling().over({}) == ANSWERS == Sampling(temperature=0.7, top_p=0.9)
    assert load_recipe(AnswerSampling, None, ["top_p=1"]).over({}).top_p == 1  # said, though it switches it off


def test_what_was_left_open_is_left_open_by_a_recipe_that_is_printed_and_read_again(tmp_path):
    for said in ([], ["temperature=0.7"], ["sampling.seed=3", "logit_bias={2: -100}"]):
        recipe = load_recipe(Answering, None, said)
        (tmp_path / "printed.yaml").write_text(dump_recipe(recipe))
        again = load_recipe(Answering, str(tmp_path / "printed.yaml"))
        assert again.sampling.over({"temperature": 0.2}) == recipe.sampling.over({"temperature": 0.2})
        assert again.sampling.over({"temperature": 0.2}).temperature == (0.7 if "temperature=0.7" in said else 0.2)
    assert "  temperature: 0.25  #" in describe(Answering, read_recipe(Answering, None, ["temperature=0.25"]))


def test_a_folder_that_says_nothing_or_nonsense(tmp_path):
    assert carried_sampling(tmp_path) == {}
    file = tmp_path / "generation_config.json"
    for text, fault in (('{"top_p": 7}', "top_p: .* got 7"), ('{"temperature": "warm"}', "temperature: .*warm"),
                        ("{", "not valid JSON"), ("[]", "must hold a JSON object")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(InputError, match=f"generation_config.json: {fault}"):
            carried_sampling(tmp_path)
