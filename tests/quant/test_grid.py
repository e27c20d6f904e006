"""The grid: rounding is to the nearest point, ranges are covered, a clipped range is the best of those tried."""

from __future__ import annotations

import itertools

import pytest
import torch

from babyllama.errors import InputError
from babyllama.quant.grid import SHRINKS, Grid, groups
from babyllama.recipe import load_recipe

SHAPES = [(2, 16), (3, 32), (4, None), (8, 48)]


def matrix(rows=9, inputs=56, seed=0):
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("symmetric,mse", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("bits,group_size", SHAPES)
def test_every_weight_gets_the_nearest_point(bits, group_size, symmetric, mse):
    weight = matrix()
    found = Grid(bits=bits, group_size=group_size, symmetric=symmetric, mse=mse).nearest(weight)
    dense, size = found.dense(), group_size or weight.shape[1]
    for row, column in itertools.product(*map(range, weight.shape)):
        scale, zero = found.scale[row, column // size], found.zero[row, column // size]
        points = (torch.arange(2**bits) - zero) * scale
        assert dense[row, column] in points
        assert abs(dense[row, column] - weight[row, column]) <= (points - weight[row, column]).abs().min() + 1e-7


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_the_range_is_covered(bits, shift):
    """Half a step at most is lost (and what fp16 rounds of a scale), also where all weights have one sign."""
    weight = matrix() + shift
    found = Grid(bits=bits, group_size=16).nearest(weight)
    lost = groups(found.dense() - weight, 16).abs().amax(-1)
    assert (lost <= found.scale * 0.5 + 2e-3 * weight.abs().max()).all()
    assert found.zero.min() >= 1 and found.zero.max() <= 2**bits - 1


def test_zero_is_on_the_grid_and_a_short_group_is_its_own():
    weight = matrix()
    weight[:, 48:] *= 1e-3
    weight[2] = 0
    found = Grid(bits=4, group_size=16).nearest(weight)
    assert found.scale.shape == (9, 4) and (found.dense()[2] == 0).all()
    assert (found.dense()[:, 48:] - weight[:, 48:]).abs().max() < 1e-4
    assert torch.equal(found.rows(3, 5).dense(), found.dense()[3:5])


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_clipped_range_is_the_best_that_was_tried(symmetric):
    """The same search, group by group; against an outlier it gains."""
    weight = matrix(4, 64)
    weight[:, 5] = 0.4
    plain, search = (Grid(bits=3, group_size=32, symmetric=symmetric, mse=mse) for mse in (False, True))
    found = search.nearest(weight).dense()

    def error(dense):
        return groups((dense - weight).abs() ** 2.4, 32).sum(-1)

    tried = torch.stack([error(plain.nearest(weight, torch.full((4, 2), s)).dense()) for s in SHRINKS])
    torch.testing.assert_close(error(found), tried.amin(0))
    assert error(found).sum() < 0.97 * error(plain.nearest(weight).dense()).sum()


def test_an_order_is_undone():
    weight, order = matrix(), torch.randperm(56, generator=torch.Generator().manual_seed(1))
    grid = Grid(bits=8, group_size=16)
    assert (grid.nearest(weight[:, order])._replace(order=order).dense() - weight).abs().max() < 2e-3


@pytest.mark.parametrize("words,said", [
    (["bits=5"], "bits: input should be 2, 3, 4 or 8, got 5"),
    (["group_size=24"], "group_size: input should be a multiple of 16, got 24"),
    (["group_size=0"], "group_size: input should be greater than or equal to 16"),
])  # fmt: skip
def test_bad_grids_are_one_line(words, said):
    with pytest.raises(InputError, match=said) as error:
        load_recipe(Grid, None, words)
    assert "\n" not in str(error.value)
