"""AWQ: the scaled model computes what it did, the searches find the least error, α = 0 is plain rounding."""

from __future__ import annotations

import pytest
import torch

from babyllama.errors import InputError
from babyllama.quant.awq import SHARED, Awq, fold, scale_of
from babyllama.quant.calibrate import STAGES, linears_of, norms_of
from babyllama.quant.rtn import Moments, Rtn
from babyllama.recipe import load_recipe


def layer(inputs=72, outputs=24, seed=0):
    """A matrix, inputs of which some are far larger, and their moments."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * 0.1
    x = torch.randn(300, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator) * 0.05
    x[:, ::9] *= 20
    moments = Moments(inputs, weight.device)
    moments.add(x)
    return weight, x, moments


def error(dense, weight, x):
    return float(((dense - weight) @ x.T).square().sum())


def test_the_scaled_model_computes_what_it_did(model, tokens):
    """Every source and user with scales far from one; with grouped queries o_proj has none to take."""
    before = model(tokens)
    generator = torch.Generator().manual_seed(0)
    for block in model.layers:
        linears, norms = linears_of(block), norms_of(block)
        for shared in SHARED:
            users = [linears[name] for name in shared.linears]
            source = (linears.get(shared.source) or norms[shared.source]).weight
            if len(source) == users[0].in_features:
                fold(source, users, torch.rand(users[0].in_features, generator=generator) * 3 + 0.2)
    torch.testing.assert_close(model(tokens), before, rtol=1e-5, atol=1e-5 * before.abs().max().item())


def test_prepare_keeps_the_function(model, tokens):
    before = model(tokens)
    kv_whole = model.config.num_key_value_heads == model.config.num_attention_heads
    for block in model.layers:
        linears, generator = linears_of(block), torch.Generator().manual_seed(1)
        inputs = {}
        for stage in STAGES:
            K = linears[stage[0]].in_features
            inputs[stage[0]] = Moments(K, before.device)
            inputs[stage[0]].add(torch.randn(200, K, generator=generator) * torch.rand(K, generator=generator) ** 4)
        o_proj, down = linears["self_attn.o_proj"].weight.clone(), linears["mlp.down_proj"].weight.clone()
        Awq(bits=3, group_size=16).prepare(linears, norms_of(block), inputs)
        assert torch.equal(o_proj, linears["self_attn.o_proj"].weight) == (not kv_whole)
        assert not torch.equal(down, linears["mlp.down_proj"].weight)
    torch.testing.assert_close(model(tokens), before, rtol=1e-5, atol=1e-5 * before.abs().max().item())


@pytest.mark.parametrize("group_size", [None, 16, 48])
def test_the_best_alpha_wins(group_size):
    weight, x, moments = layer()
    method = Awq(bits=3, group_size=group_size)
    scale, tried = method.scale([weight], moments), {}
    for step in range(20):
        s = x.abs().mean(0) ** (step / 20)
        s = s / (s.max() * s.min()) ** 0.5
        tried[step] = error(Rtn(bits=3, group_size=group_size).nearest(weight * s).dense() / s, weight, x)
        if step == 0:
            assert torch.equal(scale_of(moments.size, 0.0), torch.ones(72))
    found = error(method.nearest(weight * scale).dense() / scale, weight, x)
    assert found == pytest.approx(min(tried.values()), rel=1e-3) and found < 0.9 * tried[0]


def test_alpha_zero_is_rtn():
    weight, _, moments = layer()
    method = Awq(bits=3, group_size=16, steps=1, clip=False)
    assert torch.equal(method.scale([weight], moments), torch.ones(72))
    expected = Rtn(bits=3, group_size=16).solve(weight, moments, "v_proj").dense()
    assert torch.equal(method.solve(weight, moments, "v_proj").dense(), expected)


@pytest.mark.parametrize("group_size", [None, 16, 48])
def test_each_group_is_clipped_where_its_error_is_least(group_size):
    weight, x, moments = layer()
    weight[3, 5] = 2.0
    method = Awq(bits=3, group_size=group_size)
    found, size = method.shrink(weight, moments.hessian), group_size or 72
    assert found.min() < 1
    for g in range(-(-72 // size)):
        w, part = weight[:, g * size : (g + 1) * size], x[:, g * size : (g + 1) * size]
        errors = {}
        for step in range(21):
            ratio = 1 - step / 40
            low, high = w.amin(1).clamp(max=0) * ratio, w.amax(1).clamp(min=0) * ratio
            scale = (high - low) / 7
            scale = scale.where(low <= -scale / 2, high / 6).half().float()[:, None]
            zero = (-low[:, None] / scale).round().clamp(1, 7)
            q = ((w / scale + zero).round().clamp(0, 7) - zero) * scale
            errors[ratio] = ((q - w) @ part.T).square().sum(1)
        least = torch.stack(list(errors.values())).amin(0)
        picked = torch.stack([errors[min(errors, key=lambda r: abs(r - float(found[n, g])))][n] for n in range(24)])
        torch.testing.assert_close(picked, least, rtol=1e-3, atol=1e-6)
    whole = error(method.solve(weight, moments, "mlp.up_proj").dense(), weight, x)
    q_proj = method.solve(weight, moments, "self_attn.q_proj").dense()
    assert torch.equal(q_proj, method.nearest(weight).dense()) and (group_size or whole < error(q_proj, weight, x))


def test_one_search_is_enough():
    with pytest.raises(InputError, match="mse is not for awq"):
        load_recipe(Awq, None, ["mse=true"])
