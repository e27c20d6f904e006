"""What one check found, and the words that all checks share. Not here: any check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from babyllama.foresight.evidence import Choices, Evidence, Line

Verdict = Literal["ok", "fault", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """What one check found: `evidence` with its numbers; for a fault also `where` (a path, or key=value) and the
    remedy."""

    verdict: Verdict
    evidence: str
    remedy: str = ""
    where: str = ""
    check: str = ""  # its name in CHECKS


def nothing(why: str) -> Finding:
    """There is nothing that this check could look at."""
    return Finding("not applicable", why)


def rates(choices: Choices | None) -> str:
    """The recipe's learning rates as keys and values."""
    if choices is None:
        return "optimizer.lr"
    found = {name: getattr(choices.optimizer, name) for name in type(choices.optimizer).model_fields}
    return " ".join(f"optimizer.{name}={rate:g}" for name, rate in found.items() if name.endswith("lr") and rate)


def trained(lines: Sequence[Line]) -> list[Line]:
    """The logged steps."""
    return [line for line in lines if line.get("kind") == "train"]


def guarded(lines: Sequence[Line], finite: bool) -> list[Line]:
    """Steps that the guard left out: for a jump of the loss, or because something was no number."""
    return [m for m in lines if m.get("kind") == "guard" and _finite(m) == finite]


def _finite(line: Line) -> bool:
    return math.isfinite(line["loss"]) and math.isfinite(line["norm"])


def sources(evidence: Evidence) -> list[tuple[str, tuple[Line, ...], str]]:
    """(what to call them, metrics, how the trainer gave up)."""
    found = [("recorded", evidence.recorded, "")]
    if evidence.rehearsal is not None:
        found.append(("rehearsed", evidence.rehearsal.lines, evidence.rehearsal.diverged))
    return [source for source in found if source[1]]
