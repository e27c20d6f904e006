"""quantize: a model's matrices in few bits, and what that costs: loss, samples, size, speed, before and after."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from babyllama.atomic import write_json
from babyllama.commands.figures import COLOURS, GREY, Line, bare, name_ends, plain_log
from babyllama.commands.samples import Samples, sampler
from babyllama.commands.table import shortly, table_of
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import Batch
from babyllama.errors import InputError, needs_extra
from babyllama.evals.answers import AnswerSums, ask, chat_questions, compared
from babyllama.evals.bits import measure
from babyllama.hardware import DeviceChoice, device_name
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.load import (
    DTYPES,
    check_vocabulary,
    model_folder,
    pick_device,
    pick_precision,
    read_model,
    read_tokenizer,
    serving_precision,
)
from babyllama.model.checkpoint import save_model
from babyllama.model.transformer import Transformer
from babyllama.quant.awq import Awq
from babyllama.quant.calibrate import STAGES, Calibration, Ends, Report, check, quantise, settled
from babyllama.quant.folder import packing_of
from babyllama.quant.gptq import Gptq
from babyllama.quant.int8 import Int8
from babyllama.quant.onebit import PackSigns
from babyllama.quant.rtn import Rtn
from babyllama.recipe import Changeable, Recipe
from babyllama.run import Run
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.validation import LossSums

AnyMethod = Annotated[Rtn | Gptq | Awq | Int8 | PackSigns, Field(discriminator="kind")]
Json = dict[str, Any]


class QuantizeRecipe(Recipe):
    """The verb's recipe. Calibration reads the training split of `data`, all figures are of its validation split."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder")
    data: Path = Field(description="a prepared folder")
    out: Changeable[Path] = Field(description="the run to make")
    method: AnyMethod = Gptq()
    sweep: tuple[AnyMethod, ...] = Field(default=(), description="methods to compare instead; no model is kept")
    calibration: Calibration = Calibration()
    ends: Ends = Field(default=Ends(), description="the head and the embedding")
    corpora: tuple[str, ...] = Field(default=(), description="labels of the prepared folder to measure; default: all")
    loss_tokens: int | None = Field(default=200_000, ge=1, description="measured of each corpus; null takes all")
    rows: int = Field(default=16, ge=1, description="of a batch of measuring")
    prompts: tuple[str, ...] = Field(default=("",), description="continued by both models; empty: a text of their own")
    questions: int = Field(default=16, ge=0, description="asked of each chat corpus; their answers' F1 is the score")
    sample_tokens: int = Field(default=64, ge=1, description="of each sample, and of the test of speed")
    device: DeviceChoice = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(default="auto", description="of measuring the loss")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="of what is not packed; fp16, which GPTQ's folders have, or bf16 where it was"
    )
    seed: int = Field(default=0, ge=0, description="which rows calibration takes")


def main(recipe: QuantizeRecipe) -> None:
    """Write a run with model/ and report.json, or, for a sweep, report.json and figure.png."""
    console = Console(highlight=False)
    folder, device = model_folder(recipe.model), pick_device(recipe.device)
    model, tokenizer, prepared = read_model(folder), read_tokenizer(folder), Prepared.open(recipe.data)
    check_vocabulary(model, tokenizer, folder)
    prepared.check_tokenizer(tokenizer.hash)
    tokenizer = tokenizer.with_template(prepared.manifest["chat_template"])
    batches = recipe.calibration.batches(prepared, model.config.max_position_embeddings, recipe.seed)
    methods = _methods(recipe, model, console)
    # What is written is what was done: a repetition of the written recipe chooses nothing anew.
    recipe = recipe.model_copy(update={"sweep": methods} if recipe.sweep else {"method": methods[0]})
    run = Run.create(recipe.out, "quantize", recipe, recipe.model)
    if not run.finished:
        kept = _dtype(recipe, model)
        before = measured(recipe, model, tokenizer, prepared, device, kept)
        found: list[Json] = []
        for method in methods:
            model = read_model(folder)
            report = _quantised(recipe, model, method, batches, device, console)
            model.to("cpu", kept)
            found.append({"name": label(method), "method": method.model_dump(), **figures(report)})
            if not recipe.sweep:
                run.save_model(partial(write, model, tokenizer, method.kind))
                before["disk_bytes"], found[-1]["disk_bytes"] = size_of(folder), size_of(run.model)
            found[-1] |= measured(recipe, model, tokenizer, prepared, device, kept)
        result = {"recipe": recipe.model_dump(mode="json"), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                  "device": device_name(device), "before": before, "after": found}  # fmt: skip
        if recipe.sweep:
            draw(run.path / "figure.png", result)
        write_json(run.path / "report.json", result)
        run.finish(**{key: found[-1][key] for key in ("name", "bits_per_weight", "perplexity", "bits_per_byte")})
    _show(json.loads((run.path / "report.json").read_text("utf-8")), console)
    made = f"{recipe.out}/figure.png" if recipe.sweep else f"{recipe.out}/model is ready: babyllama chat {recipe.out}"
    console.print(made, markup=False, soft_wrap=True)


def _methods(recipe: QuantizeRecipe, model: Transformer, console: Console) -> tuple[AnyMethod, ...]:
    """What is asked for, as it suits the model; what is changed is said."""
    asked = recipe.sweep or (recipe.method,)
    methods = tuple(settled(method, model) for method in asked)
    for method in methods:
        check(model, method)
    if methods != asked:
        console.print("group_size: 128 does not divide every width; a smaller one is taken "
                      "(method.short_group=true keeps it)", soft_wrap=True)  # fmt: skip
    return methods


