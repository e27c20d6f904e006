"""longcontext: what a model makes of a long context, by its own RoPE law and others: a page, a figure, a JSON file."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment
from pydantic import Field, field_validator
from rich.console import Console
from rich.table import Table
from torch import Tensor

from babyllama.atomic import check_writable, write_atomic, write_json
from babyllama.commands.figures import COLOURS, GREY, Line, bare, hanzi, legible, name_ends, plain_log
from babyllama.commands.table import shortly, table_of
from babyllama.data.shards.shards import Prepared
from babyllama.errors import InputError, cause, needs_extra
from babyllama.evals.longcontext import by_length, long_rows, passkey, rows_of
from babyllama.hardware import DeviceChoice
from babyllama.load import Loaded, config_of, load, model_folder, pick_device, pick_precision, read_tokenizer
from babyllama.model.laws import Kind, RopeConfig, law_of
from babyllama.recipe import Recipe

TEMPLATE = Path(__file__).with_name("longcontext.html")
Json = dict[str, Any]


class LongContextRecipe(Recipe):
    """The verb's recipe. All laws and lengths are asked for the same targets: the last ones of each row."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder")
    data: Path | None = Field(default=None, description="a prepared folder with long documents")
    split: Literal["val", "train"] = Field(
        default="val", description="val: what was held out from training; train: what was trained on"
    )
    corpora: tuple[str, ...] = Field(default=(), description="labels of the prepared folder; default: all texts")
    text: Path | None = Field(default=None, description="a text file (UTF-8), instead of data")
    joined: bool = Field(default=False, description="rows continue over the ends of documents, if none is long enough")
    laws: tuple[Kind, ...] = Field(default=(), description="RoPE scalings to try without training, beside its own")
    against: tuple[Path, ...] = Field(default=(), description="other runs of the same tokenizer, in the same figure")
    lengths: tuple[int, ...] = Field(default=(), description="tokens; default: 1, 2, 4 and 8 trained contexts")
    documents: int = Field(default=32, ge=1, description="the most rows")
    scored: int | None = Field(default=None, ge=1, description="targets in a row; default: half the shortest length")
    depths: int = Field(default=5, ge=0, description="places where the passkey is hidden; 0: no passkeys")
    trials: int = Field(default=4, ge=1, description="haystacks at each length and depth")
    rows: int = Field(default=4, ge=1, description="of a batch")
    out: Path | None = Field(default=None, description="the folder to write; default: a new one in the model's evals/")
    device: DeviceChoice = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="of the model; auto: what suits the machine"
    )

    @field_validator("lengths")
    @classmethod
    def _rising(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if any(length < 2 for length in lengths):
            raise ValueError(f"{list(lengths)} must be 2 tokens or more")
        return tuple(sorted(set(lengths)))


def main(recipe: LongContextRecipe) -> None:
    """Measure every contender, show the table, write result.json, figure.png and index.html."""
    console = Console(highlight=False)
    target = recipe.out or free_folder(recipe.model / "evals" / "longcontext")
    check_writable(target / "result.json")
    trained = config_of(model_folder(recipe.model)).trained_context
    lengths = recipe.lengths or tuple(trained * times for times in (1, 2, 4, 8))
    scored = recipe.scored or max(1, lengths[0] // 2)
    if scored > lengths[0]:
        raise InputError(f"scored: {scored} is above the shortest length, {lengths[0]}")
    hash = read_tokenizer(model_folder(recipe.model)).hash
    for path in recipe.against:  # before the first of them is measured
        if read_tokenizer(model_folder(path)).hash != hash:
            raise InputError(f"{path}: another tokenizer than {recipe.model}'s; their losses cannot be compared")
    device, tokens, found = pick_device(recipe.device), None, {}
    for name, path, law in contenders(recipe, trained, lengths[-1]):
        loaded = load(path, device, pick_precision(recipe.precision, device), law)
        if tokens is None:
            tokens = read_rows(recipe, loaded, lengths[-1])
        found[name] = measure(recipe, loaded, tokens, lengths, scored)
        console.print(f"{name}: measured", markup=False)
    assert tokens is not None
    result = {"recipe": recipe.model_dump(mode="json"), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
              "trained_context": trained, "lengths": lengths, "scored": scored, "rows": len(tokens),
              "contenders": found}  # fmt: skip
    for shown in tables(result):
        console.print(shown)
    write(target, result)
    console.print(f"written to {target}", markup=False, soft_wrap=True)


def free_folder(wanted: Path) -> Path:
    """`wanted`, or with the first number from 2 on, where no result lies yet."""
    names = [wanted, *(wanted.with_name(f"{wanted.name}-{n}") for n in range(2, 10_000))]
    return next(folder for folder in names if not (folder / "result.json").exists())


def contenders(recipe: LongContextRecipe, trained: int, longest: int) -> list[tuple[str, Path, RopeConfig | None]]:
    """(name, folder, law): the model as it is, every other law that just reaches the longest length, other runs."""
    factor = max(2, math.ceil(longest / trained))
    found: list[tuple[str, Path, RopeConfig | None]] = [(recipe.model.resolve().name, recipe.model, None)]
    for kind in dict.fromkeys(recipe.laws):
        fields = {"none": {}, "clex": {"max_t": factor}}.get(kind, {"factor": float(factor)})
        found.append((kind, recipe.model, law_of({"kind": kind, **fields}, "laws")))
    return [*found, *((path.resolve().name, path, None) for path in recipe.against)]


def read_rows(recipe: LongContextRecipe, loaded: Loaded, longest: int) -> Tensor:
    """(N, longest + 1) tokens. Raises InputError when there is no text so long."""
    import numpy as np
    import torch

    if (recipe.data is None) == (recipe.text is None):
        raise InputError("give data (a prepared folder) or text (a file), one of them")
    if recipe.text is not None:
        try:
            words = loaded.tokenizer.encode(recipe.text.read_text("utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{recipe.text}: cannot be read ({cause(error)})") from None
        rows = rows_of(np.array(words), longest, recipe.documents)
        if not rows:
            raise InputError(f"{recipe.text}: {len(words)} tokens, the longest length needs {longest + 1}; "
                             "give a longer text or smaller lengths")  # fmt: skip
        return torch.from_numpy(np.stack(rows))
    assert recipe.data is not None
    prepared = Prepared.open(recipe.data)
    prepared.check_tokenizer(loaded.tokenizer.hash)
    stores = [prepared.store(label, recipe.split) for label in recipe.corpora or tuple(prepared.corpora)]
    parts, fault = [], InputError(f"{recipe.data}: no corpus of texts")
    for store in (store for store in stores if store.kind == "text"):
        try:
            parts.append(long_rows(store, longest, recipe.documents, recipe.joined))
        except InputError as error:
            fault = error
    if not parts:
        raise fault
    return torch.cat(parts)[: recipe.documents]


def measure(recipe: LongContextRecipe, loaded: Loaded, tokens: Tensor, lengths: tuple[int, ...], scored: int) -> Json:
    """Everything of one contender, as plain data."""
    loss, by_position = by_length(loaded.model, tokens, lengths, scored, recipe.rows)
    keys = []
    for length in lengths if recipe.depths else ():
        found = passkey(loaded.model, loaded.tokenizer, tokens[: recipe.trials], length, recipe.depths)
        for depth in sorted({f.depth for f in found}):
            here = [f for f in found if f.depth == depth]
            keys.append({"length": length, "depth": depth, "trials": len(here),
                         "right": sum(f.right for f in here) / len(here),
                         "nats": sum(f.nats for f in here) / len(here)})  # fmt: skip
    return {"rope": loaded.model.config.rope.model_dump(), "loss": loss,
            "perplexity": {n: math.exp(min(x, 700.0)) for n, x in loss.items()},
            "by_position": by_position, "passkey": keys}  # fmt: skip


def tables(result: Json) -> Iterator[Table]:
    """Perplexity by length, a row for each contender; several tables where there are more lengths than fit a line."""
    for first in range(0, len(result["lengths"]), LENGTHS):
        some = result["lengths"][first : first + LENGTHS]
        title = f"perplexity of the same {result['scored']:,} targets, by the length of the row"
        shown = table_of([""], [*(f"{n:,}" for n in some), "passkey"], title=title)
        for name, found in result["contenders"].items():
            right = [entry["right"] for entry in found["passkey"] if entry["length"] in some]
            shown.add_row(name, *(shortly(found["perplexity"][n]) for n in some),
                          f"{sum(right) / len(right):.0%}" if right else "–")  # fmt: skip
        yield shown


def write(folder: Path, result: Json) -> None:
    """result.json, figure.png, and a page that holds both."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(folder / "figure.png", result)
    write_json(folder / "result.json", result)
    image = base64.b64encode((folder / "figure.png").read_bytes()).decode()
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text("utf-8"))
    write_atomic(folder / "index.html", page.render(result=result, image=image))


def draw(file: Path, result: Json) -> None:
    """Perplexity by length, loss by position, and a passkey map of each contender that found a key."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise needs_extra("matplotlib", "report") from None
    found = dict(zip(legible(list(result["contenders"])), result["contenders"].values(), strict=True))
    asked = {name: values["passkey"] for name, values in found.items() if values["passkey"]}
    maps = {name: keys for name, keys in asked.items() if any(key["right"] for key in keys)}
    rows = -(-len(maps) // 4)
    columns = max(2, -(-len(maps) // max(1, rows)))
    with hanzi():
        figure = Figure(figsize=(max(11.0, 3.4 * columns), 4.0 + 3.4 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        heights = [4.0, 3.4 * rows] if rows else [4.0]
        curves, *below = figure.subfigures(len(heights), height_ratios=heights, squeeze=False)[:, 0]
        left, right = curves.subplots(1, 2)
        _draw_by_length(left, found, result)
        _draw_by_position(right, found, result)
        for i, (name, entries) in enumerate(maps.items()):
            _draw_passkeys(below[0].add_subplot(rows, columns, i + 1), name, entries, result)
        if none := [name for name in asked if name not in maps]:
            figure.supxlabel(f"passkey: found at no length by {', '.join(none)}", fontsize=9)
        figure.savefig(file, dpi=130)


LENGTHS = 6  # in one table


def _draw_by_length(axes: Any, found: Json, result: Json) -> None:
    lengths, ends = result["lengths"], []
    for index, (name, values) in enumerate(found.items()):
        colour, perplexity = COLOURS[index % len(COLOURS)], [values["perplexity"][n] for n in lengths]
        axes.plot(lengths, perplexity, marker="o", markersize=3, linewidth=2.2 if index == 0 else 1.3, color=colour)
        ends.append(Line(name, perplexity[-1], colour))
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.set_xlabel("tokens in the row", fontsize=8)
    axes.set_title(f"Perplexity of the same {result['scored']:,} targets", loc="left", fontsize=10)
    plain_log(axes)
    _finish(axes, ends, result)


def _draw_by_position(axes: Any, found: Json, result: Json) -> None:
    """The loss at each position; of several contenders, how much more it is than the first one's."""
    (own, first), *others = found.items()
    places, base = zip(*first["by_position"], strict=True)
    ends, what = [], f"all targets of {result['lengths'][-1]:,} tokens"
    if others:
        axes.axhline(0, color=COLOURS[0], linewidth=2.2)
        ends.append(Line(own, 0.0, COLOURS[0]))
        for index, (name, values) in enumerate(others, start=1):
            more = [loss - its for (_, loss), its in zip(values["by_position"], base, strict=True)]
            axes.plot(places, more, linewidth=1.3, color=COLOURS[index % len(COLOURS)])
            ends.append(Line(name, more[-1], COLOURS[index % len(COLOURS)]))
    else:
        axes.plot(places, base, linewidth=1.6, color=COLOURS[0])
    title = f"Nats more than {own}, {what}" if others else f"Loss in nats, {what}"
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("position", fontsize=8)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _finish(axes, ends, result)


def _finish(axes: Any, ends: list[Line], result: Json) -> None:
    axes.axvline(result["trained_context"], color=GREY, linewidth=1, linestyle=":")
    axes.annotate(" trained", (result["trained_context"], 0.98), xycoords=("data", "axes fraction"), color=GREY,
                  fontsize=8, va="top")  # fmt: skip
    bare(axes)
    name_ends(axes, ends)


def _draw_passkeys(axes: Any, name: str, entries: list[Json], result: Json) -> None:
    """A map: how often the key was found at each length (right: longer) and depth (below: nearer to the question)."""
    lengths, depths = result["lengths"], sorted({entry["depth"] for entry in entries})
    right = {(entry["depth"], entry["length"]): entry["right"] for entry in entries}
    axes.imshow([[right[d, n] for n in lengths] for d in depths], vmin=0, vmax=1, aspect="auto", cmap="YlGnBu")
    for row, depth in enumerate(depths):
        for column, length in enumerate(lengths):
            share = right[depth, length]
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=8,
                      color="white" if share > 0.6 else "black")  # fmt: skip
    within = sum(length <= result["trained_context"] for length in lengths)
    if 0 < within < len(lengths):
        axes.axvline(within - 0.5, color="tab:red", linewidth=1.5, linestyle=":")
    axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], fontsize=8)
    axes.set_yticks(range(len(depths)), [f"{d:.0%}" for d in depths], fontsize=8)
    axes.set_xlabel("context, tokens", fontsize=8)
    axes.set_ylabel("the key's place in it", fontsize=8)
    axes.set_title(f"Passkey found: {name}", loc="left", fontsize=10)
