"""doctor: look at a run, or rehearse a train recipe, and name what is wrong with it, with numbers and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich.console import Console

from babyllama.atomic import check_writable, json_text, write_json
from babyllama.commands.parent import parent_of, restarted, templates, turned
from babyllama.commands.table import table_of
from babyllama.commands.train import assemble
from babyllama.commands.train_recipe import FromModel, NewModel, TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import Stream
from babyllama.errors import InputError
from babyllama.foresight.checks.finding import Finding
from babyllama.foresight.corpus import SAMPLE, sampled, survey
from babyllama.foresight.doctor import diagnose
from babyllama.foresight.evidence import Choices, Evidence, Kept, SavedWeights
from babyllama.foresight.kept import again, apart, folder_weights, masters, put_masters
from babyllama.foresight.rehearsal import rehearse
from babyllama.hardware import DeviceChoice
from babyllama.load import default_precision, model_folder, pick_device, read_model, read_tokenizer
from babyllama.model.attention import FullAttention
from babyllama.model.lora import Lora
from babyllama.model.transformer import Transformer
from babyllama.quant.folder import is_packed
from babyllama.recipe import Recipe, load_recipe, one_inside
from babyllama.run import Run
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.engines.engines import Single
from babyllama.train.engines.world import World
from babyllama.train.losses.distil import Distil
from babyllama.train.losses.objectives import NextToken
from babyllama.train.trainer import Trainer
from babyllama.train.tuning import Full, OneBit
from babyllama.train.validation import evaluate_loss

STYLES = {"ok": "green", "fault": "bold red", "not applicable": "dim"}


class DoctorRecipe(Recipe):
    """The verb's recipe."""

    target: str = Field(description="a train run, or a train recipe: a file, or a bundled name")
    overrides: tuple[str, ...] = Field(
        default=(), description="settings of the train recipe, such as [optimizer.lr=0.01]"
    )
    steps: int = Field(default=50, ge=0, description="steps to rehearse; 0 only reads what the run recorded")
    device: DeviceChoice = "auto"
    format: Literal["table", "json"] = Field(default="table", description="a table for people, or one JSON object")
    out: Path | None = Field(default=None, description="a JSON file for the report")


def main(recipe: DoctorRecipe) -> None:
    """Gather the evidence, show one line for each check; exit code 1 when a fault was found."""
    console = Console(highlight=False)
    if recipe.out is not None:
        check_writable(recipe.out)
    run, training = _target(recipe)
    findings = diagnose(_gather(recipe, run, training, console))
    faults = [finding for finding in findings if finding.verdict == "fault"]
    report = {
        "target": recipe.target,
        "healthy": not faults,
        "findings": [{"check": f.check, **asdict(f)} for f in findings],
    }
    if recipe.out is not None:
        write_json(recipe.out, report)
    if recipe.format == "json":
        print(json_text(report, indent=1))
    else:
        _show(recipe.target, findings, console)
    if faults:
        raise SystemExit(1)


def _target(recipe: DoctorRecipe) -> tuple[Run | None, TrainRecipe]:
    """The run, if it is one, and what it was told to do."""
    path = Path(recipe.target)
    if not (path / "run.json").is_file():
        if path.is_dir():
            remedy = one_inside(path, "metrics.jsonl", "give a train run or a train recipe")
            raise InputError(f"{path}: is not a run (no run.json in it); {remedy}")
        if not recipe.steps:
            raise InputError("steps: 0 reads what a run recorded, but a recipe has recorded nothing; give steps=50")
        return None, load_recipe(TrainRecipe, recipe.target, recipe.overrides)
    run = Run.open(path)
    if run.info["verb"] != "train":
        raise InputError(f"{path}: holds a {run.info['verb']} run; the doctor looks at train runs")
    return run, load_recipe(TrainRecipe, str(path / "recipe.yaml"), recipe.overrides)


