"""merge: an adapter and its base → one ordinary model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from rich.console import Console

from babyllama.errors import InputError, pasted
from babyllama.export.card import write_card
from babyllama.load import DTYPES, check_vocabulary, model_folder, own_sampling, read_model, read_tokenizer
from babyllama.model.adapters import base_link, is_adapter
from babyllama.model.checkpoint import save_model, weights_dtype
from babyllama.recipe import Changeable, Recipe
from babyllama.run import Run


class MergeRecipe(Recipe):
    """The verb's recipe. Computed in float32; an adapter that was trained on a packed base keeps what packing lost."""

    model: Path = Field(description="an adapter: a run, or a folder of PEFT's")
    out: Changeable[Path] = Field(description="the run to make")
    precision: Literal["base", "fp32", "bf16", "fp16"] = Field(
        default="base", description="base: that of the base's files"
    )


def main(recipe: MergeRecipe) -> None:
    """Write a run with an ordinary model/."""
    folder = model_folder(recipe.model)
    if not is_adapter(folder):
        raise InputError(f"{recipe.model}: holds a whole model, there is nothing to merge; give an adapter")
    run = Run.create(recipe.out, "merge", recipe, recipe.model)
    if not run.finished:
        model, tokenizer = read_model(folder), read_tokenizer(folder)
        check_vocabulary(model, tokenizer, folder)
        model.to(base_dtype(folder) if recipe.precision == "base" else DTYPES[recipe.precision])

        def fill(target: Path) -> None:
            save_model(model, target, sampling=own_sampling(folder), **tokenizer.config_ids)
            tokenizer.save(target)

        run.save_model(fill)
        run.finish(parameters=model.config.parameters)
        write_card(run.model, run.path, run.path.resolve().name)
    Console().print(f"{recipe.out}/model is ready: babyllama chat {pasted(recipe.out)}", markup=False, soft_wrap=True)


def base_dtype(folder: Path) -> torch.dtype:
    """Of the model under all adapters."""
    while is_adapter(folder):
        folder = model_folder(base_link(folder).folder)
    return weights_dtype(folder)
