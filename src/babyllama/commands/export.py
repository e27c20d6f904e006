"""export: a run → a file or folder that other programs run, with the same answers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Literal

from pydantic import Field, model_validator
from rich.console import Console

from babyllama.amounts import size
from babyllama.atomic import write_atomic, write_folder
from babyllama.commands.merge import base_dtype
from babyllama.errors import InputError, needs_extra, pasted
from babyllama.infer.sampling import AnswerSampling
from babyllama.load import check_vocabulary, model_folder, own_sampling, read_model, read_tokenizer
from babyllama.model.adapters import base_link, is_adapter, load_adapter
from babyllama.model.checkpoint import quantization
from babyllama.model.laws import RopeConfig
from babyllama.model.transformer import Transformer
from babyllama.recipe import Changeable, Recipe
from babyllama.tokenizer.tokenizer import Tokenizer


class ExportRecipe(Recipe):
    """The verb's recipe."""

    model: Path = Field(description="a run or a Hugging Face LLaMA folder; an adapter goes with its base")
    to: Literal["gguf", "ollama", "hf"] = Field(
        default="gguf",
        description="gguf: one file, for llama.cpp and LM Studio; ollama: a folder with that and a Modelfile; "
        "hf: a folder to publish",
    )
    out: Path | None = Field(default=None, description="what to write; default: in this folder, by the model's name")
    type: Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"] | None = Field(
        default=None, description="of a GGUF file's matrices; default: F16, or the codes of a model that is packed"
    )
    adapter: Literal["merge", "apart"] = Field(
        default="merge", description="merge: one model with its base; apart: a GGUF LoRA for the base's own file"
    )
    rope: RopeConfig | None = Field(default=None, description="another RoPE scaling than the model's, as in chat")
    name: str = Field(default="", description="what programs show; default: the run's name")
    licence: str = Field(default="", description="hf: the model's, as the hub names it, such as apache-2.0")
    licence_file: Path | None = Field(default=None, description="hf: the text that becomes LICENSE")
    push: Changeable[str] = Field(default="", description="hf: upload to this repository of the hub, me/my-model")
    private: Changeable[bool] = Field(default=True, description="push: a repository that is new is private")
    dry_run: Changeable[bool] = Field(default=False, description="push: only say what would be uploaded")
    overwrite: bool = Field(default=False, description="replace what is at out")

    @model_validator(mode="after")
    def _fitting(self) -> ExportRecipe:
        given = self.model_fields_set
        for form, keys in {
            "hf": ("licence", "licence_file", "push", "private", "dry_run"),
            "gguf": ("adapter",),
        }.items():
            if self.to != form and (misplaced := [key for key in keys if key in given]):
                raise ValueError(f"{misplaced[0]} has no effect with to={self.to}; it goes with to={form}")
        if self.to == "hf" and self.type is not None:
            raise ValueError("type has no effect with to=hf, whose weights stay as they are; leave it out")
        return self


def main(recipe: ExportRecipe) -> None:
    """Write what is asked for.

    Raises:
        InputError: out exists; the model has what the form lacks; the hub refused.
    """
    folder = model_folder(recipe.model)
    if recipe.to == "hf":
        said = _folder(recipe, folder)
    else:
        try:
            from babyllama.export import gguf_file
        except ImportError as error:
            raise needs_extra(error.name or "gguf", "export") from None
        said = (_lora if recipe.adapter == "apart" else _whole)(recipe, folder, gguf_file)
    Console(highlight=False, markup=False, soft_wrap=True).print(said)


def _lora(recipe: ExportRecipe, folder: Path, gguf_file: ModuleType) -> str:
    """A GGUF LoRA; what was written, in a sentence."""
    if not is_adapter(folder):
        raise InputError(f"{folder}: holds a whole model and no adapter; leave adapter=apart out")
    name = recipe.name or title(folder)
    out = free(recipe.out or Path(f"{name}-lora.gguf"), recipe.overwrite)
    link = base_link(folder)
    if link.packed != "dense" or link.rope is not None:
        changed = f"its base in {link.packed}" if link.packed != "dense" else "another RoPE scaling than its base's"
        raise InputError(f"{folder}: was trained on {changed}, which the base's own file is not; use adapter=merge")
    link.check(folder)
    model = read_model(model_folder(link.folder))
    load_adapter(model, folder)
    gguf_file.write_lora(model, out, name)
    return f"{out}: a LoRA of {size(out.stat().st_size)}; its base: babyllama export {pasted(link.folder)}"


