"""retokenize: a trained model → the same model for another vocabulary."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from rich.console import Console

from babyllama.errors import InputError, pasted
from babyllama.export.card import write_card
from babyllama.load import check_vocabulary, model_folder, own_sampling, read_model, read_tokenizer
from babyllama.model.adapters import is_adapter
from babyllama.model.checkpoint import quantization, save_model
from babyllama.model.embeddings import change_rows
from babyllama.recipe import Changeable, Recipe
from babyllama.run import Run
from babyllama.tokenizer.carried import sources
from babyllama.tokenizer.chat import TEMPLATES
from babyllama.tokenizer.tokenizer import Tokenizer


class RetokenizeRecipe(Recipe):
    """Which model, and what it is to read and write by. Train what comes out on data of the new vocabulary."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder")
    tokenizer: Path = Field(description="the new vocabulary: a tokenizer run, a Hugging Face folder, a tokenizer.model",
                            examples=["tokenizer=runs/tok16k"])  # fmt: skip
    out: Changeable[Path] = Field(description="the run to make")


def main(recipe: RetokenizeRecipe) -> None:
    """Write a run with an ordinary model/."""
    folder, new = model_folder(recipe.model), Tokenizer.load(recipe.tokenizer)
    if is_adapter(folder):
        raise InputError(f"{recipe.model}: is an adapter, whose rows are its base's; merge it first: "
                         f"babyllama merge {pasted(recipe.model)} out=…")  # fmt: skip
    if quantization(folder):
        raise InputError(f"{recipe.model}: its weights are packed; give the model that it was made of")
    old = read_tokenizer(folder)
    if old.chat_template in TEMPLATES and (old.chat_template != "roles" or new.role_ids):
        new = new.with_template(old.chat_template)  # what its chats looked like
    run = Run.create(recipe.out, "retokenize", recipe, recipe.model)
    console = Console(highlight=False)
    if not run.finished:
        model = read_model(folder)
        check_vocabulary(model, old, folder)
        found = sources(old, new)
        change_rows(model, found)

        def fill(target: Path) -> None:
            save_model(model, target, sampling=own_sampling(folder), **new.config_ids)
            new.save(target)

        run.save_model(fill)
        kept, lost = sum(len(some) == 1 for some in found), sum(not some for some in found)
        several = len(found) - kept - lost
        run.finish(parameters=model.config.parameters, kept=kept, means=several, without=lost)
        write_card(run.model, run.path, run.path.resolve().name)
        console.print(f"of {len(found):,} tokens {kept:,} have the row of one old token, {several:,} are "
                      f"means of several, {lost:,} of all", markup=False, soft_wrap=True)  # fmt: skip
    after = f"babyllama train out=… init=from init.path={pasted(recipe.out)} data.path=… plan.epochs=1"
    console.print(f"{recipe.out}/model is ready; train it on, with data prepared with tokenizer={recipe.tokenizer}: "
                  f"{after}", markup=False, soft_wrap=True)  # fmt: skip
