"""Checkpoints of one training: begun between two steps, written beside the training, taken up again to the bit.

Not here: what a worker's state is (engines/), its files (state.py), which are kept (run.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from babyllama.atomic import write_folder
from babyllama.errors import InputError
from babyllama.model.transformer import Transformer
from babyllama.run import Run
from babyllama.train.engines.worker import Worker
from babyllama.train.engines.world import World
from babyllama.train.guard import Watchman
from babyllama.train.progress import Progress
from babyllama.train.source import Source
from babyllama.train.state import Saver

SOURCE = "source."  # before the names of what the source keeps, among a checkpoint's tensors


class Drifted(InputError):
    """The ranks' parameters are no longer the same."""


class Checkpoints:
    """All ranks call every method at the same step.

    Args:
        keep: how many.  branch: the step whose checkpoint stays besides, 0 for none; see trainer.branch.
        say: shows a line, on the first rank.
    """

    def __init__(self, run: Run, world: World, worker: Worker, watchman: Watchman, source: Source, keep: int,
                 branch: int, say: Callable[[str], None]) -> None:  # fmt: skip
        self._run, self._world, self._worker, self._watchman, self._source = run, world, worker, watchman, source
        self._keep, self.branch, self._say, self._saver = keep, branch, say, Saver()

    def save(self, step: int, progress: Progress) -> list[str]:
        """Begin to write a checkpoint; the copy is made here. Returns each rank's fingerprint, where there are many.

        Raises:
            Drifted: the ranks disagree.
        """
        prints = self._fingerprints(step)
        facts = {"step": step, **progress.facts, "world_size": self._world.size}
        extra = {f"guard.{name}": value for name, value in self._watchman.state.items()}
        extra |= {f"{SOURCE}{name}": value for name, value in self._source.state.items()}
        save = partial(self._run.save_state, step, keep=self._keep, branch=self.branch)
        self._saver.wait()  # one checkpoint in memory at a time
        self._saver.start(self._worker.writer(save, extra, facts))
        return prints

    def save_best(self, model: Transformer, export: Callable[[Transformer, Path], None]) -> None:
        """Begin to write a model to best/; on the first rank."""
        self._saver.start(lambda: write_folder(self._run.path / "best", lambda folder: export(model, folder)))

    def wait(self) -> None:
        """Until nothing is being written. Raises what the last write raised."""
        self._saver.wait()

    def settle(self) -> None:
        """The same after a fault, which is the one to tell, not that of a write."""
        with suppress(Exception):
            self._saver.wait()

    def any(self) -> bool:
        """Whether there is one to go back to."""
        self._saver.wait()
        return self._world.agree(bool(self._run.states()) if self._world.first else None)

    def resume(self) -> tuple[int, Progress]:
        """Take up the newest whole checkpoint; (0, nothing) when there is none."""
        found = self._world.agree(self._run.latest_state(self._say) if self._world.first else None)
        if found is None:
            if self._world.first:
                self._run.rewind_metrics(-1)
            return 0, Progress()
        step, folder = found
        tensors, facts = self._worker.read(folder)
        self._watchman.restore(tensors)
        self._source.restore({name.removeprefix(SOURCE): t for name, t in tensors.items() if name.startswith(SOURCE)})
        if self._world.first:
            self._run.drop_states(after=step)
            self._run.rewind_metrics(step)
            self._say(f"continuing after step {step}")
        return step, Progress.of(facts)

    def _fingerprints(self, step: int) -> list[str]:
        if self._world.size == 1:
            return []
        every, shard = self._world.gather(self._worker.fingerprint()), self._worker.setting.mesh.shard
        for rank, other in enumerate(every):
            first = every[rank % shard]  # holds the same
            wrong = [name for name in first if first[name] != other.get(name)]
            if wrong:
                raise Drifted(
                    f"{self._run.path}: at step {step} the parameters of rank {rank} differ from rank {rank % shard}'s "
                    f"({', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''}); the last checkpoint is from before: "
                    "check that all processes run the same code on the same data"
                )
        return [f"{sum(prints.values()) % 2**64:016x}" for prints in every]
