"""A model's tensors by GGUF's names, in the order of rows that llama.cpp's LLaMA has.

llama.cpp turns neighbouring dimensions of a head by one angle, Hugging Face's layout dimension i and i + D/2: so rows
of q and k are interleaved. A RoPE scaling travels as one factor for each pair (`rope_freqs.weight`) and as what cos and
sin are multiplied with. Not here: how one matrix is written (blocks.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map
from torch import Tensor, nn

from babyllama.errors import InputError
from babyllama.export.blocks import WHOLE, Encoded, Type, encoded, same_codes
from babyllama.model.checkpoint import hugging_face_name
from babyllama.model.config import ModelConfig
from babyllama.model.lora import linears
from babyllama.model.rope import FREQUENCIES, plain_frequencies
from babyllama.model.surgery import dense_weight
from babyllama.model.transformer import RMSNorm, Transformer
from babyllama.quant.linear import GroupedLinear, PackedEmbedding

ENDS = ("embed_tokens", "lm_head")


class Named(NamedTuple):
    """One tensor of a file."""

    name: str
    tensor: Encoded


class Names:
    """Our module names → GGUF's."""

    def __init__(self, layers: int) -> None:
        self._map = get_tensor_name_map(MODEL_ARCH.LLAMA, layers)

    def __call__(self, path: str) -> str:
        """Raises InputError for a module that a LLaMA does not have."""
        found = self._map.get_name(hugging_face_name(f"{path}.weight"), try_suffixes=(".weight",))
        if found is None:
            raise InputError(f"{path}: GGUF's LLaMA has no such tensor")
        return found


def interleaved(path: str, config: ModelConfig) -> Tensor | None:
    """(N,) the rows of a q or k projection in llama.cpp's order; None for any other matrix, which stays."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(path.rpartition(".")[2])
    if heads is None:
        return None
    return torch.arange(heads * config.head_dim).view(heads, 2, -1).transpose(1, 2).flatten()


def check_model(model: Transformer) -> None:
    """Raise InputError for what llama.cpp's LLaMA does not compute."""
    config = model.config
    if config.weights != "dense":
        raise InputError(f"weights: {config.weights} rounds activations too, which llama.cpp's LLaMA does not; "
                         "there is no GGUF of it")  # fmt: skip
    if config.moe is not None:
        raise InputError("moe: a model with experts has no GGUF here; to=hf makes a folder that transformers reads")
    if not config.rope.static:
        raise InputError(f"rope.kind: {config.rope.kind} goes by the length at hand, which GGUF cannot say; it can say "
                         "none, linear, ntk, by_parts, yarn: give one, as rope.kind=yarn rope.factor=4")  # fmt: skip


def rope_factors(config: ModelConfig) -> np.ndarray | None:
    """(D/2,) float32 by which llama.cpp divides the plain frequencies; None where they are plain."""
    plain, own = (f(config.rope, config.head_dim) for f in (plain_frequencies, FREQUENCIES[config.rope.kind]))
    return None if torch.equal(plain, own) else (plain.double() / own.double()).float().numpy()


def settled_type(model: Transformer, asked: Type | None) -> Type:
    """What a file is called by: the type that is asked for, or F16; of packed matrices the blocks that they are.

    Raises:
        InputError: blocks are asked for that packed matrices are not.
    """
    kinds = [same_codes(module, path).type.name for path, module in _grouped(model)
             if asked not in WHOLE and path.startswith("layers.")]  # fmt: skip
    if not kinds:
        return asked or "F16"
    own: Type = max(("Q4_0", "Q8_0", "Q4_1"), key=kinds.count)
    if asked not in (None, own):
        raise InputError(f"type: {asked} would round weights a second time that are packed as {own}; leave type out to "
                         "keep them as they are, or take F32, F16 or BF16")  # fmt: skip
    return own


def _grouped(model: Transformer) -> Iterator[tuple[str, GroupedLinear]]:
    for path, module in model.named_modules():
        if isinstance(module, GroupedLinear):
            yield path.removesuffix(".packed"), module


def tensors(model: Transformer, type: Type) -> Iterator[Named]:
    """Every tensor of the file. Of a dense model in 4 bits the embedding and the head are Q8_0: they are the two that
    rounding hurts most. Of packed models what was left dense is F16. Norms are F32.

    Raises:
        InputError: as `encoded` and `same_codes`.
    """
    config, names = model.config, Names(model.config.num_hidden_layers)
    if (factors := rope_factors(config)) is not None:
        yield Named("rope_freqs.weight", Encoded(factors, GGMLQuantizationType.F32))
    unpack, packed = type in WHOLE, any(True for _ in _grouped(model))
    dense: Type = "F16" if packed and not unpack else type
    ends: Type = "Q8_0" if dense in ("Q4_0", "Q4_1") else dense
    for path, module in model.named_modules():
        if isinstance(module, RMSNorm):
            yield Named(names(path), encoded(module.weight, "F32", path))
        elif path in ENDS and not (path == "lm_head" and config.tie_word_embeddings):
            yield Named(names(path), _matrix(module, path, config, ends, unpack))
    for path, module in linears(model):
        yield Named(names(path), _matrix(module, path, config, dense, unpack))


def _matrix(module: nn.Module, path: str, config: ModelConfig, type: Type, unpack: bool) -> Encoded:
    inner = module.packed if isinstance(module, PackedEmbedding) else module
    if isinstance(inner, GroupedLinear) and not unpack:
        found = same_codes(inner, path)
    else:
        weight = module.weight if isinstance(module, nn.Embedding) else dense_weight(module)
        found = encoded(weight, type, path)
    rows = interleaved(path, config)
    return found if rows is None else found._replace(data=found.data[rows.numpy()])
