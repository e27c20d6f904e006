"""What all figures share: few colours, fonts for Chinese names, names at the ends of their lines, plain numbers on
logarithmic axes.

matplotlib comes with the extra ``report``; nothing of it is imported before a figure is drawn. Not here: what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

MAIN, GREY = "#1f5fa8", "#8a8f98"
COLOURS = (MAIN, "#c2571a", "#2d7d46", "#7a4fb5")  # and again; the names at the lines tell them apart


_HANZI = ("Noto Sans CJK SC", "Source Han Sans SC", "Source Han Sans CN", "Noto Sans SC", "PingFang SC",
          "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
          "Noto Sans CJK JP")  # fmt: skip


def fonts() -> list[str]:
    """The installed fonts that have Chinese characters."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [family for family in _HANZI if family in installed]


def hanzi() -> AbstractContextManager[None]:
    """While a figure is made and saved: Chinese characters come from the fonts that have them."""
    from matplotlib import rc_context

    return rc_context({"font.family": ["DejaVu Sans", *fonts()]})


def legible(names: Sequence[str]) -> list[str]:
    """Names for a figure: one that its fonts would show as boxes becomes its number among them."""
    known = bool(fonts())
    return [
        name if known or all(letter < "\u2e80" for letter in name) else f"no. {i}" for i, name in enumerate(names, 1)
    ]


class Line(NamedTuple):
    """What is written at the end of a line: its name, its last value, its colour."""

    name: str
    value: float
    colour: str


def name_ends(axes: Any, lines: Sequence[Line], size: float = 8.0) -> None:
    """Write each line's name to the right of the axes at the height of its end, none over another.

    To be called when the limits of the axes are as they stay.
    """
    axes.get_ylim()  # which settles them
    points = axes.get_figure(root=True).get_size_inches()[1] * 72 * axes.get_position().height
    gap, low = 1.25 * size / points, -1.0
    placed = sorted(lines, key=lambda line: line.value)
    heights = [float(axes.transAxes.inverted().transform(axes.transData.transform((1.0, line.value)))[1])
               for line in placed]  # fmt: skip
    heights = [min(max(height, 0.0), 1.0) for height in heights]
    for index, height in enumerate(heights):  # upwards, then down again where that went beyond the top
        low = heights[index] = max(height, low + gap)
    high = 1.0 + gap
    for index in reversed(range(len(heights))):
        high = heights[index] = min(heights[index], high - gap)
    for line, height in zip(placed, heights, strict=True):
        axes.annotate(line.name, (1.0, height), (4, 0), xycoords="axes fraction", textcoords="offset points",
                      color=line.colour, fontsize=size, va="center", annotation_clip=False)  # fmt: skip


def plain_log(axes: Any) -> None:
    """A logarithmic y axis whose ticks are plain numbers, such as 50, 100, 200 or, in a narrow range, 61, 62, 63."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    whole = high / low > 8
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12) if whole else MaxNLocator(6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def bare(axes: Any) -> None:
    """Without a frame, with faint lines at the ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)
