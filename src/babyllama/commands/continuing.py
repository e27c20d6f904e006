"""As what a training may go on: the same learning, by whatever path, engine, device or number of processes.

What a run began with is noted in its run.json, as hashes of what lay at the recipe's paths and as what its ``auto``
became; its recipe says the rest (`Recipe.identity`). Not here: the recipe's fields (train_recipe.py), the state itself
(train/state.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from babyllama.commands.train_recipe import FromModel, TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.errors import InputError
from babyllama.load import Precision, model_folder, pick_precision
from babyllama.model.adapters import weights_hash
from babyllama.recipe import load_recipe
from babyllama.run import Run
from babyllama.train.engines.world import World
from babyllama.train.losses.distil import Distil
from babyllama.train.optimizers.optim import Optimizer, Schedule
from babyllama.train.trainer import branch


def continued(run: Path, overrides: Sequence[str] = ()) -> TrainRecipe:
    """The recipe that continues the training in the directory `run`, wherever that lies now.

    Args:
        overrides: ``key.path=value``, of what may change.
    """
    Run.open(run)
    return load_recipe(TrainRecipe, str(run / "recipe.yaml"), [*overrides, f"out={run}"])


def settled(recipe: TrainRecipe, world: World, device: torch.device) -> TrainRecipe:
    """The recipe with the arithmetic that ``auto`` and ``fast`` stand for: that of the run, if it began before, else
    what the first rank finds. A stopwatch chooses once, and for all ranks."""
    chosen: tuple[Precision, Optimizer] | None = None
    if world.first:
        known = Run(recipe.out).inputs if (recipe.out / "run.json").is_file() else {}
        precision = recipe.precision
        if precision in ("auto", "fast"):
            precision = known.get("precision") or pick_precision(precision, device)
        before = {key.removeprefix("optimizer."): value for key, value in known.items()}
        chosen = precision, recipe.optimizer.settled(device, before)  # type: ignore[assignment]
    precision, optimizer = world.agree(chosen)
    return recipe.model_copy(update={"precision": precision, "optimizer": optimizer})


def inputs_of(made: TrainRecipe, prepared: Prepared, tokenizer: str) -> dict[str, str]:
    """What a settled recipe's values stand for, see `Run.create`."""
    found = {"data.path": prepared.hash, "precision": str(made.precision)}
    found |= {f"optimizer.{field}": value for field, value in made.optimizer.chosen.items()}
    if isinstance(made.init, FromModel):
        found["init.path"] = weights_hash(model_folder(made.init.path))
    else:
        found["init.tokenizer"] = tokenizer
    if made.replay is not None:
        found["replay.path"] = Prepared.open(made.replay.path).hash
    if isinstance(made.objective, Distil) and made.objective.teacher is not None:
        found["objective.teacher"] = weights_hash(model_folder(made.objective.teacher))
    if (reference := getattr(made.objective, "reference", None)) is not None:
        found["objective.reference"] = weights_hash(model_folder(reference))
    return found


def open_run(recipe: TrainRecipe, world: World, inputs: dict[str, str], rows: int, context: int) -> Run:
    """The run directory, made or continued and locked by the first rank; the others only read it.

    Args:
        rows: in an epoch.

    Raises:
        InputError: it holds another training, or cannot become as long as the recipe says.
    """
    if not world.first:
        world.wait()
        return Run(recipe.out)
    parent = recipe.init.path if isinstance(recipe.init, FromModel) else None
    run = Run.create(recipe.out, "train", recipe, parent, inputs)
    before = run.recipe(TrainRecipe)
    lengths = [given.plan.total_steps(rows, context) for given in (before, recipe)]
    set_length(run, recipe.objective, recipe.schedule, *lengths)
    if not run.finished:
        run.renew(recipe, parent, inputs)
    world.wait()
    return run


def set_length(run: Run, objective: object, schedule: Schedule, before: int, after: int) -> None:
    """Let a run that was begun as one of `before` steps end after `after`: from its newest state whose past is the same
    in both, or not at all.

    Raises:
        InputError: there is no such state.
    """
    states = [step for step, _ in run.states()]
    if before == after or not (states or run.finished):
        return
    falls = min(schedule.branch(steps) for steps in (before, after))
    last = min(branch(objective, schedule, steps) for steps in (before, after))
    shared = [step for step in states if step <= last and schedule.branches(step, after)]
    if not shared:
        felt = (f"objective.sampled takes another share of the vocabulary from step {last}" if last < falls else
                f"its rate falls from step {falls}")  # fmt: skip
        why = (
            f"{felt}, and there is no checkpoint of before that has warmed up for {after:,}"
            if falls
            else f"the rates of schedule.kind={schedule.kind} depend on the length from the first step on"
        )
        raise InputError(f"plan: {run.path} was begun as {before:,} steps and cannot become {after:,}: {why}; "
                         f"train on from its model instead: out=… init=from init.path={run.path}")  # fmt: skip
    run.reopen(shared[-1])
