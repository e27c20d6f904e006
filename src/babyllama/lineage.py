"""The runs that a model comes from, each of which began with another's model.

Not here: one run (run.py), where the paths of a run that was moved lead (moved.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from babyllama.moved import leads
from babyllama.run import Run


def lineage(model: Path) -> Iterator[tuple[Path, Run]]:
    """From the last one back: what was begun with, a run or the folder of a model in it, and the run that made it.

    It ends at a run that began with nothing, at another program's model, and where parents go in a circle.
    """
    at: Path | None = model
    seen = set[Path]()
    while at is not None:
        place = next((place for place in (at, at.parent) if (place / "run.json").is_file()), None)
        if place is None or place.resolve() in seen:
            return
        seen.add(place.resolve())
        run = Run(place)
        yield at, run
        parent = run.info.get("parent")
        at = leads(place, parent) if parent else None
