"""llama.cpp's side of cpu_decode.py, in a Python of its own that has llama-cpp-python and gguf.

    python llama_cpp_peer.py WEIGHTS.npz {F32,F16,BF16,Q8_0,Q4_0} THREADS

Writes WEIGHTS.TYPE.gguf, then for each line "COUNT" on stdin decodes so many tokens greedily after token 2 and answers
with a line: tokens a second, and the logits of the first token's first eight ids.
"""

from __future__ import annotations

import json
import sys
import time
from ctypes import POINTER, c_float
from pathlib import Path

import gguf
import llama_cpp as ll
import numpy as np


def write(weights: Path, kind: str) -> Path:
    """The file; norms in float32, all matrices of the one type."""
    found = np.load(weights)
    shape = json.loads(str(found["config"]))
    file = weights.with_suffix(f".{kind}.gguf")
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_rope_freq_base(shape["theta"])
    writer.add_rope_dimension_count(shape["hidden_size"] // shape["num_attention_heads"])
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    wanted = gguf.GGMLQuantizationType[kind]
    for name, own in names(shape["num_hidden_layers"]).items():
        values = found[own].astype(np.float32)
        if own.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp turns neighbours, we halves
            heads = shape["num_attention_heads" if "q_proj" in own else "num_key_value_heads"]
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def names(layers: int) -> dict[str, str]:
    """llama.cpp's → ours; a tied head is the embedding."""
    made = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}  # fmt: skip
    for i in range(layers):
        made |= {f"blk.{i}.{theirs}.weight": f"layers.{i}.{ours}.weight" for theirs, ours in parts.items()}
    return made


def main() -> None:
    weights, kind, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    file = write(weights, kind)
    quiet = ll.llama_log_callback(lambda *_: None)
    ll.llama_log_set(quiet, None)
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(str(file).encode(), ll.llama_model_default_params())
    settings = ll.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 512, threads, threads
    context = ll.llama_init_from_model(model, settings)
    size = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    for line in sys.stdin:
        count, token, first = int(line), 2, None
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        started = time.perf_counter()
        for _ in range(count):
            tokens = (ll.llama_token * 1)(token)
            if ll.llama_decode(context, ll.llama_batch_get_one(tokens, 1)):
                raise SystemExit("llama_decode failed")
            pointer = ll.llama_get_logits_ith(context, -1)
            logits = np.ctypeslib.as_array(ctypes_cast(pointer), shape=(size,))
            first = logits[:8].tolist() if first is None else first
            token = int(logits.argmax())
        print(json.dumps([count / (time.perf_counter() - started), first]), flush=True)


def ctypes_cast(pointer: object) -> object:
    """What as_array takes."""
    from ctypes import cast

    return cast(pointer, POINTER(c_float))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
