"""What a training tells: to metrics.jsonl, to the sinks, and to whoever watches. Not here: what the figures are."""

from __future__ import annotations

from typing import Any, Protocol

from babyllama.run import Run
from babyllama.train.sinks import Service, opened


class Show(Protocol):
    """Where people watch: a progress bar, or plain lines."""

    def step(self, step: int, steps: int, values: dict[str, Any]) -> None: ...
    def line(self, text: str) -> None: ...


class Journal:
    """Of the first rank; the others' is silent.

    Args:
        first: the step after which it begins.
        sinks: where the curves go beside metrics.jsonl and TensorBoard.
    """

    def __init__(self, run: Run, show: Show, first: int, speaks: bool, sinks: tuple[Service, ...] = ()) -> None:
        self._run, self._show, self._speaks = run, show, speaks
        self._sinks = opened(run, sinks, first + 1, show.line) if speaks else []

    def record(self, step: int, kind: str, **values: Any) -> None:
        """One line of metrics.jsonl, and its curves."""
        if self._speaks:
            self._run.log(step, kind=kind, **values)
        for sink in self._sinks:
            sink.add(step, kind, values)

    def step(self, step: int, steps: int, values: dict[str, Any]) -> None:
        """The figures of a step: recorded and shown."""
        self.record(step, "train", **values)
        if self._speaks:
            self._show.step(step, steps, values)

    def line(self, text: str) -> None:
        """Show a line of text."""
        if self._speaks:
            self._show.line(text)

    def close(self) -> None:
        """Write what the sinks still hold."""
        for sink in self._sinks:
            sink.close()