def _dtype(recipe: QuantizeRecipe, model: Transformer) -> torch.dtype:
    own = model.embed_tokens.weight.dtype
    return DTYPES[recipe.dtype] if recipe.dtype != "auto" else own if own == torch.bfloat16 else torch.float16


def _quantised(recipe: QuantizeRecipe, model: Transformer, method: AnyMethod, batches: Sequence[Batch],
               device: torch.device, console: Console) -> Report:  # fmt: skip
    """With a bar. The model is left on `device`."""
    model.to(device, torch.float32).eval().requires_grad_(False)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(label(method), total=None)

        def progress(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{label(method)}: {name}")

        return quantise(model, batches, method, recipe.ends, progress)


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def label(method: AnyMethod) -> str:
    """Such as ``gptq 4 bit g128 act_order``."""
    if isinstance(method, PackSigns):
        return "onebit"
    if isinstance(method, Int8):
        return "int8" if method.threshold is None else f"llm.int8 outliers from {method.threshold:g}"
    groups = "rows" if method.group_size is None else f"g{method.group_size}"
    set_to = {name: getattr(method, name, False) for name in ("symmetric", "mse", "act_order", "static_groups")}
    flags = [name if value is True else f"{name}={value}" for name, value in set_to.items() if value]
    return " ".join([method.kind, f"{method.bits} bit", groups, *flags])


def figures(report: Report) -> Json:
    """A report as plain data."""
    return {"bits_per_weight": report.bits_per_weight, "error": report.error, "seconds": report.seconds,
            "calibration_tokens": report.tokens, "layers": [layer._asdict() for layer in report.layers]}  # fmt: skip


def measured(recipe: QuantizeRecipe, model: Transformer, tokenizer: Tokenizer, prepared: Prepared,
             device: torch.device, kept: torch.dtype) -> Json:  # fmt: skip
    """Bytes, loss of every corpus and of all together, answers, samples, tokens a second. The model's dtype changes.

    Raises:
        InputError: nothing is held out.
    """
    held = held_bytes(model.to(kept))
    model.to(device, DTYPES[pick_precision(recipe.precision, device)]).eval().requires_grad_(False)
    labels, context = recipe.corpora or tuple(prepared.corpora), model.config.max_position_embeddings
    losses = dict(measure(model, prepared, labels, "val", context, recipe.rows, recipe.loss_tokens))
    if not losses:
        raise InputError(f"{recipe.data}: no document is held out; prepare it with validation above 0")
    model.to(dtype=DTYPES[serving_precision(model, device)])
    engine, whole = Engine(model, tokenizer.vocab_size), sum(losses.values(), LossSums())
    questions = [question for _, some in chat_questions(prepared, labels, "val", recipe.questions, tokenizer)
                 for question in some]  # fmt: skip
    scores = sum(map(compared, ask(engine, tokenizer, questions, recipe.sample_tokens, recipe.rows)), AnswerSums())
    samples = sampler(Samples(prompts=recipe.prompts, max_tokens=recipe.sample_tokens), tokenizer, context)
    return {"held_bytes": held, **whole.figures, "corpora": {name: sums.figures for name, sums in losses.items()},
            "answers": scores.figures if scores.asked else None,
            "samples": dict(samples(model)),
            "tokens_per_second": tokens_per_second(engine, tokenizer.eos_id, recipe.sample_tokens)}  # fmt: skip


def tokens_per_second(engine: Engine, start: int, count: int) -> float:
    """Decoding one answer, the second time; tokens come back one by one, so the device's time is in it."""

    def answer() -> list[int]:
        return list(engine.stream([start], Sampling(temperature=0.0), count))

    answer()
    started = time.perf_counter()
    return len(answer()) / (time.perf_counter() - started)


def held_bytes(model: Transformer) -> int:
    """Of its weights in memory, packed ones as they are; shared ones once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def size_of(folder: Path) -> int:
    """Of a folder's weights on disk."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def write(model: Transformer, tokenizer: Tokenizer, method: str, folder: Path) -> None:
    """A folder of the packed weights, in the layout that suits them."""
    save_model(model, folder, packing=packing_of(model, method), **tokenizer.config_ids)
    tokenizer.save(folder)


# ── showing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _show(result: Json, console: Console) -> None:
    if len(result["after"]) == 1:
        console.print(_layer_table(result["after"][0]["layers"]))
    console.print(_table(result))
    for prompt, text in result["before"]["samples"].items():
        console.print(f"before: {prompt}{text}", style="dim", markup=False, soft_wrap=True)
        for found in result["after"]:
            console.print(f"{found['name']}: {prompt}{found['samples'][prompt]}", markup=False, soft_wrap=True)


def _table(result: Json) -> Table:
    figures = [
        "bits/\nweight",
        "perplexity",
        "bits/\nbyte",
        "answer\nF1",
        "layer\nerror",
        "MB",
        "tokens\n/s",
        "seconds",
    ]
    table = table_of([""], figures, title="before and after, held-out text")
    for found in ({"name": "before", **result["before"]}, *result["after"]):
        bits, answers = found["bits_per_byte"], found["answers"]
        table.add_row(
            found["name"], f"{found['bits_per_weight']:.2f}" if "bits_per_weight" in found else "–",
            shortly(found["perplexity"]) if "perplexity" in found else "–",
            "–" if bits is None else f"{bits:.4f}", "–" if answers is None else f"{answers['f1']:.1%}",
            f"{found['error']:.2%}" if "error" in found else "–",
            f"{found['held_bytes'] / 1e6:.1f}", f"{found['tokens_per_second']:.0f}",
            f"{found['seconds']:.1f}" if "seconds" in found else "–")  # fmt: skip
    return table


def _layer_table(layers: Sequence[Json]) -> Table:
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
