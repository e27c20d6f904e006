"""Balance and z-loss of routers: value and gradient against the formulas in float64, the same however rows are cut."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_training import finished

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.model.config import ModelConfig, Moe
from babyllama.model.mlp import MoE
from babyllama.train.losses.objectives import NextToken
from babyllama.train.losses.router import RouterLoss
from babyllama.train.optimizers.optim import AdamW
from conftest import sharp_model, tiny_config

MOE = Moe(experts=4, active=2, shared=1)
LOSS = RouterLoss(balance=0.3, z=0.2)


def batch_of() -> Batch:
    tokens = torch.randint(67, (3, 9), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[0, 4:], targets[2] = IGNORE, IGNORE  # a row that counts in part, one that does not
    return Batch(tokens, targets, None, None)


def by_hand(model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
    """From what went into each router, row by row and expert by expert, in the model's own float64."""
    entered: list[torch.Tensor] = []
    modules = [module for module in model.modules() if isinstance(module, MoE)]
    hooks = [m.gate.register_forward_pre_hook(lambda _, given: entered.append(given[0])) for m in modules]
    logits = model(batch.tokens)
    for hook in hooks:
        hook.remove()
    kept = batch.targets != IGNORE
    loss = -logits.log_softmax(-1).gather(-1, batch.targets.where(kept, 0)[..., None])[..., 0][kept].sum()
    balance, z, busiest = 0.0, 0.0, 0.0
    for module, x in zip(modules, entered, strict=True):
        said = (x @ module.gate.weight.T).view(*batch.tokens.shape, -1)
        for row in range(len(said)):
            mine = said[row][kept[row]]
            if not len(mine):
                continue
            choices = mine.topk(MOE.active, -1).indices.flatten()
            share = torch.bincount(choices, minlength=MOE.experts).double() / len(choices)
            probability = mine.softmax(-1).mean(0)
            balance += len(mine) * MOE.experts * sum(share[e] * probability[e] for e in range(MOE.experts))
            busiest += len(mine) * share.max() * MOE.experts
            z += sum(torch.log(torch.exp(token).sum()) ** 2 for token in mine)
    balance, z, busiest = balance / len(modules), z / len(modules), busiest / len(modules)
    return {"loss": loss + 0.3 * balance + 0.2 * z, "cross_entropy": loss, "balance": balance, "router_z": z,
            "busiest": busiest}  # fmt: skip


@pytest.fixture
def model():
    return sharp_model(ModelConfig(**{**tiny_config(tied=False).model_dump(), "moe": MOE})).train().requires_grad_(True)


def test_values_and_gradients_are_the_formulas(model):
    exact = copy.deepcopy(model).double()
    loss, metrics = NextToken(router=LOSS)(model, batch_of())
    expected = by_hand(exact, batch_of())
    for name, value in {"loss": loss, **metrics}.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5), name
    loss.backward()
    expected["loss"].backward()
    for (name, mine), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=2e-4, rtol=1e-4, msg=name)
    without = NextToken(router=RouterLoss(balance=0, z=0))(model, batch_of())[0]
    assert without.item() == pytest.approx(expected["cross_entropy"].item(), rel=1e-5)


@pytest.mark.parametrize("choices,expected", [([[0, 1], [2, 3]], 1.0), ([[0, 1], [0, 1]], 2.0)])
def test_an_even_load_is_one_and_always_the_same_experts_are_experts_over_active(choices, expected):
    """Four experts, two of them active."""
    logits = 30 * torch.eye(4)[torch.tensor(choices * 4)].sum(1)  # (8, 4), probability 1/2 on each of the two
    loss, found = RouterLoss(balance=1, z=0)([logits], 2, torch.zeros(1, 8, dtype=torch.int64))
    assert loss.item() == pytest.approx(8 * expected) and found["busiest"].item() == pytest.approx(8 * expected)


def test_accumulation_changes_neither_weights_nor_figures(tmp_path):
    """Law 6, the routers' losses included."""
    found = []
    for accumulate in (1, 4, 16):
        trainer = finished(tmp_path / str(accumulate), moe=MOE, steps=3, micro_batch_size=16 // accumulate,
                           accumulate=accumulate, optimizer=AdamW(lr=1e-2, eps=1e-3),
                           objective=NextToken(router=LOSS))  # fmt: skip
        keys = ("loss", "cross_entropy", "balance", "router_z", "busiest", "norm")
        lines = [m for m in trainer.run.metrics() if m["kind"] == "train"]
        found.append((trainer.model.state_dict(), [[line[key] for key in keys] for line in lines]))
    for weights, figures in found[1:]:
        assert figures == [pytest.approx(line, abs=1e-5) for line in found[0][1]]
        for name, weight in weights.items():
            torch.testing.assert_close(weight, found[0][0][name], atol=2e-6, rtol=0)


def test_the_balance_loss_balances(tmp_path):
    """The same short training without it ends with a busier busiest expert."""
    busiest = {}
    for balance in (0.0, 0.1):
        trainer = finished(tmp_path / str(balance), moe=Moe(experts=8, active=2), steps=30, micro_batch_size=16,
                           objective=NextToken(router=RouterLoss(balance=balance, z=0)))  # fmt: skip
        busiest[balance] = trainer.run.metrics()[-1]["busiest"]
    assert busiest[0.1] < busiest[0.0]
