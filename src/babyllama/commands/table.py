"""Tables as a terminal of 80 columns shows them: figures whole and at the right, names and texts in several lines.

Not here: what is in them.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table


def table_of(texts: Sequence[str], figures: Sequence[str], *more: str, title: str | None = None) -> Table:
    """An empty table: columns of text, of figures, and `more` ones of text after them.

    What a figure's column has as a title is as wide as its longest line, so titles of several words have line breaks.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
                  show_edge=False, title_justify="left", caption_justify="left")  # fmt: skip
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    for name in more:
        table.add_column(name, overflow="fold")
    return table


def shortly(value: float) -> str:
    """A perplexity: two decimals as long as they say something."""
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"
