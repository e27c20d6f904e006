"""The report's curves as inline SVG, whose colours are the page's own. Not here: what is shown (report_story.py)."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from babyllama.commands.figures import Line, name_ends
from babyllama.errors import needs_extra

POINTS = 400  # of one curve at most; a curve of more is averaged in equal parts
INKS = {"#010101": "var(--ink)", "#020202": "var(--line)", "#030303": "var(--first)", "#040404": "var(--second)",
        "#050505": "var(--muted)"}  # fmt: skip
INK, LINE, FIRST, SECOND, MUTED = INKS
Json = dict[str, Any]
Points = tuple[Sequence[float], Sequence[float]]
Band = tuple[Sequence[float], Sequence[float]]


def draw_curves(metrics: list[Json], guessing: float | None, say: Any = str) -> list[Markup]:
    """Loss, bits per byte and learning rate over the steps; the charts without a line are left out.

    Args:
        guessing: the loss of a model that knows nothing, ln(vocabulary); drawn where the curve starts near it.
        say: English words → the page's language.
    """
    train, validation = _points(metrics, "train", "loss"), _points(metrics, "validation", "loss")
    bits, rate = _points(metrics, "validation", "bits_per_byte"), _points(metrics, "train", "lr")
    step = say("step")
    drawn = []
    if train[0] or validation[0]:
        high = max([*train[1], *validation[1]])
        near = guessing if guessing is not None and 0.8 * guessing < high < 1.3 * guessing else None
        drawn.append(_chart(say("Loss (nats a token)"), {say("training"): train, say("validation"): validation}, step,
                            level=None if near is None else (say("pure guessing"), near)))  # fmt: skip
    if bits[0]:
        drawn.append(_chart(say("Bits per byte, validation"), {"": ([], []), say("validation"): bits}, step))
    if rate[0]:
        drawn.append(_chart(say("Learning rate"), {"": rate}, step))
    return drawn


def draw_abilities(metrics: list[Json], say: Any = str) -> list[Markup]:
    """The score in each test over the steps, with its 95 % interval and what guessing gives, in percent."""
    looks = [line for line in metrics if line.get("kind") == "abilities"]
    names = dict.fromkeys(name for line in looks for name, score in line.items() if _is_score(score))
    drawn = []
    for name in names:
        seen = [(line["step"], line[name]) for line in looks if _is_score(line.get(name))]
        steps = [step for step, _ in seen]
        low, high, values = ([100 * score[key] for _, score in seen] for key in ("low", "high", "accuracy"))
        level = say("guessing"), 100 * seen[-1][1]["chance"]
        drawn.append(_chart(say(name).replace("_", " "), {"": ([], []), say("right"): (steps, values)}, say("step"),
                            level, (low, high), size=(2.9, 2.0)))  # fmt: skip
    return drawn


def _is_score(value: Any) -> bool:
    keys = ("accuracy", "low", "high", "chance")
    return isinstance(value, dict) and all(isinstance(value.get(key), int | float) for key in keys)


def _points(metrics: list[Json], kind: str, name: str) -> Points:
    found = [(m["step"], m[name]) for m in metrics if m.get("kind") == kind and isinstance(m.get(name), int | float)]
    found = [(x, y) for x, y in found if math.isfinite(y)]
    part = -(-len(found) // POINTS) or 1
    groups = [found[i : i + part] for i in range(0, len(found), part)]
    return [g[-1][0] for g in groups], [sum(y for _, y in g) / len(g) for g in groups]


def _chart(title: str, curves: dict[str, Points], step: str, level: tuple[str, float] | None = None,
           band: Band | None = None, size: tuple[float, float] = (3.9, 2.7)) -> Markup:  # fmt: skip
    """One chart as SVG without ids of its own, links or fixed colours. First curve: a line; second: with dots.

    Args:
        level: a dotted line across the chart, and its name.  band: round the second curve.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise needs_extra("matplotlib", "report") from None
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif", "font.size": 10,
             "text.color": INK, "axes.edgecolor": LINE, "xtick.color": LINE, "ytick.color": LINE,
             "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "axes.labelcolor": MUTED}  # fmt: skip
    with rc_context(style), warnings.catch_warnings():
        # Text stays text in the page, whose fonts have hanzi: matplotlib only guesses at its width.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        shown = Figure(figsize=size, layout="constrained")
        axes = shown.subplots()
        axes.set_title(title, loc="left", fontsize=11, pad=10)
        ends = []
        for (name, (x, y)), colour, marker in zip(curves.items(), (FIRST, SECOND), ("", "o"), strict=False):
            dot = marker if marker or len(x) > 1 else "o"
            axes.plot(x, y, color=colour, marker=dot, markersize=3.5, linewidth=1.6)
            ends += [Line(name, y[-1], colour)] if y else []
            if y and band and marker:
                axes.fill_between(x, *band, color=colour, alpha=0.15, linewidth=0)
        if level is not None:
            axes.axhline(level[1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
            ends.append(Line(*level, MUTED))
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel(step)
        axes.locator_params(nbins=6 if size[0] > 3 else 4)
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
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))
