"""Figures: names at the ends of lines, none over another; plain numbers on logarithmic axes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from babyllama.commands import figures
from babyllama.commands.figures import Line, legible, name_ends, plain_log


def axes():
    figure = Figure(figsize=(4, 3), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


def shown(axes) -> list[tuple[str, float, float]]:
    """(name, lower and upper edge in pixels) of each annotation, from below, as it is drawn."""
    canvas = axes.figure.canvas
    canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in axes.texts]
    return sorted(((name, box.y0, box.y1) for name, box in boxes), key=lambda entry: entry[1])


@pytest.mark.parametrize("ends", [[1.0, 1.0, 1.0, 1.01], [0.0, 9.9, 10.0], [0.0, 0.05, 5.0, 10.0, 10.0, 10.0]])
def test_names_stand_at_their_ends_and_not_over_each_other(ends):
    drawn = axes()
    for end in ends:
        drawn.plot([0, 1], [0, end])
    drawn.set_ylim(0, 10)
    name_ends(drawn, [Line(f"line {i}", end, "k") for i, end in enumerate(ends)])
    found = shown(drawn)
    assert [name for name, _, _ in found] == [f"line {i}" for i in range(len(ends))]  # from low to high
    assert all(below[2] <= above[1] + 0.5 for below, above in pairwise(found))
    frame = drawn.get_window_extent()
    assert frame.y0 - 10 < found[0][1] and found[-1][2] < frame.y1 + 10


def test_one_name_stands_where_its_line_ends():
    drawn = axes()
    drawn.plot([0, 1], [2, 4])  # limits that nobody has settled yet
    name_ends(drawn, [Line("it", 3.0, "k")])
    ((_, low, high),) = shown(drawn)
    frame = drawn.get_window_extent()
    assert (low + high) / 2 == pytest.approx((frame.y0 + frame.y1) / 2, abs=2)


@pytest.mark.parametrize(("low", "high", "some"), [(60.3, 66.1, "63"), (50, 40_000, "20,000"), (0.5, 900, "0.5")])
def test_ticks_are_plain_numbers(low, high, some):
    drawn = axes()
    drawn.plot([0, 1], [low, high])
    plain_log(drawn)
    drawn.figure.canvas.draw()
    labels = [text.get_text() for text in drawn.yaxis.get_ticklabels(which="both") if text.get_text()]
    assert some in labels and 2 < len(labels) < 20 and not any("×" in text or "^" in text for text in labels)


@pytest.mark.parametrize(
    ("installed", "shown"), [([], ["no. 1", "yarn", "no. 3"]), (["SimHei"], ["底座", "yarn", "v2-长文"])]
)
def test_names_that_no_font_shows_become_numbers(monkeypatch, installed, shown):
    monkeypatch.setattr(figures, "fonts", lambda: installed)
    assert legible(["底座", "yarn", "v2-长文"]) == shown
