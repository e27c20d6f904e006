"""train: pretraining and supervised fine-tuning, one recipe over one loop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from babyllama.commands.continuing import inputs_of, open_run, settled
from babyllama.commands.preferring import Comparison, check_kinds, comparison, pair_validator, room_of, rows_of, sums_of
from babyllama.commands.reading import stream_of, stretched
from babyllama.commands.reinforcing import passed_over, reward_validator, rollout_rows
from babyllama.commands.samples import observer
from babyllama.commands.starting import start_of
from babyllama.commands.teacher import objective_of
from babyllama.commands.train_recipe import FromModel, TrainRecipe
from babyllama.data.shards.shards import Prepared, usual_turns
from babyllama.data.streams.answers import Room
from babyllama.data.streams.batches import Rows, Stream
from babyllama.data.streams.remarks import remarks
from babyllama.data.streams.replay import Mixed
from babyllama.data.streams.resident import Resident
from babyllama.errors import InputError, Interrupted, pasted
from babyllama.evals.bits import measure
from babyllama.export.card import write_cards
from babyllama.hardware import can_compile, device_name, memory_of
from babyllama.load import (
    DTYPES,
    Precision,
    model_folder,
    pick_device,
)
from babyllama.model.adapters import BaseLink, claim_base, save_adapter
from babyllama.model.attention import ShiftedSparse
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.lora import Lora
from babyllama.model.transformer import Transformer
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.engines.world import World
from babyllama.train.losses.objectives import NextToken, Objective
from babyllama.train.losses.policy import Method
from babyllama.train.losses.preference import Preference
from babyllama.train.reference import Sums
from babyllama.train.rl.rollouts import RolloutRows
from babyllama.train.trainer import Trainer
from babyllama.train.tuning import Full, Lisa, put_on
from babyllama.train.validation import LossSums, Measured
from babyllama.train.watch import Watch


def main(recipe: TrainRecipe) -> None:
    """Train, or continue, the run at ``recipe.out``; one of several processes when a launcher started them."""
    world = World.from_environment()
    device = world.device(pick_device(recipe.device).type)
    try:
        recipe.engine.check(world.size, recipe.optimizer)  # for this nobody need meet the others
        world.join(device, recipe.engine.environment)
        _train(recipe, world, device)
    except (InputError, Interrupted) as error:
        if not world.local_rank:
            raise
        time.sleep(1)  # one process of each machine says it; a launcher ends the others when one is gone
        sys.exit(130 if isinstance(error, Interrupted) else 2)
    finally:
        world.leave()


class Assembled(NamedTuple):
    """A recipe's trainer, ready to go, and what it was made of."""

    trainer: Trainer
    watch: Watch
    prepared: Prepared
    stream: Stream | Mixed | RolloutRows
    export: Callable[[Transformer, Path], None]
    precision: Precision


def assemble(recipe: TrainRecipe, world: World, device: torch.device) -> Assembled:
    """Everything that a recipe names, found, checked and put together; makes the run, trains nothing."""
    prepared = Prepared.open(recipe.data.path)
    model, tokenizer = start_of(recipe, prepared)
    prepared.check_tokenizer(tokenizer.hash)
    room = room_of(recipe, model.config)
    _check(recipe, prepared, model.config, room.context)
    stream, objective, compared, context = _learned(recipe, prepared, model, tokenizer, room)
    put_on(model, recipe.adapter, recipe.seed)
    steps, made = recipe.plan.total_steps(stream.rows, context), settled(recipe, world, device)
    precision: Precision = made.precision  # type: ignore[assignment]
    _check_machine(recipe, world, device, DTYPES[precision], model.config, context)  # before there is a run
    watch = Watch(steps, shown=world.first)
    base = _base(recipe, model.config)
    export = _exporter(recipe, base, tokenizer)
    resident = Resident.of(stream, context, device) if device.type == "cuda" and isinstance(stream, Stream) else None
    rows: Rows = stream
    if isinstance(stream, RolloutRows):
        stream.groups.say = watch.line
    else:
        rows = stretched(recipe, model.config, resident or stream, context)
    if isinstance(recipe.objective, NextToken) and recipe.objective.sampled is not None:
        rows = recipe.objective.sampled.over(rows, model.config.vocab_size, steps * recipe.plan.rows)
    sample = observer(recipe.samples, recipe.tests, tokenizer, model.config.max_position_embeddings)
    inputs = inputs_of(made, prepared, tokenizer.hash) if world.first else {}
    run = open_run(recipe, world, inputs, stream.rows, context)
    if base is not None:
        claim_base(run.path, base, world.first)
    sums: Sums | None = None
    if compared is not None and isinstance(stream, Stream):
        sums = sums_of(recipe, prepared, compared, model, world, device, DTYPES[precision], watch.console)
        rows = rows_of(recipe, prepared, stream, sums)
    trainer = Trainer(
        run=run, model=model, stream=rows, objective=objective, optimizer=made.optimizer, schedule=recipe.schedule,
        plan=recipe.plan, steps=steps, context=context, device=device, dtype=DTYPES[precision], show=watch,
        validate=_validator(recipe, prepared, room, sums, tokenizer), sample=sample, export=export,
        compile=_compiled(recipe, device), engine=recipe.engine, world=world, attend=recipe.attend,
        lisa=recipe.adapter if isinstance(recipe.adapter, Lisa) else None, average=recipe.average,
        sinks=recipe.sinks, seed=recipe.seed, float8=recipe.fp8_blocks,
    )  # fmt: skip
    return Assembled(trainer, watch, prepared, stream, export, precision)


