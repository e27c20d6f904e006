"""That the law by which GPU tests judge answers holds for rounding, and for nothing else."""

import copy

import pytest
from closeness import SLACK, chance, differ_by_rounding

from babyllama.infer.choosing import uniforms
from babyllama.model.config import ModelConfig
from conftest import sharp_model, tiny_config

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12], [13], [2, 2]]
SHAPE = ModelConfig.model_validate({**tiny_config().model_dump(), "max_position_embeddings": 96})
V, HEAT, ASKED = 64, 0.9, [(prompt, seed) for seed in range(3) for prompt in PROMPTS]


def answers(model, seen=lambda text: text, count=24):
    """Of a model that sees `seen(text)`."""
    found = []
    for prompt, seed in ASKED:
        text = list(prompt)
        for drawn in uniforms(seed, count):
            text.append(int((chance(model, seen(text), HEAT, V) <= drawn).sum()))
        found.append(text[len(prompt) :])
    return found


@pytest.fixture(scope="module")
def exact():
    model = sharp_model(SHAPE)
    model.load_state_dict(model.bfloat16().state_dict())
    return model.float()


@pytest.fixture(scope="module")
def right(exact):
    return answers(exact)


def close(exact, made, right):
    return [differ_by_rounding(exact, prompt, one, other, HEAT, seed, V)
            for (prompt, seed), one, other in zip(ASKED, made, right, strict=True)]  # fmt: skip


def test_rounding_passes(exact, right):
    half = copy.deepcopy(exact).bfloat16()
    made = answers(half)
    assert sum(one != other for one, other in zip(made, right, strict=True)) >= 3
    assert all(close(exact, made, right))
    texts = [[*prompt, *one[:n]] for (prompt, _), one in zip(ASKED, right, strict=True) for n in (0, 9, 23)]
    moved = [float((chance(half, text, HEAT, V) - chance(exact, text, HEAT, V)).abs().max()) for text in texts]
    assert max(moved) < SLACK / 2


FAULTS = {
    "all places are one off": lambda text: [*text[:1], *text],
    "it sees its neighbour's keys": lambda text: [*PROMPTS[1], *text[-1:]],
    "the newest key is not there yet": lambda text: [*text[:-2], *text[-1:]],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_do_not(exact, right, fault):
    made = answers(exact, FAULTS[fault], count=9)
    assert close(exact, made, [one[:9] for one in right]).count(False) >= 4


def test_an_answer_that_only_ends_earlier_is_no_rounding(exact, right):
    assert not differ_by_rounding(exact, PROMPTS[0], right[0], right[0][:-1], HEAT, 0, V)
