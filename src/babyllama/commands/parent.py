"""The run whose model a training starts from, and what of it the training must fit. Not here: the checks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from babyllama.commands.train_recipe import FromModel, NewModel, TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import DataRecipe
from babyllama.errors import InputError
from babyllama.foresight.evidence import SavedWeights, Turned
from babyllama.foresight.kept import folder_weights
from babyllama.load import config_of, model_folder
from babyllama.model.config import extended
from babyllama.model.laws import RopeConfig
from babyllama.recipe import load_recipe
from babyllama.run import Run


def parent_of(training: TrainRecipe) -> tuple[Run, TrainRecipe, Path] | None:
    """The finished train run whose model a training starts from, its recipe, and its model folder."""
    if not isinstance(training.init, FromModel):
        return None
    with suppress(InputError):
        folder = model_folder(training.init.path)
        for place in (folder, folder.parent):
            if (place / "run.json").is_file() and Run(place).info["verb"] == "train" and Run(place).finished:
                return Run(place), load_recipe(TrainRecipe, str(place / "recipe.yaml")), folder
    return None


def turned(run: Run | None, training: TrainRecipe) -> tuple[Turned, ...]:
    """The run's own model and its parent's, where their RoPE is not the one that their recipe says."""
    parent = parent_of(training)
    models = [(training, run.model)] if run and (run.model / "config.json").is_file() else []
    models += [(parent[1], parent[2])] if parent else []
    found = []
    for recipe, folder in models:
        with suppress(InputError):  # the init of a parent that was moved away since
            trained, now = _trained_rope(recipe), config_of(folder).rope
            now = now.model_copy(update={"theta": now.base})
            if trained != now:
                found.append(Turned(str(folder), _words(trained), _words(now)))
    return tuple(found)


def _trained_rope(recipe: TrainRecipe) -> RopeConfig:
    """The RoPE that a recipe trains with, as config.json would say it."""
    if isinstance(recipe.init, NewModel):
        rope = recipe.init.model.build(vocab_size=1 << 10).rope
    else:
        config = config_of(model_folder(recipe.init.path))
        rope = (config if recipe.init.rope is None else extended(config, recipe.init.rope)).rope
    return rope.model_copy(update={"theta": rope.base})


def _words(rope: RopeConfig) -> str:
    return " ".join(f"{key}={value}" for key, value in rope.model_dump(exclude_none=True).items())


def templates(training: TrainRecipe, prepared: Prepared | None) -> tuple[str, ...]:
    """The chat templates that the parent learned and that the data follow; nothing where either has no chats."""
    parent = parent_of(training)
    if parent is None or prepared is None:
        return ()
    try:
        both = (Prepared.open(parent[1].data.path), prepared)
    except InputError:
        return ()
    chats = all(any(s["train"].kind == "chat" for s in data.corpora.values()) for data in both)
    return tuple(data.manifest["chat_template"] for data in both) if chats else ()


def restarted(training: TrainRecipe) -> SavedWeights | None:
    """The weights that a training starts from, when they are those of a run over the very same data."""
    parent = parent_of(training)
    if parent is None or _resolved(parent[1].data) != _resolved(training.data):
        return None
    return folder_weights(parent[2])


def _resolved(data: DataRecipe) -> DataRecipe:
    return data.model_copy(update={"path": data.path.resolve()})
