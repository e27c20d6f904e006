"""What a training has counted so far, and what resume brings back of it. Not here: tensors (state.py)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Progress:
    """Plain numbers, changed by the loop alone."""

    tokens: int = 0
    seconds: float = 0.0  # of training alone: no compiling, validating, sampling or saving
    best: float = math.inf  # validation loss, nats a token
    rows_skipped: int = 0  # by rewinding
    rewinds: int = 0
    empty_steps: int = 0  # without a single target
    last: dict[str, Any] = field(default_factory=dict)  # the newest figures of each kind, for run.json

    @property
    def facts(self) -> dict[str, Any]:
        """A copy as plain JSON, which the training goes on without touching."""
        return {**asdict(self), "best": None if math.isinf(self.best) else self.best}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Progress:
        """Inverse of `facts`; what an earlier version did not count is 0."""
        known = {f.name: facts[f.name] for f in fields(cls) if facts.get(f.name) is not None}
        return cls(**known)
