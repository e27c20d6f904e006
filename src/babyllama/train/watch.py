"""What people see while a training runs. Not here: what is logged to files (sinks.py, run.py)."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from babyllama.amounts import duration


class Watch:
    """What people see while it trains: a bar with ETA on a terminal, plain lines elsewhere; one rank shows."""

    def __init__(self, steps: int, shown: bool = True) -> None:
        self.console = Console(quiet=not shown)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[figures]}"))  # fmt: skip
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("training", total=steps, figures="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, step: int, steps: int, values: dict[str, Any]) -> None:
        reward = f"reward {values['reward']:.3f}  " if "reward" in values else ""
        figures = (f"{reward}loss {values['loss']:.4f}  lr {values['lr']:.2e}  {values['tokens_per_second']:,.0f} tok/s"
                   + ("" if values["mfu"] is None else f"  MFU {values['mfu']:.1%}"))  # fmt: skip
        self.bar.update(self.task, completed=step, figures=figures)
        if self.bar.disable:
            left = (steps - step) * values["seconds"] / max(1, step)
            self.line(f"step {step}/{steps}  {figures}  {duration(left)} left")

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
