"""The fused pieces against autograd through their definitions."""

import pytest
import torch
from torch.nn.functional import linear, silu

from babyllama.model.fused import rotated_product, swiglu_down
from babyllama.model.rope import rotate, rotations


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_value_and_gradients_equal_the_definition(dtype, bound):
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(3, 5, 2 * 14, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(6, 14, generator=generator).to(dtype).requires_grad_()
    slope = torch.randn(3, 5, 6, generator=generator).to(dtype)
    found = swiglu_down(gate_up, weight)
    found.backward(slope)
    exact = gate_up.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    gate, up = exact[0].chunk(2, -1)
    expected = linear(silu(gate) * up, exact[1])
    expected.backward(slope.double())
    for ours, oracle in ((found, expected), (gate_up.grad, exact[0].grad), (weight.grad, exact[1].grad)):
        assert (ours.double() - oracle).norm() / oracle.norm() < bound


@pytest.mark.parametrize("rows_of_table", [1, 3])
@pytest.mark.parametrize("heads", [(4, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("compiled", [False, True])
def test_rotated_product_equals_multiplying_cutting_then_rotating(heads, rows_of_table, compiled):
    generator = torch.Generator().manual_seed(0)
    B, T, D, C = 3, 7, 6, 8
    x = torch.randn(B, T, C, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(sum(heads) * D, C, generator=generator, dtype=torch.float64).requires_grad_()
    positions = torch.randint(0, 50, (rows_of_table, T), generator=generator)
    cos, sin = rotations(positions, torch.rand(D // 2, generator=generator))
    found = (torch.compile(rotated_product, backend="aot_eager") if compiled else rotated_product)(
        x, weight, cos, sin, heads
    )
    slopes = [torch.randn(part.shape, generator=generator).to(part.dtype) for part in found]
    ours = torch.autograd.grad(found, (x, weight), slopes)
    q, k, v = linear(x, weight).view(B, T, sum(heads), D).transpose(1, 2).split(heads, dim=1)
    expected = rotate(q, cos, sin), rotate(k, cos, sin), v
    theirs = torch.autograd.grad(expected, (x, weight), slopes)
    for part, oracle in zip((*found, *ours), (*expected, *theirs), strict=True):
        torch.testing.assert_close(part, oracle, atol=1e-5, rtol=1e-6)


def test_what_does_not_learn_gets_no_gradient():
    x, weight = torch.randn(2, 3, 4), torch.randn(18, 4)
    cos, sin = rotations(torch.arange(3)[None], torch.rand(3))
    for given in ((x, weight.clone().requires_grad_()), (x.clone().requires_grad_(), weight)):
        sum(part.sum() for part in rotated_product(*given, cos, sin, (1, 1, 1))).backward()
        assert [one.grad is not None for one in given] == [one.requires_grad for one in given]
