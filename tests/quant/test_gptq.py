"""GPTQ against its definition, column by column in float64, and what it is for: less error on correlated inputs."""

from __future__ import annotations

import pytest
import torch

from babyllama.errors import InputError
from babyllama.quant.gptq import Gptq
from babyllama.quant.grid import Grid
from babyllama.quant.rtn import Moments, Rtn, output_error
from babyllama.recipe import load_recipe


def layer(inputs=80, outputs=24, tokens=400, seed=0):
    """A matrix and inputs that are correlated and of unlike sizes; two of them are always zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * 0.1
    mix = torch.randn(inputs, inputs, generator=generator) * torch.rand(inputs, generator=generator) ** 2
    x = torch.randn(tokens, inputs // 4, generator=generator) @ mix[: inputs // 4] * 3
    x += torch.randn(tokens, inputs, generator=generator) * 0.1
    x[:, [3, 41]] = 0
    moments = Moments(inputs, weight.device)
    for part in x.split(150):
        moments.add(part)
    return weight, x, moments


def reference(weight, x, method):
    """The dense result: whole inverses, no blocks, one update of everything behind each column."""
    w, x = weight.double().clone(), x.double()
    inputs = w.shape[1]
    hessian = 2 * x.T @ x / len(x)
    size = method.group_size or inputs
    grid = Grid(bits=method.bits, group_size=method.group_size, symmetric=method.symmetric, mse=method.mse)

    def scales_of(part):
        return [value.double() for value in grid.fit(part.float())]

    order = list(range(inputs))
    if method.act_order:
        order.sort(key=lambda i: -float(hessian[i, i]))
    if method.act_order == "groups":  # a short last one stays last; groups are ranked by their largest
        largest = {g: max(float(hessian[i, i]) for i in order if i // size == g) for g in range(inputs // size)}
        order.sort(key=lambda i: -largest[i // size] if i // size in largest else 1.0)
    fixed = {g: scales_of(w[:, g * size : (g + 1) * size]) for g in range(-(-inputs // size))}
    mean = hessian.diagonal().mean()
    for i in range(inputs):
        hessian[i, i] += 1.0 if hessian[i, i] == 0 else method.damp * mean
    w, hessian = w[:, order], hessian[order][:, order]
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian)).T
    found, scale, zero = torch.zeros_like(w), None, None
    for j in range(inputs):
        if method.static_groups or method.group_size is None:
            scale, zero = fixed[order[j] // size]
        elif j % size == 0:
            scale, zero = scales_of(w[:, j : j + size])
        q = (torch.clamp(torch.round(w[:, j] / scale + zero), 0, 2**method.bits - 1) - zero) * scale
        error = (w[:, j] - q) / upper[j, j]
        found[:, j] = q
        for k in range(j + 1, inputs):
            w[:, k] -= error * upper[j, k]
    back = torch.empty_like(found)
    back[:, order] = found
    return back.float()


@pytest.mark.parametrize("block", [16, 48, 128])
@pytest.mark.parametrize("words", [
    {"group_size": None}, {"group_size": 32}, {"group_size": 48, "bits": 3, "mse": True},
    {"group_size": 32, "act_order": True}, {"group_size": None, "act_order": True, "bits": 2},
    {"group_size": 16, "act_order": True, "symmetric": True, "bits": 8},
    {"group_size": 32, "act_order": True, "static_groups": True}, {"group_size": 64, "static_groups": True},
    {"group_size": 16, "act_order": "groups"}, {"group_size": 48, "act_order": "groups", "bits": 3},
    {"group_size": None, "act_order": "groups"}, {"group_size": 32, "act_order": "groups", "static_groups": True},
], ids=str)  # fmt: skip
def test_it_is_the_definition(words, block):
    weight, x, moments = layer()
    method = Gptq(**{"block": block, **words})
    found = method.solve(weight, moments, "q_proj")
    torch.testing.assert_close(found.dense(), reference(weight, x, method), rtol=0, atol=1e-5)
    theirs = method.act_order is True and not method.static_groups and method.group_size is not None
    assert (found.order is not None) == theirs
    assert torch.equal(weight, layer()[0])  # not written into


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 32])
@pytest.mark.parametrize("act_order", [False, True])
def test_less_error_than_the_nearest_points(bits, group_size, act_order):
    for seed in range(3):
        weight, x, moments = layer(seed=seed)
        errors = []
        for method in (Rtn(bits=bits, group_size=group_size),
                       Gptq(bits=bits, group_size=group_size, act_order=act_order)):  # fmt: skip
            dense = method.solve(weight, moments, "q_proj").dense()
            errors.append(float(((dense - weight) @ x.T).square().sum(0).mean()))
            assert errors[-1] == pytest.approx(float(output_error(dense - weight, moments.hessian)), rel=1e-3)
        assert errors[1] < 0.8 * errors[0]


def test_inputs_that_say_nothing_are_rtn():
    weight, _, _ = layer()
    quiet = Moments(80, weight.device)
    quiet.add(torch.zeros(5, 80))
    found = Gptq(group_size=32, mse=False).solve(weight, quiet, "q_proj").dense()
    assert torch.equal(found, Rtn(group_size=32).solve(weight, quiet, "q_proj").dense())


def test_fewer_tokens_than_inputs():
    weight, _, _ = layer()
    few = Moments(80, weight.device)
    few.add(torch.randn(3, 80, generator=torch.Generator().manual_seed(0)) * 1e3)
    assert Gptq(group_size=32, damp=1e-9).solve(weight, few, "q_proj").dense().isfinite().all()


def test_faults_are_one_line():
    weight, _, _ = layer()
    broken = Moments(80, weight.device)
    broken.add(torch.full((2, 80), float("nan")))
    with pytest.raises(InputError, match="q_proj: its inputs are not finite"):
        Gptq().solve(weight, broken, "q_proj")
    with pytest.raises(InputError, match="static_groups needs a group_size"):
        load_recipe(Gptq, None, ["static_groups=true", "group_size=null"])
    for damp in ("0", "1.01"):
        with pytest.raises(InputError, match="damp"):
            load_recipe(Gptq, None, [f"damp={damp}"])