class _Learned(NamedTuple):
    """What is read and what is minimised; `context` tokens a row. `compared` is the reference of preferences."""

    stream: Stream | Mixed | RolloutRows
    objective: Objective
    compared: Comparison | None
    context: int


def _learned(recipe: TrainRecipe, prepared: Prepared, model: Transformer, tokenizer: Tokenizer, room: Room) -> _Learned:
    """Of the loaded model, before it is changed."""
    chosen = recipe.objective
    if recipe.rollouts is not None:
        stream = rollout_rows(recipe, prepared, model, tokenizer, room.context)
        drawn, longest = stream.recipe, stream.groups.prompts.longest + stream.recipe.max_tokens
        if isinstance(chosen, Method):
            share = recipe.replay.share if recipe.replay else 0.0
            objective: Objective = chosen.of(drawn.temperature, drawn.max_tokens, share / (1 - share))
        else:
            objective = objective_of(chosen, model, tokenizer, longest)
        return _Learned(stream, objective, None, room.context if drawn.tools else longest)
    assert not isinstance(chosen, Method)
    objective = objective_of(chosen, model, tokenizer, room.context)
    compared = comparison(recipe, model, tokenizer.hash, room.longest)
    return _Learned(stream_of(recipe, prepared, room, tokenizer), objective, compared, room.context)