# ── evidence ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _gather(recipe: DoctorRecipe, run: Run | None, training: TrainRecipe, console: Console) -> Evidence:
    """All that can be known; without a rehearsal, what lies on disk."""
    if recipe.steps and training.rollouts is not None:
        remedy = "train a few steps and give that run with" if run is None else "give"
        raise InputError(f"steps: the rows of objective.kind={training.objective.kind} are written while it trains and "
                         f"cannot be rehearsed; {remedy} steps=0, which reads what the run recorded")  # fmt: skip
    device = pick_device(recipe.device if recipe.device != "auto" else training.device)
    precision = default_precision(device) if training.precision == "auto" else training.precision
    found = Evidence(training.plan.accumulate, precision == "fp16", recorded=tuple(run.metrics()) if run else ())
    prepared, tokenizer = _prepared(training, needed=recipe.steps > 0)
    used = None if prepared is None else _used(prepared)
    if prepared is not None and tokenizer is not None:
        context = training.plan.context or 1 << 30
        found = replace(found, eos=prepared.eos, documents_per_token=_documents_per_token(prepared),
                        corpora=survey(prepared, tokenizer, context, tuple(training.data.weights or ())))  # fmt: skip
    found = replace(found, states=masters(run, used) if run else (), models=_folders(run, training, used),
                    restarted=restarted(training), templates=templates(training, prepared),
                    turned=turned(run, training))  # fmt: skip
    if not recipe.steps or any(weights.broken for weights in found.models[-1:] if not run):
        return found if run is None else replace(found, **_saved(run, training, device, None))
    with console.status("rehearsing") as status:

        def tell(step: int) -> None:
            status.update(f"rehearsed step {step} of {recipe.steps}")

        return _rehearsed(found, recipe.steps, run, training, device, tell)


def _rehearsed(found: Evidence, steps: int, run: Run | None, training: TrainRecipe, device: torch.device,
               tell: Callable[[int], None]) -> Evidence:  # fmt: skip
    """With the first steps in one process, in a folder that is removed again, and the run's models measured."""
    with TemporaryDirectory(prefix="babyllama-") as folder:
        alone = training.model_copy(
            update={"out": Path(folder) / "run", "engine": Single(), "compile": False, "sinks": ()}
        )
        if isinstance(alone.objective, NextToken):  # the loss is looked at whole
            alone = alone.model_copy(update={"objective": alone.objective.model_copy(update={"sampled": None})})
        made = assemble(alone, World(), device)
        trainer = made.trainer
        try:
            choices = Choices(training.optimizer, training.schedule, training.plan, trainer.steps,
                              isinstance(training.init, NewModel), _ropes(training, trainer))  # fmt: skip
            whole = isinstance(training.adapter, Full | OneBit)
            rehearsal = rehearse(trainer, steps, made.prepared.eos, tell, everything=whole)
            kept = _saved(run, training, device, trainer) if run else {}
        finally:
            trainer.run.unlock()
    return replace(found, rehearsal=rehearsal, choices=choices, **kept)


def _prepared(training: TrainRecipe, needed: bool) -> tuple[Prepared | None, Tokenizer | None]:
    """The data and their tokenizer; of a run that is only read, as far as they are still there."""
    try:
        prepared = Prepared.open(training.data.path)
        folder = model_folder(training.init.path) if isinstance(training.init, FromModel) else None
        named = training.init.tokenizer if isinstance(training.init, NewModel) else None
        tokenizer = read_tokenizer(folder) if folder else Tokenizer.load(named or training.data.path)
        return prepared, tokenizer.with_template(prepared.manifest["chat_template"])
    except InputError:
        if needed:
            raise
        return None, None


def _used(prepared: Prepared) -> np.ndarray:
    """Ids that a sample of the data holds."""
    parts = [tokens for splits in prepared.corpora.values() for tokens in sampled(splits["train"], SAMPLE)]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _folders(run: Run | None, training: TrainRecipe, used: np.ndarray | None) -> tuple[SavedWeights, ...]:
    """The run's model/ and the one that it starts from."""
    folders = [run.model] if run and (run.model / "config.json").is_file() else []
    if isinstance(training.init, FromModel):
        with suppress(InputError):  # a parent that was moved away since
            folders.append(model_folder(training.init.path))
    found = [folder_weights(folder, used) for folder in folders]
    return tuple(weights for weights in found if weights is not None)


