"""Law 4: a factor of 1 changes nothing; every RoPE law equals transformers', or the paper's formula typed here."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from babyllama.errors import InputError
from babyllama.model.clex import Clex
from babyllama.model.config import ModelConfig, extended
from babyllama.model.laws import (
    ByPartsRope,
    ClexRope,
    DynamicNtkRope,
    LinearRope,
    NtkRope,
    PlainRope,
    YarnRope,
)
from babyllama.model.rope import DynamicNtk, Rope
from babyllama.recipe import validate

SCALED = [LinearRope, NtkRope, DynamicNtkRope, ByPartsRope, YarnRope]
DIMS = pytest.mark.parametrize("head_dim", [16, 48, 64, 128])
FACTORS = pytest.mark.parametrize("factor", [1.5, 2.0, 4.0, 16.0])
ORIGINALS = pytest.mark.parametrize("original", [64, 512, 4096])


def module(law, head_dim):
    return {"dynamic_ntk": DynamicNtk, "clex": Clex}.get(law.kind, Rope)(law, head_dim)


def theirs(head_dim: int, longest: int, **rope) -> LlamaRotaryEmbedding:
    return LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=2 * head_dim, num_attention_heads=2, max_position_embeddings=longest,
                    rope_parameters={"rope_theta": 10_000.0, **rope}))  # fmt: skip


def same(law, head_dim: int, other: LlamaRotaryEmbedding, positions: torch.Tensor) -> None:
    ours = module(law, head_dim)(positions)
    expected = other(torch.zeros(1), positions)
    for mine, their in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine[:, 0], their, rtol=0, atol=2e-4 if positions.max() < 2000 else 4e-3)


# ── factor 1 ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("law", SCALED)
@DIMS
def test_factor_1_is_plain_to_the_bit(law, head_dim):
    positions = torch.tensor([[0, 1, 17, 63, 200, 1000]])  # a dynamic law is plain as far as factor 1 reaches
    plain = Rope(PlainRope(), head_dim)(positions)
    for mine, expected in zip(module(law(factor=1.0, original=1001), head_dim)(positions), plain, strict=True):
        assert torch.equal(mine, expected)
    other = module(law(factor=2.0, original=64), head_dim)(positions)  # and a factor does do something
    assert not torch.allclose(other[0], plain[0], atol=1e-2)


# ── transformers ───────────────────────────────────────────────────────────────────────────────────────────────────
@DIMS
@FACTORS
@ORIGINALS
def test_linear_and_yarn_equal_transformers(head_dim, factor, original):
    positions = torch.stack([torch.arange(0, 8 * original, original // 8), torch.arange(64)])
    linear = theirs(head_dim, int(original * factor), rope_type="linear", factor=factor)
    same(LinearRope(factor=factor, original=original), head_dim, linear, positions)
    given = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    same(YarnRope(factor=factor, original=original), head_dim, theirs(head_dim, 9, **given), positions)
    other = {**given, "beta_fast": 20.0, "beta_slow": 2.0, "attention_factor": 1.3}
    law = YarnRope(factor=factor, original=original, alpha=2.0, beta=20.0, attention_factor=1.3)
    same(law, head_dim, theirs(head_dim, 9, **other), positions)
    parts = theirs(head_dim, 9, **given, attention_factor=1.0)
    same(ByPartsRope(factor=factor, original=original), head_dim, parts, positions)


@DIMS
@FACTORS
def test_dynamic_equals_transformers_at_every_length(head_dim, factor):
    other = theirs(head_dim, 64, rope_type="dynamic", factor=factor)
    law = DynamicNtkRope(factor=factor, original=64)
    for length in (1, 63, 64, 65, 100, 200, 1000, 63, 30):  # grows, then is short again (theirs resets below 64 only)
        same(law, head_dim, other, torch.arange(length)[None])


def test_dynamic_goes_by_each_row_alone():
    rope = DynamicNtk(DynamicNtkRope(factor=4.0, original=64), 32)
    positions = torch.arange(100)[None].repeat(3, 1)
    together = rope(positions, torch.tensor([20, 80, 100]))
    for row, length in enumerate((20, 80, 100)):
        alone = rope(torch.arange(length)[None])
        for mine, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(mine[row, :, :length], expected[0], rtol=0, atol=0)


# ── the papers, typed again ────────────────────────────────────────────────────────────────────────────────────────
@DIMS
@FACTORS
@ORIGINALS
def test_the_papers_formulas(head_dim, factor, original):
    i = np.arange(head_dim // 2)
    theta = 10_000.0 ** (-2 * i / head_dim)
    found = Rope(LinearRope(factor=factor, original=original), head_dim).frequencies
    np.testing.assert_allclose(found, theta / factor, rtol=1e-5)
    found = Rope(NtkRope(factor=factor, original=original), head_dim).frequencies
    np.testing.assert_allclose(
        found, (10_000.0 * factor ** (head_dim / (head_dim - 2))) ** (-2 * i / head_dim), rtol=1e-5
    )
    assert found[0] == 1
    np.testing.assert_allclose(found[-1], theta[-1] / factor, rtol=1e-5)
    wavelength = 2 * math.pi / theta
    gamma = np.clip((original / wavelength - 1) / (32 - 1), 0, 1)
    for law in (ByPartsRope, YarnRope):
        rope = Rope(law(factor=factor, original=original, ramp="rotations"), head_dim)
        np.testing.assert_allclose(rope.frequencies, (1 - gamma) * theta / factor + gamma * theta, rtol=1e-5)
        assert rope.scale == pytest.approx(0.1 * math.log(factor) + 1 if law is YarnRope else 1)


@pytest.mark.parametrize("ramp", ["dimensions", "rotations"])
def test_high_frequencies_stay_and_low_ones_are_interpolated(ramp):
    """The ramp the right way round: a well-known library has it inverted."""
    found = Rope(ByPartsRope(factor=8.0, original=2048, ramp=ramp), 128).frequencies
    plain = Rope(PlainRope(), 128).frequencies
    assert found[0] == plain[0] and found[5] == plain[5]
    torch.testing.assert_close(found[-5:], plain[-5:] / 8)
    assert all(a >= b for a, b in pairwise((found / plain).tolist()))


# ── CLEX ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def taught(head_dim: int = 16, **fields) -> Clex:
    rope = Clex(ClexRope(original=32, **fields), head_dim)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        rope.up.copy_(0.1 * torch.randn(rope.up.shape, generator=generator))
        rope.down.copy_(0.1 * torch.randn(rope.down.shape, generator=generator))
    return rope


def ode(rope: Clex, t_end: float, steps: int = 4000) -> np.ndarray:
    """The equation of the paper, as it stands there, by Heun's method in float64 with tiny steps."""
    up, down, D = rope.up.detach().double().numpy(), rope.down.detach().double().numpy(), rope.head_dim
    i = np.arange(D // 2)

    def log_ntk(t):
        return -2 * i / D * np.log(10_000.0 * (2 * t - 1) ** (D / (D - 2)))

    def slope(z, t):
        x = up @ (z + log_ntk(t))
        return down @ (x / (1 + np.exp(-x))) - 2 * i / D * (D / (D - 2)) * 2 / (2 * t - 1)

    z, h = log_ntk(1.0), (t_end - 1) / steps
    for step in range(steps):
        t = 1 + step * h
        first = slope(z, t)
        z = z + h / 2 * (first + slope(z + h * first, t + h))
    return np.exp(z)


@pytest.mark.parametrize("amplify", [1, 2])
@pytest.mark.parametrize("head_dim", [16, 64])
def test_clex_solves_the_papers_equation(head_dim, amplify):
    rope = taught(head_dim, max_t=6, amplify=amplify)
    for t in (2, 4, 6):
        np.testing.assert_allclose(rope.table()[t - 1].detach(), ode(rope, float(t)), rtol=2e-3)
    fine = Clex(rope.config.model_copy(update={"steps": 100}), head_dim)
    fine.load_state_dict(rope.state_dict())
    np.testing.assert_allclose(fine.table()[5].detach(), ode(rope, 6.0), rtol=5e-5)


def test_clex_starts_at_ntk_and_is_plain_at_the_trained_length():
    rope = Clex(ClexRope(original=32, max_t=8), 64)
    plain = Rope(PlainRope(), 64).frequencies
    assert torch.equal(rope.table()[0], plain)
    assert torch.equal(taught(64).table()[0], plain)  # at t = 1 whatever it has learned
    for t in range(2, 9):
        expected = Rope(NtkRope(factor=2.0 * t - 1, original=32), 64).frequencies
        torch.testing.assert_close(rope.table()[t - 1], expected, rtol=1e-5, atol=0)


def test_clex_takes_t_from_each_rows_length():
    rope = taught(max_t=4).eval()
    with torch.no_grad():
        found, table = rope.at(torch.tensor([1, 32, 33, 64, 65, 128, 999])), rope.table()
    assert torch.equal(found, table[[0, 0, 1, 1, 2, 3, 3]])


def test_clex_learns_and_its_table_is_never_stale():
    rope = taught(max_t=3)
    cos, sin = rope(torch.tensor([[0, 7, 95]]))
    (cos.sum() + sin[..., 1].sum()).backward()
    assert rope.up.grad.abs().sum() > 0 and rope.down.grad.abs().sum() > 0
    with torch.no_grad():
        before = rope.table()
        assert rope.table() is before  # solved once
        rope.down += 0.05
        assert not torch.allclose(rope.table()[2], before[2])


def test_the_operators_gradient_is_the_formulas():
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(50, (3, 5), generator=generator)
    for shape in ((4,), (3, 4), (3, 5, 4)):
        frequencies = torch.rand(shape, generator=generator, dtype=torch.float32).requires_grad_(True)
        weights = torch.randn(2, 3, 1, 5, 8, generator=generator)
        cos, sin = torch.ops.babyllama.rotations(positions, frequencies, 1.0)
        got = torch.autograd.grad((cos * weights[0] + sin * weights[1]).sum(), frequencies)[0]
        angles = positions[:, None, :, None] * frequencies.view(-1, 1, 5 if len(shape) == 3 else 1, 4)
        angles = torch.cat((angles, angles), -1)
        wanted = torch.autograd.grad((angles.cos() * weights[0] + angles.sin() * weights[1]).sum(), frequencies)[0]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_clex_learned_stays_float32(dtype):
    rope = taught()
    before = rope.up.clone()
    rope.to(dtype)
    assert rope.up.dtype == rope.down.dtype == torch.float32 and torch.equal(rope.up, before)


# ── what is refused ────────────────────────────────────────────────────────────────────────────────────────────────
SHAPE = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"kind": "yarn", "factor": 0.5}, "rope.factor: input should be greater than or equal to 1, got 0.5"),
        ({"kind": "yarn"}, "rope.factor: this key must be given"),
        ({"kind": "xpos", "factor": 2.0}, "xpos"),
        ({"factor": 2.0}, "factor has no effect with kind none"),
        ({"rope_type": "yarn"}, "rope_type: unknown key"),
        ({"kind": "none", "factor": 2.0}, "factor has no effect with kind none"),
        ({"kind": "linear", "factor": 3.0}, "give original"),
        ({"kind": "by_parts", "factor": 2.0, "alpha": 8.0, "beta": 4.0}, "alpha 8 must be below beta 4"),
        ({"kind": "linear", "factor": 2.0, "beta": 4.0}, "beta: belongs to kind by_parts, yarn"),
    ],
)
def test_bad_laws_are_one_line(rope, said):
    with pytest.raises(InputError) as error:
        validate(ModelConfig, {**SHAPE, "rope": rope}, "recipe")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_extending_a_model():
    plain = ModelConfig(**SHAPE, rope=PlainRope(theta=500.0))
    longer = extended(plain, YarnRope(factor=4.0))
    assert (longer.max_position_embeddings, longer.rope.original, longer.rope.theta) == (256, 64, 500.0)
    again = extended(longer, ClexRope(max_t=8))  # from the trained context, not from the stretched one
    assert (again.max_position_embeddings, again.rope.original, again.rope.theta) == (512, 64, 500.0)
    assert extended(longer, PlainRope()) == plain
    with pytest.raises(InputError, match=r"rope.factor: 1 changes nothing"):
        extended(plain, LinearRope(factor=1.0))