def _whole(recipe: ExportRecipe, folder: Path, gguf_file: ModuleType) -> str:
    """A GGUF file, alone or with Ollama's Modelfile; what was written, in a sentence."""
    name = recipe.name or title(folder)
    model, tokenizer = _read(folder, recipe.rope)
    type = gguf_file.settled_type(model, recipe.type)
    if recipe.to == "gguf":
        out = free(recipe.out or Path(f"{name}-{type}.gguf"), recipe.overwrite)
        kinds = gguf_file.write_gguf(model, tokenizer, out, type, name)
        held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        return f"{out}: {size(out.stat().st_size)}, matrices: {held}"
    from babyllama.export.ollama import called, modelfile

    out, file = free(recipe.out or Path(f"{name}-ollama"), recipe.overwrite, "Modelfile"), f"{called(name)}-{type}.gguf"
    text = modelfile(tokenizer, file, model.config.max_position_embeddings, AnswerSampling().over(own_sampling(folder)))

    def fill(made: Path) -> None:
        gguf_file.write_gguf(model, tokenizer, made / file, type, name)
        write_atomic(made / "Modelfile", text)

    write_folder(out, fill)
    return f"{out}: ollama create {called(name)} -f {pasted(out / 'Modelfile')}"


def _folder(recipe: ExportRecipe, folder: Path) -> str:
    """A Hugging Face folder, on the hub where that is asked for; what was written, in a sentence."""
    from babyllama.export import hub
    from babyllama.export.folder import check_readable, fill

    name = recipe.name or title(folder)
    if recipe.push:
        try:
            hub.check_repository(recipe.push)
        except ImportError as error:
            raise needs_extra(error.name or "huggingface_hub", "export") from None
    if recipe.licence_file is not None and not recipe.licence_file.is_file():
        raise InputError(f"licence_file: {recipe.licence_file} is not a file; give the text of the licence")
    out = free(recipe.out or Path(f"{name}-hf"), recipe.overwrite, "config.json")
    model, tokenizer = _read(folder, recipe.rope)
    model.to(base_dtype(folder))
    method = None if is_adapter(folder) else (quantization(folder) or {}).get("quant_method")
    check_readable(model, method)
    write_folder(out, lambda made: fill(made, model, tokenizer, recipe.model, name, method, recipe.licence,
                                        recipe.licence_file, own_sampling(folder)))  # fmt: skip
    if not recipe.push:
        return f"{out}: {hub.amount_of(out)}; read its README.md before you publish it"
    if recipe.dry_run:
        where = f"{recipe.push} ({'private' if recipe.private else 'public'})"
        return f"{out}: nothing was uploaded; without dry_run these go to {where}:\n{hub.listing(out)}"
    return f"{out}: uploaded to {hub.push(out, recipe.push, recipe.private)}"


def _read(folder: Path, rope: RopeConfig | None) -> tuple[Transformer, Tokenizer]:
    model, tokenizer = read_model(folder, rope=rope), read_tokenizer(folder)
    check_vocabulary(model, tokenizer, folder)
    return model, tokenizer


def free(out: Path, overwrite: bool, mark: str = "") -> Path:
    """`out` itself.

    Args:
        mark: a file that every folder of this form has: no other folder is replaced, whatever was said.

    Raises:
        InputError: something is there that nobody said to replace, or that no export made.
    """
    if out.exists() and not overwrite:
        raise InputError(f"{out}: exists already; choose another out=…, or overwrite=true to replace it")
    if out.is_dir() and mark and any(out.iterdir()) and not (out / mark).is_file():
        raise InputError(f"{out}: is no earlier export (no {mark} in it) and would be lost; choose another out=…")
    return out


def title(folder: Path) -> str:
    """What a model is called: its run, or its folder."""
    place = folder.resolve()
    return place.parent.name if place.name in ("model", "best") else place.name