def _check_machine(recipe: TrainRecipe, world: World, device: torch.device, dtype: torch.dtype, config: ModelConfig,
                   context: int) -> None:  # fmt: skip
    """Raise InputError where these processes cannot train so."""
    recipe.engine.check_precision(device, dtype)
    mesh = recipe.engine.mesh(world.size)
    recipe.plan.check_memory(mesh.readers, context // mesh.context, config.hidden_size, memory_of(device))
    recipe.plan.shares(mesh.readers)
    mesh.check(config, context, recipe.objective.kind, isinstance(recipe.attend, ShiftedSparse))
    for sink in recipe.sinks if world.first else ():
        sink.check()


def _compiled(recipe: TrainRecipe, device: torch.device) -> bool:
    if recipe.compile is not None:
        return recipe.compile
    # Each of LISA's draws would be compiled anew, and each rollout, which is as wide as its longest answer.
    uneven = isinstance(recipe.adapter, Lisa) or recipe.rollouts is not None
    return device.type == "cuda" and not uneven and recipe.objective.compiles and can_compile(device)


def _check(recipe: TrainRecipe, prepared: Prepared, config: ModelConfig, context: int) -> None:
    """Raise InputError where recipe, data and model do not fit together."""
    check_kinds(recipe, prepared)
    if isinstance(recipe.attend, ShiftedSparse):
        recipe.attend.check(context)
    if config.moe is not None and not recipe.optimizer.stacks:
        raise InputError(f"optimizer.kind: {recipe.optimizer.kind} takes single matrices, not experts' stacks; "
                         "use optimizer.kind=muon or adamw")  # fmt: skip
    noise = recipe.objective.neftune if isinstance(recipe.objective, NextToken) else 0.0
    if noise and all(stores["train"].kind == "text" for stores in prepared.corpora.values()):
        raise InputError(f"objective.neftune: {noise:g} is for chats, but {recipe.data.path} has none")


def _exporter(recipe: TrainRecipe, base: BaseLink | None, tokenizer: Tokenizer) -> Callable[[Transformer, Path], None]:
    """What writes a model folder: an adapter's over a base, else the whole."""

    def export(trained: Transformer, folder: Path) -> None:
        if base is not None and isinstance(recipe.adapter, Lora):
            save_adapter(trained, folder, recipe.adapter, base)
        else:
            save_model(trained, folder, **tokenizer.config_ids)
        tokenizer.save(folder)

    return export


def _train(recipe: TrainRecipe, world: World, device: torch.device) -> None:
    trainer, watch, prepared, stream, export, precision = assemble(recipe, world, device)
    run, model = trainer.run, trainer.model
    with watch:
        if run.finished:
            length = next(key for key in ("steps", "epochs", "tokens") if getattr(recipe.plan, key) is not None)
            watch.line(
                f"{recipe.out} is finished after {trainer.steps:,} steps; longer: a larger plan.{length}; other data: "
                f"another out=… init=from init.path={pasted(recipe.out)}; anew: remove it"
            )
            return
        steps, rows, context = trainer.steps, recipe.plan.rows, trainer.context
        tokens = steps * rows * context
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        watch.line(f"{recipe.out}: {model.config.parameters:,} parameters{_part(recipe, model.config, trained)}, "
                   f"{steps:,} steps × {rows} rows × {context} tokens = {tokens:,} tokens "
                   f"({tokens / max(1, stream.rows * context):.1f} epochs), {precision}, "
                   f"{_hardware(recipe, world, device)}{', compiled' if trainer.compile else ''}")  # fmt: skip
        few = recipe.plan.too_few(stream.rows, context)
        for line in [*([few] if few else []), *_remarks(prepared, stream, context)]:
            watch.line(line)
        figures = trainer.train()
        final, turns = trainer.worker.snapshot(), _turns(recipe, prepared)
        if world.first:
            run.save_model(lambda folder: export(final, folder))
            run.finish(parameters=model.config.parameters, trained_parameters=trained, precision=precision,
                       device=device_name(device), processes=world.size, turns=turns,
                       **figures)  # fmt: skip
            write_cards(run)
        use = f"babyllama chat {pasted(recipe.out)}" if turns else f"babyllama generate {pasted(recipe.out)} prompt=…"
        if model.config.reward:
            use = f"'rewards=[{{kind: model, path: {recipe.out}}}]'"
        watch.line(f"{recipe.out}/model is ready: {use}")


def _remarks(prepared: Prepared, stream: Stream | Mixed | RolloutRows, context: int) -> Iterable[str]:
    if isinstance(stream, RolloutRows):
        return passed_over(stream)
    return remarks(prepared, stream.new if isinstance(stream, Mixed) else stream, context)


def _turns(recipe: TrainRecipe, prepared: Prepared) -> int:
    """As long a conversation as the model usually saw; where it learned from preferences, or saw before."""
    found = usual_turns(prepared.store(label, "train") for label in recipe.data.weights or prepared.corpora)
    if not (isinstance(recipe.objective, Preference) and isinstance(recipe.init, FromModel)):
        return found
    from babyllama.commands.chat import turns_of

    return max(found, turns_of(recipe.init.path) or 0)


def _part(recipe: TrainRecipe, config: ModelConfig, trained: int) -> str:
    active = "" if config.moe is None else f" ({config.active_parameters:,} a token)"
    return active + ("" if isinstance(recipe.adapter, Full) else f" ({recipe.adapter.kind} trains {trained:,})")


def _hardware(recipe: TrainRecipe, world: World, device: torch.device) -> str:
    mesh = recipe.engine.mesh(world.size)
    return device_name(device) + (f" × {world.size} ({recipe.engine.kind}: {mesh})" if world.size > 1 else "")


def _base(recipe: TrainRecipe, config: ModelConfig) -> BaseLink | None:
    """What an adapter is trained on; None where whole models are saved."""
    if not (isinstance(recipe.adapter, Lora) and isinstance(recipe.init, FromModel)):
        return None
    law = None if recipe.init.rope is None else config.rope
    return BaseLink.to(model_folder(recipe.init.path), recipe.adapter.base, law)


def _validator(recipe: TrainRecipe, prepared: Prepared, room: Room, sums: Sums | None, tokenizer: Tokenizer
               ) -> Callable[[Transformer], Mapping[str, Measured]]:  # fmt: skip
    if isinstance(recipe.objective, Preference):
        return pair_validator(recipe, prepared, room, recipe.objective, sums)
    if isinstance(recipe.objective, Method):
        return reward_validator(recipe, prepared, tokenizer, room.context)
    labels, plan, apart = tuple(recipe.data.weights or prepared.corpora), recipe.plan, recipe.data.apart

    def validate(model: Transformer) -> dict[str, LossSums]:
        found = measure(model, prepared, labels, "val", room.context, plan.micro_batch_size, plan.validation_tokens,
                        apart)  # fmt: skip
        return {label: sums for label, sums in found if sums.tokens}

    return validate
