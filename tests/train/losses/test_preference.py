"""Each preference objective against its formula typed out in float64, and the sums against plain means."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.errors import InputError
from babyllama.train.losses.answers import Answers, by_segment, sums
from babyllama.train.losses.kto import Kto
from babyllama.train.losses.preference import Dpo, Hinge, Ipo, Orpo, SimPo
from conftest import sharp_model, tiny_config

E = math.e


def log_sigmoid(x):
    return math.log(1 / (1 + E**-x))


# Typed from the papers for one pair: w, l sums of log p; rw, rl the reference's; nw, nl numbers of tokens.
def dpo(w, l, rw, rl, nw, nl, beta=0.1):
    return -log_sigmoid(beta * ((w - rw) - (l - rl)))


def conservative(*pair):
    reverse = (pair[1], pair[0], pair[3], pair[2], pair[5], pair[4])
    return 0.8 * dpo(*pair) + 0.2 * dpo(*reverse)


def robust(*pair):
    reverse = (pair[1], pair[0], pair[3], pair[2], pair[5], pair[4])
    return (0.8 * dpo(*pair) - 0.2 * dpo(*reverse)) / (1 - 2 * 0.2)


def rpo(w, l, rw, rl, nw, nl):
    return dpo(w, l, rw, rl, nw, nl, 0.3) + 0.7 * (-w / nw)


def length_normalised(w, l, rw, rl, nw, nl):
    return -log_sigmoid(5 / nw * (w - rw) - 5 / nl * (l - rl))


def ipo(w, l, rw, rl, nw, nl):
    return ((w / nw - rw / nw) - (l / nl - rl / nl) - 1 / (2 * 0.25)) ** 2


def hinge(w, l, rw, rl, nw, nl):
    return max(0.0, 1 - 0.5 * ((w - rw) - (l - rl)))


def simpo(w, l, rw, rl, nw, nl):
    return -log_sigmoid(2.5 / nw * w - 2.5 / nl * l - 1.2)


def orpo(w, l, rw, rl, nw, nl):
    def odds(total, count):
        p = E ** (total / count)
        return p / (1 - p)

    return -w / nw + 0.3 * -log_sigmoid(math.log(odds(w, nw)) - math.log(odds(l, nl)))


FORMULAS = {
    "dpo": (Dpo(), dpo), "conservative": (Dpo(label_smoothing=0.2), conservative),
    "robust": (Dpo(label_smoothing=0.2, robust=True), robust), "rpo": (Dpo(beta=0.3, nll=0.7), rpo),
    "normalised": (Dpo(beta=5, length_normalised=True), length_normalised),
    "ipo": (Ipo(tau=0.25), ipo), "hinge": (Hinge(beta=0.5), hinge), "simpo": (SimPo(beta=2.5, gamma=1.2), simpo),
    "orpo": (Orpo(odds=0.3), orpo),
}  # fmt: skip
TABLE = [  # sums of log p and of the reference, numbers of tokens
    (-9.3, -7.1, -10.2, -6.4, 4, 3), (-2.5, -30.0, -2.5, -29.0, 1, 11), (-55.1, -12.0, -50.0, -16.5, 20, 7),
    (-0.4, -0.3, -0.9, -0.2, 2, 5), (-4.0, -4.0, -4.0, -4.0, 3, 3),
]  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_loss_and_gradient_are_the_formula(name):
    objective, formula = FORMULAS[name]
    table = torch.tensor(TABLE, dtype=torch.float64)
    log_p = table[:, :2].clone().requires_grad_()
    label = torch.tensor([1, -1]).expand(len(table), 2)
    losses, margin = objective.losses(Answers(log_p, table[:, 4:], label, table[:, 2:4]))
    assert losses.tolist() == pytest.approx([formula(*row) for row in TABLE], rel=1e-6)
    (gradient,) = torch.autograd.grad(losses.sum(), log_p)
    step = 1e-6
    for index, row in enumerate(TABLE):
        for side in (0, 1):
            up, down = (
                formula(*(value + sign * step * (place == side) for place, value in enumerate(row))) for sign in (1, -1)
            )
            assert gradient[index, side].item() == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-8)
    assert margin[-1] == 0  # two answers that nobody tells apart


def test_before_the_first_step_nothing_is_preferred():
    same = torch.tensor([[-3.0, -8.0]])
    found = Answers(same, torch.tensor([[2.0, 5.0]]), torch.tensor([[1, -1]]), same)
    for objective in (Dpo(), Dpo(label_smoothing=0.1), Dpo(label_smoothing=0.1, robust=True)):
        assert objective.losses(found)[0].item() == pytest.approx(math.log(2), rel=1e-6)
    assert Ipo(tau=0.1).losses(found)[0].item() == pytest.approx(25.0) and Hinge().losses(found)[0].item() == 1.0


def test_certain_answers_give_no_infinite_odds():
    sure = torch.tensor([[-1e-12, -3.0]], requires_grad=True)
    losses, _ = Orpo().losses(Answers(sure, torch.tensor([[4.0, 2.0]]), torch.tensor([[1, -1]]), None))
    (gradient,) = torch.autograd.grad(losses.sum(), sure)
    assert losses.isfinite().all() and gradient.isfinite().all()


def test_choices_that_exclude_each_other():
    with pytest.raises(ValidationError, match=r"objective\.robust: needs"):
        Dpo(robust=True)


# ── the sums ───────────────────────────────────────────────────────────────────────────────────────────────────────
def packed(*rows):
    """Rows of (prompt length, answer length) a segment, the rest padding; a batch with labels 1, −1, 1, …"""
    context = max(sum(a + b for a, b in row) for row in rows) + 3
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(67, (len(rows), context + 1), generator=generator)
    targets, segments = torch.full((len(rows), context), IGNORE), torch.zeros(len(rows), context, dtype=torch.int64)
    positions, label = torch.zeros_like(segments), torch.zeros_like(segments)
    for r, row in enumerate(rows):
        at = 0
        for s, (prompt, answer) in enumerate([*row, (context - sum(a + b for a, b in row), 0)]):
            stop = at + prompt + answer
            targets[r, at + prompt : stop] = tokens[r, at + prompt + 1 : stop + 1]
            segments[r, at:stop], positions[r, at:stop] = s, torch.arange(prompt + answer)
            at = stop
        label[r, : len(row)] = torch.tensor([1, -1] * (len(row) // 2))
    return Batch(tokens[:, :-1], targets, positions, segments, extras={"label": label})


def replace_extras(batch, **extras):
    return replace(batch, extras={**batch.extras, **extras})


BATCH = packed([(3, 4), (3, 6)], [(2, 2), (2, 5), (1, 3), (1, 1)])


def by_hand(model, batch):
    """(row, segment) → the sum of its log-probabilities, its tokens run through the model alone, in float64."""
    found = {}
    for row in range(len(batch.tokens)):
        for segment in batch.segments[row].unique().tolist():
            here = batch.segments[row] == segment
            targets = batch.targets[row][here]
            log_p = model(batch.tokens[row][here][None])[0].log_softmax(-1)
            kept = targets != IGNORE
            found[row, segment] = log_p[kept].gather(1, targets[kept][:, None]).sum()
    return found


def test_sums_are_those_of_each_answer_alone():
    model = sharp_model(tiny_config())
    log_p, tokens = sums(model, BATCH)
    oracle = by_hand(sharp_model(tiny_config()).double(), BATCH)
    for (row, segment), value in oracle.items():
        assert log_p[row, segment].item() == pytest.approx(value.item(), rel=1e-5)
    assert log_p.count_nonzero() == 6 and tokens[1, :5].tolist() == [2, 5, 3, 1, 0]


@pytest.mark.parametrize("name", FORMULAS)
def test_the_model_s_gradient_is_that_of_the_formula(name):
    """The whole way: packed rows, chunks of logits, formula; against autograd through full logits in float64."""
    objective, _ = FORMULAS[name]
    model = sharp_model(tiny_config()).requires_grad_(True)
    exact = sharp_model(tiny_config()).double().requires_grad_(True)
    reference = torch.full(BATCH.tokens.shape, -7.0) - torch.arange(BATCH.tokens.shape[1])
    batch = replace_extras(BATCH, reference=reference)
    loss, metrics = objective(model, batch)
    loss.backward()
    found = by_hand(exact, BATCH)
    places = [(0, 0), (1, 0), (1, 2)]
    log_p = torch.stack([torch.stack([found[r, s], found[r, s + 1]]) for r, s in places])
    tokens = torch.tensor([[4, 6], [2, 5], [3, 1]])
    known = torch.stack([reference[r, s : s + 2] for r, s in places]).double()
    losses, margin = objective.losses(Answers(log_p, tokens, torch.tensor([1, -1]).expand(3, 2), known))
    losses.sum().backward()
    assert loss.item() == pytest.approx(losses.sum().item(), rel=1e-5) and objective.weight(batch) == 3
    for (parameter, value), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert (value.grad - other.grad).norm() <= 1e-5 * other.grad.norm(), parameter
    assert metrics["margin"].item() == pytest.approx(margin.sum().item(), rel=1e-4)
    assert metrics["accuracy"].item() == (margin > 0).sum().item()
    assert metrics["chosen"].item() == pytest.approx(log_p[:, 0].sum().item(), rel=1e-5)
    assert metrics["rejected"].item() == pytest.approx(log_p[:, 1].sum().item(), rel=1e-5)
    if objective.compares:
        assert metrics["kl"].item() == pytest.approx((known - log_p).mean(1).sum().item(), rel=1e-5)


def test_answers_that_are_no_pairs_are_refused():
    batch = replace_extras(BATCH, label=BATCH.extras["label"].abs())
    with pytest.raises(InputError, match="no pairs"):
        SimPo()(sharp_model(tiny_config()), batch)


def test_segments_add_up_wherever_they_lie():
    values = torch.arange(8.0).view(2, 4)
    segments = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 3]])
    assert by_segment(values, segments).tolist() == [[1, 5, 0, 0], [4, 5, 6, 7]]


# ── KTO ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def kto(log_p, reference, good, z, beta, desirable, undesirable):
    reward = beta * (log_p - reference)
    if good:
        return desirable * (1 - 1 / (1 + math.e ** -(reward - z)))
    return undesirable * (1 - 1 / (1 + math.e ** -(z - reward)))


@pytest.mark.parametrize("z", [0.0, 0.7])
def test_kto_s_loss_metrics_and_gradient_are_the_formula(z):
    objective = Kto(beta=0.3, desirable=1.2, undesirable=0.7)
    model = sharp_model(tiny_config()).requires_grad_(True)
    exact = sharp_model(tiny_config()).double().requires_grad_(True)
    reference = torch.full(BATCH.tokens.shape, -20.0) - torch.arange(BATCH.tokens.shape[1])
    batch = replace_extras(BATCH, reference=reference, drift=torch.full(BATCH.tokens.shape, z))
    loss, metrics = objective(model, batch)
    loss.backward()
    found = by_hand(exact, BATCH)
    there = [(r, s) for r, s in found if BATCH.extras["label"][r, s]]
    parts = [kto(found[at], reference[at].item(), BATCH.extras["label"][at] > 0, z, 0.3, 1.2, 0.7) for at in there]
    sum(parts).backward()
    assert loss.item() == pytest.approx(sum(parts).item(), rel=1e-5) and objective.weight(batch) == 6
    for (name, value), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert (value.grad - other.grad).norm() <= 1e-5 * other.grad.norm(), name
    rewards = [0.3 * (found[at].item() - reference[at].item()) for at in there]
    signs = [BATCH.extras["label"][at].item() for at in there]
    assert metrics["margin"].item() == pytest.approx(sum(s * r for s, r in zip(signs, rewards, strict=True)), rel=1e-4)
    assert metrics["accuracy"].item() == sum(s * (r - z) > 0 for s, r in zip(signs, rewards, strict=True))
    assert metrics["kl"].item() == pytest.approx(6 * z)
