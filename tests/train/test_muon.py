"""StackedMuon against torch.optim.Muon, one matrix at a time, and against the singular value decomposition."""

import pytest
import torch
from torch import nn

from babyllama.train.muon import StackedMuon, orthogonalise

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
