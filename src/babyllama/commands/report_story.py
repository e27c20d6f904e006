"""What a report says about a run: read from its folder, whatever there is of it. Not here: how it looks.

Numbers are the ledger's own: run.json, metrics.jsonl, manifest.json, evals/, report.json. Nothing is measured here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from babyllama.commands.report_charts import draw_abilities, draw_curves
from babyllama.errors import InputError
from babyllama.evals.statistics import LEVEL
from babyllama.model.config import ModelConfig
from babyllama.model.config_json import from_hugging_face
from babyllama.run import Run

STAGES = 4  # at most this many samples of one prompt, from the first to the last
Json = dict[str, Any]


@dataclass(frozen=True)
class Story:
    """What the page says about one run. `tests`: of all its evaluations, by name."""

    name: str
    path: Path
    info: Json
    recipe: str
    env: Json
    shape: ModelConfig | None
    curves: list[Markup]
    abilities: list[Markup]
    prompts: dict[str, list[Json]]  # prompt → some of its samples, first to last
    evals: list[Json]
    tests: dict[str, Json]
    corpora: Json
    variants: list[Json]  # before and after quantisation
    files: dict[str, int]  # what was written → bytes
    seconds: float | None
    energy: float | None  # joules of the first card
    summary: Json = field(default_factory=dict)

    @property
    def above(self) -> list[str]:
        """The tests in which it is above chance."""
        return [name for name, test in self.tests.items() if test["p"] < LEVEL]


def tell(run: Run, say: Any = str) -> Story:
    """Collect what there is of a run, finished or not."""
    info, metrics = run.info, run.metrics()
    shape = _shape(run)
    summary = {**_last_figures(metrics), **{k: v for k, v in info.get("summary", {}).items() if v is not None}}
    if shape is not None and info.get("verb") == "train":
        summary.setdefault("parameters", shape.parameters)
    recipe = run.path / "recipe.yaml"
    evals = [{"name": path.stem, **found} for path in sorted((run.path / "evals").glob("*.json"))
             if (found := _read_json(path))]  # fmt: skip
    return Story(
        name=run.path.resolve().name,
        path=run.path,
        info=info,
        recipe=recipe.read_text("utf-8") if recipe.is_file() else "",
        env=_read_json(run.path / "env.json"),
        shape=shape,
        curves=draw_curves(metrics, math.log(shape.vocab_size) if shape and not info.get("parent") else None, say),
        abilities=draw_abilities(metrics, say),
        prompts=_prompts(metrics),
        evals=evals,
        tests={name: test for found in evals for name, test in (found.get("tasks") or {}).items() if test.get("items")},
        corpora=_read_json(run.path / "manifest.json").get("corpora", {}),
        variants=_variants(_read_json(run.path / "report.json")),
        files=_sizes(run.path),
        seconds=summary.get("seconds"),
        energy=_energy(metrics),
        summary=summary,
    )  # fmt: skip


def _read_json(path: Path) -> Json:
    """The object in a file; empty when it is missing, damaged or something else."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _shape(run: Run) -> ModelConfig | None:
    try:
        return from_hugging_face(_read_json(run.model / "config.json"), str(run.model))
    except (InputError, KeyError):
        return None


def _last_figures(metrics: list[Json]) -> Json:
    """What the summary of a finished run says, from the last lines of one that is not."""
    last = {kind: m for m in metrics if (kind := m.get("kind")) in ("train", "validation")}
    train, validation = last.get("train", {}), last.get("validation", {})
    names = ("tokens", "seconds", "tokens_per_second", "mfu")
    found = {name: train.get(name) for name in names} | {
        "steps": train.get("step"), "train_loss": train.get("loss"), "validation_loss": validation.get("loss"),
        "bits_per_byte": validation.get("bits_per_byte")}  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _energy(metrics: list[Json]) -> float | None:
    """Watts times the seconds since the line before; None where a card did not tell. Lines of steps that a resume took
    anew count once, by their step."""
    lines = {m["step"]: m for m in metrics if m.get("kind") == "train" and isinstance(m.get("seconds"), int | float)}
    found, before = 0.0, 0.0
    for line in (lines[step] for step in sorted(lines)):
        if isinstance(line.get("watts"), int | float):
            found += line["watts"] * max(0.0, line["seconds"] - before)
        before = line["seconds"]
    return found or None


def _prompts(metrics: list[Json]) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    for line in metrics:
        if line.get("kind") == "sample":
            found.setdefault(str(line.get("prompt", "")), []).append(line)
    return {prompt: spread(lines, STAGES) for prompt, lines in found.items()}


def _variants(report: Json) -> list[Json]:
    """Rows of a report of quantize: the model before, and after each method."""
    before, after = report.get("before"), report.get("after")
    if not isinstance(before, dict) or not isinstance(after, list):
        return []
    return [{"name": "", **before}, *(found for found in after if isinstance(found, dict))]


def _sizes(folder: Path) -> dict[str, int]:
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    files = {p.name: [p] if p.is_file() else [f for f in p.rglob("*") if f.is_file()] for p in entries}
    return {f"{name}{'' if (folder / name).is_file() else '/'}": sum(f.stat().st_size for f in inside)
            for name, inside in files.items()}  # fmt: skip


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, evenly from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


# ── all runs together ──────────────────────────────────────────────────────────────────────────────────────────────
def side_by_side(stories: Sequence[Story]) -> list[tuple[str, list[Json | None]]]:
    """(test, its figures in each run that was tested), for tests that at least one run has."""
    tested = [story for story in stories if story.tests]
    names = dict.fromkeys(name for story in tested for name in story.tests)
    return [(name, [story.tests.get(name) for story in tested]) for name in names]


def limits(stories: Sequence[Story]) -> list[tuple[str, dict[str, Any]]]:
    """What a reader must not believe: (words in English, the figures in them)."""
    found: list[tuple[str, dict[str, Any]]] = []
    last = next((story for story in reversed(stories) if story.summary.get("parameters")), None)
    if last is not None:
        found.append(("{name} is small: it says fluent things that are wrong. It is no doctor, lawyer or judge.",
                      {"name": last.name}))  # fmt: skip
    for story in stories:
        cut = sum(test.get("cut") or 0 for test in story.tests.values())
        read = sum(test.get("contaminated") or 0 for test in story.tests.values())
        looked = [test for test in story.tests.values() if test.get("clean", 0) != 0]
        if cut:
            found.append(("{name}: {n} prompts of tests were cut to fit its context; such scores mean little.",
                          {"name": story.name, "n": cut}))  # fmt: skip
        if read:
            found.append(("{name}: {n} questions of tests occur in its training data.",
                          {"name": story.name, "n": read}))  # fmt: skip
        if story.tests and not looked:
            found.append(("{name}: nobody looked for the tests' text in its training data.", {"name": story.name}))
        if any(found.get("documents") == "trained on" for found in story.evals):
            found.append(("{name}: some figures are of text that it was trained on: they show what it remembers.",
                          {"name": story.name}))  # fmt: skip
        if story.info.get("status") != "finished":
            found.append(("{name} is not finished.", {"name": story.name}))
    if any(story.tests for story in stories):
        found.append(("Intervals are of the questions, not of the training: another seed gives another model.", {}))
    return found
