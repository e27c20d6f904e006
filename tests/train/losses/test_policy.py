"""Each method's loss and gradient against its formula, typed here token by token in float64."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.train.losses.policy import Cispo, Dapo, DrGrpo, Grpo, Gspo, Rloo

CONFIG = ModelConfig(vocab_size=19, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
                     num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=10)  # fmt: skip
LONGEST = 7
METHODS = {"grpo": Grpo(beta=0.3), "dr_grpo": DrGrpo(beta=0.1), "dapo": Dapo(beta=0.2), "gspo": Gspo(epsilon=0.02,
           epsilon_high=0.03, beta=0.3), "cispo": Cispo(epsilon_high=0.1), "rloo": Rloo(epsilon=0.4)}  # fmt: skip


def model_of(dtype=torch.float32):
    model = Transformer(CONFIG)
    initialise(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that tokens differ in how likely they are
    return model.to(dtype)


def small_batch(model, away=0.25):
    """Four answers of 1 to 5 tokens; the old policy and the reference lie around the model."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 19, (4, 10), generator=generator)
    targets = tokens[:, 1:].clone()
    for row, (start, stop) in enumerate([(2, 7), (4, 5), (3, 6), (1, 5)]):
        targets[row, :start] = IGNORE
        targets[row, stop:] = IGNORE
    kept = targets != IGNORE
    with torch.no_grad():
        log_p = model(tokens[:, :-1]).float().log_softmax(-1)
        log_p = log_p.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    noise = torch.randn(2, 4, 9, generator=generator) * away
    extras = {"old": (log_p + noise[0]).where(kept, 0), "reference": (log_p + noise[1]).where(kept, 0),
              "advantages": torch.tensor([1.3, -0.4, 0.7, -1.6])}  # fmt: skip
    return Batch(tokens[:, :-1].contiguous(), targets, extras=extras)


def typed(kind, method, log_p, old, ref, advantage):
    """(loss of one answer, by what it is divided) from its tokens' log-probabilities, float64 scalars."""
    n = len(log_p)
    low, high = 1 - method.epsilon, 1 + (method.epsilon_high or method.epsilon)
    ratios = [(a - b).exp() for a, b in zip(log_p, old, strict=True)]

    def clipped(ratio):
        return -min(ratio * advantage, ratio.clamp(low, high) * advantage)

    if kind == "gspo":
        ratios = [sum(a - b for a, b in zip(log_p, old, strict=True)).div(n).exp()] * n
    if kind == "rloo":
        return clipped(math.prod(ratios)), 1
    if kind == "cispo":
        losses = [-min(r.item(), high) * advantage * a for r, a in zip(ratios, log_p, strict=True)]
    else:
        losses = [clipped(r) for r in ratios]
    kl = [(r - a).exp() - (r - a) - 1 for a, r in zip(log_p, ref, strict=True)]
    losses = [one + method.beta * other for one, other in zip(losses, kl, strict=True)]
    if kind in ("grpo", "gspo"):
        return sum(losses) / n, 1
    return sum(losses), LONGEST if kind == "dr_grpo" else n


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("kind", METHODS)
def test_loss_and_gradient_are_the_formula(kind, temperature):
    method, model, exact = METHODS[kind], model_of(), model_of(torch.float64)
    batch, objective = small_batch(model), METHODS[kind].of(temperature, LONGEST)
    loss, metrics = objective(model, batch)
    (loss / objective.weight(batch)).backward()

    table = (exact(batch.tokens) / temperature).log_softmax(-1)
    found, weights = [], []
    for row in range(4):
        places = (batch.targets[row] != IGNORE).nonzero()[:, 0].tolist()
        log_p = [table[row, t, batch.targets[row, t]] for t in places]
        old, ref = ([batch.extras[name][row, t].double() for t in places] for name in ("old", "reference"))
        value, weight = typed(kind, method, log_p, old, ref, batch.extras["advantages"][row].item())
        found.append(value)
        weights.append(weight)
    wanted = sum(found) / sum(weights)
    wanted.backward()
    assert (loss / objective.weight(batch)).item() == pytest.approx(wanted.item(), abs=1e-6)
    for (name, one), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert 0 < metrics["clipped"].item() / objective.weight(batch) < 1  # the clipping is at work in this batch


@pytest.mark.parametrize("kind", METHODS)
def test_the_first_update_is_reinforce_with_the_groups_baseline(kind):
    """Without `old` the ratio is 1, and the gradient that of −Σ A log π, averaged as the method says."""
    model, exact = model_of(), model_of(torch.float64)
    batch = small_batch(model)
    advantages = batch.extras["advantages"]
    objective = METHODS[kind].model_copy(update={"beta": 0.0}).of(1.0, LONGEST)
    bare = Batch(batch.tokens, batch.targets, extras={"advantages": advantages})
    loss, metrics = objective(model, bare)
    (loss / objective.weight(bare)).backward()
    kept = batch.targets != IGNORE
    log_p = exact(batch.tokens).log_softmax(-1).gather(2, batch.targets.clamp(min=0)[..., None])[..., 0].where(kept, 0)
    lengths, by = kept.sum(1), advantages.double()
    wanted = {"grpo": (by * log_p.sum(1) / lengths).mean(), "gspo": (by * log_p.sum(1) / lengths).mean(),
              "dapo": (by * log_p.sum(1)).sum() / lengths.sum(), "cispo": (by * log_p.sum(1)).sum() / lengths.sum(),
              "dr_grpo": (by * log_p.sum(1)).mean() / LONGEST, "rloo": (by * log_p.sum(1)).mean()}  # fmt: skip
    (-wanted[kind]).backward()
    for (name, one), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert metrics["ratio"].item() / objective.weight(bare) == pytest.approx(1, abs=1e-6) and not metrics["clipped"]


