"""OneBit against numpy's SVD and the paper's formula typed out in float64; its gradients, its bits, its memory."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from babyllama.errors import InputError
from babyllama.model.bitnet import EPS, OneBitLinear
from babyllama.model.checkpoint import load_model, save_model
from babyllama.model.wrappers import LoraLinear
from babyllama.quant.onebit import PackedOneBitLinear, pack_signs, pack_trained, start, svid, unpack_signs
from conftest import sharp_model, tiny_config

SIZES = [(8, 5), (40, 33), (64, 70), (31, 96)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def layer_of(inputs, outputs, seed=0, trained=True):
    """A OneBitLinear with values of no symmetry."""
    layer = OneBitLinear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator(seed)))
        layer.g.copy_(torch.rand(inputs, generator=generator(seed + 1)) + 0.5)
        layer.h.copy_(torch.randn(outputs, generator=generator(seed + 2)))
    return layer.requires_grad_(trained)


def law(x, weight, g, h):
    """The paper's equation, LN without weights; in float64."""
    x, weight, g, h = (np.asarray(t.detach().double()) for t in (x, weight, g, h))
    y = ((x * g) @ np.where(weight < 0, -1.0, 1.0).T) * h
    return torch.tensor((y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + EPS))


@pytest.mark.parametrize("sizes", SIZES)
def test_svid_is_the_best_matrix_of_rank_one(sizes):
    weight = torch.randn(sizes[1], sizes[0], generator=generator(3))
    h, g = svid(weight)
    u, s, v = np.linalg.svd(weight.abs().double().numpy())
    best = s[0] * np.outer(u[:, 0], v[0])
    np.testing.assert_allclose(torch.outer(h, g).double().numpy(), best, rtol=1e-5)
    assert h.min() >= 0 and g.min() >= 0 and h.norm().item() == pytest.approx(g.norm().item(), rel=1e-5)
    error = np.linalg.norm(weight.abs().double().numpy() - np.outer(h, g))
    assert error == pytest.approx(np.sqrt((s[1:] ** 2).sum()), rel=1e-5)


def test_svid_of_special_matrices():
    h, g = svid(torch.zeros(4, 6))
    assert not torch.outer(h, g).any()
    a, b = torch.rand(5, generator=generator(1)) + 0.1, torch.rand(7, generator=generator(2)) + 0.1
    torch.testing.assert_close(torch.outer(*svid(-torch.outer(a, b))), torch.outer(a, b))


@pytest.mark.parametrize("sizes", SIZES)
def test_forward_is_the_papers_formula_trained_and_packed(sizes):
    layer = layer_of(*sizes)
    x = torch.randn(3, 4, sizes[0], generator=generator(7))
    expected = law(x, layer.weight, layer.g, layer.h)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)
    packed = PackedOneBitLinear.of(layer)
    torch.testing.assert_close(packed(x).double(), law(x, layer.weight, layer.g.half(), layer.h.half()),
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    with torch.no_grad():
        layer.g.copy_(layer.g.half())
        layer.h.copy_(layer.h.half())
    assert torch.equal(packed(x), layer(x))
    assert torch.equal(packed.dense_weight(), layer.dense_weight())
    matrix = layer.weight.detach().sign() * torch.outer(layer.h, layer.g).detach()
    assert torch.equal(packed.dense_weight(), matrix)


def test_few_rows_on_a_cpu_are_multiplied_packed(monkeypatch):
    """In bfloat16 by PyTorch's own product of few bits; its signs follow the module's."""
    packed = PackedOneBitLinear.of(layer_of(96, 37))
    monkeypatch.setattr("babyllama.quant.onebit.unpacked_product", None)  # the slow way is not taken
    x = torch.randn(2, 3, 96, generator=generator(7)).bfloat16()
    for weight in (layer_of(96, 37).weight, -layer_of(96, 37).weight):
        packed.signs = pack_signs(weight.signbit())
        expected = law(x, weight, packed.g, packed.h)
        assert (packed.to(torch.bfloat16)(x).double() - expected).norm() < 1e-2 * expected.norm()


def test_gradients_are_straight_through():
    """Autograd's of the same law with sign(W) as a leaf: its gradient is W's."""
    layer = layer_of(40, 33)
    x = torch.randn(6, 40, generator=generator(4)).requires_grad_()
    target = torch.randn(6, 33, generator=generator(5))
    (layer(x) * target).sum().backward()
    sign = layer.weight.detach().sign().double().requires_grad_()
    g, h = (t.detach().double().requires_grad_() for t in (layer.g, layer.h))
    y = x.detach().double().requires_grad_()
    ((nn.functional.layer_norm(((y * g) @ sign.T) * h, (33,), eps=EPS)) * target).sum().backward()
    for ours, exact in ((layer.weight, sign), (layer.g, g), (layer.h, h), (x, y)):
        torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
    packed, z = PackedOneBitLinear.of(layer), x.detach().requires_grad_()
    (packed(z) * target).sum().backward()
    torch.testing.assert_close(z.grad, x.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 100])
