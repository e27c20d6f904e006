"""What is logged, for TensorBoard: ``tensorboard --logdir runs``. Not here: metrics.jsonl, which is the truth.

Without the package tensorboard (extra ``report``) nothing is written; training needs it for nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Board:
    """Event files in ``RUN/tensorboard``.

    Args:
        first: the first step that will be written; later ones, of a killed process, are dropped by TensorBoard.
    """

    def __init__(self, run: Path, first: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first)

    def add(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Numbers become curves named ``kind/key``, one level of nesting deep; a sample becomes text."""
        if self._writer is None:
            return
        if kind == "sample":
            self._writer.add_text(f"sample/{values['prompt']}", values["text"], step)
        for key, value in _numbers(values):
            self._writer.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _numbers(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{key}/")
        elif isinstance(value, int | float):
            found.append((prefix + key, float(value)))
    return found