@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo"])
def test_texts_beside_answers_weigh_as_their_answer(kind):
    """The mean cross-entropy of each row's text, by what the row's answer weighs."""
    model, exact = model_of(), model_of(torch.float64)
    bare = small_batch(model)
    bare.targets[3] = IGNORE  # an answer without a reward: its text counts as little
    texts = torch.randint(0, 19, (4, 7), generator=torch.Generator().manual_seed(6))
    following = texts[:, 1:].clone()
    following[2, 4:] = IGNORE  # the end of a store
    batch = Batch(bare.tokens, bare.targets, extras={**bare.extras, "texts": texts[:, :-1], "following": following})
    plain, objective = METHODS[kind].of(1.0, LONGEST), METHODS[kind].of(1.0, LONGEST, 0.7)
    (without, _), (loss, metrics) = plain(model, bare), objective(model, batch)
    assert objective.weight(batch) == plain.weight(bare)
    ((loss - without) / objective.weight(batch)).backward()
    table = exact(texts[:, :-1]).log_softmax(-1)
    each = torch.stack([-table[row, range(n), texts[row, 1 : 1 + n]].mean() for row, n in enumerate((6, 6, 4))])
    share = torch.tensor([5, 1, 3] if kind == "dapo" else [1, 1, 1]).double()
    wanted = 0.7 * (each * share).sum() / share.sum()
    wanted.backward()
    assert metrics["text_loss"].item() / objective.weight(batch) == pytest.approx(wanted.item() / 0.7, abs=1e-6)
    for (name, one), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_advantages():
    rewards = torch.tensor([[1.0, 0, 0, 1], [2, 2, 2, 2], [0, 3, 9, 0]], dtype=torch.float64)
    counted = torch.ones(3, 4, dtype=torch.bool)
    counted[2, 2] = False  # its reward is not to be had
    found = Grpo().advantages(rewards, counted)
    deviation = math.sqrt(4 * 0.25 / 3)
    torch.testing.assert_close(found[0], torch.tensor([1, -1, -1, 1.0]).double() * (0.5 / (deviation + 1e-4)))
    assert not found[1].any() and found[2, 2] == 0 and found[2].sum().abs() < 1e-12
    torch.testing.assert_close(DrGrpo().advantages(rewards, counted)[2], torch.tensor([-1, 2, 0, -1.0]).double())
    torch.testing.assert_close(Rloo().advantages(rewards, counted)[2], torch.tensor([-1.5, 3, 0, -1.5]).double())
    alone = Grpo().advantages(torch.ones(1, 2).double(), torch.tensor([[True, False]]))
    assert not alone.any()


def test_what_counts():
    batch = small_batch(model_of())
    assert [Grpo().of(1, 7).weight(batch), Dapo().of(1, 7).weight(batch), DrGrpo().of(1, 7).weight(batch)] == [
        4, 5 + 1 + 3 + 4, 28]  # fmt: skip
    batch.targets[1] = IGNORE  # an answer without a reward
    assert Grpo().of(1, 7).weight(batch) == 3


class Unasked(TorchDispatchMode):
    """Nothing inside may wait for the device: neither for a number nor for how many places are true."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in ("nonzero", "_local_scalar_dense", "masked_select", "unique")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", METHODS)
def test_a_batch_that_says_where_its_targets_are_asks_the_host_nothing(kind):
    """And is the same loss with the same gradient; a GPU can record it."""
    model, loss = model_of(), METHODS[kind].of(0.9, LONGEST)
    batch, grads, totals = small_batch(model), [], []
    kept = (batch.targets != IGNORE).flatten()
    places = torch.cat([kept.nonzero()[:, 0], torch.zeros(3, dtype=torch.int64)]).view(4, 4)  # 13 and three of none
    assert not kept[0] and loss.steady and loss.recorded
    for extras in (batch.extras, {**batch.extras, "answered": places}):
        model.zero_grad()
        given = Batch(batch.tokens, batch.targets, extras=extras)
        if "answered" in extras:
            with Unasked():
                total, _ = loss(model, given)
                total.backward()
        else:
            with pytest.raises(AssertionError), Unasked():
                loss(model, given)
            total, _ = loss(model, given)
            total.backward()
        totals.append(total.item())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert totals[0] == totals[1]
    torch.testing.assert_close(grads[0], grads[1], atol=1e-7, rtol=1e-6)