def test_signs_survive_packing(inputs):
    negative = torch.rand(9, inputs, generator=generator(inputs)) < 0.5
    words = pack_signs(negative)
    assert words.dtype == torch.int32 and words.shape == (9, -(-inputs // 32))
    assert torch.equal(unpack_signs(words, inputs, torch.float32), torch.where(negative, -1.0, 1.0))
    value = sum(1 << j for j in range(min(inputs, 32)) if negative[4, j])
    assert int(words[4, 0]) & 0xFFFFFFFF == value


def test_signs_of_zeros_and_of_what_a_short_float_flushes():
    layer = OneBitLinear(4, 1)
    layer.weight.data = torch.tensor([[0.0, -0.0, 1e-30, -1e-30]])
    expected = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    assert torch.equal(layer.dense_weight(), expected)
    assert torch.equal(PackedOneBitLinear.of(layer).dense_weight(), expected)
    assert torch.equal(layer.half().dense_weight(), expected)


def test_one_bit_a_weight_and_a_state_that_loads():
    packed = PackedOneBitLinear.of(layer_of(2048, 1024))
    state = packed.state_dict()
    bits = 8 * sum(v.numel() * v.element_size() for v in state.values()) / (2048 * 1024)
    assert bits == 1 + 16 * (2048 + 1024) / (2048 * 1024) < 1.03
    other = PackedOneBitLinear(2048, 1024)
    other.load_state_dict(state, strict=True)
    before = packed.dense_weight()
    assert torch.equal(other.to(torch.bfloat16).dense_weight(), before)
    assert other(torch.randn(2, 2048, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert not list(packed.parameters())


# ── models ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def started(tied=True):
    model = sharp_model(tiny_config(tied=tied))
    dense = copy.deepcopy(model)
    start(model)
    return model, dense


def test_a_model_starts_with_its_matrices_and_their_svid(tokens):
    model, dense = started()
    layers = [m for m in model.modules() if isinstance(m, OneBitLinear)]
    assert len(layers) == 7 * 3 and type(model.lm_head) is nn.Linear
    mine, was = model.layers[1].mlp.up_proj, dense.layers[1].mlp.up_proj
    assert torch.equal(mine.weight, was.weight)
    expected = was.weight.sign() * torch.outer(*svid(was.weight))
    torch.testing.assert_close(mine.dense_weight(), expected)
    assert model.config.parameters == sum(p.numel() for p in model.parameters())
    assert model(tokens).isfinite().all()
    with pytest.raises(InputError, match="starts from a dense model"):
        start(model)


@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_folder_loads_strictly_and_packs(tmp_path, tokens, tied):
    model, _ = started(tied)
    save_model(model, tmp_path, 1, 2)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config and torch.equal(loaded(tokens), model(tokens))
    assert len(pack_trained(loaded)) == 21
    torch.testing.assert_close(loaded(tokens), model(tokens), rtol=1e-2, atol=2e-2)
    with pytest.raises(InputError, match="has trained"):
        pack_trained(loaded)


def test_an_adapter_trains_on_the_packed_form():
    base = PackedOneBitLinear.of(layer_of(16, 8))
    lora = LoraLinear(base, 2, 1.0)
    lora.initialise(generator())
    lora(torch.randn(3, 16)).sum().backward()
    assert lora.lora_B.grad.abs().sum() > 0
