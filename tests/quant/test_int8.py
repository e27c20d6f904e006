"""LLM.int8() against float64 arithmetic of the same integers, and outliers planted in a model that knows something."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.quant import int8
from babyllama.quant.int8 import (
    MixedInt8Linear,
    mixed_product,
    outlier_columns,
    plain_product,
    product,
    quantised_rows,
    to_int8,
)

SIZES = [(1, 8, 8), (5, 48, 33), (40, 96, 64), (17, 1024, 40), (3, 7, 9)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(inputs, outputs, threshold=6.0, seed=0):
    layer = nn.Linear(inputs, outputs, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator(seed)))
    return layer, MixedInt8Linear.from_linear(layer, threshold)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_integer_product_is_exact(sizes):
    rows, inner, outer = sizes
    a, b = (torch.randint(-127, 128, (n, inner), dtype=torch.int8, generator=generator(n)) for n in (rows, outer))
    a[0] = b[0] = 127  # the largest sum
    assert torch.equal(product(a, b), plain_product(a, b))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("threshold", [None, 6.0, 1.5])
def test_forward_is_the_papers_formula(sizes, threshold):
    """Typed out in float64: the same rounded integers, their scales, and the outlier columns beside."""
    rows, inner, outer = sizes
    layer, mixed = made(inner, outer, threshold)
    x = torch.randn(rows, inner, generator=generator(2))
    x[:, inner // 2] *= 20
    weight = layer.weight.detach()
    sw = weight.abs().amax(1).double() / 127
    qw = torch.round(weight.double() / sw[:, None])
    out = (x.abs() >= threshold).any(0) if threshold is not None else torch.zeros(inner, dtype=torch.bool)
    out &= x.abs().amax(0) >= x.abs().amax(0).sort(descending=True).values[: int8.MOST][-1]  # and of the largest
    rest = x.masked_fill(out, 0).double()
    sx = rest.abs().amax(1, keepdim=True) / 127
    qx = torch.round(rest / sx.where(sx > 0, 1.0))
    expected = (qx @ qw.T) * sx * sw + x[:, out].double() @ (qw * sw[:, None])[:, out].T
    # A value on the border of two integers may round either way in float32: at most one step of one input.
    torch.testing.assert_close(mixed(x).double(), expected, rtol=1e-5, atol=1e-4 * float(expected.abs().max()))
    assert out.any() == (threshold is not None)


def test_codes_are_within_half_a_step_and_symmetric():
    x = torch.randn(9, 50, generator=generator(1))
    x[3] = 0
    codes, scales = quantised_rows(x)
    assert codes.abs().max() == 127 and not codes[3].any() and codes.dtype == torch.int8
    assert ((codes * scales - x).abs() <= scales * 0.5001).all()
    assert torch.equal(quantised_rows(-x)[0], -codes)


def test_a_column_that_reaches_the_threshold_is_exact_to_the_weights():
    _, mixed = made(64, 32)
    x = torch.zeros(4, 64)
    x[2, 5] = 6.0
    torch.testing.assert_close(mixed(x), x @ mixed.dense_weight().T)
    weight = torch.eye(64, dtype=torch.int8) * 127
    x = torch.full((3, 64), 0.013)
    x[1, 7] = 5000.0
    found = mixed_product(x, weight, torch.full((64,), 1 / 127), 6.0)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=0)
    assert not torch.allclose(mixed_product(x, weight, torch.full((64,), 1 / 127), None)[1], x[1], rtol=0.5)


@pytest.mark.parametrize("shape", [(2, 3, 48), (48,), (0, 48)])
def test_it_is_linear_like_and_its_gradient_is_of_the_dense_matrix(shape):
    _, mixed = made(48, 33)
    x = torch.randn(shape, generator=generator(4)).requires_grad_()
    found = mixed(x)
    assert found.shape == (*shape[:-1], 33) and (mixed.in_features, mixed.out_features) == (48, 33)
    g = torch.randn(found.shape, generator=generator(5))
    found.backward(g)
    torch.testing.assert_close(x.grad, g @ mixed.dense_weight())
    assert not list(mixed.parameters())


def test_memory_dtype_and_state():
    layer, mixed = made(64, 32)
    kept = mixed.dense_weight()
    saved = mixed.state_dict()
    assert {k: v.dtype for k, v in saved.items()} == {
        "weight": torch.int8, "scales": torch.float32, "kept": torch.float16, "kept_index": torch.int32}  # fmt: skip
    assert sum(v.numel() * v.element_size() for v in saved.values()) == 64 * 32 + 4 * 32
    mixed.to(torch.bfloat16)
    assert torch.equal(mixed.dense_weight(), kept)
    assert mixed(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    other = MixedInt8Linear(64, 32)
    other.load_state_dict(saved, strict=True)
    assert torch.equal(other.dense_weight(), kept)
    step = layer.weight.detach().abs().amax(1, keepdim=True) / 127
    assert ((kept - layer.weight).abs() <= step * 0.5001).all()


# ── outliers in a model ────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def taught():
    """A small model of a repeating text with noise, and the text."""
    config = ModelConfig(vocab_size=48, hidden_size=64, intermediate_size=160, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64)  # fmt: skip
    model = Transformer(config)
    initialise(model, 0)
    start = torch.randint(48, (48, 1), generator=generator(1))
    tokens = (start + 5 * torch.arange(33)) % 48
    noise = torch.rand(tokens.shape, generator=generator(2)) < 0.15
    tokens = torch.where(noise, torch.randint(48, tokens.shape, generator=generator(3)), tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = loss_of(model, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False), tokens


def loss_of(model, tokens):
    return cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def planted(model, factor=200.0, channels=(3, 41)):
    """Channels of each norm's output `factor` times as large, their columns of the next weights as much smaller."""
    model = copy.deepcopy(model)
    for block in model.layers:
        attention, mlp = block.self_attn, block.mlp
        for norm, layers in ((block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                             (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj))):  # fmt: skip
            norm.weight[list(channels)] *= factor
            for layer in layers:
                layer.weight[:, list(channels)] /= factor
    return model


