"""The loop's edges: a loss that is no number, plans, what is logged. The laws are in tests/laws."""

import errno
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from small_training import By, Formula, Silent, small_trainer

from babyllama.data.streams.batches import IGNORE
from babyllama.errors import InputError, Interrupted
from babyllama.load import load
from babyllama.model.checkpoint import save_model
from babyllama.model.transformer import Transformer, initialise
from babyllama.tokenizer.train import train_bpe
from babyllama.train.losses.objectives import NextToken
from babyllama.train.optimizers.optim import AdamW
from babyllama.train.plan import Plan
from babyllama.train.trainer import Diverged
from babyllama.train.validation import LossSums


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

    trainer.objective = By(objective)
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
    with pytest.raises(ValidationError, match=r"not steps and epochs; leave one out: plan\.epochs=null"):
        Plan(steps=1, epochs=1.0)


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


# ── what is written beside the training ───────────────────────────────────────────────────────────────────────────
def test_steps_without_any_target_change_nothing_and_say_so(tmp_path):
    class Masked(Formula):
        def batch(self, first_row, count):
            batch = super().batch(first_row, count)
            return replace(batch, targets=torch.full_like(batch.targets, IGNORE))

    trainer = small_trainer(tmp_path / "run", steps=2)
    trainer.stream = Masked()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    assert trainer.train()["empty_steps"] == 2
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), before, strict=True))
    assert len([line for line in trainer.show.lines if "none of its 4 rows has a target" in line]) == 1


