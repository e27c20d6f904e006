"""StackedMuon against torch.optim.Muon and NorMuon's formula, one matrix at a time, and against the SVD."""

import copy

import pytest
import torch
from torch import nn

from babyllama.train.optimizers.muon import StackedMuon, orthogonalise

SHAPES = [(24, 24), (24, 24), (40, 24), (24, 40), (40, 24), (8, 24)]


def matrices():
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_equal_torchs(weight_decay):
    ours, theirs = matrices(), matrices()
    kwargs = {"lr": 0.02, "momentum": 0.95, "weight_decay": weight_decay}
    optimizers = StackedMuon(ours, **kwargs), torch.optim.Muon(theirs, **kwargs)
    for step in range(4):
        g = torch.Generator().manual_seed(step)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=g)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)  # bf16 inside: another blocking may round otherwise


@pytest.mark.parametrize("columns", [24, 4])  # wide parts, as heads are, and tall ones
def test_parts_of_rows_are_matrices_of_their_own(columns):
    """Heads: torch.optim.Muon of each part of the rows as a parameter by itself."""
    ours, rows = [nn.Parameter(p[:, :columns].detach().clone()) for p in matrices()], 8
    theirs = [[nn.Parameter(part.clone()) for part in p.detach().split(rows)] for p in ours]
    kwargs = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    optimizers = (StackedMuon([{"params": ours, "rows": rows}], **kwargs),
                  torch.optim.Muon([part for parts in theirs for part in parts], **kwargs))  # fmt: skip
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        for p, parts in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=g)
            for part, grad in zip(parts, p.grad.split(rows), strict=True):
                part.grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, parts in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, torch.cat([*parts]), atol=2e-4, rtol=1e-3)


def test_rows_that_do_not_fall_into_parts_are_refused():
    with pytest.raises(ValueError, match="parts of 7 rows"):
        StackedMuon([{"params": matrices(), "rows": 7}], lr=0.1, momentum=0.9, weight_decay=0.0)


def test_rows_are_evened_out_as_the_paper_says():
    """NorMuon's algorithm 1 (arXiv 2510.05491), in float64 from orthogonalised matrices; the norm stays Muon's."""
    ours, lr, momentum, beta2 = matrices(), 0.02, 0.9, 0.8
    optimizer = StackedMuon(ours, lr=lr, momentum=momentum, weight_decay=0.0, beta2=beta2)
    expected = [p.detach().double() for p in ours]
    average, power = [torch.zeros_like(p) for p in expected], [torch.zeros(len(p)).double() for p in expected]
    for step in range(4):
        g = torch.Generator().manual_seed(step)
        for i, p in enumerate(ours):
            p.grad = torch.randn(p.shape, generator=g) * torch.logspace(-2, 0, len(p))[:, None]
            average[i] = momentum * average[i] + (1 - momentum) * p.grad
            ahead = momentum * average[i] + (1 - momentum) * p.grad
            direction = orthogonalise(ahead.float()[None])[0].double()
            power[i] = beta2 * power[i] + (1 - beta2) * (direction**2).sum(1) / direction.shape[1]
            even = direction / power[i].sqrt()[:, None]
            rate = lr * max(1.0, p.shape[0] / p.shape[1]) ** 0.5
            expected[i] -= rate * even * direction.norm() / even.norm()
        optimizer.step()
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-4, rtol=1e-3)


def test_a_refused_step_changes_no_moment():
    ours = matrices()
    optimizer = StackedMuon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, beta2=0.9)
    for value, refused in ((1.0, 0.0), (float("nan"), 1.0)):
        before = [p.detach().clone() for p in ours], copy.deepcopy(list(optimizer.state.values()))
        optimizer.found_inf = torch.tensor(refused)
        for p in ours:
            p.grad = torch.full_like(p, value)
        optimizer.step()
    assert all(map(torch.equal, ours, before[0]))
    for state, held in zip(optimizer.state.values(), before[1], strict=True):
        assert state.keys() == held.keys() == {"momentum_buffer", "row_power"}
        assert all(torch.equal(state[name], held[name]) for name in held)


def test_a_matrix_without_gradient_in_some_rows_stays_finite():
    """The first step after `zero_outputs` and rows of tokens that never came up."""
    first, second = matrices()[:2]
    first.grad, second.grad = torch.zeros_like(first), torch.randn_like(second)
    second.grad[3:] = 0
    StackedMuon([first, second], lr=0.02, momentum=0.9, weight_decay=0.0, beta2=0.95).step()
    assert first.isfinite().all() and second.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 64, 16), (2, 16, 64)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalise(given).float()
    assert torch.linalg.svdvals(found).min() > 0.3 and torch.linalg.svdvals(found).max() < 1.3
    u, _, vt = torch.linalg.svd(given, full_matrices=False)
    alike = (found * (u @ vt)).sum((1, 2)) / (found.norm(dim=(1, 2)) * (u @ vt).norm(dim=(1, 2)))
    assert alike.min() > 0.95


def test_a_parameter_without_gradient_stays():
    first, second = matrices()[:2]
    before = second.detach().clone()
    first.grad = torch.randn(first.shape)
    StackedMuon([first, second], lr=0.1, momentum=0.9, weight_decay=0.1).step()
    assert torch.equal(second, before)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="matrices only"):
        StackedMuon([nn.Parameter(torch.ones(3))], lr=0.1, momentum=0.9, weight_decay=0.0)
