"""rollouts.jsonl: every answer that was learned from, one a line. Not here: what a line says (rollouts.py)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babyllama.atomic import disk_errors, json_text

NAME = "rollouts.jsonl"


@dataclass
class Record:
    """`bytes`: how much of the file is valid; goes into checkpoints."""

    folder: Path
    bytes: int = 0

    def cut(self) -> None:
        """Drop what was written after the checkpoint that a run goes on from, half a line perhaps."""
        path = self.folder / NAME
        if path.exists():
            with disk_errors(path):
                os.truncate(path, min(self.bytes, path.stat().st_size))

    def add(self, lines: Sequence[dict[str, Any]], writes: bool) -> None:
        """Append lines, on the rank that writes; the others count along."""
        text = "".join(json_text(line) + "\n" for line in lines).encode()
        if writes:
            path = self.folder / NAME
            with disk_errors(path), path.open("ab") as handle:
                handle.write(text)
        self.bytes += len(text)