def test_a_step_without_targets_has_no_loss_of_its_own(tmp_path):
    """The newest loss belongs to an earlier step: neither files nor people are told it again."""

    class HalfMasked(Formula):
        def batch(self, first_row, count):
            batch = super().batch(first_row, count)
            return batch if first_row < 8 else replace(batch, targets=torch.full_like(batch.targets, IGNORE))

    trainer = small_trainer(tmp_path / "run", steps=4)  # of 4 rows
    trainer.stream = HalfMasked()
    trainer.train()
    assert [line["step"] for line in trainer.run.metrics() if line["kind"] == "train"] == [1, 2]
    assert [line for line in trainer.show.lines if "no targets, nothing" in line] == [
        "step 3/4  no targets, nothing trained", "step 4/4  no targets, nothing trained"]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_best_holds_the_model_of_the_lowest_validation_loss(tmp_path, dtype):
    losses, seen, tokenizer = iter([5.0, 3.0, 4.0]), [], train_bpe(["你好，春天来了。"], 280)

    def validate(model):
        seen.append({name: p.clone() for name, p in model.named_parameters()})
        return {"texts": LossSums(next(losses) * 10, 10)}

    def export(model, folder):
        save_model(model, folder, tokenizer.bos_id, tokenizer.eos_id)
        tokenizer.save(folder)

    trainer = small_trainer(tmp_path / "run", dtype=dtype, export=export)  # validates at 4, 8 and 12
    trainer.model = Transformer(trainer.model.config.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    initialise(trainer.model, 0)
    trainer.validate = validate
    figures = trainer.train()
    assert (figures["best_step"], figures["validation_loss"]) == (8, 4.0)
    loaded = load(tmp_path / "run" / "best", torch.device("cpu"), "fp32")
    assert loaded.tokenizer.hash == tokenizer.hash
    for name, weight in loaded.model.named_parameters():
        assert torch.equal(weight, seen[1][name].float()) and seen[1][name].dtype == dtype
    assert not [p.name for p in (tmp_path / "run").iterdir() if "partial" in p.name or p.name.endswith(".old")]


def test_keep_best_can_be_off(tmp_path):
    trainer = small_trainer(tmp_path / "run", keep_best=False, export=lambda model, folder: None)
    trainer.validate = lambda model: {"texts": LossSums(1.0, 1)}
    trainer.train()
    assert not (tmp_path / "run" / "best").exists()


def test_a_full_disk_in_the_writing_thread_is_one_line(tmp_path, monkeypatch):
    written = []

    def fill(tensors, path):
        written.append(path)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr("babyllama.train.state.save_file", fill)
    trainer = small_trainer(tmp_path / "run")
    with pytest.raises(InputError, match="step-0000010: the disk is full") as error:
        trainer.train()
    assert "\n" not in str(error.value)
    step, folder = trainer.run.latest_state(lambda _: None)
    assert step == 5 and [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing half written stays


@pytest.mark.parametrize("name", ["state", "best"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, name):
    """A file where a folder must go: also root, whom no permission stops, cannot write there."""
    trainer = small_trainer(tmp_path / "run", export=lambda model, folder: None)
    trainer.validate = lambda model: {"texts": LossSums(1.0, 1)}
    (trainer.run.path / (name if name == "state" else ".best.partial")).write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write here .*; choose another out=") as error:
        trainer.train()
    assert "\n" not in str(error.value) and not [t for t in threading.enumerate() if t.name == "saver"]


def test_a_fault_while_a_checkpoint_is_being_written(tmp_path, monkeypatch):
    """Who began the training may take its folder away at once: nothing writes there any more."""

    def slowly(tensors, path):
        time.sleep(0.2)
        save_file(tensors, path)

    class AtSix(Silent):
        def step(self, step, steps, values):
            if step == 6:
                raise RuntimeError("the one to tell")

    monkeypatch.setattr("babyllama.train.state.save_file", slowly)
    trainer = small_trainer(tmp_path / "run", show=AtSix())
    with pytest.raises(RuntimeError, match="the one to tell"):
        trainer.train()
    assert not [t for t in threading.enumerate() if t.name == "saver"]
    assert [step for step, _ in trainer.run.states()] == [5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_checkpoint_is_being_written(tmp_path, monkeypatch, number):
    writing, go_on = threading.Event(), threading.Event()

    def slowly(tensors, path):
        writing.set()
        assert go_on.wait(20)
        save_file(tensors, path)

    class AtSeven(Silent):
        def step(self, step, steps, values):
            if step == 7:
                assert writing.wait(20)
                os.kill(os.getpid(), number)
                go_on.set()

    whole = small_trainer(tmp_path / "whole")
    whole.train()
    monkeypatch.setattr("babyllama.train.state.save_file", slowly)
    stopped = small_trainer(tmp_path / "run", show=AtSeven())
    with pytest.raises(Interrupted, match="stopped after step 7"):
        stopped.train()
    stopped.run.unlock()
    assert [step for step, _ in stopped.run.states()] == [5, 7]
    for _, folder in stopped.run.states():
        assert load_file(folder / "state.safetensors") and (folder / "files.json").is_file()
    warnings = []
    assert stopped.run.latest_state(warnings.append)[0] == 7 and not warnings
    again = small_trainer(tmp_path / "run")
    again.train()
    ends = [[(m["step"], m["loss"]) for m in trainer.run.metrics()] for trainer in (whole, again)]
    assert ends[0] == ends[1]
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rows,micro,size", [(31, 8, 1), (62, 8, 2), (7, 8, 1), (48, 16, 3), (29, 28, 1)])
def test_a_step_is_cut_into_as_few_equal_micro_batches_as_fit(rows, micro, size):
    """A prime number of rows must not be taken row by row."""
    plan = Plan(steps=1, micro_batch_size=micro)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "rows", property(lambda self: rows))
        shares = plan.shares(size)
    assert sum(shares) * size == rows and max(shares) <= micro and max(shares) - min(shares) <= 1
    assert len(shares) == -(-rows // size // micro)


def test_objective_metrics_are_means_over_the_step_and_logged(tmp_path):
    """Σ over micro-batches / targets of the step, as the loss itself."""

    def objective(model, batch):
        loss, _ = NextToken()(model, batch)
        return loss, {"twice": 2 * loss.detach(), "ones": torch.tensor(float(batch.weight))}

    trainer = small_trainer(tmp_path / "run", steps=3, accumulate=3)
    trainer.objective = By(objective)
    trainer.train()
    lines = [m for m in trainer.run.metrics() if m["kind"] == "train"]
    assert all(m["twice"] == pytest.approx(2 * m["loss"], rel=1e-6) and m["ones"] == pytest.approx(1) for m in lines)


def test_a_broken_tensorboard_ends_nothing(tmp_path, monkeypatch):
    from torch.utils.tensorboard.writer import SummaryWriter

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    trainer = small_trainer(tmp_path / "run", steps=3)
    trainer.train()
    assert len(trainer.run.metrics()) == 3
    assert [line for line in trainer.show.lines if "TensorBoard gets no more curves (OSError" in line]
