"""The runs below a folder, as the web app shows them: what each is, where it came from, its curves as they grow.

Only what lies inside the folder is read, links that lead out of it are not followed, and nothing is written: a training
may be at work in any of them. Not here: HTTP (pages.py), the page of `report`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babyllama.atomic import parse_json
from babyllama.errors import InputError
from babyllama.moved import beside
from babyllama.plain_yaml import parse_yaml
from babyllama.serve.faults import Refused
from babyllama.serve.rollouts import NAME as ROLLOUTS
from babyllama.serve.rollouts import page
from babyllama.train.sinks import numbers

DEPTH = 4  # folders below the root in which runs are looked for
MOST = 1 << 24  # bytes of metrics.jsonl that one answer goes through
POINTS = 1500  # of one curve in one answer at most; more are averaged in equal parts
LIVE = 90.0  # seconds since its last line, after which a run that has not ended counts as interrupted
Json = dict[str, Any]
Curve = list[list[float]]  # steps, values


@dataclass(frozen=True)
class Runs:
    """Those below `root`. A run's id is its path from there, with slashes."""

    root: Path

    def all(self) -> list[Json]:
        """A card of each, those that began last first."""
        found = [self._card(folder) for folder in self._folders(self.root.resolve(), DEPTH)]
        return sorted(found, key=lambda card: card["created"] or "", reverse=True)

    def one(self, id: str) -> Json:
        """Everything about one but its curves. Raises Refused (404)."""
        folder = self._folder(id)
        evals = {path.stem: read_object(path) for path in sorted((folder / "evals").glob("*.json"))}
        reports = {name: found for name in ("report", "manifest") if (found := read_object(folder / f"{name}.json"))}
        return {**self._card(folder), "recipe": _text(folder / "recipe.yaml"), "env": read_object(folder / "env.json"),
                "config": read_object(folder / "model" / "config.json"), "evals": evals, "reports": reports,
                "summary": read_object(folder / "run.json").get("summary") or {}}  # fmt: skip

    def metrics(self, id: str, cursor: str = "") -> Json:
        """What was logged after `cursor`: curves by name, samples, other lines, and the next cursor.

        `reset`: what came before is void, since the file is another one than the cursor's (a training that was resumed
        writes it anew). `more`: ask again at once. Raises Refused (404).
        """
        lines, at, reset, more = _lines(self._folder(id) / "metrics.jsonl", cursor)
        curves: dict[str, Curve] = {}
        for line in lines:
            kind, step = line.get("kind"), line.get("step")
            if not isinstance(step, int | float) or kind in ("sample", "ranks"):
                continue
            values = {key: value for key, value in line.items() if key not in ("step", "kind")}
            for name, value in numbers(values, f"{kind}/").items():
                if math.isfinite(value):
                    steps, figures = curves.setdefault(name, [[], []])
                    steps.append(step)
                    figures.append(value)
        samples = [line for line in lines if line.get("kind") == "sample"]
        return {"curves": {name: thinned(curve) for name, curve in curves.items()}, "samples": samples[-200:],
                "guard": sum(line.get("kind") == "guard" for line in lines), "cursor": at, "reset": reset,
                "more": more}  # fmt: skip

    def rollouts(self, id: str, step: int | None = None, at: int | None = None) -> Json:
        """A page of the answers that it learned from; as `rollouts.page`. Raises Refused (404)."""
        return page(self._folder(id) / ROLLOUTS, step, at)

    def data(self, id: str) -> Path:
        """The prepared folder that a run is, or reads. Raises Refused (404)."""
        folder = self._folder(id)
        recipe = _recipe(folder)
        given = recipe.get("data")
        link = self._link(folder, recipe, given.get("path") if isinstance(given, dict) else given)
        found = folder if (folder / "manifest.json").is_file() else self._folder(link or f"{id}: its data")
        if not (found / "manifest.json").is_file():
            raise Refused(404, f"{self.id(found)} has no prepared data")
        return found

    # ── one run ────────────────────────────────────────────────────────────────────────────────────────────────
    def _folder(self, id: str) -> Path:
        root = folder = self.root.resolve()
        try:
            folder = (root / id).resolve()
            known = folder != root and folder.is_relative_to(root) and (folder / "run.json").is_file()
        except (OSError, ValueError):  # a name that no file has
            known = False
        if not known:
            raise Refused(404, f"there is no run {id!r:.100}")
        return folder

    def _folders(self, folder: Path, depth: int) -> Iterator[Path]:
        """Of runs, below a folder."""
        try:
            inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        except OSError:
            return
        for path in inside:
            if path.name.startswith("."):
                continue
            if (path / "run.json").is_file():
                yield path
            elif depth > 1:
                yield from self._folders(path, depth - 1)

    def _card(self, folder: Path) -> Json:
        info, log = read_object(folder / "run.json"), folder / "metrics.jsonl"
        written = max((_changed(path) for path in (log, folder / "run.json")), default=0.0)
        status = info.get("status")
        if status != "finished":
            status = "running" if time.time() - written < LIVE else "stopped"
        recipe = _recipe(folder)
        plan, sources = recipe.get("plan"), self._sources(folder, recipe)
        if link := self._link(folder, recipe, info.get("parent")):
            sources = {"parent": link, **sources}
        return {"id": self.id(folder), "verb": info.get("verb"), "status": status, "created": info.get("created"),
                "changed": written, "figures": _figures(info.get("summary")), "logged": log.is_file(),
                "drew": (folder / ROLLOUTS).is_file(),
                "steps": plan.get("steps") if isinstance(plan, dict) else None,
                "from": sources}  # fmt: skip

    def id(self, folder: Path) -> str:
        """Its path from the root, with slashes."""
        return folder.relative_to(self.root.resolve()).as_posix()

    def _sources(self, folder: Path, recipe: Json) -> dict[str, str]:
        """Key of the recipe → the run that its value is."""
        found = {}
        for key, value in _texts(recipe):
            link = None if key == "out" else self._link(folder, recipe, value)
            if link and link != self.id(folder):
                found[key] = link
        return found

    def _link(self, folder: Path, recipe: Json, path: Any) -> str | None:
        """The id of the run at a path that a recipe names, beside its run, from here or beside the root; else None."""
        if not isinstance(path, str) or not path or len(path) > 400 or "\n" in path:
            return None
        root, out = self.root.resolve(), recipe.get("out")
        for start in (None, Path.cwd(), root.parent):
            try:
                near = start / path if start else Path(beside(path, out, folder) if isinstance(out, str) else path)
                there = near.resolve()
                for place in (there, there.parent):  # RUN/model is RUN's
                    if place != root and place.is_relative_to(root) and (place / "run.json").is_file():
                        return self.id(place)
            except (OSError, ValueError):
                continue
        return None


