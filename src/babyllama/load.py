"""Run or Hugging Face folder → ready model and tokenizer: the one place that knows the order of assembly.

Order: config and rope (of an adapter, the law that it was trained by) → weights (strict) → packed linears → adapters,
merged or attached → dtype and device. Another attend function comes after the adapters when a folder asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from babyllama.errors import InputError, pasted
from babyllama.hardware import bf16_is_faster
from babyllama.infer.sampling import GENERATION, carried_sampling
from babyllama.model.adapters import base_link, is_adapter, load_adapter
from babyllama.model.checkpoint import load_model, read_config
from babyllama.model.config import ModelConfig, extended
from babyllama.model.laws import RopeConfig
from babyllama.model.lora import merge, switch
from babyllama.model.nf4 import pack_base
from babyllama.model.transformer import Transformer
from babyllama.quant.folder import is_packed, to_dense, unpacking
from babyllama.recipe import maker, one_inside
from babyllama.run import Run
from babyllama.tokenizer.tokenizer import Tokenizer

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, its tokenizer, and the folder that they came from."""

    model: Transformer
    tokenizer: Tokenizer
    folder: Path


def default_device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_device(choice: str) -> torch.device:
    """``auto`` → the GPU when there is one. Raises InputError for a device that is not there."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda is asked for, but PyTorch finds no GPU; use device=cpu")
    if choice not in ("auto", "cpu", "cuda"):
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None or found.type != choice:
            raise InputError(f"device: {choice} is asked for, but PyTorch finds "
                             f"{'no accelerator' if found is None else found.type}; use device=cpu")  # fmt: skip
    return default_device() if choice == "auto" else torch.device(choice)


def default_precision(device: torch.device) -> Precision:
    """bf16 where the card computes it, fp16 on older cards, fp32 on a CPU."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def pick_precision(choice: Literal["auto", "fast"] | Precision, device: torch.device) -> Precision:
    """``auto`` → what suits the device; ``fast`` → that, but bf16 on a CPU whose instructions multiply it."""
    if choice == "fast" and device.type == "cpu":
        return "bf16" if bf16_is_faster(device) else "fp32"
    return default_precision(device) if choice in ("auto", "fast") else choice


def serving_precision(model: Transformer, device: torch.device) -> Precision:
    """The default, but bf16 for packed weights on a CPU, whose products of few bits are fast in bf16 alone."""
    return "bf16" if device.type == "cpu" and is_packed(model) else default_precision(device)


def model_folder(path: Path) -> Path:
    """The folder with config.json, or adapter_config.json: `path` itself or, for a run, its ``model/``."""
    if (path / "run.json").exists():
        Run.open(path)
    for folder in (path / "model", path):
        if (folder / "config.json").is_file() or is_adapter(folder):
            return folder
    if (path / "run.json").exists():
        verb = Run(path).info["verb"]
        if verb in ("prepare", "tokenizer"):
            raise InputError(f"{path}: holds a {verb} run, which has no model; give a train run")
        raise InputError(f"{path}: has no model yet; continue it with: babyllama {verb} {pasted(path)}")
    if path.is_file():
        other = (
            "; GGUF is for llama.cpp and the like: give the run that it was made of" if path.suffix == ".gguf" else ""
        )
        raise InputError(f"{path}: is a file, and no run or Hugging Face LLaMA folder{other}")
    if path.exists():
        remedy = one_inside(path, "model/config.json", "give one that is")
        raise InputError(f"{path}: is neither a run nor a Hugging Face LLaMA folder; {remedy}")
    raise InputError(f"{path}: does not exist; train one with: {maker('train', path)}")


def read_model(folder: Path, attach: bool = False, rope: RopeConfig | None = None, scores: bool = False
               ) -> Transformer:  # fmt: skip
    """The model of a `model_folder`, on the CPU: in the file's dtype, or a base and its adapter merged in float32.

    Args:
        attach: leave adapters on their base, packed as it was in training, to be switched on and off.
        rope: another law than the model's own, to reach a longer context.
        scores: whether a reward model will do too.

    Raises:
        InputError: what `load_model` and `load_adapter` refuse, a base that is not there or has other weights; a model
            that writes nothing.
    """
    if not is_adapter(folder):
        if read_config(folder).reward and not scores:
            raise InputError(f"{folder}: is a reward model, which says what answers are worth and writes none; use it "
                             "in rewards=[{kind: model, path: …}], measure it with evaluate, or serve it")  # fmt: skip
        return load_model(folder, rope, unpacking)
    link = base_link(folder)
    link.check(folder)
    model = read_model(model_folder(link.folder), attach and link.packed == "dense", rope or link.rope)
    model = model if attach else model.float()
    pack_base(model, link.packed)
    load_adapter(model, folder, folder.resolve().parent.name if folder.name == "model" else folder.name)
    if not attach:
        merge(model)
        to_dense(model)
        model.requires_grad_(True)
    return model


