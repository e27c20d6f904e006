"""The model and the tokenizer that a training starts from. Not here: what is trained of it (train/tuning.py)."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from babyllama.amounts import size
from babyllama.commands.train_recipe import FromModel, TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.errors import InputError
from babyllama.hardware import installed_bytes
from babyllama.load import check_vocabulary, config_of, model_folder, read_model, read_tokenizer
from babyllama.model.config import ModelConfig, extended
from babyllama.model.transformer import Transformer, initialise, with_reward_head
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.losses.reward import RewardModel


def start_of(recipe: TrainRecipe, prepared: Prepared) -> tuple[Transformer, Tokenizer]:
    """New or loaded, in float32; under a new head where it is to become a reward model.

    Raises:
        InputError: as `load`; a new model that this machine's memory cannot hold.
    """
    if isinstance(recipe.init, FromModel):
        folder = model_folder(recipe.init.path)
        model, tokenizer = read_model(folder, rope=recipe.init.rope).float(), read_tokenizer(folder)
        check_vocabulary(model, tokenizer, folder)
        check_head(model, "init.path", recipe.init.path)
    else:
        tokenizer = Tokenizer.load(recipe.init.tokenizer or recipe.data.path)
        config = recipe.init.model.build(tokenizer.vocab_size)
        if 4 * config.parameters > installed_bytes():
            raise InputError(f"init.model: its {config.parameters:,} weights take {size(4 * config.parameters)}, and "
                             f"this machine has {size(installed_bytes())}; choose a smaller one")  # fmt: skip
        model = Transformer(config)
        initialise(model, recipe.seed)
    if isinstance(recipe.objective, RewardModel):
        model = with_reward_head(model, recipe.seed)
    return model, tokenizer.with_template(prepared.manifest["chat_template"])


def check_head(model: Transformer, key: str, path: Path) -> None:
    """Losses take the head's own matrix. Raises InputError where the model at `path` has it packed."""
    if not isinstance(model.lm_head, nn.Linear):
        raise InputError(f"{key}: the head of {path} is packed in few bits, and a training computes with its weights; "
                         "quantise without ends, or give the model that it was made from")  # fmt: skip


def shape_of(recipe: TrainRecipe, tokenizer: Tokenizer) -> ModelConfig:
    """The shape of that model, without its weights. Raises InputError as `start_of`."""
    if not isinstance(recipe.init, FromModel):
        return recipe.init.model.build(tokenizer.vocab_size)
    config = config_of(model_folder(recipe.init.path))
    return config if recipe.init.rope is None else extended(config, recipe.init.rope)
