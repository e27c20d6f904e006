"""report: one HTML page about a pipeline of runs; it opens offline, in light and dark, on a phone too.

Every piece that a run lacks is left out of the page. How the page looks is in report.html; its curves are drawn here,
as inline SVG whose colours are the page's own. Not here: measuring anything.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from pydantic import Field

from babyllama.amounts import duration, short, size
from babyllama.atomic import write_atomic
from babyllama.commands.figures import Line, name_ends
from babyllama.errors import InputError, needs_extra
from babyllama.model.config import ModelConfig
from babyllama.model.config_json import from_hugging_face
from babyllama.recipe import Recipe
from babyllama.run import Run

TEMPLATE = Path(__file__).with_name("report.html")
POINTS = 400  # of one curve at most; a curve of more is averaged in equal parts
STAGES = 4  # at most this many samples of one prompt, from the first to the last
QUESTIONS = 6  # shown of each evaluated corpus
INKS = {"#010101": "var(--ink)", "#020202": "var(--line)", "#030303": "var(--first)", "#040404": "var(--second)",
        "#050505": "var(--muted)"}  # fmt: skip
INK, LINE, FIRST, SECOND, MUTED = INKS
Json = dict[str, Any]
Points = tuple[Sequence[float], Sequence[float]]


class ReportRecipe(Recipe):
    """Which runs to tell about, in order, and where to write the page."""

    runs: tuple[Path, ...] = Field(min_length=1, description="the runs, in order", examples=["runs=[runs/base]"])
    out: Path = Field(default=Path("report.html"), description="the page to write")
    title: str = "babyllama"


@dataclass(frozen=True)
class Story:
    """What the page says about one run."""

    name: str
    info: Json
    recipe: str
    env: Json
    shape: ModelConfig | None
    curves: list[Markup]
    prompts: dict[str, list[Json]]  # prompt → some of its samples, first to last
    evals: list[Json]
    corpora: Json
    files: dict[str, int]  # what was written → bytes
    seconds: float | None
    summary: Json = field(default_factory=dict)


def main(recipe: ReportRecipe) -> None:
    """Read the runs, write the page."""
    stories = [tell(Run.open(path)) for path in recipe.runs]
    write_atomic(recipe.out, render(stories, recipe.title))
    print(f"{recipe.out} is ready; open it in a browser")


def render(stories: list[Story], title: str) -> str:
    """The page. Everything that came out of a run is escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": short, "duration": duration, "size": size, "figure": figure, "spread": spread}
    timed = [story for story in stories if story.seconds]
    total = sum(story.seconds or 0 for story in timed)
    trained = [story for story in stories if story.info.get("verb") == "train"]
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        title=title, stories=stories, timed=timed, total=total, trained=trained, questions=QUESTIONS,
        tokens=sum(story.summary.get("tokens") or 0 for story in trained))  # fmt: skip


