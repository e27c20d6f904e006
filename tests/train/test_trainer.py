"""The loop's edges: a loss that is no number, plans, what is logged. The laws are in tests/laws."""

import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from babyllama.train.objectives import NextToken
from babyllama.train.optim import AdamW
from babyllama.train.trainer import Diverged, Plan

sys.path.append(str(Path(__file__).parents[1] / "laws"))
from small_training import Formula, small_trainer


class Poisoned(Formula):
    """From some row on, the model's own weights are made infinite: the loss of that step is not finite."""

    def __init__(self, row):
        self.row, self.model = row, None

    def batch(self, first_row, count):
        if first_row >= self.row:
            with torch.no_grad():
                self.model.norm.weight.fill_(float("inf"))
        return super().batch(first_row, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_non_finite_loss_stops_with_a_word_and_a_good_checkpoint(tmp_path, dtype):
    trainer = small_trainer(tmp_path / "run", dtype=dtype, steps=20)
    trainer.stream = Poisoned(row=8 * 4)
    trainer.stream.model = trainer.model
    with pytest.raises(Diverged, match=r"not finite at step 9 to 13; the checkpoint of step 5 is good") as error:
        trainer.train()
    assert "optimizer.lr" in str(error.value) and "\n" not in str(error.value)
    step, folder = trainer.run.latest_state(lambda _: None)
    saved = load_file(folder / "state.safetensors").values()
    assert step == 5 and all(t.isfinite().all() for t in saved if t.is_floating_point())


def test_huge_learning_rate_never_saves_a_bad_checkpoint(tmp_path):
    trainer = small_trainer(tmp_path / "run", optimizer=AdamW(lr=1e30), save_every=1)
    with pytest.raises(Diverged):
        trainer.train()
    for _, folder in trainer.run.states():
        saved = load_file(folder / "state.safetensors").values()
        assert all(t.isfinite().all() for t in saved if t.is_floating_point())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_non_finite_gradient_of_a_finite_loss_stops_before_it_is_applied(tmp_path, dtype):
    trainer = small_trainer(tmp_path / "run", dtype=dtype, save_every=1)

    def objective(model, batch):
        loss, sums = NextToken()(model, batch)
        return loss + (
            model.norm.weight.float().sum() - model.norm.weight.float().sum()
        ).sqrt(), sums  # 0, slope inf − inf

    trainer.objective = objective
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(Diverged, match="gradient is not finite at step 1 to 5; there was no checkpoint yet"):
        trainer.train()
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(trainer.model.parameters(), before, strict=True))


def test_learning_falls_on_a_stream_that_repeats(tmp_path):
    class Same(Formula):
        def batch(self, first_row, count):
            return super().batch(0, count)

    trainer = small_trainer(tmp_path / "run", steps=60)
    trainer.stream = Same()
    trainer.train()
    losses = [m["loss"] for m in trainer.run.metrics()]
    assert losses[-1] < 0.5 * losses[0]


def test_plan_wants_exactly_one_length():
    for lengths in ({}, {"steps": 1, "epochs": 1.0}):
        with pytest.raises(ValidationError, match="exactly one of steps, epochs, tokens"):
            Plan(**lengths)


def test_plan_lengths():
    assert Plan(steps=7).total_steps(1000, 64) == 7
    assert Plan(epochs=2.0, micro_batch_size=8, accumulate=2).total_steps(100, 64) == 13  # 200 rows in steps of 16
    assert Plan(tokens=10_000, micro_batch_size=8).total_steps(1, 64) == 20  # steps of 512 tokens


def test_metrics_say_what_people_watch(tmp_path):
    trainer = small_trainer(tmp_path / "run", steps=3)
    figures = trainer.train()
    last = trainer.run.metrics()[-1]
    assert {"step", "kind", "loss", "lr", "norm", "tokens", "seconds", "tokens_per_second", "mfu"} <= set(last)
    assert last["tokens"] == figures["tokens"] == 3 * 4 * 12


def test_tensorboard_shows_what_was_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = small_trainer(tmp_path / "run", steps=3)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    shown = [(e.step, e.value) for e in events.Scalars("train/loss")]
    logged = [(m["step"], pytest.approx(m["loss"], rel=1e-6)) for m in trainer.run.metrics() if m["kind"] == "train"]
    assert shown == logged