def config_of(folder: Path) -> ModelConfig:
    """The shape of a `model_folder`'s model, without its weights; of an adapter its base's, under the adapter's law."""
    if not is_adapter(folder):
        return read_config(folder)
    link = base_link(folder)
    config = config_of(model_folder(link.folder))
    return config if link.rope is None else extended(config, link.rope)


def own_sampling(path: Path) -> dict[str, float]:
    """What the generation_config.json of a run's or a folder's model, or of an adapter's base, says of how answers are
    drawn; no key that it does not say. Raises InputError as `model_folder` and `carried_sampling`."""
    folder = model_folder(path)
    if is_adapter(folder) and not (folder / GENERATION).is_file():
        return own_sampling(base_link(folder).folder)
    return carried_sampling(folder)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a `model_folder`; an adapter without one, such as PEFT's, has its base's."""
    if is_adapter(folder) and not (folder / "tokenizer.json").is_file():
        return read_tokenizer(model_folder(base_link(folder).folder))
    return Tokenizer.load(folder)


def load(path: Path, device: torch.device | None = None, precision: Precision | None = None,
         rope: RopeConfig | None = None, attach: bool = False, scores: bool = False) -> Loaded:  # fmt: skip
    """The model of a run, of an adapter or of a Hugging Face LLaMA folder, ready to run; as `read_model`.

    Raises:
        InputError: what `read_model` and `Tokenizer.load` refuse, or a vocabulary larger than the model's.
    """
    folder = model_folder(path)
    device = device or default_device()
    model, tokenizer = read_model(folder, attach, rope, scores), read_tokenizer(folder)
    check_vocabulary(model, tokenizer, folder)
    model.to(device, DTYPES[precision or serving_precision(model, device)]).eval().requires_grad_(False)
    return Loaded(model, tokenizer, folder)


def load_adapters(folders: Mapping[str, Path], device: torch.device, precision: Precision | None = None) -> Loaded:
    """One base with adapters of its own attached by name and switched off; the base's tokenizer.

    Args:
        folders: name → `model_folder` of an adapter, at least one.

    Raises:
        InputError: as `load`; adapters of different bases, or trained by different RoPE scalings.
    """
    links = {name: base_link(folder) for name, folder in folders.items()}
    (first, link), *others = links.items()
    for name, other in others:
        if (other.folder.resolve(), other.packed, other.rope) != (link.folder.resolve(), link.packed, link.rope):
            raise InputError(f"{folders[name]} and {folders[first]} have not the same base; share what has")
    base = model_folder(link.folder)
    tokenizer = read_tokenizer(base)
    for folder in folders.values():
        if read_tokenizer(folder).hash != tokenizer.hash:
            raise InputError(f"{folder}: has another tokenizer than its base {base}; serve it without share_base")
    model = read_model(base, rope=link.rope)
    pack_base(model, link.packed)
    for name, folder in folders.items():
        links[name].check(folder)
        switch(model, False)  # a start that was taken out of the base is computed from the base alone
        load_adapter(model, folder, name)
    switch(model, False)
    check_vocabulary(model, tokenizer, base)
    model.to(device, DTYPES[precision or serving_precision(model, device)]).eval().requires_grad_(False)
    return Loaded(model, tokenizer, base)


def check_vocabulary(model: Transformer, tokenizer: Tokenizer, folder: Path) -> None:
    """Raise InputError when the tokenizer makes ids that the model has no embedding for."""
    if tokenizer.vocab_size > model.config.vocab_size:
        rows = model.config.vocab_size
        extra = [repr(tokenizer.decode([i], skip_special=False)) for i in range(rows, tokenizer.vocab_size)]
        named = f": {', '.join(extra[:3])}{', …' if len(extra) > 3 else ''}"
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model has rows for {rows} (vocab_size in "
            f"config.json){named} came with the tokenizer alone; take the tokenizer of this model, or give the model "
            f"rows with transformers: model.resize_token_embeddings({tokenizer.vocab_size}), then save_pretrained"
        )
