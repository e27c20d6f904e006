"""The distillation loss against its formula typed out on full logits in float64, and its gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.errors import InputError
from babyllama.quant.onebit import start
from babyllama.train.losses import distil
from babyllama.train.losses.distil import Distil
from conftest import sharp_model, tiny_config


@pytest.fixture
def pair():
    teacher = sharp_model(tiny_config())
    student = sharp_model(tiny_config(), seed=5).requires_grad_(True)
    return teacher, student


def batch_of(rows=3, length=11, seed=0):
    drawn = torch.randint(67, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    targets = drawn[:, 1:].clone()
    targets[:, :4] = IGNORE
    return Batch(drawn[:, :-1], targets, torch.arange(length)[None].expand(rows, -1), None)


def blocks(model, tokens):
    states = []
    hooks = [b.register_forward_hook(lambda _, __, out: states.append(out)) for b in model.layers]
    logits = model(tokens)
    for hook in hooks:
        hook.remove()
    return logits, states


def formula(teacher, student, batch, alpha):
    kept = batch.targets.flatten() != IGNORE
    (p, t), (q, s) = (blocks(m, batch.tokens) for m in (teacher, student))
    p, q = p.flatten(0, 1)[kept].softmax(-1), q.flatten(0, 1)[kept].log_softmax(-1)
    apart = sum(
        (a / a.norm(dim=-1, keepdim=True) - b / b.norm(dim=-1, keepdim=True)).square().sum(-1).flatten()[kept].sum()
        for a, b in zip(t, s, strict=True)
    )
    return -(p * q).sum() + alpha * apart


@pytest.mark.parametrize("alpha", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_loss_and_gradients_are_the_formulas(pair, alpha, chunk, monkeypatch):
    monkeypatch.setattr(distil, "CHUNK_ROWS", chunk)
    teacher, student = pair
    batch = batch_of()
    exact = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    loss, _ = Distil(alpha=alpha).of(teacher, student)(student, batch)
    loss.backward()
    expected = formula(exact[1], exact[0], batch, alpha)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for (name, ours), theirs in zip(student.named_parameters(), exact[0].parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 1e-3 * theirs.grad.norm() + 1e-6, name
    assert all(p.grad is None for p in teacher.parameters())


def typed(kind, tau, beta, p, q):
    """One token's divergence of two lists of logits."""
    p, q = (x / tau for x in (p, q))
    p, q = p.exp() / p.exp().sum(), q.exp() / q.exp().sum()
    m = beta * p + (1 - beta) * q
    kl = lambda a, b: sum(x * (x / y).log() for x, y in zip(a, b, strict=True))  # noqa: E731
    return tau**2 * {"forward": kl(p, q) - sum(x * x.log() for x in p), "reverse": kl(q, p),
                     "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m)}[kind]  # fmt: skip


@pytest.mark.parametrize("kind,tau", [("forward", 2.0), ("reverse", 1.0), ("jsd", 0.7)])
def test_divergences_are_the_formulas(pair, kind, tau):
    teacher, student = pair
    batch = batch_of(2, 7)
    exact, known = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    loss, parts = Distil(alpha=0.0, divergence=kind, temperature=tau, mixture=0.3).of(teacher, student)(student, batch)
    loss.backward()
    kept = batch.targets != IGNORE
    expected = sum(typed(kind, tau, 0.3, p, q) for p, q in
                   zip(known(batch.tokens)[kept].detach(), exact(batch.tokens)[kept], strict=True))  # fmt: skip
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and parts["soft"].item() == loss.item()
    for (name, ours), theirs in zip(student.named_parameters(), exact.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 1e-4 * theirs.grad.norm() + 1e-6, name


def test_a_model_that_learns_from_itself_has_nothing_to_learn(pair):
    teacher, _ = pair
    student = copy.deepcopy(teacher).requires_grad_(True)
    loss, parts = Distil().of(teacher, student)(student, batch_of())
    loss.backward()
    assert parts["apart"].item() == 0
    assert max(p.grad.abs().max() for p in student.parameters()) < 1e-3


def test_a_onebit_student_learns_random_text_from_its_dense_self(pair):
    teacher, _ = pair
    student = copy.deepcopy(teacher).requires_grad_(True)
    start(student)
    objective = Distil().of(teacher, student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    found = []
    for step in range(40):
        batch = batch_of(4, 16, step)
        loss, _ = objective(student, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item() - objective(teacher, batch)[0].item())  # above the least, the teacher's own entropy
    assert min(found) > 0 and sum(found[-5:]) < 0.75 * sum(found[:5])


def test_what_does_not_fit_is_one_line(pair):
    teacher, _ = pair
    narrow = sharp_model(tiny_config().model_copy(update={"hidden_size": 16}))
    with pytest.raises(InputError, match="hidden_size is 32, the student's 16"):
        Distil().of(teacher, narrow)
    Distil(alpha=0.0).of(teacher, narrow)
    few = sharp_model(tiny_config().model_copy(update={"vocab_size": 50}))
    with pytest.raises(InputError, match="vocab_size"):
        Distil(alpha=0.0).of(teacher, few)
    with pytest.raises(InputError, match="needs a teacher"):
        Distil().check(True, None)
    with pytest.raises(InputError, match="compile"):
        Distil().check(False, True)


def test_without_its_layers_a_teacher_leaves_the_forward_pass_whole(pair):
    """Then an engine's compiled pass is what is called, and the update may be recorded."""
    teacher, student = pair
    apart, soft = Distil(), Distil(alpha=0.0)
    soft.check(False, True)
    assert soft.compiles and not apart.compiles
    calls, hidden = [], student.hidden
    student.hidden = lambda *given: calls.append(len(calls)) or hidden(*given)  # as Worker does
    objective = soft.of(teacher, student)
    assert objective.steady and not apart.of(copy.deepcopy(teacher), student).steady
    through = student.through
    objective(student, batch_of())
    assert calls == [0] and student.through is through
