"""export: a run → a file or folder that other programs run, with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from rich.console import Console

from babyllama.amounts import size
from babyllama.errors import InputError, needs_extra
from babyllama.load import check_vocabulary, model_folder, read_model, read_tokenizer
from babyllama.model.adapters import base_link, is_adapter, load_adapter
from babyllama.model.laws import RopeConfig
from babyllama.recipe import Recipe


class ExportRecipe(Recipe):
    """The verb's recipe."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder; an adapter goes with its base")
    to: Literal["gguf"] = Field(default="gguf", description="gguf: one file, for llama.cpp, LM Studio and their kin")
    out: Path | None = Field(default=None, description="what to write; default: in this folder, by the model's name")
    type: Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"] | None = Field(
        default=None, description="of a GGUF file's matrices; default: F16, or the codes of a model that is packed"
    )
    adapter: Literal["merge", "apart"] = Field(
        default="merge", description="merge: one model with its base; apart: a GGUF LoRA for the base's own file"
    )
    rope: RopeConfig | None = Field(default=None, description="another RoPE scaling than the model's, as in chat")
    name: str = Field(default="", description="what programs show; default: the run's name")
    overwrite: bool = Field(default=False, description="replace what is at out")


def main(recipe: ExportRecipe) -> None:
    """Write what is asked for.

    Raises:
        InputError: out exists; the model has what the form lacks.
    """
    Console(highlight=False, markup=False, soft_wrap=True).print(_gguf(recipe, model_folder(recipe.model)))


def _gguf(recipe: ExportRecipe, folder: Path) -> str:
    """What was written, in a sentence."""
    try:
        from babyllama.export.gguf_file import settled_type, write_gguf, write_lora
    except ImportError as error:
        raise needs_extra(error.name or "gguf", "export") from None
    name = recipe.name or title(folder)
    if recipe.adapter == "apart":
        out = free(recipe.out or Path(f"{name}-lora.gguf"), recipe.overwrite)
        link = base_link(adapter_at(folder))
        if link.packed != "dense" or link.rope is not None:
            changed = f"its base in {link.packed}" if link.packed != "dense" else "another RoPE scaling than its base's"
            raise InputError(f"{folder}: was trained on {changed}, which the base's own file is not; use adapter=merge")
        link.check(folder)
        model = read_model(model_folder(link.folder))
        load_adapter(model, folder)
        write_lora(model, out, name)
        return f"{out}: a LoRA of {size(out.stat().st_size)}; its base: babyllama export {link.folder}"
    model, tokenizer = read_model(folder, rope=recipe.rope), read_tokenizer(folder)
    check_vocabulary(model, tokenizer, folder)
    type = settled_type(model, recipe.type)
    out = free(recipe.out or Path(f"{name}-{type}.gguf"), recipe.overwrite)
    kinds = write_gguf(model, tokenizer, out, type, name)
    held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{out}: {size(out.stat().st_size)}, matrices: {held}"


def adapter_at(folder: Path) -> Path:
    """The folder itself. Raises InputError where it holds a whole model."""
    if not is_adapter(folder):
        raise InputError(f"{folder}: holds a whole model and no adapter; leave adapter=apart out")
    return folder


def free(out: Path, overwrite: bool) -> Path:
    """`out` itself. Raises InputError where something is there that nobody said to replace."""
    if out.exists() and not overwrite:
        raise InputError(f"{out}: exists already; choose another out=…, or overwrite=true to replace it")
    return out


def title(folder: Path) -> str:
    """What a model is called: its run, or its folder."""
    place = folder.resolve()
    return place.parent.name if place.name in ("model", "best") else place.name
