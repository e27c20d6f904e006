"""Folders of packed models: what is in their tensors and in config.json's ``quantization_config``, both ways.

Few-bit groups are written as the ecosystem has them: AutoAWQ's layout for what AWQ found in four bits, GPTQ's for all
else; folders of these kinds that others wrote are read too. What only we compute (LLM.int8() with columns kept, one
bit, a packed embedding) gets a model_type that only we know. Every kind is a line of `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from babyllama.errors import InputError
from babyllama.model.checkpoint import Packing
from babyllama.model.nf4 import PackedLinear, plain_linear
from babyllama.model.surgery import dense_weight, replace_modules
from babyllama.model.transformer import Transformer
from babyllama.quant.int8 import MixedInt8Linear
from babyllama.quant.linear import GroupedLinear, PackedEmbedding
from babyllama.quant.onebit import PackedOneBitLinear
from babyllama.quant.packing import pack, pack_awq, unpack, unpack_awq, word_count

Json = dict[str, Any]
Tensors = dict[str, Tensor]
PACKED = GroupedLinear | MixedInt8Linear | PackedOneBitLinear


def packed_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name → every packed matrix; a tied one once, as the embedding. Names are those of the modules they stand for."""
    return {name.removesuffix(".packed"): module for name, module in model.named_modules()
            if isinstance(module, PACKED)}  # fmt: skip


def is_packed(model: nn.Module) -> bool:
    """Whether any matrix is held in few bits that a folder keeps (not QLoRA's NF4, a function of the base's)."""
    return bool(packed_modules(model))


def to_dense(model: Transformer) -> None:
    """Plain modules of the packed values, in the dtype of the norms: what packing lost stays lost.

    Raises:
        InputError: OneBit's linears, which have a LayerNorm and no matrix.
    """
    if any(isinstance(module, PackedOneBitLinear) for module in model.modules()):
        raise InputError("onebit: its linears end in a LayerNorm and are no matrices; merge or export another form")
    dtype = model.norm.weight.dtype
    tied = model.config.tie_word_embeddings

    def dense(_: str, module: nn.Module) -> nn.Module:
        if isinstance(module, PackedEmbedding):
            return nn.Embedding.from_pretrained(module.dense_weight().to(dtype))
        return plain_linear(dense_weight(module), dtype)

    replace_modules(model, lambda _, module: isinstance(module, PackedEmbedding | PackedLinear | PACKED), dense)
    if tied:
        model.lm_head.weight = model.embed_tokens.weight


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def packing_of(model: Transformer, method: str | None = None) -> Packing | None:
    """How a model's folder holds its packed matrices: None when it has none.

    Args:
        method: who found the codes; ``awq`` asks for AutoAWQ's layout where the shapes allow it.
    """
    modules = packed_modules(model)
    if not modules:
        return None
    first, ends = next(iter(modules.values())), {"embed_tokens", "lm_head"} & set(modules)
    if isinstance(first, GroupedLinear):
        grouped: dict[str, GroupedLinear] = modules  # type: ignore[assignment]
        awq = method == "awq" and not ends and all(map(_fits_awq, grouped.values()))
        tensors, settings = (_awq_tensors, _awq_settings) if awq else (_gptq_tensors, _gptq_settings)
        return Packing(settings(grouped), tensors(grouped), own="embed_tokens" in ends)
    if isinstance(first, MixedInt8Linear):
        return Packing({"quant_method": INT8, "threshold": first.threshold}, _state(modules), own=True)
    return Packing({"quant_method": ONEBIT, "bits": 1}, _state(modules), own=True)


def _state(modules: dict[str, nn.Module]) -> Tensors:
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def _gptq_settings(modules: dict[str, GroupedLinear]) -> Json:
    inner = _inner(modules)
    first = next(iter(inner.values()))
    ordered = any(module.order is not None for module in modules.values())
    middle = _in_the_middle(modules)
    settings: Json = {
        "quant_method": "gptq", "checkpoint_format": "gptq" if middle else "gptq_v2", "bits": first.bits,
        "group_size": _group_size(inner), "desc_act": ordered, "sym": middle, "lm_head": "lm_head" in modules,
        "true_sequential": True, "pack_dtype": "int32", "meta": {"quantizer": [f"babyllama:{version('babyllama')}"]},
    }  # fmt: skip
    if "lm_head" in modules and modules["lm_head"].bits != first.bits:
        settings["dynamic"] = {"+:lm_head": {"bits": modules["lm_head"].bits}}
    return settings


def _inner(modules: dict[str, GroupedLinear]) -> dict[str, GroupedLinear]:
    """The blocks' matrices; the ends where nothing else is packed."""
    return {name: module for name, module in modules.items() if name.startswith("layers.")} or modules


