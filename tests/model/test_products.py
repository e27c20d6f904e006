"""The blocks' products in float8: rounding by hand, and each way beside the exact one."""

import sys

import pytest
import torch
from torch.nn.functional import linear, rms_norm, silu

from babyllama.model.fused import rotated_product, swiglu_down
from babyllama.model.products import LARGEST, REACH, by_row, float8_linear, multiplied, normed, usable, whole
from conftest import tiny_config

g = torch.Generator().manual_seed(0)
STATES = rms_norm(torch.randn(2, 24, 64, generator=g), (64,))
WEIGHT = torch.randn(96, 64, generator=g) * 0.02
ERROR = 0.045  # of a product: two factors, each rounded to 2⁻⁴ at worst and a rms of 0.026


def relative(ours, exact):
    return ((ours.double() - exact.double()).norm() / exact.double().norm()).item()


@pytest.mark.parametrize(("rounding", "matrix"), [(normed, STATES), (whole, WEIGHT), (by_row, WEIGHT * 1e-6)])
def test_a_rounded_number_is_a_sixteenth_off_at_most(rounding, matrix):
    rounded = rounding(matrix)
    back = rounded.numbers.double() * rounded.scale.double()
    flat = matrix.flatten(0, -2).double()
    held = flat.abs() > rounded.scale.double() * 2**-6  # below that the steps stay the same
    assert held.double().mean() > 0.95
    assert ((back - flat).abs() <= flat.abs() / 16 + rounded.scale * 2**-10)[held].all()
    assert ((back - flat).abs() <= rounded.scale.double() * 2**-10 * 1.001)[~held].all()


def test_what_is_too_large_is_cut_off_and_no_infinity():
    rounded = normed(torch.tensor([[REACH * 3, -REACH * 1000, 1.0]]))
    assert rounded.numbers.float().tolist() == [[LARGEST, -LARGEST, 8.0]] and rounded.scale == REACH / LARGEST


def test_each_row_has_its_own_scale_and_zeros_stay():
    rows = torch.tensor([[1.0, 0.5], [1e-20, 1e-20], [0.0, 0.0], [3e20, 3e19]])
    rounded = by_row(rows)
    assert rounded.scale.shape == (4, 1) and not rounded.numbers[1:3].float().any()
    torch.testing.assert_close(rounded.numbers.float() * rounded.scale, rows, rtol=0.07, atol=1e-12)


@pytest.mark.parametrize(("left", "right"), [(normed, whole), (by_row, by_row)])
def test_the_product_is_that_of_the_rounded_factors(left, right):
    a, b = left(STATES), right(WEIGHT)
    exact = (a.numbers.double() * a.scale) @ (b.numbers.double() * b.scale).T
    torch.testing.assert_close(multiplied(a, b, torch.float32).double(), exact, rtol=1e-5, atol=1e-7)
    assert 0.01 < relative(exact, STATES.flatten(0, 1) @ WEIGHT.T) < ERROR


def test_the_linear_errs_forward_and_is_exact_backward():
    x, weight = STATES.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    out = float8_linear(x, weight)
    assert out.shape == (2, 24, 96) and 0.01 < relative(out.detach(), linear(STATES, WEIGHT)) < ERROR
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(grad)
    torch.testing.assert_close(x.grad, grad @ WEIGHT)
    torch.testing.assert_close(weight.grad, grad.flatten(0, 1).T @ STATES.flatten(0, 1))


def test_the_joined_product_and_the_mlp():
    cos, sin = torch.ones(1, 1, 24, 16), torch.zeros(1, 1, 24, 16)
    ways = [rotated_product(STATES, WEIGHT, cos, sin, (2, 2, 2), float8) for float8 in (True, False)]
    for ours, exact in zip(*ways, strict=True):
        assert ours.shape == exact.shape == (2, 2, 24, 16) and 0.01 < relative(ours, exact) < ERROR
    both, down = torch.randn(2, 24, 192, generator=torch.Generator().manual_seed(2)), WEIGHT.T.contiguous()
    gate, up = both.chunk(2, -1)
    assert 0.01 < relative(swiglu_down(both, down, float8=True), linear(silu(gate) * up, down)) < ERROR


@pytest.mark.parametrize(
    ("capability", "width", "able"), [((9, 0), 16, True), ((8, 9), 16, False), ((9, 0), 24, False)]
)
def test_where_it_is_used(monkeypatch, capability, width, able):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    shape = {"hidden_size": width, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 32}
    config = tiny_config().model_copy(update=shape)
    assert usable(config, torch.device("cuda")) == (able and sys.platform != "win32")
    assert not usable(config, torch.device("cpu"))
