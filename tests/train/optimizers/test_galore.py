"""GaLore against the algorithm typed here in float64, against Adam where nothing is projected, and its memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from babyllama.errors import InputError
from babyllama.train.engines.engines import Ddp, DeepSpeed, Fsdp
from babyllama.train.optimizers.galore import GaloreAdamW
from babyllama.train.optimizers.optim import GaLore, Optimizer

SHAPES = [(12, 20), (20, 12), (16, 16)]
KWARGS = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def matrices(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def gradients(step):
    """With singular values far apart, so that the directions are well determined."""
    g = torch.Generator().manual_seed(100 + step)
    for rows, columns in SHAPES:
        u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=g, dtype=torch.float64), full_matrices=False)
        yield u @ torch.diag(0.5 ** torch.arange(min(rows, columns), dtype=torch.float64)) @ v


def reference(steps, rank, refresh, scale):
    """arXiv 2403.03507, algorithm 2, with AdamW: the subspace of the shorter side, float64."""
    weights = [p.detach() for p in matrices(torch.float64)]
    moments = [[0.0, 0.0] for _ in weights]
    bases: list = [None] * len(weights)
    b1, b2 = KWARGS["betas"]
    for step in range(1, steps + 1):
        for i, G in enumerate(gradients(step)):
            G = G.T if G.shape[0] > G.shape[1] else G  # a tall matrix is a wide one on its side
            if (step - 1) % refresh == 0:
                values, vectors = torch.linalg.eigh(G @ G.T)  # not by SVD, as ours
                bases[i] = vectors[:, values.argsort(descending=True)[:rank]]
            R = bases[i].T @ G
            # The sign of a direction is free; Adam is odd in each coordinate, so it cancels, but not across refreshes.
            moments[i] = [b1 * moments[i][0] + (1 - b1) * R, b2 * moments[i][1] + (1 - b2) * R * R]
            m, v = moments[i][0] / (1 - b1**step), moments[i][1] / (1 - b2**step)
            update = bases[i] @ (m / (v.sqrt() + KWARGS["eps"]))
            update = update.T if SHAPES[i][0] > SHAPES[i][1] else update
            weights[i] = weights[i] * (1 - KWARGS["lr"] * KWARGS["weight_decay"]) - KWARGS["lr"] * scale * update
    return weights


def trained(steps, rank, refresh, scale, refused=()):
    ours = matrices()
    optimizer = GaloreAdamW(ours, **KWARGS, rank=rank, refresh=refresh, scale=scale)
    for step in range(1, steps + 1):
        for p, g in zip(ours, gradients(step), strict=True):
            p.grad = g.float() if step not in refused else torch.full(g.shape, torch.nan)
        optimizer.found_inf = torch.tensor(float(step in refused))  # type: ignore[attr-defined]
        optimizer.step()
    return ours, optimizer


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_few_steps_are_the_papers(rank):
    ours, _ = trained(6, rank, refresh=200, scale=0.25)
    for mine, exact in zip(ours, reference(6, rank, 200, 0.25), strict=True):
        torch.testing.assert_close(mine.double(), exact, atol=1e-5, rtol=1e-4)


def test_directions_are_taken_anew_when_it_is_time():
    seen = []
    ours = matrices()
    optimizer = GaloreAdamW(ours, **KWARGS, rank=2, refresh=3, scale=1.0)
    for step in range(1, 8):
        for p, g in zip(ours, gradients(step), strict=True):
            p.grad = g.float()
        optimizer.step()
        seen.append(optimizer.state[ours[0]]["projector"].clone())
    assert [torch.equal(a, b) for a, b in itertools.pairwise(seen)] == [True, True, False] * 2
    for step, projector in ((1, seen[0]), (4, seen[3])):
        grad = next(gradients(step))
        _, vectors = torch.linalg.eigh(grad @ grad.T)
        alike = vectors[:, -2:].T @ projector.double()
        torch.testing.assert_close(alike @ alike.T, torch.eye(2, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rank", [16, 100])
def test_full_rank_and_scale_one_is_adamw(rank):
    ours, _ = trained(8, rank, 200, 1.0)
    theirs = matrices()
    adam = torch.optim.AdamW(theirs, **KWARGS)
    for step in range(1, 9):
        for p, g in zip(theirs, gradients(step), strict=True):
            p.grad = g.float()
        adam.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("refused", [(1,), (4,), (2, 3)])
@pytest.mark.parametrize("rank", [2, 100])
def test_a_refused_step_leaves_everything(rank, refused):
    """Also where it is time for new directions, of which what is no number has none."""
    ours, optimizer = trained(max(refused), rank, 3, 1.0, refused)
    before, _ = trained(min(refused) - 1, rank, 3, 1.0)
    for a, b in zip(ours, before, strict=True):
        assert torch.equal(a, b)
    ours, optimizer = trained(7, rank, 3, 1.0, refused)
    assert all(p.isfinite().all() for p in ours)
    assert all(optimizer.state[p]["step"] == 7 - len(refused) for p in ours)


def test_moments_take_the_ranks_share_of_the_memory():
    _, narrow = trained(1, 4, 200, 1.0)
    _, plain = trained(1, 100, 200, 1.0)

    def entries(optimizer, *kinds):
        return [sum(state[k].numel() for k in kinds) for state in optimizer.state.values()]

    moments = entries(narrow, "exp_avg", "exp_avg_sq")
    assert moments == [2 * 4 * max(shape) for shape in SHAPES]
    assert entries(plain, "exp_avg", "exp_avg_sq") == [2 * a * b for a, b in SHAPES]
    assert entries(narrow, "projector") == [4 * min(shape) for shape in SHAPES]


def test_the_recipe_sends_matrices_there_and_the_rest_to_adamw():
    recipe = TypeAdapter(Optimizer).validate_python({"kind": "galore", "rank": 3})
    named = [("embed_tokens.weight", nn.Parameter(torch.ones(9, 8))), ("norm.weight", nn.Parameter(torch.ones(8))),
             ("layers.0.mlp.up_proj.weight", nn.Parameter(torch.ones(8, 8)))]  # fmt: skip
    galore, adamw = recipe.build(named)
    assert [p for g in galore.param_groups for p in g["params"]] == [named[2][1]]
    assert {id(p) for g in adamw.param_groups for p in g["params"]} == {id(named[0][1]), id(named[1][1])}


def test_engines_that_cannot_are_one_clear_line():
    with pytest.raises(InputError, match=r"fsdp cannot spread galore.*engine\.kind=ddp"):
        Fsdp().check(2, GaLore())
    with pytest.raises(InputError, match="cannot spread galore"):
        DeepSpeed().check(2, GaLore())
    Fsdp().check(1, GaLore())
    Ddp().check(2, GaLore())


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="matrices only"):
        GaloreAdamW([nn.Parameter(torch.ones(3))], **KWARGS, rank=1, refresh=1, scale=1.0)
