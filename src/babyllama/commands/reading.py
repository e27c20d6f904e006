"""The rows that a train recipe reads: which corpora, mixed with what, at which positions.

Not here: rows that the model writes itself (reinforcing.py), what is learned from them.
"""

from __future__ import annotations

from babyllama.commands.train_recipe import TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.answers import Room
from babyllama.data.streams.batches import DataRecipe, Rows, Stream
from babyllama.data.streams.replay import Mixed
from babyllama.data.streams.stretch import Stretched
from babyllama.errors import InputError
from babyllama.model.config import ModelConfig
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.losses.preference import Preference
from babyllama.train.losses.reward import RewardModel


def stream_of(recipe: TrainRecipe, prepared: Prepared, room: Room, tokenizer: Tokenizer) -> Stream | Mixed:
    """The rows in training order. Raises InputError: no such corpus, nothing to read, another tokenizer."""
    context = room.context
    whole = isinstance(recipe.objective, RewardModel)
    new = Stream(prepared, "train", recipe.data, context, recipe.seed, room.longest, whole)
    if recipe.replay is None:
        return new
    earlier = Prepared.open(recipe.replay.path)
    earlier.check_tokenizer(tokenizer.hash)
    choice = DataRecipe(path=recipe.replay.path, weights=recipe.replay.weights, separate_documents=True)
    return Mixed(new, Stream(earlier, "train", choice, context, recipe.seed + 1), recipe.replay.share, recipe.seed)


def stretched(recipe: TrainRecipe, config: ModelConfig, rows: Rows, context: int) -> Rows:
    """The rows at the positions that the recipe, or a law that learns, asks for. Raises InputError where it cannot."""
    if config.rope.parameters(config.head_dim) and not recipe.engine.mixes:
        raise InputError(f"rope.kind: {config.rope.kind} learns in float32, which {recipe.engine.kind} does not mix "
                         "with halves; use engine.kind=ddp or fsdp")  # fmt: skip
    most = recipe.data.stretch or config.rope.stretch or 1
    if most == 1:
        return rows
    if isinstance(recipe.objective, Preference):
        raise InputError(f"rope.kind: {config.rope.kind} spreads positions while it trains, which objective.kind="
                         f"{recipe.objective.kind} cannot; use another RoPE scaling")  # fmt: skip
    if most * config.trained_context > config.max_position_embeddings:
        raise InputError(f"data.stretch: {most} × {config.trained_context} trained tokens are above the model's "
                         f"{config.max_position_embeddings} positions; give init.rope a factor of {most}")  # fmt: skip
    return Stretched(rows, config.trained_context, most, context, recipe.seed)
