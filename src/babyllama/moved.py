"""The paths of a run's own recipe, for a run that lies elsewhere now: on another machine, or seen from another folder.

Runs name each other as the shell of then did (``data.path: runs/corpus`` in ``runs/base``). Of a run that was moved,
what lies beside it as it did then is meant. Not here: whether it is the same (hashes in run.json tell).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from babyllama.errors import InputError, at_home
from babyllama.keys import types_of
from babyllama.plain_yaml import parse_yaml


def moved(kind: type[BaseModel], data: dict[str, Any], run: Path) -> dict[str, Any]:
    """The recipe of the run at `run`, as plain data, with each path to where it leads from there."""
    out = data.get("out")
    return _walk(kind, data, "", out, run) if isinstance(out, str) else data


def leads(run: Path, given: str) -> Path:
    """Where a path that the recipe or the record of the run at `run` names leads now."""
    file = run / "recipe.yaml"
    recipe = parse_yaml(file.read_text("utf-8"), str(file)) if file.is_file() else None
    out = recipe.get("out") if isinstance(recipe, dict) else None
    return Path(beside(given, out, run)) if isinstance(out, str) else Path(given)


def beside(given: str, out: str, run: Path) -> str:
    """A path that a run's recipe names; `out` is what the recipe calls the run, which is at `run` now.

    Of a run that was moved, what lies beside it as it did then comes first: runs that others made by the same recipes
    have the names of those that are here. Unchanged if the run is where it was, or nothing lies so beside it.
    """
    if Path(given).is_absolute() != Path(out).is_absolute() or _same(out, run):
        return given
    near = os.path.normpath(run / os.path.relpath(given, out))
    return near if Path(near).exists() else given


def _same(out: str, run: Path) -> bool:
    try:
        return at_home(out).resolve() == run.resolve()
    except InputError:  # the home folder of somebody elsewhere
        return False


def _walk(kind: type[BaseModel], value: Any, key: str, out: str, run: Path) -> Any:
    if isinstance(value, dict):
        return {k: v if k == "out" and not key else _walk(kind, v, f"{key}.{k}" if key else str(k), out, run)
                for k, v in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [_walk(kind, item, f"{key}.{i}", out, run) for i, item in enumerate(value)]
    paths = isinstance(value, str) and any(field in (Path, Path | None) for field in types_of(kind, key))
    return beside(value, out, run) if paths else value
