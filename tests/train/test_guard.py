"""The guard: which steps are left out, and what a row of them leads to; a step left out leaves no trace."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_training import By, Formula, Silent, small_trainer
from torch import nn

from babyllama.errors import InputError, Interrupted
from babyllama.train.guard import CALM_STEPS, FIRST_SCALE, LEAST_SCALE, Guard, Watchman
from babyllama.train.losses.objectives import NextToken
from babyllama.train.optimizers.muon import StackedMuon
from babyllama.train.optimizers.optim import AdamW, Muon
from babyllama.train.trainer import Diverged

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def watchman(scaled=False, **guard):
    return Watchman(Guard(**guard), CPU, scaled)


def admit(man, loss, norm=1.0, step=1):
    ok, figures = man.judge(torch.tensor(loss), torch.tensor(norm))
    man.report(step, figures)
    return bool(ok)


# ── the watchman ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("loss,norm", [(NAN, 1.0), (INF, 1.0), (-INF, 1.0), (2.0, NAN), (2.0, INF)])
def test_what_is_not_finite_is_left_out_and_not_learned_from(loss, norm):
    man = watchman()
    assert admit(man, 3.0) and admit(man, 2.0)
    before = {name: value.clone() for name, value in man.state.items()}
    assert not admit(man, loss, norm, step=3)
    assert all(torch.equal(man.state[name], before[name]) for name in before if name != "skipped")
    verdicts = man.read()
    assert [(v.step, v.bad, v.skipped) for v in verdicts] == [(1, False, 0), (1, False, 0), (3, True, 1)]
    assert not man.read()  # each is told once


def test_a_jump_is_left_out_once_the_guard_has_settled():
    man = watchman(settle=5, spike=10.0)
    assert all(admit(man, loss) for loss in (4.0, 40.0, 4.0, 3.9, 4.1))
    man = watchman(settle=5, spike=10.0)
    calm = [4.0, 4.1, 3.9, 4.0, 4.05]
    assert all(admit(man, loss) for loss in calm)
    limit = np.mean(calm) + 10 * max(np.std(calm), 0.05)
    assert not admit(man, limit + 0.01)
    assert admit(man, limit - 0.01) and not admit(man, 40.0)
    assert man.read()[-1].bad
    assert admit(man, 0.1)  # a fall is welcome


def test_a_jump_is_borne_when_spike_is_off():
    man = watchman(settle=1, spike=None)
    assert all(admit(man, loss) for loss in (1.0, 1.0, 1e6)) and not admit(man, NAN)


def test_running_mean_and_variance_are_numpys():
    """Plain at first; later each step's weight falls by 0.98, the oldest share the rest."""
    losses = np.random.default_rng(0).normal(3.0, 0.3, 400)
    man = watchman(spike=None)
    weights = np.zeros(0)
    for count, loss in enumerate(losses.tolist(), 1):
        admit(man, loss)
        memory = min(0.98, (count - 1) / count)
        weights = np.append(weights * memory, 1 - memory)
        if count in (1, 2, 40, 60, 400):
            seen = losses[:count]
            mean = np.average(seen, weights=weights)
            assert man.mean.item() == pytest.approx(mean, rel=1e-5)
            assert man.variance.item() == pytest.approx(np.average((seen - mean) ** 2, weights=weights), abs=1e-5)
            if count <= 40:
                assert mean == pytest.approx(seen.mean())


def test_loss_scale_halves_at_once_and_doubles_after_a_thousand_calm_steps():
    man = watchman(scaled=True)
    assert man.scale.item() == FIRST_SCALE
    for _ in range(3):
        assert not admit(man, 2.0, INF)
    assert man.scale.item() == FIRST_SCALE / 8
    assert not any(verdict.bad for verdict in man.read())  # an overflow is nobody's fault
    for _ in range(CALM_STEPS - 1):
        admit(man, 2.0)
    assert man.scale.item() == FIRST_SCALE / 8
    admit(man, 2.0)
    assert man.scale.item() == FIRST_SCALE / 4
    admit(man, 2.0)
    assert man.scale.item() == FIRST_SCALE / 4  # and again not before another thousand
    assert not admit(man, NAN)
    assert man.scale.item() == FIRST_SCALE / 4 and man.read()[-1].bad  # a loss that is no number is no overflow


def test_an_overflow_that_no_scale_cures_becomes_a_bad_step():
    man = watchman(scaled=True)
    for _ in range(200):
        assert not admit(man, 2.0, INF)
    verdicts = man.read()
    halvings = round(np.log2(FIRST_SCALE / LEAST_SCALE))
    assert [v.bad for v in verdicts] == [False] * halvings + [True] * (200 - halvings)
    assert man.scale.item() == LEAST_SCALE