# ── reading a run ──────────────────────────────────────────────────────────────────────────────────────────────────
def tell(run: Run) -> Story:
    """Collect what there is of a run, finished or not."""
    info, metrics = run.info, run.metrics()
    shape = _shape(run)
    summary = {**_last_figures(metrics), **{k: v for k, v in info.get("summary", {}).items() if v is not None}}
    if shape is not None and info.get("verb") == "train":
        summary.setdefault("parameters", shape.parameters)
    recipe = run.path / "recipe.yaml"
    return Story(
        name=run.path.resolve().name,
        info=info,
        recipe=recipe.read_text("utf-8") if recipe.is_file() else "",
        env=_read_json(run.path / "env.json"),
        shape=shape,
        curves=draw_curves(metrics, math.log(shape.vocab_size) if shape and not info.get("parent") else None),
        prompts=_prompts(metrics),
        evals=[{"name": path.stem, **found} for path in sorted((run.path / "evals").glob("*.json"))
               if (found := _read_json(path))],
        corpora=_read_json(run.path / "manifest.json").get("corpora", {}),
        files=_sizes(run.path),
        seconds=summary.get("seconds"),
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


def _prompts(metrics: list[Json]) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    for line in metrics:
        if line.get("kind") == "sample":
            found.setdefault(str(line.get("prompt", "")), []).append(line)
    return {prompt: spread(lines, STAGES) for prompt, lines in found.items()}


def _sizes(folder: Path) -> dict[str, int]:
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    files = {p.name: [p] if p.is_file() else [f for f in p.rglob("*") if f.is_file()] for p in entries}
    return {f"{name}{'' if (folder / name).is_file() else '/'}": sum(f.stat().st_size for f in inside)
            for name, inside in files.items()}  # fmt: skip


# ── curves ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def draw_curves(metrics: list[Json], guessing: float | None) -> list[Markup]:
    """Loss, bits per byte and learning rate over the steps; the charts without a line are left out.

    Args:
        guessing: the loss of a model that knows nothing, ln(vocabulary); drawn where the curve starts near it.
    """
    train, validation = _points(metrics, "train", "loss"), _points(metrics, "validation", "loss")
    bits, rate = _points(metrics, "validation", "bits_per_byte"), _points(metrics, "train", "lr")
    drawn = []
    if train[0] or validation[0]:
        high = max([*train[1], *validation[1]])
        near = guessing if guessing is not None and 0.8 * guessing < high < 1.3 * guessing else None
        drawn.append(_chart("Loss (nats a token)", {"training": train, "validation": validation}, near))
    if bits[0]:
        drawn.append(_chart("Bits per byte, validation", {"": ([], []), "validation": bits}))
    if rate[0]:
        drawn.append(_chart("Learning rate", {"rate": rate}))
    return drawn


def _points(metrics: list[Json], kind: str, name: str) -> Points:
    found = [(m["step"], m[name]) for m in metrics if m.get("kind") == kind and isinstance(m.get(name), int | float)]
    found = [(x, y) for x, y in found if math.isfinite(y)]
    part = -(-len(found) // POINTS) or 1
    groups = [found[i : i + part] for i in range(0, len(found), part)]
    return [g[-1][0] for g in groups], [sum(y for _, y in g) / len(g) for g in groups]


def _chart(title: str, curves: dict[str, Points], guessing: float | None = None) -> Markup:
    """One chart as SVG without ids of its own, links or fixed colours. First curve: a line; second: with dots."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise needs_extra("matplotlib", "report") from None
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif", "font.size": 10,
             "text.color": INK, "axes.edgecolor": LINE, "xtick.color": LINE, "ytick.color": LINE,
             "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "axes.labelcolor": MUTED}  # fmt: skip
    with rc_context(style):
        shown = Figure(figsize=(3.9, 2.7), layout="constrained")
        axes = shown.subplots()
        axes.set_title(title, loc="left", fontsize=11, pad=10)
        ends = []
        for (name, (x, y)), colour, marker in zip(curves.items(), (FIRST, SECOND), ("", "o"), strict=False):
            dot = marker if marker or len(x) > 1 else "o"
            axes.plot(x, y, color=colour, marker=dot, markersize=3.5, linewidth=1.6)
            ends += [Line(name, y[-1], colour)] if y else []
        if guessing is not None:
            axes.axhline(guessing, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
            ends.append(Line("pure guessing", guessing, MUTED))
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("step")
        axes.locator_params(nbins=6)
        if len(ends) > 1:
            name_ends(axes, ends, size=9)
        text = io.StringIO()
        FigureCanvasSVG(shown).print_svg(text, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(text.getvalue(), title)


def _inline(svg: str, title: str) -> Markup:
    """A whole SVG file → an element for a page: no prolog, no style for all, no addresses, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'<g id="patch_1">.*?</g>|<g id="patch_2">.*?</g>', "", svg, flags=re.DOTALL)  # white backgrounds
    for placeholder, colour in INKS.items():
        svg = svg.replace(placeholder, colour)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))


# ── words for numbers ──────────────────────────────────────────────────────────────────────────────────────────────
def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, evenly from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def figure(value: Any, digits: int = 3) -> str:
    """A number with fixed decimals, or a dash."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) and not isinstance(value, bool) else "–"
