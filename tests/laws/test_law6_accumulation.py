"""Law 6: how a step is cut into micro-batches does not change the update. Oracle: the formula's mean, by autograd."""

import pytest
import torch
from small_preferences import KINDS
from small_training import Formula, small_trainer
from torch.nn.functional import cross_entropy

from babyllama.train.optimizers.optim import AdamW, Muon


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("kv_heads,tie", [(2, True), (1, False)])
@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_accumulation_does_not_change_the_update(tmp_path, accumulate, kv_heads, tie):
    # A large eps: Adam divides a gradient near zero by itself, which would turn rounding into whole steps.
    shape = {"kv_heads": kv_heads, "tie": tie, "steps": 4, "optimizer": AdamW(lr=1e-2, eps=1e-3)}
    whole = small_trainer(tmp_path / "one", micro_batch_size=16, accumulate=1, **shape)
    parts = small_trainer(tmp_path / "many", micro_batch_size=16 // accumulate, accumulate=accumulate, **shape)
    whole.train()
    parts.train()
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], weight, atol=2e-6, rtol=1e-4)
    losses = [[m["loss"] for m in t.run.metrics() if m["kind"] == "train"] for t in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # fault 11: the logged loss was divided once more


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_no_preference_training(tmp_path, kind):
    """A row has one or two pairs: a mean of means would differ; KTO's z is the step's, however it is cut."""
    shape = {"steps": 3, "optimizer": AdamW(lr=1e-2, eps=1e-3), **KINDS[kind]}
    trainers = [small_trainer(tmp_path / f"{a}", micro_batch_size=16 // a, accumulate=a, **shape) for a in (1, 4, 16)]
    lines = []
    for trainer in trainers:
        trainer.train()
        lines.append([m for m in trainer.run.metrics() if m["kind"] == "train"])
    for trainer, mine in zip(trainers[1:], lines[1:], strict=True):
        for name, weight in weights(trainers[0]).items():
            torch.testing.assert_close(weights(trainer)[name], weight, atol=2e-6, rtol=1e-4)
        for key in (
            ("loss", "norm", "margin", "kl", "targets") if kind in ("dpo", "kto") else ("loss", "norm", "chosen")
        ):
            assert [m[key] for m in mine] == pytest.approx([m[key] for m in lines[0]], rel=1e-4, abs=1e-5)
    assert kind != "kto" or lines[0][0]["kl"] > 0.1


def test_gradient_and_loss_are_the_mean_over_all_targets_of_the_step(tmp_path):
    """Rows hold different numbers of targets: a mean of means would differ. Fault 19: lr × accumulation."""
    trainer = small_trainer(tmp_path / "run", steps=1, micro_batch_size=4, accumulate=3, clip=1e9)
    before = weights(trainer)
    batch = Formula().batch(0, 12)
    logits = trainer.model(batch.tokens).flatten(0, 1)
    loss = cross_entropy(logits, batch.targets.flatten(), ignore_index=-100)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm()
    trainer.model.zero_grad()
    trainer.train()
    (logged,) = [m for m in trainer.run.metrics() if m["kind"] == "train"]
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["norm"] == pytest.approx(norm.item(), rel=1e-4)
    moved = max((after - before[name]).abs().max().item() for name, after in weights(trainer).items())
    assert moved == pytest.approx(1e-2, rel=0.05)  # Adam's first step is lr, whatever the accumulation


def test_accumulation_in_bf16_adds_in_float32(tmp_path):
    whole = small_trainer(tmp_path / "one", dtype=torch.bfloat16, micro_batch_size=16, steps=3, optimizer=Muon(lr=0.01))
    parts = small_trainer(tmp_path / "two", dtype=torch.bfloat16, micro_batch_size=2, accumulate=8, steps=3,
                          optimizer=Muon(lr=0.01))  # fmt: skip
    whole.train()
    parts.train()
    losses = [[m["loss"] for m in t.run.metrics() if m["kind"] == "train"] for t in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


@pytest.mark.parametrize("dtype,most", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("tie", [True, False])
def test_every_cut_is_as_near_to_the_exact_gradient(tmp_path, tie, dtype, most):
    """Law 6 in half precision: whatever the cut, a step's gradient is float64's, to the rounding of the products (bf16
    has 8 bits: 4e-3 for each), and more micro-batches are no farther from it. The oracle is autograd in float64."""
    exact = small_trainer(tmp_path / "exact", tie=tie).model.double()
    batch = Formula().batch(0, 16)
    cross_entropy(exact(batch.tokens).flatten(0, 1), batch.targets.flatten(), ignore_index=-100).backward()
    oracle = torch.cat([p.grad.flatten() for p in exact.parameters()])
    away = {}
    for accumulate in (1, 2, 4, 16):
        cut = {"accumulate": accumulate, "micro_batch_size": 16 // accumulate}
        trainer = small_trainer(tmp_path / f"{accumulate}", steps=1, tie=tie, dtype=dtype, clip=1e9, **cut)
        found = []
        trainer.optimizer = Watching(found)
        trainer.train()
        away[accumulate] = ((found[0].double() - oracle).norm() / oracle.norm()).item()
    assert max(away.values()) < most and away[16] < 1.5 * away[1] + 1e-6, away


class Watching:
    """AdamW that keeps the whole gradient of its steps."""

    captured = False

    def __init__(self, found):
        self.found, self.recipe = found, AdamW(lr=1e-2)

    def build(self, named, ranks=1, head_dim=None):
        named = list(named)
        (adam,) = self.recipe.build(named, ranks)
        parameters = [p for _, p in named]
        adam.register_step_pre_hook(lambda *_: self.found.append(torch.cat([p.grad.flatten() for p in parameters])))
        return [adam]
