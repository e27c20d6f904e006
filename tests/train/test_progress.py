"""What resume brings back of a training's counts, and that a checkpoint under way does not see later ones."""

import threading
import time

import pytest
from small_training import StopAt, small_trainer

from babyllama.errors import Interrupted
from babyllama.train.progress import Progress
from babyllama.train.state import Saver, read_facts
from babyllama.train.validation import LossSums


def test_facts_come_back_and_are_a_copy():
    done = Progress(7, 1.5, 3.25, 8, 1, 2, {"train_loss": 2.0})
    facts = done.facts
    done.last["train_loss"] = 1.0
    assert Progress.of(facts) == Progress(7, 1.5, 3.25, 8, 1, 2, {"train_loss": 2.0})
    assert Progress.of(Progress().facts) == Progress()
    assert Progress.of({"tokens": 3, "step": 1, "best": None}).tokens == 3  # of an earlier version


def test_best_seconds_and_counters_survive(tmp_path):
    """A run that was stopped does not take a worse model for the best one, and its clock goes on."""
    losses = {4: 3.0, 8: 5.0, 12: 4.0}
    exported = []

    def trainer(**kwargs):
        export = lambda model, folder: exported.append(made.progress.best)  # noqa: E731
        made = small_trainer(tmp_path / "run", export=export, **kwargs)
        made.validate = lambda model: {"texts": LossSums(losses[made.progress.tokens // (4 * 12)] * 10, 10)}
        return made

    stopped = trainer(show=StopAt(7))
    with pytest.raises(Interrupted):
        stopped.train()
    stopped.run.unlock()
    facts = read_facts(stopped.run.states()[-1][1])
    assert (facts["best"], facts["tokens"]) == (3.0, 7 * 4 * 12) and facts["seconds"] > 0
    again = trainer()
    figures = again.train()
    assert exported == [3.0] and figures["best_step"] == 4
    assert again.progress.seconds > facts["seconds"] and figures["tokens"] == 12 * 4 * 12


def test_one_write_at_a_time():
    saver, going, seen = Saver(), threading.Event(), []

    def slow():
        going.wait(20)
        seen.append("first")

    saver.start(slow)
    threading.Timer(0.05, going.set).start()
    saver.start(lambda: seen.append("second"))
    saver.wait()
    assert seen == ["first", "second"]


def test_a_training_ends_when_all_is_written(tmp_path, monkeypatch):
    real = Saver.start
    monkeypatch.setattr(Saver, "start", lambda self, write: real(self, lambda: (time.sleep(0.05), write())))
    trainer = small_trainer(tmp_path / "run")
    trainer.train()
    assert [step for step, _ in trainer.run.states()] == [10, 12]
