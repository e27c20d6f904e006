"""doctor: look at a run, or rehearse a train recipe, and name what is wrong with it, with numbers and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

from babyllama.atomic import json_text, write_json
from babyllama.commands.train import FromModel, TrainRecipe, assemble
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import DataRecipe
from babyllama.errors import InputError
from babyllama.foresight.doctor import Finding, diagnose
from babyllama.foresight.evidence import Evidence, Rehearsal, Weights, masters, rehearse, stored, weights
from babyllama.load import default_precision, model_folder, pick_device
from babyllama.recipe import Recipe, load_recipe
from babyllama.run import Run
from babyllama.train.engines.engines import Single
from babyllama.train.engines.world import World

STYLES = {"ok": "green", "fault": "bold red", "not applicable": "dim"}


class DoctorRecipe(Recipe):
    """The verb's recipe."""

    target: str = Field(description="a train run, or a train recipe: a file, or the name of one that comes along")
    overrides: tuple[str, ...] = Field(default=(), description="of the train recipe's keys: [optimizer.lr=0.01]")
    steps: int = Field(default=50, ge=0, description="to rehearse; 0 only reads what the run recorded")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    format: Literal["table", "json"] = "table"
    out: Path | None = Field(default=None, description="a JSON file for the report")


def main(recipe: DoctorRecipe) -> None:
    """Gather the evidence, show one line for each check; leaves with exit code 1 when a fault was found."""
    console = Console(highlight=False)
    run, training = _target(recipe)
    device = pick_device(recipe.device if recipe.device != "auto" else training.device)
    precision = default_precision(device) if training.precision == "auto" else training.precision
    prepared, rehearsal = None, None
    if recipe.steps:
        with console.status("rehearsing") as status:

            def tell(step: int) -> None:
                status.update(f"rehearsed step {step} of {recipe.steps}")

            prepared, rehearsal = _rehearse(training, recipe.steps, device, tell)
    findings = diagnose(Evidence(
        training.plan.accumulate, precision == "fp16", prepared.eos if prepared else None,
        _documents_per_token(prepared) if prepared else 0.0, tuple(run.metrics()) if run else (), rehearsal,
        masters(run) if run else (), _restarted(training)))  # fmt: skip
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
            raise InputError(f"{path}: is not a run (no run.json in it); give a train run or a train recipe")
        if not recipe.steps:
            raise InputError("steps: 0 reads what a run recorded, but a recipe has recorded nothing; give steps=50")
        return None, load_recipe(TrainRecipe, recipe.target, recipe.overrides)
    run = Run.open(path)
    if run.info["verb"] != "train":
        raise InputError(f"{path}: holds a {run.info['verb']} run; the doctor looks at train runs")
    return run, load_recipe(TrainRecipe, str(path / "recipe.yaml"), recipe.overrides)


def _rehearse(
    training: TrainRecipe, steps: int, device: torch.device, tell: Callable[[int], None]
) -> tuple[Prepared, Rehearsal]:
    """The first steps in one process, in a folder that is removed again."""
    with TemporaryDirectory(prefix="babyllama-") as folder:
        alone = training.model_copy(update={"out": Path(folder) / "run", "engine": Single(), "compile": False})
        made = assemble(alone, World(), device)
        try:
            return made.prepared, rehearse(made.trainer, steps, made.prepared.eos, tell)
        finally:
            made.trainer.run.unlock()


def _documents_per_token(prepared: Prepared) -> float:
    stores = [splits["train"] for splits in prepared.corpora.values()]
    return sum(store.documents for store in stores) / max(1, sum(len(store) for store in stores))


def _restarted(training: TrainRecipe) -> Weights | None:
    """The weights that a training starts from, when they are those of a run over the very same data."""
    if not isinstance(training.init, FromModel):
        return None
    folder = model_folder(training.init.path)
    for parent in (folder, folder.parent):
        if (parent / "run.json").is_file() and Run(parent).info["verb"] == "train":
            before = load_recipe(TrainRecipe, str(parent / "recipe.yaml")).data
            if _resolved(before) == _resolved(training.data):
                return weights(stored(sorted(folder.glob("*.safetensors"))), str(training.init.path))
    return None


def _resolved(data: DataRecipe) -> DataRecipe:
    return data.model_copy(update={"path": data.path.resolve()})


def _show(target: str, findings: list[Finding], console: Console) -> None:
    table = Table("check", "", "evidence", title=f"doctor: {target}")
    for finding in findings:
        table.add_row(finding.check, finding.verdict, finding.evidence, style=STYLES[finding.verdict])
    console.print(table)
    faults = [finding for finding in findings if finding.verdict == "fault"]
    for finding in faults:
        console.print(f"{finding.check}: {finding.remedy}", markup=False, soft_wrap=True)
    if not faults:
        console.print("healthy, as far as these checks can see")
