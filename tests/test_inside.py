"""Looking inside: each figure against transformers' model of the same weights, or a formula written out here."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from babyllama import inside
from babyllama.errors import InputError
from babyllama.infer.sampling import Sampling
from babyllama.model.config import extended
from babyllama.model.laws import KINDS, law_of
from babyllama.model.transformer import Transformer
from conftest import sharp_model, tiny_config, transformers_twin

V = 61  # the model has 67 rows, six of them padding


@pytest.fixture(scope="module")
def model():
    return sharp_model(tiny_config(tied=False))


@pytest.fixture(scope="module")
def twin(model):
    return transformers_twin(model)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(V, (40,), generator=torch.Generator().manual_seed(5)).tolist()


def theirs(twin, ids):
    """Log-probabilities of transformers (T, V)."""
    return twin(torch.tensor([ids])).logits[0, :, :V].log_softmax(-1)


def test_expectations_are_transformers(model, twin, ids, monkeypatch):
    monkeypatch.setattr(inside, "ROWS", 7)
    found, expected = inside.expectations(model, ids, V, top=4), theirs(twin, ids)
    own = torch.stack([expected[t - 1, ids[t]] for t in range(1, len(ids))])
    torch.testing.assert_close(found.logprobs[1:], own, atol=1e-4, rtol=1e-4)
    assert found.logprobs[0].isnan() and found.ranks[0] == -1 and found.top[0].eq(-1).all()
    for t in range(1, len(ids) + 1):
        order = expected[t - 1].sort(descending=True)
        assert found.top[t].tolist() == order.indices[:4].tolist()
        torch.testing.assert_close(found.top_logprobs[t], order.values[:4], atol=1e-4, rtol=1e-4)
        if t < len(ids):
            assert found.ranks[t] == order.indices.tolist().index(ids[t])
    bits = -(expected.exp() * expected).sum(-1)
    torch.testing.assert_close(found.entropies[1:], bits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_transformers(kv_heads, ids):
    model = sharp_model(tiny_config(kv_heads))
    expected = transformers_twin(model)(torch.tensor([ids]), output_attentions=True).attentions
    for layer, weights in enumerate(expected):
        torch.testing.assert_close(inside.attention(model, ids, layer), weights[0], atol=1e-5, rtol=1e-4)


def test_the_lens_is_the_head_on_transformers_states(model, twin, ids):
    found = inside.logit_lens(model, ids, V, top=3)
    out = twin(torch.tensor([ids]), output_hidden_states=True)
    states = [*(twin.model.norm(state) for state in out.hidden_states[:-1]), out.hidden_states[-1]]
    assert found.top.shape == (4, len(ids), 3)
    for depth, state in enumerate(states):
        logprobs = twin.lm_head(state)[0, :, :V].log_softmax(-1)
        best = logprobs.topk(3)
        assert torch.equal(found.top[depth], best.indices)
        torch.testing.assert_close(found.top_logprobs[depth], best.values, atol=1e-4, rtol=1e-4)
        came = torch.stack([logprobs[t, ids[t + 1]] for t in range(len(ids) - 1)])
        torch.testing.assert_close(found.came[depth, :-1], came, atol=1e-4, rtol=1e-4)
    assert found.came[:, -1].isnan().all()


def test_what_was_watched_is_put_back(model, ids):
    before = copy.copy([layer.self_attn.attend for layer in model.layers]), model.through
    inside.attention(model, ids, 1)
    inside.logit_lens(model, ids, V)
    model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
    for look in (lambda: inside.attention(model, ids, 1), lambda: inside.logit_lens(model, ids, V)):
        with pytest.raises(ZeroDivisionError):
            look()
    model.layers[2]._forward_pre_hooks.clear()
    assert before == ([layer.self_attn.attend for layer in model.layers], model.through)


def test_sampling_reshapes_the_distribution_by_hand():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])

    def by_hand(values):
        total = sum(map(math.exp, values))
        return torch.tensor([math.exp(v) / total for v in values])

    for sampling, seen, expected in (
        ({"temperature": 0.5}, (), [4, 2, 0, -2]),
        ({"top_k": 2}, (), [2, 1, -math.inf, -math.inf]),
        ({"top_p": 0.7}, (), [2, 1, -math.inf, -math.inf]),  # 0.644, then 0.881 reaches it
        ({"min_p": 0.2}, (), [2, 1, -math.inf, -math.inf]),  # 0.368 stays, 0.135 goes
        ({"repetition_penalty": 2}, (0, 3), [1, 1, 0, -2]),
        ({"temperature": 0}, (), [0, -math.inf, -math.inf, -math.inf]),
    ):
        found = inside.reshaped(logits, Sampling(**sampling), seen)
        torch.testing.assert_close(found, by_hand(expected), atol=1e-6, rtol=1e-6)


def test_next_logits_are_transformers(model, twin, ids):
    expected = twin(torch.tensor([ids])).logits[0, -1, :V]
    torch.testing.assert_close(inside.next_logits(model, ids, V), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "clex"])
@pytest.mark.parametrize("length", [50, 200])
def test_frequencies_are_those_by_which_the_model_turns(kind, length):
    law = law_of({"kind": kind} if kind == "none" else {"kind": kind, "factor": 4}, "test")
    model = Transformer(extended(tiny_config(), law))
    positions = torch.arange(length)[None]
    cos, _ = model.rope(positions)
    angles = positions[0, :, None] * inside.rope_frequencies(model.config.rope, 8, length)
    scale = cos[0, 0, 0, 0]  # cos 0, times YaRN's factor
    torch.testing.assert_close(angles.cos() * scale, cos[0, 0, :, :4], atol=1e-4, rtol=1e-4)


def test_neighbours_by_hand():
    weight = torch.tensor([[1.0, 0], [10, 1], [0, 1], [-1, 0]])
    found, cosines = inside.neighbours(weight, 0, 2)
    assert found.tolist() == [1, 2]
    torch.testing.assert_close(cosines, torch.tensor([10 / math.sqrt(101), 0.0]))
    assert len(inside.neighbours(weight, 0)[0]) == 3


@pytest.mark.parametrize(
    "look, said",
    [
        (lambda m: inside.expectations(m, [], V), "0 tokens"),
        (lambda m: inside.expectations(m, [1] * 65, V), "give 1 … 64"),
        (lambda m: inside.next_logits(m, [1, 67], V), "0 … 66"),
        (lambda m: inside.attention(m, [1], 3), "layers 0 … 2"),
        (lambda m: inside.neighbours(m.embed_tokens.weight, 67), "0 … 66"),
    ],
)
def test_what_cannot_be_looked_at_is_said(model, look, said):
    with pytest.raises(InputError, match=said):
        look(model)
