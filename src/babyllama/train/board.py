"""What is logged, for TensorBoard: ``tensorboard --logdir runs``. Not here: metrics.jsonl, which is the truth.

Without the package tensorboard (extra ``report``) nothing is written; training needs it for nothing, and goes on when
it fails, with a word.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Board:
    """Event files in ``RUN/tensorboard``.

    Args:
        first: the first step that will be written; later ones, of a killed process, are dropped by TensorBoard.
        say: where it says that it gives up.
    """

    def __init__(self, run: Path, first: int, say: Callable[[str], None]) -> None:
        self._writer: Any = None
        self._say = say
        try:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first)
        except ImportError:  # not installed
            pass
        except Exception as error:  # installed, and broken: its protobuf may raise anything
            self._give_up(error)

    def add(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Numbers become curves named ``kind/key``, one level of nesting deep; a sample becomes text."""
        if self._writer is None:
            return
        try:
            if kind == "sample":
                self._writer.add_text(f"sample/{values['prompt']}", values["text"], step)
            for key, value in _numbers(values):
                self._writer.add_scalar(f"{kind}/{key}", value, step)
        except Exception as error:  # a full disk, which its thread has met
            self._give_up(error)

    def close(self) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        why = str(error).partition("\n")[0][:200]
        self._say(f"TensorBoard gets no more curves ({type(error).__name__}: {why}); metrics.jsonl has them all")


def _numbers(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{key}/")
        elif isinstance(value, int | float):
            found.append((prefix + key, float(value)))
    return found
