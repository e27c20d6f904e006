"""Small trainings in two processes, all of a session in one launch: it costs seconds, however many processes test.

Also a script: it imports everything once and forks the ranks, as torchrun would start them. That real launchers do is
in tests/e2e/test_launchers.py. What the ranks do is in spread_training.py and spread_tuning.py.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import spread_training
import spread_tuning
import torch
from small_training import StopAt, small_trainer, warm
from spread_training import CROSSED, RESUMED, losses, settings

import babyllama.train.meter
from babyllama.errors import Interrupted
from babyllama.train.engines.world import World


def spread_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which everything was run; the first to ask runs it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "spread"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _prepare(folder)
            done = subprocess.run([sys.executable, __file__, str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"},
                                  capture_output=True, text=True, timeout=600, check=False)  # fmt: skip
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


# ── the script ─────────────────────────────────────────────────────────────────────────────────────────────────────
def run_parts(folder: Path) -> None:
    """What each rank does: the parts, one after the other; the last kills it."""
    babyllama.train.meter.peak_flops = lambda *_: 1e12  # nobody asks how fast this machine is
    here = World.from_environment()
    here.join(torch.device("cpu"))
    (folder / "tuning").mkdir(exist_ok=True)
    parts = {**dict.fromkeys(spread_tuning.PARTS, folder / "tuning"), **dict.fromkeys(spread_training.PARTS, folder)}
    for part, into in parts.items():
        started = time.perf_counter()
        part(into, here)
        here.wait()
        print(f"{part.__module__}.{part.__name__}: {time.perf_counter() - started:.1f} s", flush=True)


def fork_ranks(work: Callable[[], None], size: int) -> None:
    """`work` in `size` processes that have what torchrun would give them; the first that fails ends the others."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True",
                      WORLD_SIZE=str(size))  # fmt: skip
    gc.freeze()  # DeepSpeed collects garbage often: not through all that was imported
    ranks = [_forked(work, rank) for rank in range(size)]
    while ranks:
        ended, status = os.wait()
        ranks.remove(ended)
        print(f"a rank ended with {os.waitstatus_to_exitcode(status)}", flush=True)
        if status:
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)


def _forked(work: Callable[[], None], rank: int) -> int:
    child = os.fork()
    if child:
        return child
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    import deepspeed  # noqa: F401  (once, before there are ranks)
    import torch._inductor.compile_fx

    warm()
    fork_ranks(lambda: run_parts(Path(sys.argv[1])), 2)
