"""``model/``: a Hugging Face-shaped folder of config.json and safetensors, read strictly and written from a module.

Names inside files are LlamaForCausalLM's (``model.layers.0…``, ``lm_head.weight``); ours lack the ``model.`` prefix.
Not here: what experts are called (expert_names.py), tokenizer files, dtype and device policy, anything that unpickles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from babyllama.atomic import parse_json, write_json
from babyllama.errors import InputError
from babyllama.model.config import ModelConfig, extended
from babyllama.model.config_json import family, from_hugging_face, to_hugging_face
from babyllama.model.expert_names import join, split
from babyllama.model.laws import RopeConfig
from babyllama.model.roles import exact
from babyllama.model.transformer import Transformer

DTYPE_FROM = ("embed_tokens.weight", "norm.weight")  # whose dtype is the model's; an embedding may be packed


class Packing(NamedTuple):
    """Matrices that a folder holds in few bits.

    settings: config.json's ``quantization_config``.  tensors: by our names.  own: no other program reads them.
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    own: bool


# (model on the meta device, settings, a folder's tensors by our names, folder) → those of the modules that it places
Unpacking = Callable[[Transformer, dict[str, Any], dict[str, Tensor], Path], dict[str, Tensor]]


_SCORE = "score.weight"  # a reward model's head, as LlamaForSequenceClassification calls it


def hugging_face_name(name: str) -> str:
    """Our parameter name → LlamaForCausalLM's."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def _our_name(name: str) -> str:
    return "lm_head.weight" if name == _SCORE else name.removeprefix("model.")


def save_model(model: Transformer, folder: Path, bos_id: int, eos_id: int, packing: Packing | None = None,
               pad_id: int | None = None, stops: Collection[int] = (),
               sampling: Mapping[str, float] | None = None) -> None:  # fmt: skip
    """Write config.json, generation_config.json and model.safetensors into an existing folder.

    The weights are written in the parameters' own dtype; without a `pad_id` the end token fills batches. `stops`: what
    ends a text besides the end token. `sampling`: how other programs draw answers unless their users say, by
    generation_config.json's keys.
    """
    named = {name: p for name, p in model.named_parameters() if not name.startswith("value.")}  # of a training alone
    tensors: dict[str, Tensor] = {**named, **(packing.tensors if packing else {})}
    tensors = split(tensors, family(model.config.moe))
    weights = {hugging_face_name(name): tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if model.config.reward:
        weights[_SCORE] = weights.pop("lm_head.weight")
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    config = to_hugging_face(
        model.config, bos_id, eos_id, dtype, own=packing is not None and packing.own, pad_id=pad_id
    )
    if packing:
        config["quantization_config"] = packing.settings
    write_json(folder / "config.json", config, indent=2)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if others := sorted(set(stops) - {eos_id}):
        generation["eos_token_id"] = [eos_id, *others]
    if sampling:
        generation |= {"do_sample": sampling.get("temperature") != 0, **sampling}
    write_json(folder / "generation_config.json", generation, indent=2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def read_config(folder: Path) -> ModelConfig:
    """The shape in ``config.json``. Raises InputError when it is missing, broken or not a LLaMA."""
    data = _read_json(folder)
    try:
        return from_hugging_face(data, str(folder / "config.json"))
    except KeyError as error:
        raise InputError(f"{folder / 'config.json'}: the key {error} is missing") from None


def quantization(folder: Path) -> dict[str, Any] | None:
    """config.json's ``quantization_config``, where it has one."""
    found = _read_json(folder).get("quantization_config")
    if found is not None and not isinstance(found, dict):
        raise InputError(f"{folder / 'config.json'}: quantization_config must hold a JSON object")
    return found