def changes(model, tokens, **columns):
    """Relative change of the perplexity with and without a threshold."""
    exact, found = loss_of(model, tokens), {}
    for name, threshold in (("mixed", 6.0), ("plain", None)):
        quantised = copy.deepcopy(model)
        assert len(to_int8(quantised, threshold, **columns)) == 14
        found[name] = (loss_of(quantised, tokens) - exact).exp().item() - 1
    return found


@pytest.mark.parametrize(("factor", "known"), [(30.0, False), (200.0, True)])
def test_planted_outliers_break_plain_int8_and_not_the_mixed_product(taught, factor, known):
    """Where the planted columns' weights are far below their rows' step, the 16-bit columns are what saves them."""
    model, tokens = taught
    outlying = planted(model, factor)
    assert loss_of(outlying, tokens).item() == pytest.approx(loss_of(model, tokens).item(), rel=1e-4)
    columns = outlier_columns(outlying, lambda: outlying(tokens[:8])) if known else {}
    plain = changes(outlying, tokens)
    mixed = changes(outlying, tokens, columns=columns)["mixed"]
    assert abs(mixed) < 1e-3
    assert plain["plain"] > 8e-3 and plain["plain"] > 10 * abs(mixed)
    if known:
        assert plain["plain"] > 1 and plain["mixed"] > 1e-2
        assert all({3, 41} <= set(columns[f"layers.{i}.mlp.up_proj"].tolist()) for i in range(2))


def test_kept_columns_are_halves_and_always_beside():
    layer, _ = made(48, 33)
    kept = MixedInt8Linear.from_linear(layer, 6.0, torch.tensor([4, 40]))
    assert torch.equal(kept.dense_weight()[:, [4, 40]], layer.weight[:, [4, 40]].half().float())
    assert not kept.weight[:, [4, 40]].any()
    x = torch.zeros(5, 48)
    x[:, 4] = torch.randn(5, generator=generator(8))
    torch.testing.assert_close(kept(x), x @ kept.dense_weight().T)
    other = MixedInt8Linear(48, 33, kept=2)
    other.load_state_dict(kept.state_dict(), strict=True)
    assert torch.equal(other(x), kept(x))


@pytest.mark.parametrize("columns", [None, [3, 40]])
def test_few_rows_on_a_cpu_meet_eight_bits_as_they_are(monkeypatch, columns):
    """In bfloat16 only the weights are rounded: outliers need no way of their own."""
    layer, _ = made(96, 37)
    kept = None if columns is None else torch.tensor(columns)
    mixed = MixedInt8Linear.from_linear(layer, 6.0, kept)
    x = torch.randn(2, 3, 96, generator=generator(2)).bfloat16()
    x[..., 3] *= 20
    monkeypatch.setattr(int8, "quantised_rows", None)
    expected = x.float() @ mixed.dense_weight().T
    assert (mixed(x).float() - expected).norm() < 5e-3 * expected.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sizes", SIZES)
def test_a_gpus_integers_are_the_same(sizes):
    rows, inner, outer = sizes
    a, b = (torch.randint(-127, 128, (n, inner), dtype=torch.int8, generator=generator(n)) for n in (rows, outer))
    assert torch.equal(product(a.cuda(), b.cuda()).cpu(), plain_product(a, b))
    _, mixed = made(inner, outer)
    x = torch.randn(rows, inner, generator=generator(2))
    x[:, 0] *= 20
    torch.testing.assert_close(mixed.cuda()(x.cuda()).cpu(), mixed.cpu()(x), rtol=1e-4, atol=1e-4)
