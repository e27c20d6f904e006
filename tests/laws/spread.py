"""One launch of spread_training.py for all tests of a session, however many processes run them."""

from __future__ import annotations

import fcntl
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
from spread_training import CROSSED, RESUMED, losses, settings

from babyllama.errors import Interrupted

SCRIPT = Path(__file__).with_name("spread_training.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(folder: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    """Run parts in two processes; `--standalone` takes a free port."""
    return subprocess.run([*TORCHRUN, str(SCRIPT), str(folder), *parts], env=ENVIRONMENT, capture_output=True,
                          text=True, timeout=300)  # fmt: skip


def spread_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which everything was run; the first to ask runs it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "spread"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _prepare(folder)
            done = launch(folder, "curves", "halves", "guarded", "drift", "exchanges", "shapes", "resumes", "kill")
            (folder / "done").write_text(done.stdout + done.stderr)
    return folder


def _prepare(folder: Path) -> None:
    """What one process leaves for two."""
    for optimizer in ("adamw", "muon"):
        trainer = small_trainer(
            folder / f"stopped-one-{optimizer}", show=StopAt(4), **settings(optimizer, 4, **RESUMED)
        )
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
        assert file.exists(), (folder / "done").read_text()[-5000:]
        self.said: dict[str, Any] = json.loads(file.read_text())
        self.losses: list[list[float]] = self.said["losses"]
        self.weights: dict[str, torch.Tensor] = torch.load(folder / f"{name}.pt")

    def close_to(self, other: Alone | Result, atol: float) -> None:
        """Assert that curve (step, loss, norm, lr) and weights are, the curve of the steps that both have."""
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
