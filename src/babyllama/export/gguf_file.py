"""A model with its tokenizer, or an adapter, as one GGUF file.

Not here: tensors (weights.py), tokens (vocabulary.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.constants import Keys

from babyllama.atomic import replace_file
from babyllama.errors import InputError
from babyllama.export.blocks import WHOLE, Encoded, Type
from babyllama.export.vocabulary import template_text, vocabulary_of
from babyllama.export.weights import Named, Names, check_model, interleaved, settled_type, tensors
from babyllama.model.laws import attention_factor
from babyllama.model.transformer import Transformer
from babyllama.model.wrappers import Adapted, LoraLinear
from babyllama.tokenizer.tokenizer import Tokenizer

__all__ = ["settled_type", "write_gguf", "write_lora"]

ARCHITECTURE = "llama"
FILE_TYPES = {"F32": "ALL_F32"}  # of the others MOSTLY_ and the type


def write_gguf(model: Transformer, tokenizer: Tokenizer, path: Path, type: Type, name: str) -> Counter[str]:
    """Write the whole model; how many matrices there are of each type.

    Args:
        type: of the matrices, as `settled_type` says.
        name: what programs show.

    Raises:
        InputError: a RoPE scaling, a vocabulary or weights that have no form in GGUF; a full disk.
    """
    check_model(model)
    writer = GGUFWriter(None, ARCHITECTURE)
    _describe(writer, model, type, name)
    _tell_vocabulary(writer, tokenizer, model.config.vocab_size)
    found = list(tensors(model, type))
    _write(writer, found, path)
    return Counter(named.tensor.type.name for named in found if named.tensor.data.ndim == 2)


def write_lora(model: Transformer, path: Path, name: str) -> None:
    """Write the LoRA that is attached to `model`; llama.cpp puts it on the base's own GGUF file.

    Raises:
        InputError: an adapter that is more than factors beside matrices of the blocks: DoRA, whole modules.
    """
    others = {type(module).__name__ for module in model.modules()
              if isinstance(module, Adapted) and type(module) is not LoraLinear}  # fmt: skip
    if others:
        raise InputError("adapter: DoRA and modules trained whole have no form in a GGUF adapter; "
                         "export the adapter and its base as one model with adapter=merge")  # fmt: skip
    check_model(model)
    writer, names = GGUFWriter(None, ARCHITECTURE), Names(model.config.num_hidden_layers)
    writer.add_type("adapter")
    writer.add_name(name)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, 0.0)  # the scale, which may differ by matrix, is in the factors B
    found = list[Named]()
    for place, module in model.named_modules():
        if isinstance(module, LoraLinear):
            up = (module.scale * module.lora_B.detach().double()).float()
            rows = interleaved(place, model.config)
            for part, factor in (("lora_a", module.lora_A.detach()), ("lora_b", up if rows is None else up[rows])):
                data = factor.float().cpu().numpy()
                found.append(Named(f"{names(place)}.{part}", Encoded(data, GGMLQuantizationType.F32)))
    _write(writer, found, path)


def _describe(writer: GGUFWriter, model: Transformer, type: Type, name: str) -> None:
    config = model.config
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(LlamaFileType[FILE_TYPES.get(type, f"MOSTLY_{type}")])
    if type not in WHOLE:
        writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.base)
    if (factor := attention_factor(config.rope)) != 1:
        writer.add_rope_scaling_attn_factors(factor)


def _tell_vocabulary(writer: GGUFWriter, tokenizer: Tokenizer, rows: int) -> None:
    vocabulary, ids = vocabulary_of(tokenizer, rows), tokenizer.config_ids
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(True)
        writer.add_bool(Keys.Tokenizer.REMOVE_EXTRA_WS, False)
    writer.add_bos_token_id(ids["bos_id"])
    writer.add_eos_token_id(ids["eos_id"])
    writer.add_pad_token_id(ids["pad_id"])
    if (end := tokenizer.turn_end) is not None:
        writer.add_eot_token_id(end)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(False)
    writer.add_chat_template(template_text(tokenizer))


def _write(writer: GGUFWriter, found: Iterable[Named], path: Path) -> None:
    for name, (data, kind) in found:
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind)

    def fill(partial: Path) -> None:
        try:
            writer.write_header_to_file(partial)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    replace_file(path, fill)
