"""Packed linears: the paper's table, the error of rounding to it, and memory that is really small."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from babyllama.model.nf4 import NF4, PACKED, Int8Linear, Nf4Linear, pack_base
from conftest import sharp_model


def normal_quantiles() -> torch.Tensor:
    """arXiv 2305.14314's construction (appendix E; bitsandbytes' create_normal_map), in float64."""
    offset = 0.9677083
    positive = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64))[:-1]
    negative = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64))[:-1]
    values = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).sort().values
    return values / values.max()


def linear(rows=37, columns=50, seed=0):
    made = nn.Linear(columns, rows, bias=False)
    made.weight = nn.Parameter(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)))
    return made


def test_the_table_is_made_of_normal_quantiles():
    torch.testing.assert_close(torch.tensor(NF4, dtype=torch.float64), normal_quantiles(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", PACKED.values())
def test_each_weight_is_the_nearest_level_of_its_block(kind):
    given, packed = linear(), kind.from_linear(linear())
    levels = torch.tensor(kind.levels, dtype=torch.float64)
    flat, found = given.weight.detach().double().flatten(), packed.dense_weight().double().flatten()
    for start in range(0, flat.numel(), 64):  # one block after the other, 37 × 50 being no multiple of 64
        block = flat[start : start + 64]
        scale = block.abs().max().half().double()
        nearest = (block[:, None] - scale * levels).abs().min(1).values
        torch.testing.assert_close((found[start : start + 64] - block).abs(), nearest, atol=1e-6, rtol=0)


def test_more_bits_less_error():
    weight = linear(64, 256).weight
    errors = {bits: (kind.from_linear(linear(64, 256)).dense_weight() - weight).square().mean().sqrt().item()
              for bits, kind in ((4, Nf4Linear), (8, Int8Linear))}  # fmt: skip
    assert errors[8] < 0.01 < errors[4] < 0.11  # of standard deviation 1


@pytest.mark.parametrize("kind,bits", [(Nf4Linear, 4.25), (Int8Linear, 8.25)])
def test_memory_is_what_it_says(kind, bits):
    packed = kind.from_linear(linear(64, 128))
    size = sum(b.numel() * b.element_size() for n, b in packed.named_buffers() if n != "table")
    assert size * 8 / (64 * 128) == bits and not list(packed.parameters()) and not packed.state_dict()


@pytest.mark.parametrize("kind", PACKED.values())
def test_another_dtype_leaves_the_weights_alone(kind):
    packed = kind.from_linear(linear())
    before = packed.dense_weight()
    assert torch.equal(packed.to(torch.bfloat16).half().float().dense_weight(), before)
    assert packed(torch.randn(3, 50).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", PACKED.values())
def test_autograd_keeps_the_bytes_and_not_the_dense_matrix(kind):
    packed, x = kind.from_linear(linear(64, 128)), torch.randn(2, 128, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = packed(x)
    assert kept and max(t.numel() * t.element_size() for t in kept) <= 64 * 128 and not any(
        t.is_floating_point() and t.numel() == 64 * 128 for t in kept)  # fmt: skip
    y.sum().backward()
    torch.testing.assert_close(x.grad, packed.dense_weight().sum(0).expand(2, -1))


def test_zeros_stay_zeros():
    made = linear(2, 64)
    made.weight.data.zero_()
    assert not Nf4Linear.from_linear(made).dense_weight().any()


def test_packing_takes_the_blocks_only(config):
    model = sharp_model(config)
    pack_base(model, "nf4")
    kinds = {name: type(m) for name, m in model.named_modules() if hasattr(m, "in_features")}
    assert kinds.pop("lm_head") is nn.Linear and set(kinds.values()) == {Nf4Linear} and len(kinds) == 7 * 3