def _in_the_middle(modules: dict[str, GroupedLinear]) -> bool:
    """Whether zeros are where a symmetric grid has them. Others are stored as they are, checkpoint_format gptq_v2:
    readers refuse them in the older format, which stores zero − 1, from programs that they do not know."""
    return all(bool((module.zeros == 1 << (module.bits - 1)).all()) for module in _inner(modules).values())


def _group_size(modules: dict[str, GroupedLinear]) -> int:
    """−1 for one group of a whole row."""
    whole = all(module.group_size == module.in_features for module in modules.values())
    return -1 if whole else min(module.group_size for module in modules.values())


def _gptq_tensors(modules: dict[str, GroupedLinear]) -> Tensors:
    """qweight (K · bits / 32, N), qzeros (G, N · bits / 32) of zero (− 1 if symmetric), scales (G, N), g_idx (K,)."""
    found: Tensors = {}
    offset = int(_in_the_middle(modules))
    for name, module in modules.items():
        group = torch.arange(module.in_features, device=module.words.device, dtype=torch.int32) // module.group_size
        words = module.words
        if module.order is not None:
            back = module.order.argsort()
            group, words = group[back], pack(module.codes[:, back], module.bits).T
        zeros = pack(module.zeros - offset, module.bits)
        found |= {f"{name}.qweight": words, f"{name}.qzeros": zeros, f"{name}.scales": module.scales,
                  f"{name}.g_idx": group}  # fmt: skip
    return found


def _fits_awq(module: GroupedLinear) -> bool:
    whole = module.in_features % module.group_size == 0 and module.out_features % 8 == 0
    return module.bits == 4 and module.order is None and whole


def _awq_settings(modules: dict[str, GroupedLinear]) -> Json:
    return {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": _group_size(modules),
            "zero_point": True, "modules_to_not_convert": ["lm_head"]}  # fmt: skip


def _awq_tensors(modules: dict[str, GroupedLinear]) -> Tensors:
    """qweight (K, N / 8), qzeros (G, N / 8), scales (G, N)."""
    found: Tensors = {}
    for name, module in modules.items():
        found |= {f"{name}.qweight": pack_awq(module.codes.T), f"{name}.qzeros": pack_awq(module.zeros),
                  f"{name}.scales": module.scales}  # fmt: skip
    return found


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def unpacking(model: Transformer, settings: Json, found: Tensors, folder: Path) -> Tensors:
    """Put empty packed modules into a model on the meta device; a folder's tensors → those of the modules.

    Raises:
        InputError: a kind or a shape that is not one of ours to read.
    """
    kind = settings.get("quant_method")
    if kind not in KINDS:
        raise InputError(f"{folder}/config.json: quantization_config.quant_method is {kind!r}; can be read: "
                         f"{', '.join(KINDS)}")  # fmt: skip
    return KINDS[kind](model, settings, found, f"{folder}: ")


