"""What quantize found, as tables and as a figure. Not here: the measuring (quantize.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from babyllama.commands.figures import COLOURS, GREY, Line, bare, name_ends, plain_log
from babyllama.commands.table import shortly, table_of
from babyllama.errors import needs_extra
from babyllama.quant.calibrate import STAGES

Json = dict[str, Any]


def show(result: Json, console: Console) -> None:
    """The tables, then what the models write."""
    if len(result["after"]) == 1:
        console.print(layer_table(result["after"][0]["layers"]))
    console.print(table(result))
    for prompt, text in result["before"]["samples"].items():
        after = f"{prompt} ▸ " if prompt else ""
        console.print(f"before: {after}{text}", style="dim", markup=False, soft_wrap=True)
        for found in result["after"]:
            console.print(f"{found['name']}: {after}{found['samples'][prompt]}", markup=False, soft_wrap=True)


def table(result: Json) -> Table:
    """A row before, and one for each method."""
    measured = ["bits/\nweight", "perplexity", "bits/\nbyte", "answer\nF1", "layer\nerror"]
    shown = table_of([""], [*measured, "MB", "tokens\n/s", "seconds"], title="before and after, held-out text")
    for found in ({"name": "before", **result["before"]}, *result["after"]):
        bits, answers = found["bits_per_byte"], found["answers"]
        shown.add_row(
            found["name"], f"{found['bits_per_weight']:.2f}" if "bits_per_weight" in found else "–",
            shortly(found["perplexity"]) if "perplexity" in found else "–",
            "–" if bits is None else f"{bits:.4f}", "–" if answers is None else f"{answers['f1']:.1%}",
            f"{found['error']:.2%}" if "error" in found else "–",
            f"{found['held_bytes'] / 1e6:.1f}", f"{found['tokens_per_second']:.0f}",
            f"{found['seconds']:.1f}" if "seconds" in found else "–")  # fmt: skip
    return shown


def layer_table(layers: Sequence[Json]) -> Table:
    """A row for each block; what lies outside the blocks stands below."""
    names = [name for stage in STAGES for name in stage]
    short = [name.rsplit(".", 1)[1].removesuffix("_proj") for name in names]
    table = table_of([""], short, title="error of the outputs of each matrix")
    blocks: dict[str, dict[str, str]] = {}
    for layer in layers:
        block = next((layer["name"].removesuffix(f".{name}") for name in names if layer["name"].endswith(name)), "")
        blocks.setdefault(block or layer["name"], {})[layer["name"]] = f"{layer['error']:.2%}"
    ends = {block: errors.pop(block) for block, errors in blocks.items() if block in errors}
    for block, errors in blocks.items():
        if errors:
            table.add_row(block, *(errors.get(f"{block}.{name}", "") for name in names))
    table.caption = ", ".join(f"{name} {error}" for name, error in ends.items()) or None
    return table


def draw(file: Path, result: Json) -> None:
    """Perplexity by bits a weight: a line for each method and group size."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise needs_extra("matplotlib", "report") from None
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes, lines = figure.add_subplot(), {}
    for found in result["after"]:
        name = found["name"].replace(f"{found['method'].get('bits')} bit ", "")
        lines.setdefault(name, []).append((found["bits_per_weight"], found["perplexity"]))
    ends = []
    for index, (name, points) in enumerate(lines.items()):
        colour, (bits, perplexity) = COLOURS[index % len(COLOURS)], zip(*sorted(points), strict=True)
        axes.plot(bits, perplexity, marker="o", markersize=4, linewidth=1.5, color=colour)
        ends.append(Line(name, perplexity[-1], colour))
    axes.axhline(result["before"]["perplexity"], color=GREY, linewidth=1, linestyle=":")
    ends.append(Line("before", result["before"]["perplexity"], GREY))
    axes.set_xlabel("bits a weight", fontsize=8)
    axes.set_title("Perplexity of held-out text", loc="left", fontsize=10)
    plain_log(axes)
    bare(axes)
    name_ends(axes, ends)
    figure.savefig(file, dpi=130)