def thinned(curve: Curve) -> Curve:
    """At most POINTS of it: each the mean of equally many, at the step of the last."""
    steps, values = curve
    part = -(-len(steps) // POINTS) or 1
    if part == 1:
        return curve
    firsts = range(0, len(steps), part)
    groups = [values[i : i + part] for i in firsts]
    return [[steps[min(i + part, len(steps)) - 1] for i in firsts], [sum(g) / len(g) for g in groups]]


def _lines(path: Path, cursor: str) -> tuple[list[Json], str, bool, bool]:
    """Whole lines after the cursor ("INODE-OFFSET"), the next one, whether it was void, whether there are more."""
    try:
        with path.open("rb") as handle:
            number = os.fstat(handle.fileno()).st_ino  # a file that takes this one's place has another
            kept, _, place = cursor.partition("-")
            start = int(place) if kept == str(number) and place.isdecimal() else 0
            size = handle.seek(0, 2)
            start = start if start <= size else 0
            handle.seek(start)
            body = handle.read(MOST)
    except OSError:
        return [], "", bool(cursor), False
    end = body.rfind(b"\n") + 1  # the last line may be half written
    found = [line for text in body[:end].split(b"\n") if (line := _object(text))]
    return found, f"{number}-{start + end}", bool(cursor) and start == 0, end > 0 and start + len(body) < size


def _object(text: bytes | str) -> Json:
    try:
        found = parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_object(path: Path) -> Json:
    """The object in a JSON file; empty where it is missing, damaged or something else."""
    return _object(_text(path))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _recipe(folder: Path) -> Json:
    try:
        found = parse_yaml(_text(folder / "recipe.yaml"), "recipe.yaml")
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested data, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, f"{key}.{name}" if key else str(name))


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _figures(summary: Any) -> dict[str, float]:
    """The plain numbers of a finished run's summary."""
    return numbers(summary) if isinstance(summary, dict) else {}
