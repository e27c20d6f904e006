"""Curves that go elsewhere: what is not installed is said, what fails ends nothing; the real packages under `slow`."""

from __future__ import annotations

import json
import sqlite3
import struct
from pathlib import Path

import pytest
from small_training import Silent, small_trainer

from babyllama.commands.train_recipe import TrainRecipe
from babyllama.errors import InputError
from babyllama.recipe import load_recipe
from babyllama.run import Run
from babyllama.train.engines.world import World
from babyllama.train.sinks import Service, Swanlab, Trackio, Wandb, numbers

GIVEN = ["out=runs/x", "data.path=runs/corpus", "plan.steps=3"]


def test_a_recipe_names_them():
    recipe = load_recipe(TrainRecipe, None, [*GIVEN, "sinks=[{kind: wandb, project: p}, {kind: trackio}]"])
    assert recipe.sinks == (Wandb(project="p"), Trackio())
    assert recipe.identity() == load_recipe(TrainRecipe, None, GIVEN).identity()  # a run may go on with others
    with pytest.raises(InputError, match=r"sinks\.0\.kind: there is no 'aim'; there are wandb, "):
        load_recipe(TrainRecipe, None, [*GIVEN, "sinks=[{kind: aim}]"])


@pytest.mark.parametrize("sink", [Wandb(), Swanlab(), Trackio()], ids=lambda sink: sink.kind)
def test_one_that_is_not_installed_names_its_package(monkeypatch, sink):
    monkeypatch.setattr("babyllama.train.sinks.find_spec", lambda _: None)
    with pytest.raises(InputError, match=f"^sinks: {sink.kind} is not installed; pip install {sink.kind}, or train"):
        sink.check()
    monkeypatch.setattr("babyllama.train.sinks.find_spec", lambda name: name)
    sink.check()


class Failing(Service):
    """Takes `good` calls of log, then fails; `opens=False` fails at once."""

    package = "failing"
    good: int = 0
    opens: bool = True

    def open(self, run: Run):
        if not self.opens:
            raise RuntimeError("no key\nlong advice")
        return _Calls(self.good)


class _Calls:
    made: list[tuple[int, str]] = []  # noqa: RUF012

    def __init__(self, good: int) -> None:
        self.left = good

    def log(self, numbers, step):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the network is gone")
        self.made.append((step, "train/loss" in numbers))

    def finish(self):
        raise ConnectionError("the network is gone")


@pytest.mark.parametrize(("sink", "logged", "why"), [
    (Failing(opens=False), [], "RuntimeError: no key"),
    (Failing(good=2), [(1, True), (2, True)], "ConnectionError: the network is gone"),
    (Failing(good=9), [(1, True), (2, True), (3, True)], "ConnectionError: the network is gone"),  # at the very end
])  # fmt: skip
def test_one_that_fails_warns_once_and_ends_nothing(tmp_path, sink, logged, why):
    _Calls.made.clear()
    trainer = small_trainer(tmp_path / "run", steps=3)
    trainer.sinks = (sink,)
    trainer.train()
    assert len(trainer.run.metrics()) == 3 and _Calls.made == logged
    said = [line for line in trainer.show.lines if "no more curves" in line]
    assert said == [f"failing gets no more curves ({why}); metrics.jsonl has them all"]


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    from babyllama.train.journal import Journal

    opened = []
    monkeypatch.setattr(Failing, "open", lambda *_: opened.append(1) or _Calls(9))
    run = Run(tmp_path)
    for rank in range(2):
        Journal(run, Silent(), 0, World(rank=rank, size=2).first, (Failing(),))
    assert opened == [1]


def test_numbers_are_named_by_where_they_lie():
    assert numbers({"a": 1, "b": {"c": 2.5, "d": "no", "e": None}, "f": True}, "val/") == {
        "val/a": 1.0, "val/b/c": 2.5, "val/f": 1.0}  # fmt: skip


# ── the real packages, on this machine alone ────────────────────────────────────────────────────────────────────────
def in_wandb(folder: Path, home: Path, loss: float) -> bool:
    """Its file keeps values as JSON text."""
    return any(json.dumps(loss).encode() in file.read_bytes() for file in folder.rglob("*.wandb"))


def in_swanlab(folder: Path, home: Path, loss: float) -> bool:
    """Its file keeps values as floats of protobuf."""
    packed = struct.pack("<f", loss), struct.pack("<d", loss)
    return any(one in file.read_bytes() for file in folder.rglob("*.swanlab") for one in packed)


def in_trackio(folder: Path, home: Path, loss: float) -> bool:
    (file,) = home.rglob("*.db")
    with sqlite3.connect(file) as opened:
        rows = opened.execute("select metrics from metrics").fetchall()
    return any(json.loads(row).get("train/loss") == loss for (row,) in rows)


FOUND = {"wandb": in_wandb, "swanlab": in_swanlab, "trackio": in_trackio}


@pytest.mark.slow
@pytest.mark.parametrize("sink", [Wandb(offline=True), Swanlab(offline=True), Trackio()], ids=lambda sink: sink.kind)
def test_the_real_packages(tmp_path, monkeypatch, sink):
    """Offline: every loss that was logged is in the package's own file, also after the training went on."""
    found = FOUND[sink.kind]
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "home"))  # read when trackio is imported
    pytest.importorskip(sink.kind, reason=f"{sink.kind} is no dependency; CONTRIBUTING.md says how to try this")
    for steps in (3, 6):
        trainer = small_trainer(tmp_path / "run", steps=steps, save_every=3)
        trainer.sinks = (sink,)
        trainer.train()
        trainer.run.unlock()
        assert not [line for line in trainer.show.lines if "curves" in line]
    losses = [line["loss"] for line in trainer.run.metrics() if line["kind"] == "train"]
    assert len(losses) == 6
    assert [found(tmp_path / "run", tmp_path / "home", loss) for loss in losses] == [True] * 6
    assert not found(tmp_path / "run", tmp_path / "home", 0.123456789)
