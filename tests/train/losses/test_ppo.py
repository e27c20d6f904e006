"""PPO: advantages, both losses and the first update against their formulas, typed in float64."""

import pytest
import torch
from test_policy import model_of, small_batch

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.model.checkpoint import load_model, save_model
from babyllama.model.transformer import attach_value_head
from babyllama.train.losses.policy import Ppo, gae


def valued(dtype=torch.float32):
    model = model_of()
    attach_value_head(model)
    with torch.no_grad():
        model.value.weight.copy_(torch.linspace(-1, 1, 8)[None])
    return model.to(dtype)


@pytest.mark.parametrize("gamma,trace", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0)])
def test_advantages_are_the_sums_of_the_paper(gamma, trace):
    """Σ_k (γλ)^k δ_{t+k} over the tokens that the model wrote, δ = r + γV' − V; the tools' tokens are not there."""
    kept = torch.tensor([[0, 1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0]]).bool()
    values = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)).double()
    rewards = torch.tensor([1.5, -0.5]).double()
    advantages, returns = gae(rewards, values, kept, gamma, trace)
    for row in range(2):
        own = kept[row].nonzero()[:, 0].tolist()
        v = [*values[row, own].tolist(), 0.0]
        deltas = [
            (rewards[row].item() if i == len(own) - 1 else 0.0) + gamma * v[i + 1] - v[i] for i in range(len(own))
        ]
        wanted = [sum((gamma * trace) ** k * d for k, d in enumerate(deltas[i:])) for i in range(len(own))]
        assert advantages[row, own].tolist() == pytest.approx(wanted)
        assert returns[row, own].tolist() == pytest.approx([a + b for a, b in zip(wanted, v, strict=False)])
    assert not advantages[~kept].any() and not returns[~kept].any()


def test_loss_and_gradient_are_the_formula():
    method, model, exact = Ppo(beta=0.1, value_weight=0.7, value_epsilon=0.1), valued(), valued(torch.float64)
    batch = small_batch(model)
    draw = torch.Generator().manual_seed(2)
    extras = {name: torch.randn(4, 9, generator=draw) for name in ("advantages", "values", "returns")}
    batch = Batch(batch.tokens, batch.targets, extras={**batch.extras, **extras})
    objective = method.of(1.0, 7)
    loss, metrics = objective(model, batch)
    (loss / objective.weight(batch)).backward()
    log_p, values = exact(batch.tokens).log_softmax(-1), exact.value(exact.hidden(batch.tokens))[..., 0]
    found = []
    for row, t in (batch.targets != IGNORE).nonzero().tolist():
        a, old, ref, before, wanted = (batch.extras[name][row, t].double() for name in
                                       ("advantages", "old", "reference", "values", "returns"))  # fmt: skip
        mine, v = log_p[row, t, batch.targets[row, t]], values[row, t]
        ratio, near = (mine - old).exp(), before + (v - before).clamp(-0.1, 0.1)
        found.append(-min(ratio * a, ratio.clamp(0.8, 1.2) * a) + 0.1 * ((ref - mine).exp() - (ref - mine) - 1)
                     + 0.7 * 0.5 * max((v - wanted) ** 2, (near - wanted) ** 2))  # fmt: skip
    wanted = sum(found) / len(found)
    wanted.backward()
    assert (loss / objective.weight(batch)).item() == pytest.approx(wanted.item(), rel=1e-5) and metrics[
        "value_loss"
    ] > 0
    for (name, one), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_the_first_update_is_reinforce_with_what_was_expected():
    """λ = γ = 1, on-policy: the gradient is that of −Σ (R − V) log π, a mean over tokens; V's own has no part in it."""
    model, exact = valued(), valued(torch.float64)
    batch, rewards = small_batch(model), torch.tensor([1.0, -2.0, 0.5, 3.0])
    kept = batch.targets != IGNORE
    values = model.value(model.hidden(batch.tokens))[..., 0].detach()
    advantages, returns = gae(rewards, values, kept, 1.0, 1.0)
    torch.testing.assert_close(advantages, (rewards[:, None] - values).where(kept, 0), atol=1e-5, rtol=1e-5)
    extras = {"advantages": advantages, "values": values, "returns": returns}
    objective = Ppo(value_weight=0.0).of(1.0, 7)
    loss, _ = objective(model, Batch(batch.tokens, batch.targets, extras=extras))
    (loss / objective.weight(batch)).backward()
    log_p = exact(batch.tokens).log_softmax(-1).gather(2, batch.targets.clamp(min=0)[..., None])[..., 0]
    (-(advantages.double() * log_p.where(kept, 0)).sum() / kept.sum()).backward()
    for (name, one), other in zip(model.named_parameters(), exact.named_parameters(), strict=True):
        if name != "value.weight":
            torch.testing.assert_close(one.grad.double(), other[1].grad, atol=1e-6, rtol=1e-4, msg=name)


def test_the_value_head_is_in_no_folder(tmp_path):
    model = valued()
    save_model(model, tmp_path, bos_id=1, eos_id=0)
    assert not hasattr(load_model(tmp_path), "value")
