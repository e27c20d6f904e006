"""Rows that are made while the model trains: with the model as it is, and again after a resume. Several processes are
in tests/laws (Made)."""

import signal

import pytest
import torch
from small_training import CONTEXT, Made, StopAt, fingerprint, finished, small_trainer

from babyllama.errors import Interrupted
from babyllama.train.source import source
from babyllama.train.state import read_state


class Watched(Made):
    """Keeps the weights that each step's rows were made with."""

    def __init__(self) -> None:
        super().__init__()
        self.lent: list[tuple[int, torch.Tensor]] = []

    def prepare(self, step, worker):
        super().prepare(step, worker)
        with worker.policy() as model:
            assert model is worker.model and not model.training and not torch.is_grad_enabled()
            self.lent.append((step, model.norm.weight.clone()))
        assert model.training and torch.is_grad_enabled()


def test_rows_are_made_by_the_model_as_it_is(tmp_path):
    """The oracle: the weights before each step of a training that lends nothing but reads the same rows."""
    trainer = finished(tmp_path / "run", stream=Watched, steps=3)
    (first, begun), *_, (last, before) = trainer.stream.lent
    assert [step for step, _ in trainer.stream.lent] == [0, 1, 2] and (first, last) == (0, 2)
    assert torch.equal(begun, torch.ones_like(begun))  # as initialised
    assert not torch.equal(before, begun) and not torch.equal(before, trainer.model.norm.weight)


def test_stopped_and_continued_to_the_bit(tmp_path):
    """Its rows hang on those of steps before, which the checkpoint keeps."""
    whole = finished(tmp_path / "whole", stream=Made)
    stopped = small_trainer(tmp_path / "stopped", show=StopAt(7, signal.SIGTERM), stream=Made)
    with pytest.raises(Interrupted, match="step 7"):
        stopped.train()
    stopped.run.unlock()
    tensors, _ = read_state(stopped.run.states()[-1][1])
    assert tensors["source.written"].shape == (12, CONTEXT + 1) and tensors["source.step"] == 6
    assert fingerprint(finished(tmp_path / "stopped", stream=Made)) == fingerprint(whole)


def test_rows_on_disk_leave_nothing_in_a_checkpoint(tmp_path):
    tensors, _ = read_state(finished(tmp_path / "run").run.states()[-1][1])
    assert not any(name.startswith("source.") for name in tensors)


def test_half_a_source_is_no_source():
    """Its `prepare` would never be called, and nobody would notice."""

    class Half:
        def batch(self, first_row, count): ...
        def prepare(self, step, worker): ...

    with pytest.raises(TypeError, match="Half prepares its rows"):
        source(Half())