def _read_json(folder: Path) -> Any:
    path = folder / "config.json"
    try:
        return parse_json(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no config.json; give a run or a Hugging Face LLaMA folder") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None


def load_model(folder: Path, rope: RopeConfig | None = None, unpacking: Unpacking | None = None) -> Transformer:
    """A Transformer with the weights of `folder`, on the CPU, in the files' dtype.

    Args:
        rope: another law than the folder's, to reach a longer context; one that learns starts anew.
        unpacking: what to do with packed matrices; without it a folder that has them is refused.

    Raises:
        InputError: a missing, unexpected or misshapen tensor (all are named), a truncated file, pickled weights only.
    """
    stored, found = _untied(read_config(folder), _read_tensors(folder))
    config = stored if rope is None else extended(stored, rope)
    with torch.device("meta"):
        model = Transformer(config)
    new_law = config.rope != stored.rope
    if new_law:
        found = {name: tensor for name, tensor in found.items() if not exact(name)}
    if settings := quantization(folder):
        if unpacking is None:
            raise InputError(f"{folder}: holds packed weights ({settings.get('quant_method')}); a dense one is needed")
        found = unpacking(model, settings, found, folder)
    every = model.state_dict(keep_vars=True)  # parameters and packed buffers
    owner: dict[int, str] = {}  # of what several modules share: the first
    for name, tensor in every.items():
        owner.setdefault(id(tensor), name)
    expected = {name: tuple(every[name].shape) for name in owner.values() if not (new_law and exact(name))}
    _check(folder, expected, {name: tuple(tensor.shape) for name, tensor in found.items()})
    dtype = next(found[name] for name in DTYPE_FROM if name in found).dtype
    state = {**model.rope.state_dict(prefix="rope."), **found}
    for name in expected:
        if isinstance(every[name], nn.Parameter) and not exact(name):
            state[name] = state[name].to(dtype)
    model.load_state_dict({name: state[owner[id(tensor)]] for name, tensor in every.items()}, assign=True)
    if config.tie_word_embeddings and "embed_tokens.weight" in found:
        model.lm_head.weight = model.embed_tokens.weight
    return model


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by our names."""
    found: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                names = {name: _our_name(name) for name in tensors.keys()}  # noqa: SIM118  (not a dict)
                if foreign := [n for n, ours in names.items() if n != _SCORE and hugging_face_name(ours) != n]:
                    raise InputError(f"{file}: unexpected {', '.join(foreign[:5])}; give a LlamaForCausalLM's folder")
                found |= {ours: tensors.get_tensor(name) for name, ours in names.items()}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: not a whole safetensors file ({error}); restore it from a backup") from None
    return join(found)


def _untied(stored: ModelConfig, found: dict[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and tensors that agree on whether the head is the embedding: a tied one that is written besides goes, one
    that differs is a head of its own, as a merge of a separately trained head leaves it and transformers computes."""
    head, embedding = found.get("lm_head.weight"), found.get("embed_tokens.weight")
    if not stored.tie_word_embeddings or head is None:
        return stored, found
    if embedding is None or head.shape != embedding.shape or not torch.equal(head, embedding):
        return stored.model_copy(update={"tie_word_embeddings": False}), found
    return stored, {name: tensor for name, tensor in found.items() if name != "lm_head.weight"}


def weights_dtype(folder: Path) -> torch.dtype:
    """The dtype that `load_model` gives the model of a folder."""
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in map(hugging_face_name, DTYPE_FROM):
                if name in tensors.keys():  # noqa: SIM118  (not a dict)
                    return tensors.get_tensor(name).dtype
    raise InputError(f"{folder}: no model.embed_tokens.weight in its weights")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{index}: not a safetensors index (JSON with a weight_map); restore it") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: the index names files that are not there: {', '.join(missing)}")
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise missing_weights(folder, "model.safetensors")


def missing_weights(folder: Path, name: str) -> InputError:
    """The error for weights that are not there, or there only as a pickle, which is never opened."""
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".pt", ".ckpt"))
    hint = f" ({pickled[0]} is a pickle, which may run code: convert it to safetensors first)" if pickled else ""
    return InputError(f"{folder}: no {name}{hint}")


def _check(folder: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    faults = [f"missing {hugging_face_name(name)}" for name in expected if name not in found]
    faults += [f"unexpected {hugging_face_name(name)}" for name in found if name not in expected]
    faults += [
        f"{hugging_face_name(name)} has shape {list(found[name])}, config.json asks for {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InputError(f"{folder}: weights do not fit config.json: {'; '.join(faults[:5])}{more}")
