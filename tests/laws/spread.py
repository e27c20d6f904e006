"""What small trainings in two processes left: all of a session in one launch of ranks.py, and the same alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import StopAt, small_trainer
from spread_training import CROSSED, losses, settings

from babyllama.errors import Interrupted
from once import once


def spread_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which everything was run; the first to ask runs it, the others wait."""
    return once(tmp_path_factory, "spread", _spread)


def _spread(folder: Path) -> None:
    _prepare(folder)
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(folder)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          timeout=600, check=False)  # fmt: skip
    (folder / "said.txt").write_text(done.stdout + done.stderr)


def _prepare(folder: Path) -> None:
    """What one process leaves for two."""
    for optimizer in ("adamw", "muon"):
        trainer = small_trainer(folder / f"stopped-one-{optimizer}-4", show=StopAt(2), **settings(optimizer, 4))
        with pytest.raises(Interrupted):
            trainer.train()
        trainer.run.unlock()
    for old, new in CROSSED:
        if old.startswith("one"):
            shutil.copytree(folder / f"stopped-{old}", folder / f"{old}-to-{new}")


class Result:
    """What a case left: its curve, its weights, its other figures."""

    def __init__(self, folder: Path, name: str) -> None:
        file = folder / f"{name}.json"
        assert file.exists(), (folder / "said.txt").read_text()[-5000:]
        self.said: dict[str, Any] = json.loads(file.read_text())
        self.losses: list[list[float]] = self.said["losses"]
        self.weights: dict[str, torch.Tensor] = torch.load(folder / f"{name}.pt")

    def close_to(self, other: Alone | Result, atol: float) -> None:
        """Assert that curves (step, loss, norm, lr, targets, tokens) of the steps that both have are, and weights."""
        mine = {line[0]: line for line in self.losses}
        theirs = {line[0]: line for line in other.losses}
        assert set(mine) == set(theirs)
        for step, line in mine.items():
            assert line == pytest.approx(theirs[step], abs=atol, nan_ok=True)
        assert set(self.weights) == set(other.weights)
        for name, weight in self.weights.items():
            torch.testing.assert_close(weight, other.weights[name], atol=atol, rtol=0)


class Alone:
    """The same training in this process: the oracle, which law 6 and law 7 hold to account."""

    def __init__(self, folder: Path, **kwargs: Any) -> None:
        trainer = small_trainer(folder, **kwargs)
        trainer.train()
        trainer.run.unlock()
        self.losses = losses(trainer)
        self.weights = trainer.worker.snapshot().state_dict()
