"""An adapter's folder, in PEFT's format, and the base that it belongs to.

    adapter_config.json  adapter_model.safetensors     as PEFT writes and reads them
    base.json            where the base lies, the hash of its weights, how its blocks were kept (dense, nf4, int8), and
                         the RoPE law by which the adapter was trained, where it is another than the base's

Without base.json (a folder of PEFT's own) the base is adapter_config.json's and its hash is not known. Not here: the
wrappers (lora.py), the order of assembly (load.py).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from babyllama.atomic import read_json, write_json
from babyllama.errors import InputError
from babyllama.model.checkpoint import missing_weights
from babyllama.model.laws import RopeConfig, law_of
from babyllama.model.lora import NORMS, WRAPPERS, Lora, is_end, linears, train_whole, wrap
from babyllama.model.nf4 import PACKED, Base
from babyllama.model.starts import LOST, STARTS, beside_whole
from babyllama.model.surgery import dense_weight
from babyllama.model.wrappers import LoraLinear, Trained, is_tied
from babyllama.run import add_file

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
PREFIX = "base_model.model."
SUFFIXES = {"lora_A.weight": "lora_A", "lora_B.weight": "lora_B", "lora_magnitude_vector": "magnitude"}
# Keys of adapter_config.json under which PEFT computes something that we do not, unless they are empty.
REFUSED = ("fan_in_fan_out", "lora_bias", "trainable_token_indices", "layer_replication", "target_parameters",
           "alora_invocation_tokens", "arrow_config", "megatron_config", "use_qalora", "use_bdlora", "velora_config",
           "monteclora_config", "kasa_config")  # fmt: skip


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def weights_hash(folder: Path) -> str:
    """Of all safetensors files of a folder, by name and content."""
    digest = xxhash.xxh3_128()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        add_file(digest, path)
    return digest.hexdigest()


@dataclass(frozen=True)
class BaseLink:
    """Which base an adapter belongs to, and what was done to it first.

    `hash` is None where nobody wrote it down; `rope` where the adapter goes by its base's own law.
    """

    folder: Path
    hash: str | None
    packed: Base = "dense"
    rope: RopeConfig | None = None

    @classmethod
    def to(cls, folder: Path, packed: Base, rope: RopeConfig | None = None) -> BaseLink:
        """The base in `folder` as it is now."""
        return cls(folder, weights_hash(folder), packed, rope)

    def check(self, adapter: Path) -> None:
        """Raise InputError unless the base has the weights that the adapter was trained on."""
        if self.hash is None:
            return
        found = weights_hash(self.folder)
        if self.hash != found:
            raise InputError(f"{adapter}: trained on a base with hash {self.hash}, but {self.folder} has {found}; "
                             f"put that base back, or give it in {BASE}")  # fmt: skip


def claim_base(run: Path, base: BaseLink, write: bool) -> None:
    """Note beside a training which base it is for. Raises InputError when it went on from another one before."""
    note = run / BASE
    if note.is_file():
        began = read_json(note).get("hash")
        if began != base.hash:
            raise InputError(f"{run}: began on a base with hash {began}, but {base.folder} has {base.hash}; "
                             "put that base back, or choose another out=…")  # fmt: skip
    elif write:
        write_json(note, {"path": str(base.folder), "hash": base.hash}, indent=2)


def logical_name(path: str) -> str:
    """The name of what a chain of wrappers wraps: q_proj.base.base → q_proj."""
    while path.endswith(".base"):
        path = path.removesuffix(".base")
    return path


def _peft_name(path: str, part: str) -> str:
    return f"{PREFIX}{path}.{part}" if path == "lm_head" else f"{PREFIX}model.{path}.{part}"


def adapter_tensors(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names, on the CPU."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, LoraLinear) and module.name == name:
            for part, attribute in SUFFIXES.items():
                if hasattr(module, attribute):
                    found[_peft_name(logical_name(path), part)] = getattr(module, attribute)
        elif isinstance(module, Trained) and module.name == name:
            found[_peft_name(logical_name(path), "weight")] = module.own.weight  # type: ignore[assignment]
    return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in found.items()}


def save_adapter(model: nn.Module, folder: Path, adapter: Lora, base: BaseLink, name: str = "default") -> None:
    """Write the three files into an existing folder."""
    tensors = adapter_tensors(model, name)
    whole = {key.removesuffix(".weight").rpartition(".")[2] for key in tensors if not key.endswith(tuple(SUFFIXES))}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base.folder.resolve()),
        "r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": adapter.dropout, "bias": "none",
        "target_modules": list(adapter.targets), "rank_pattern": dict(adapter.ranks), "alpha_pattern": {},
        "modules_to_save": sorted(whole) or None, "use_rslora": adapter.scaling == "sqrt_rank",
        "use_dora": adapter.kind == "dora", "fan_in_fan_out": False, "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip
    link = {"path": os.path.relpath(base.folder.resolve(), folder.resolve()), "hash": base.hash, "packed": base.packed}
    if base.rope is not None:
        link["rope"] = base.rope.model_dump()
    write_json(folder / CONFIG, config, indent=2)
    write_json(folder / BASE, link, indent=2)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def base_link(folder: Path) -> BaseLink:
    """Where an adapter's base lies: beside it as when it was written, else where it was then.

    Raises:
        InputError: damaged files, or a base that is not there.
    """
    written = str(read_json(folder / CONFIG).get("base_model_name_or_path") or "")
    link = read_json(folder / BASE) if (folder / BASE).is_file() else {}
    packed = link.get("packed", "dense")
    if packed != "dense" and packed not in PACKED:
        raise InputError(f"{folder / BASE}: packed is {packed!r}; it must be dense, {' or '.join(PACKED)}")
    rope = law_of(link["rope"], str(folder / BASE)) if "rope" in link else None
    places = [folder / link["path"]] if "path" in link else []
    for place in (*places, Path(written)) if written else places:
        if place.is_dir():
            return BaseLink(Path(os.path.normpath(place)), link.get("hash"), packed, rope)
    raise InputError(
        f"{folder}: its base {written or '(not named)'} is not there; put it back, or give its path in {BASE}"
    )


def load_adapter(model: nn.Module, folder: Path, name: str = "default") -> None:
    """Put the adapter of a folder on top of its base, which is in `model`.

    Raises:
        InputError: a truncated or incomplete file, factors that do not fit the model, a kind that we do not compute.
    """
    config = read_json(folder / CONFIG)
    _refuse(config, folder / CONFIG)
    parts = _read(folder / WEIGHTS)
    factors = {path: p for path, p in parts.items() if "weight" not in p}
    _check(model, config, factors, folder)
    scales = {path: _scale(config, path, len(p["lora_A"])) for path, p in factors.items()}
    if (start := str(config.get("init_lora_weights")).lower()) in STARTS:
        for path, p in factors.items():
            weight = dense_weight(model.get_submodule(path))
            p["lora_B"], p["lora_A"] = beside_whole(start, weight, p["lora_B"], p["lora_A"], scales[path])
    sizes = {path: (len(p["lora_A"]), scales[path]) for path, p in factors.items()}
    whole = {path: p["weight"] for path, p in parts.items() if "weight" in p}
    wrap(model, sizes, WRAPPERS["dora" if config.get("use_dora") else "lora"], 0.0, name)
    _train_whole(model, whole, name, folder)
    with torch.no_grad():
        for path, tensors in factors.items():
            for attribute, tensor in tensors.items():
                getattr(model.get_submodule(path), attribute).copy_(tensor)
        for path, tensor in whole.items():
            model.get_submodule(path).own.weight.copy_(tensor)  # type: ignore[operator, union-attr]


def _refuse(config: dict[str, Any], where: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise InputError(f"{where}: peft_type is {config.get('peft_type')!r}; only 'LORA' (with DoRA) can be loaded")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(LOST):
        raise InputError(f"{where}: init_lora_weights is {start!r}: PEFT took a part out of the base that nobody kept; "
                         "save it with path_initial_model_for_weight_conversion=…, as a plain LoRA")  # fmt: skip
    for key in config.get("alpha_pattern") or {}:
        try:
            re.compile(key)
        except re.error as error:
            raise InputError(f"{where}: alpha_pattern: {key!r} is not a regular expression ({error})") from None
    used = [f"{key} = {config[key]!r}" for key in REFUSED if config.get(key)]
    if config.get("bias", "none") != "none":
        used.append(f"bias = {config['bias']!r}")
    if used:
        raise InputError(f"{where}: {used[0]} is not supported here; use a plain LoRA or DoRA")


def _read(file: Path) -> dict[str, dict[str, Tensor]]:
    """Our module name → its tensors by attribute; ``weight`` for a module that was trained whole."""
    if not file.is_file():
        raise missing_weights(file.parent, file.name)
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a whole safetensors file ({error}); restore it from a backup") from None
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        path = key.removeprefix(PREFIX).removeprefix("model.")
        for suffix, attribute in {**SUFFIXES, "weight": "weight"}.items():
            if path.endswith(f".{suffix}"):
                found.setdefault(path.removesuffix(f".{suffix}"), {})[attribute] = tensor
                break
        else:
            raise InputError(f"{file}: {key} is nothing that a LoRA of a LLaMA has")
    return found


def _scale(config: dict[str, Any], path: str, rank: int) -> float:
    """s of a linear; the keys of alpha_pattern are regular expressions for the end of its name, the first that fits."""
    name, patterns = f"model.{path}", config.get("alpha_pattern") or {}
    fitting = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", name)]
    alpha = fitting[0] if fitting else config.get("lora_alpha", 8)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _check(model: nn.Module, config: dict[str, Any], factors: dict[str, dict[str, Tensor]], folder: Path) -> None:
    """Raise InputError, naming every fault, unless the factors are whole and fit the model."""
    shapes = {path: tuple(dense_weight(module).shape) for path, module in linears(model)}
    targets, faults = config.get("target_modules"), []
    if isinstance(targets, list) and not (config.get("layers_to_transform") or config.get("exclude_modules")):
        wanted = [path for path in shapes if any(is_end(path, target) for target in targets)]
        faults += [f"missing {path}.lora_A" for path in wanted if path not in factors]
    attributes = ["lora_A", "lora_B", *(["magnitude"] if config.get("use_dora") else [])]
    for path, tensors in factors.items():
        if path not in shapes:
            faults.append(f"{path} is no linear in the blocks of the base")
            continue
        faults += [f"missing {path}.{a}" for a in attributes if a not in tensors]
        faults += [f"unexpected {path}.{a}" for a in tensors if a not in attributes]
        rows, columns = shapes[path]
        rank = len(tensors["lora_A"]) if "lora_A" in tensors else 0
        fitting = {"lora_A": (rank, columns), "lora_B": (rows, rank), "magnitude": (rows,)}
        faults += [f"{path}.{a} has shape {list(t.shape)}, the base asks for {list(fitting[a])}"
                   for a, t in tensors.items() if rank and tuple(t.shape) != fitting[a]]  # fmt: skip
    if faults or not factors:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(f"{folder / WEIGHTS}: does not fit its config and base: "
                         f"{'; '.join(faults[:3]) or 'it has no factors'}{more}")  # fmt: skip


def _train_whole(model: nn.Module, whole: dict[str, Tensor], name: str, folder: Path) -> None:
    """Wrappers for the modules in `whole`. On a tied base an embedding and a head that differ come apart."""
    for path, tensor in whole.items():
        shape = _shape(model, path)
        if shape != tuple(tensor.shape):
            raise InputError(f"{folder / WEIGHTS}: {path} has shape {list(tensor.shape)}, the base has "
                             f"{'no such module' if shape is None else list(shape)}")  # fmt: skip
    ends = [path for path in ("embed_tokens", "lm_head") if path in whole]
    apart = len(ends) == 1 or (len(ends) == 2 and not torch.equal(whole["embed_tokens"], whole["lm_head"]))
    if apart and is_tied(model):
        model.config = model.config.model_copy(update={"tie_word_embeddings": False})  # type: ignore[operator, union-attr]
        model.lm_head.weight = nn.Parameter(model.embed_tokens.weight.detach().clone(), requires_grad=False)  # type: ignore[operator, union-attr]
    train_whole(model, (*ends, *(path for path in whole if path not in ends)), name)


def _shape(model: nn.Module, path: str) -> tuple[int, ...] | None:
    if path not in ("embed_tokens", "lm_head") and path.rpartition(".")[2] not in NORMS:
        return None
    try:
        return tuple(model.get_submodule(path).weight.shape)  # type: ignore[union-attr]
    except AttributeError:
        return None