def _saved(run: Run, training: TrainRecipe, device: torch.device, trainer: Trainer | None) -> dict[str, Any]:
    """The run's saved models beside its record: its model/, its newest checkpoint, the model that it starts from."""
    kept: list[Kept | None] = []
    between = None
    if run.finished and (run.model / "config.json").is_file():
        model = read_model(run.model)
        steps = run.info["summary"]["steps"]
        kept.append(_again(run, training, model, str(run.model), steps, device))
        if not isinstance(training.adapter, Lora) and not is_packed(model):
            between = apart(model, run.model, run, steps)
    states = run.states()
    if trainer is not None and states and isinstance(training.adapter, Full):
        step, folder = states[-1]
        model = put_masters(trainer.model, folder)
        kept.append(_again(run, training, model, str(folder), step, device))
    parent = parent_of(training)
    if parent is not None:
        before, recipe, folder = parent
        kept.append(_again(before, recipe, read_model(folder), str(folder), before.info["summary"]["steps"], device))
    return {"kept": tuple(k for k in kept if k is not None), "apart": between}


def _again(run: Run, training: TrainRecipe, model: Transformer, where: str, step: int, device: torch.device
           ) -> Kept | None:  # fmt: skip
    """None where the data are gone, or where nothing comparable was recorded: preferences and rewards are validated in
    their own way."""
    if not isinstance(training.objective, NextToken | Distil):
        return None
    try:
        prepared = Prepared.open(training.data.path)
    except InputError:
        return None
    context = training.plan.context or model.config.max_position_embeddings
    plain = isinstance(training.objective, NextToken) and isinstance(training.attend, FullAttention)
    stretched = training.replay or training.data.stretch or model.config.rope.stretch
    rows = Stream(prepared, "train", training.data, context, training.seed) if plain and not stretched else None
    labels = tuple(training.data.weights or prepared.corpora)
    model = model.to(device) if is_packed(model) else model.float().to(device)
    return again(model, where, run.metrics(), step, training.plan, context, prepared, labels, training.data.apart, rows)


def _ropes(training: TrainRecipe, trainer: Trainer) -> tuple[float, float] | None:
    """The first rows' loss under the init's own RoPE and under the recipe's, at the length that it was trained for."""
    if not isinstance(training.init, FromModel) or training.init.rope is None:
        return None
    own = read_model(model_folder(training.init.path)).float().to(trainer.device)
    batch = trainer.stream.batch(0, min(4, trainer.plan.rows))
    length = own.config.trained_context
    if batch.positions is not None and int(batch.positions[:, :length].max()) >= length:
        return None  # CLEX's stretched rows
    short = batch.each(lambda part: part[:, :length])
    found = [evaluate_loss(model, [short]) for model in (own, trainer.model.to(trainer.device))]
    return (found[0].loss, found[1].loss) if found[0].tokens else None


def _documents_per_token(prepared: Prepared) -> float:
    stores = [splits["train"] for splits in prepared.corpora.values()]
    return sum(store.documents for store in stores) / max(1, sum(len(store) for store in stores))


# ── the report ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _show(target: str, findings: list[Finding], console: Console) -> None:
    table = table_of(["check", "", "evidence"], [], title=f"doctor: {target}")
    for finding in findings:
        if finding.verdict != "not applicable":
            table.add_row(finding.check, finding.verdict, finding.evidence, style=STYLES[finding.verdict])
    console.print(table)
    idle = [finding.check for finding in findings if finding.verdict == "not applicable"]
    if idle:
        console.print(f"not applicable: {', '.join(idle)}", style="dim", soft_wrap=True)
    faults = [finding for finding in findings if finding.verdict == "fault"]
    for finding in faults:
        console.print(f"{finding.check}: {finding.where}: {finding.evidence}; {finding.remedy}", markup=False,
                      soft_wrap=True)  # fmt: skip
    if not faults:
        console.print("healthy, as far as these checks can see")
