"""quantize: a model's matrices in few bits, and what that costs: loss, samples, size, speed, before and after."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from babyllama.atomic import write_json
from babyllama.commands.chat import questions_of
from babyllama.commands.quantize_shown import draw, show
from babyllama.commands.samples import Samples, sampler
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import Batch
from babyllama.errors import InputError, pasted
from babyllama.evals.answers import AnswerSums, ask, chat_questions, compared
from babyllama.evals.bits import measure
from babyllama.evals.provenance import provenance
from babyllama.export.card import write_card
from babyllama.hardware import DeviceChoice, device_name
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.load import (
    DTYPES,
    check_vocabulary,
    model_folder,
    own_sampling,
    pick_device,
    pick_precision,
    read_model,
    read_tokenizer,
    serving_precision,
)
from babyllama.model.checkpoint import save_model
from babyllama.model.transformer import Transformer
from babyllama.quant.awq import Awq
from babyllama.quant.calibrate import Calibration, Ends, Report, check, quantise, settled
from babyllama.quant.folder import packing_of
from babyllama.quant.gptq import Gptq
from babyllama.quant.int8 import Int8
from babyllama.quant.onebit import PackSigns
from babyllama.quant.rtn import Rtn
from babyllama.recipe import Changeable, Recipe, Seed
from babyllama.run import Run
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.validation import LossSums

AnyMethod = Annotated[Rtn | Gptq | Awq | Int8 | PackSigns, Field(discriminator="kind")]
Json = dict[str, Any]
SHOWN = 2  # answers, where nothing says which to show


class QuantizeRecipe(Recipe):
    """The verb's recipe. Calibration reads the training split of `data`, all figures are of its validation split."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder")
    data: Path = Field(description="a prepared folder")
    out: Changeable[Path] = Field(description="the run to make")
    method: AnyMethod = Field(default=Gptq(), description="how weights are rounded")
    sweep: tuple[AnyMethod, ...] = Field(default=(), description="methods to compare instead; no model is kept")
    calibration: Calibration = Field(default=Calibration(), description="the text that a method looks at")
    ends: Ends = Field(default=Ends(), description="the head and the embedding")
    corpora: tuple[str, ...] = Field(default=(), description="labels of the prepared folder to measure; default: all")
    loss_tokens: int | None = Field(default=200_000, ge=1, description="tokens measured of each corpus; null: all")
    rows: int = Field(default=16, ge=1, description="rows of a batch")
    prompts: tuple[str, ...] = Field(
        default=(),
        description="prompts that both models continue, an empty one: a text of their own; default: the questions that "
        "the model was asked in training, else some held-out ones, else a text of their own",
    )
    questions: int = Field(
        default=16, ge=0, description="questions asked of each chat corpus; their score is the answers' F1"
    )
    sample_tokens: int = Field(default=64, ge=1, description="tokens of each sample, and of the test of speed")
    device: DeviceChoice = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="in which the loss is measured"
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="of what is not packed; default: fp16, as in GPTQ's folders, or bf16 where the model was bf16",
    )
    seed: Seed = Field(default=0, description="which rows calibration takes")


def main(recipe: QuantizeRecipe) -> None:
    """Write a run with model/ and report.json, or, for a sweep, report.json and figure.png."""
    console = Console(highlight=False)
    folder, device = model_folder(recipe.model), pick_device(recipe.device)
    model, tokenizer, prepared = read_model(folder), read_tokenizer(folder), Prepared.open(recipe.data)
    check_vocabulary(model, tokenizer, folder)
    prepared.check_tokenizer(tokenizer.hash)
    for name in recipe.corpora:
        prepared.store(name, "val")  # before there is a folder that would refuse the mended command
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
                run.save_model(partial(write, model, tokenizer, method.kind, own_sampling(folder)))
                before["disk_bytes"], found[-1]["disk_bytes"] = size_of(folder), size_of(run.model)
            found[-1] |= measured(recipe, model, tokenizer, prepared, device, kept)
        result = {"recipe": recipe.model_dump(mode="json"), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                  "device": device_name(device), "before": before, "after": found}  # fmt: skip
        if recipe.sweep:
            draw(run.path / "figure.png", result)
        write_json(run.path / "report.json", result)
        run.finish(**{key: found[-1][key] for key in ("name", "bits_per_weight", "perplexity", "bits_per_byte")})
        if not recipe.sweep:
            write_card(run.model, run.path, run.path.resolve().name)
    show(json.loads((run.path / "report.json").read_text("utf-8")), console)
    ready = f"{recipe.out}/model is ready: babyllama chat {pasted(recipe.out)}"
    made = f"{recipe.out}/figure.png" if recipe.sweep else ready
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
    losses = dict(
        measure(
            model, prepared, labels, "val", context, recipe.rows, recipe.loss_tokens, provenance(recipe.model).apart
        )
    )
    if not losses:
        raise InputError(f"{recipe.data}: no document is held out; prepare it with validation above 0")
    model.to(dtype=DTYPES[serving_precision(model, device)])
    engine, whole = Engine(model, tokenizer.vocab_size), sum(losses.values(), LossSums())
    questions = [question for _, some in chat_questions(prepared, labels, "val", recipe.questions, tokenizer)
                 for question in some]  # fmt: skip
    answers = list(ask(engine, tokenizer, questions, recipe.sample_tokens, recipe.rows))
    scores, samples = sum(map(compared, answers), AnswerSums()), _samples(recipe)
    known = recipe.prompts or samples.chat or not answers
    shown = dict(sampler(samples, tokenizer, context)(model)) if known else {
        answer.question: answer.answer for answer in answers[:SHOWN]}  # fmt: skip
    return {"held_bytes": held, **whole.figures, "corpora": {name: sums.figures for name, sums in losses.items()},
            "answers": scores.figures if scores.asked else None,
            "samples": shown,
            "tokens_per_second": tokens_per_second(engine, tokenizer.eos_id, recipe.sample_tokens)}  # fmt: skip


def _samples(recipe: QuantizeRecipe) -> Samples:
    """What is shown of both models: of one that learned to chat answers, for what it would write alone is no sense."""
    asked = () if recipe.prompts else questions_of(recipe.model)
    return Samples(prompts=recipe.prompts or asked or ("",), chat=bool(asked), max_tokens=recipe.sample_tokens)


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


def write(model: Transformer, tokenizer: Tokenizer, method: str, sampling: Mapping[str, float], folder: Path) -> None:
    """A folder of the packed weights, in the layout that suits them."""
    save_model(model, folder, packing=packing_of(model, method), sampling=sampling, **tokenizer.config_ids)
    tokenizer.save(folder)