def test_the_state_goes_round():
    man, other = watchman(scaled=True, settle=3), watchman(scaled=True, settle=3)
    for loss, norm in ((3.0, 1.0), (2.9, INF), (3.1, 1.0), (NAN, 1.0), (3.0, 1.0)):
        admit(man, loss, norm)
    admit(other, 99.0)
    other.restore({f"guard.{name}": value.clone() for name, value in man.state.items()})
    man.read()
    assert not other.read()
    for loss, norm in ((3.0, 1.0), (50.0, 1.0), (3.2, INF), (3.0, 1.0)):
        assert admit(man, loss, norm) == admit(other, loss, norm)
    assert man.read() == other.read()
    assert all(torch.equal(man.state[name], other.state[name]) for name in man.state)


@pytest.mark.parametrize("make", [
    lambda p: StackedMuon(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
])  # fmt: skip
def test_found_inf_leaves_parameter_and_moments_untouched(make):
    parameters = [nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(i))) for i in range(2)]
    optimizer = make(parameters)
    for value, refused in ((0.5, 0.0), (NAN, 1.0), (INF, 1.0)):
        before = [p.detach().clone() for p in parameters]
        moments = [t.clone() for p in parameters for t in optimizer.state.get(p, {}).values()]
        for p in parameters:
            p.grad = torch.full_like(p, value)
        optimizer.found_inf = torch.tensor(refused)
        optimizer.step()
        after = [t for p in parameters for t in optimizer.state[p].values()]
        same = all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
        assert same == bool(refused)
        assert not refused or all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


# ── the trainer ────────────────────────────────────────────────────────────────────────────────────────────────────
class Snapshots(Silent):
    """Keeps the weights and moments after each step."""

    def __init__(self):
        super().__init__()
        self.trainer, self.kept = None, {}

    def step(self, step, steps, values):
        self.kept[step] = {name: tensor.clone() for name, tensor in self.trainer.worker.tensors().items()}


def poisoned_at(step, factor=NAN):
    """NextToken whose loss is multiplied in one step; one micro-batch a step."""
    calls = []

    def objective(model, batch):
        calls.append(None)
        loss, sums = NextToken()(model, batch)
        return loss * (factor if len(calls) == step else 1.0), sums

    return By(objective)


def lines_of(trainer, kind):
    return [m for m in trainer.run.metrics() if m["kind"] == kind]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Muon()])
def test_one_poisoned_step_is_left_out_and_training_goes_on(tmp_path, optimizer, dtype):
    show = Snapshots()
    trainer = small_trainer(tmp_path / "run", optimizer=optimizer, dtype=dtype, show=show)
    show.trainer, trainer.objective = trainer, poisoned_at(6)
    trainer.train()
    kept = show.kept
    assert kept.keys() == set(range(1, 13))
    assert all(torch.equal(tensor, kept[6][name]) for name, tensor in kept[5].items())
    assert all(tensor.isfinite().all() for moment in kept.values() for tensor in moment.values())
    assert any(not torch.equal(tensor, kept[7][name]) for name, tensor in kept[6].items())
    assert [(m["step"], np.isfinite(m["loss"])) for m in lines_of(trainer, "guard")] == [(6, False)]
    assert lines_of(trainer, "train")[-1]["skipped"] == 1 and any("step 6: left out" in line for line in show.lines)


def test_a_jump_is_left_out_by_the_trainer_too(tmp_path):
    trainer = small_trainer(tmp_path / "run", steps=35, guard={"settle": 20}, log_every=5, optimizer=AdamW(lr=1e-5))
    trainer.objective = poisoned_at(31, factor=3.0)
    trainer.train()
    (line,) = lines_of(trainer, "guard")
    assert line["step"] == 31 and 10 < line["loss"] < 12
    assert max(m["loss"] for m in lines_of(trainer, "train")) < 4


def test_action_stop_stops_at_the_first_bad_step(tmp_path):
    trainer = small_trainer(tmp_path / "run", guard={"action": "stop"})
    trainer.objective = poisoned_at(6)
    with pytest.raises(Diverged, match=r"not finite at step 6; the checkpoint of step 5 is good"):
        trainer.train()
    assert [step for step, _ in trainer.run.states()] == [5]


class BadRows(Formula):
    """Some rows make the loss no number. `asked` holds the first row of every batch."""

    def __init__(self, *bad):
        self.bad, self.now, self.asked = [row for part in bad for row in part], False, []

    def batch(self, first_row, count):
        self.asked.append(first_row)
        self.now = any(row in self.bad for row in range(first_row, first_row + count))
        return super().batch(first_row, count)

    def objective(self, model, batch):
        loss, sums = NextToken()(model, batch)
        return loss * (NAN if self.now else 1.0), sums