def _grouped(model: Transformer, settings: Json, found: Tensors, where: str) -> Tensors:
    """GPTQ's and AutoAWQ's layouts."""
    awq = settings["quant_method"] == "awq"
    if awq and settings.get("version", "gemm").lower() != "gemm":
        raise InputError(f"{where}AWQ's layout {settings['version']!r} is not read here; make one of version gemm")
    dtype, made = found["norm.weight"].dtype if "norm.weight" in found else torch.float16, {}
    for name in _names(model, found, ".qweight", where):
        parts = {key: found.pop(f"{name}.{key}", None) for key in ("qweight", "qzeros", "scales", "g_idx")}
        rows, inputs = _shape(model, name)
        if parts["qzeros"] is None or parts["scales"] is None:
            raise InputError(f"{where}{name} has a qweight, but no qzeros or scales")
        bits = 4 if awq else _bits(settings.get("bits"), parts, rows, inputs, f"{where}{name}")
        size = settings.get("group_size", -1)
        size = inputs if size in (None, -1) or size > inputs else int(size)
        expected = {"qweight": (inputs, rows // 8) if awq else (word_count(inputs, bits), rows),
                    "qzeros": (-(-inputs // size), rows // 8 if awq else word_count(rows, bits)),
                    "scales": (-(-inputs // size), rows)}  # fmt: skip
        _check_shapes(parts, expected, f"{where}{name}")
        if awq:
            words, zeros, order = pack(unpack_awq(parts["qweight"]).T, 4).T, unpack_awq(parts["qzeros"]), None  # type: ignore[arg-type]
        else:
            offset = int(settings.get("checkpoint_format", "gptq") != "gptq_v2")
            zeros = unpack(parts["qzeros"], bits, rows) + offset  # type: ignore[arg-type]
            words, order = _sorted(parts["qweight"], parts["g_idx"], bits, inputs, size, f"{where}{name}")  # type: ignore[arg-type]
        with torch.device("meta"):
            made[name] = GroupedLinear(inputs, rows, bits, size, order is not None)
        place = f"{name}.packed" if name == "embed_tokens" else name
        found |= {f"{place}.words": words.contiguous(), f"{place}.zeros": zeros.contiguous(),
                  f"{place}.scales": parts["scales"].half()}  # type: ignore[union-attr]  # fmt: skip
        if order is not None:
            found[f"{place}.order"] = order
    tied = model.config.tie_word_embeddings
    if "embed_tokens" in made:
        table = made["embed_tokens"]
        made["embed_tokens"] = PackedEmbedding(table, dtype)
        if tied:
            made["lm_head"] = table
    replace_modules(model, lambda name, _: name in made, lambda name, _: made[name])
    return found


def _check_shapes(parts: dict[str, Tensor | None], expected: dict[str, tuple[int, int]], where: str) -> None:
    for key, shape in expected.items():
        if tuple(parts[key].shape) != shape:  # type: ignore[union-attr]
            raise InputError(f"{where}.{key} has shape {list(parts[key].shape)}, "  # type: ignore[union-attr]
                             f"{list(shape)} is meant by config.json's bits and group_size")  # fmt: skip


def _sorted(qweight: Tensor, g_idx: Tensor | None, bits: int, inputs: int, size: int, where: str
            ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """GPTQ's words, in the model's order of inputs → words in the order of groups, and that order."""
    ready = torch.arange(inputs, dtype=torch.int32) // size
    if g_idx is None or torch.equal(g_idx.int(), ready):
        return qweight, None
    order = g_idx.argsort(stable=True)
    if not torch.equal(g_idx[order].int(), ready):
        raise InputError(f"{where}.g_idx: groups of other sizes than group_size={size}; quantise the model anew")
    return pack(unpack(qweight.T, bits, inputs)[:, order], bits).T, order.to(torch.int32)


def _mixed_int8(model: Transformer, settings: Json, found: Tensors, where: str) -> Tensors:
    kept = {name: len(found[f"{name}.kept_index"]) for name in _names(model, found, ".kept_index", where)}

    def made(name: str) -> nn.Module:
        rows, inputs = _shape(model, name)
        return MixedInt8Linear(inputs, rows, settings.get("threshold"), kept[name])

    _place(model, kept, made)
    return found


def _one_bit(model: Transformer, settings: Json, found: Tensors, where: str) -> Tensors:
    def made(name: str) -> nn.Module:
        rows, inputs = _shape(model, name)
        return PackedOneBitLinear(inputs, rows)

    _place(model, set(_names(model, found, ".signs", where)), made)
    return found


def _place(model: Transformer, names: Collection[str], make: Callable[[str], nn.Module]) -> None:
    """Empty modules, on the meta device."""
    with torch.device("meta"):
        replace_modules(model, lambda name, _: name in names, lambda name, _: make(name))


def _names(model: Transformer, found: Tensors, suffix: str, where: str) -> Iterator[str]:
    for key in [key for key in found if key.endswith(suffix)]:
        name = key.removesuffix(suffix)
        if _shape(model, name) is None:
            raise InputError(f"{where}{key} belongs to no matrix of the model that config.json describes")
        yield name


def _shape(model: Transformer, name: str) -> Any:
    """(rows, inputs) of a matrix; None where there is none."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return None
    shape = getattr(getattr(module, "weight", None), "shape", ())
    return tuple(shape) if len(shape) == 2 else None


def _bits(usual: Any, parts: dict[str, Any], rows: int, inputs: int, where: str) -> int:
    """The folder's `usual` bits where they fit, else those that do: a head may have others."""
    qweight, qzeros = parts["qweight"].shape, parts["qzeros"].shape
    for bits in (usual, 8, 4, 3, 2):
        if bits in (2, 3, 4, 8) and (qweight[0], qzeros[1]) == (word_count(inputs, bits), word_count(rows, bits)):
            return bits
    raise InputError(f"{where}: qweight {list(qweight)} and qzeros {list(qzeros)} hold no {rows} × {inputs} matrix in "
                     "2, 3, 4 or 8 bits")  # fmt: skip


INT8, ONEBIT = "babyllama_int8", "babyllama_onebit"
KINDS: dict[str, Callable[[Transformer, Json, Tensors, str], Tensors]] = {
    "gptq": _grouped, "awq": _grouped, INT8: _mixed_int8, ONEBIT: _one_bit,
}  # fmt: skip