def rewinding(out, stream, show=None, **kwargs):
    guard = {"action": "rewind", "patience": 3}
    trainer = small_trainer(out, guard=guard, show=show, **{"steps": 16, **kwargs})
    trainer.stream, trainer.objective = stream, By(stream.objective)
    return trainer


EIGHT_TO_TEN = range(28, 40)  # the rows of these steps, four each


def test_action_rewind_goes_back_and_past_the_bad_rows(tmp_path):
    show, stream = Silent(), BadRows(EIGHT_TO_TEN)
    trainer = rewinding(tmp_path / "run", stream, show)
    trainer.train()
    assert any("rewound from step 10 to 5" in line for line in show.lines)
    rows = [4 * step for step in range(10)]
    assert stream.asked == [*rows, *range(40, 40 + 4 * 11, 4)]  # back to step 5, but from row 40 on
    steps = [m["step"] for m in lines_of(trainer, "train")]
    assert steps == list(range(1, 17)) and not lines_of(trainer, "guard")
    facts = json.loads((trainer.run.states()[-1][1] / "state.json").read_text())
    assert (facts["rewinds"], facts["rows_skipped"], facts["tokens"]) == (1, 20, 16 * 4 * 12)


def test_a_second_rewind_to_the_same_checkpoint_skips_what_both_found(tmp_path):
    stream = BadRows(EIGHT_TO_TEN, range(48, 60))
    rewinding(tmp_path / "run", stream).train()
    assert stream.asked[10:15] == [40, 44, 48, 52, 56] and stream.asked[15:] == list(range(60, 60 + 4 * 11, 4))


def test_three_rewinds_and_it_is_over(tmp_path):
    stream = BadRows(range(28, 10_000))
    trainer = rewinding(tmp_path / "run", stream)
    with pytest.raises(Diverged, match="the checkpoint of step 5 is good"):
        trainer.train()
    assert trainer.progress.rewinds == 3 and len(stream.asked) == 10 + 3 * 3
    assert all(t.isfinite().all() for t in load_file(tmp_path / "run/state/step-0000005/state.safetensors").values()
               if t.is_floating_point())  # fmt: skip


def test_nothing_to_rewind_to_is_the_end(tmp_path):
    with pytest.raises(Diverged, match="no checkpoint yet"):
        rewinding(tmp_path / "run", BadRows(range(4, 20))).train()


class Crash(Silent):
    """Ends the process, as far as the trainer can tell, when a step is shown for the n-th time."""

    def __init__(self, at, times, number=None):
        super().__init__()
        self.at, self.left, self.number = at, times, number

    def step(self, step, steps, values):
        self.left -= step == self.at
        if step == self.at and not self.left:
            if self.number is None:
                raise RuntimeError("crash")
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("at,times,number,dtype", [
    (7, 2, signal.SIGTERM, torch.float16), (7, 2, None, torch.float32), (12, 1, signal.SIGTERM, torch.float32),
    (9, 1, None, torch.float16),
])  # fmt: skip
def test_resume_around_a_rewind_is_bit_for_bit(tmp_path, at, times, number, dtype):
    def end(trainer):
        tensors = trainer.worker.tensors()
        figures = [(m["step"], m["loss"], m["norm"], m["tokens"]) for m in trainer.run.metrics()]
        return {name: t.numpy().tobytes() for name, t in tensors.items()}, figures, trainer.progress.rewinds

    whole = rewinding(tmp_path / "whole", BadRows(EIGHT_TO_TEN), dtype=dtype, optimizer=Muon())
    whole.train()
    stopped = rewinding(
        tmp_path / "run", BadRows(EIGHT_TO_TEN), Crash(at, times, number), dtype=dtype, optimizer=Muon()
    )
    with pytest.raises(Interrupted if number else RuntimeError):
        stopped.train()
    stopped.checkpoints.wait()
    stopped.run.unlock()
    again = rewinding(tmp_path / "run", BadRows(EIGHT_TO_TEN), dtype=dtype, optimizer=Muon())
    again.train()
    assert end(again) == end(whole)
    assert again.progress.rewinds == 1


def test_a_checkpoint_of_another_version_is_one_clear_line():
    watchman = Watchman(Guard(), torch.device("cpu"), scaled=False)
    with pytest.raises(InputError, match=r"no guard\.scale: it is of another version"):
        watchman.restore({})
