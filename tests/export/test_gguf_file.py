"""GGUF files by gguf's own reader: what is in them, and what has no form in them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from exported import pack, save, sharp, vocabulary
from gguf import GGUFReader, dequantize

from babyllama.errors import InputError
from babyllama.export.gguf_file import settled_type, write_gguf, write_lora
from babyllama.load import read_model
from babyllama.model.config import extended
from babyllama.model.laws import ClexRope, DynamicNtkRope, YarnRope
from babyllama.model.lora import Dora, Lora, attach
from babyllama.model.surgery import dense_weight
from babyllama.model.transformer import make_rope
from babyllama.quant.grid import Grid


@pytest.fixture(scope="module", params=["own", "sentencepiece"])
def tokenizer(request, tmp_path_factory):
    return vocabulary(request.param, tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return vocabulary("own", tmp_path_factory.mktemp("own"))


@pytest.fixture
def written(tmp_path, own):
    def write(model, type=None, tokenizer=own):
        write_gguf(model, tokenizer, tmp_path / "a.gguf", settled_type(model, type), "小羊驼")
        return GGUFReader(tmp_path / "a.gguf")

    return write


def value(reader, key):
    return reader.get_field(key).contents()


def matrices(reader):
    return {t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type)) for t in reader.tensors}


def interleaved(weight, heads):
    """Row 2i of a head is its row i here, row 2i + 1 its row i + D/2."""
    found = []
    for head in weight.reshape(heads, -1, weight.shape[1]):
        half = len(head) // 2
        found += [row for i in range(half) for row in (head[i], head[i + half])]
    return np.stack(found)


TOLERANCES = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 127, "Q4_0": 1 / 7, "Q4_1": 1 / 15}


@pytest.mark.parametrize("type", TOLERANCES)
@pytest.mark.parametrize("tied", [True, False])
def test_tensors(written, own, type, tied):
    model = sharp(own.vocab_size, tie_word_embeddings=tied)
    found = matrices(written(model, type))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert len(found) == 2 * 9 + 2 + (not tied) and ("output.weight" in found) != tied
    pairs = {"token_embd": "embed_tokens", "blk.1.attn_v": "layers.1.self_attn.v_proj", "output_norm": "norm",
             "blk.0.ffn_norm": "layers.0.post_attention_layernorm", "blk.0.ffn_down": "layers.0.mlp.down_proj",
             "blk.1.attn_norm": "layers.1.input_layernorm",
             "blk.1.attn_output": "layers.1.self_attn.o_proj"}  # fmt: skip
    expected = {theirs: state[f"{ours}.weight"] for theirs, ours in pairs.items()}
    expected["blk.1.attn_q"] = interleaved(state["layers.1.self_attn.q_proj.weight"], 4)
    expected["blk.0.attn_k"] = interleaved(state["layers.0.self_attn.k_proj.weight"], 2)
    for name, weight in expected.items():
        kind, numbers = found[f"{name}.weight"]
        assert kind == ("F32" if weight.ndim == 1 else "Q8_0" if name == "token_embd" and type[:2] == "Q4" else type)
        assert np.abs(numbers - weight).max() <= TOLERANCES[type] * np.abs(weight).max()


def test_vocabulary_and_facts(written, tokenizer):
    model = sharp(tokenizer.vocab_size + 2)
    reader = written(model, tokenizer=tokenizer)
    tokens, kinds = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    ids = tokenizer.backend.get_vocab(with_added_tokens=True)
    assert all(tokens[i] == token for token, i in ids.items()) and len(tokens) == len(kinds) == len(ids) + 2
    assert kinds[-2:] == [5, 5] and {tokens[i] for i, kind in enumerate(kinds) if kind == 3} == (
        {t.content for t in tokenizer.backend.get_added_tokens_decoder().values()} - {"<unk>"})  # fmt: skip
    assert value(reader, "tokenizer.ggml.eos_token_id") == tokenizer.eos_id
    assert value(reader, "tokenizer.ggml.padding_token_id") == tokenizer.pad_id
    assert value(reader, "tokenizer.ggml.eot_token_id") == tokenizer.role_ids["user"]
    assert value(reader, "tokenizer.ggml.add_bos_token") is False and value(reader, "general.name") == "小羊驼"
    template = value(reader, "tokenizer.chat_template")
    assert "generation -%}" not in template and "<|' + message['role']" in template and "raise_exception" in template
    facts = {"context_length": 64, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96,
             "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 16,
             "rope.freq_base": 10_000.0, "vocab_size": tokenizer.vocab_size + 2}  # fmt: skip
    assert {key: value(reader, f"llama.{key}") for key in facts} == facts
    assert value(reader, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(model.config.rms_norm_eps)


def test_scores_come_back_from_the_merges_alone(written, tmp_path):
    """A folder whose tokenizer.model was lost: the order of SentencePiece's scores is that of the merges."""
    tokenizer = vocabulary("sentencepiece", tmp_path)
    import sentencepiece

    source = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.sentencepiece_model)
    from dataclasses import replace

    reader = written(sharp(tokenizer.vocab_size), tokenizer=replace(tokenizer, sentencepiece_model=None))
    scores, tokens = value(reader, "tokenizer.ggml.scores"), value(reader, "tokenizer.ggml.tokens")
    long = [i for i in range(len(source)) if len(tokens[i]) > 1 and not tokens[i].startswith("<")]
    assert len(long) > 50 and sorted(long, key=lambda i: -scores[i]) == sorted(long, key=lambda i: -source.get_score(i))


def test_a_scaled_rope_is_factors(written, own):
    model = sharp(own.vocab_size)
    model.config = extended(model.config, YarnRope(factor=4.0))
    model.rope = make_rope(model.config)
    reader = written(model)
    plain = 10_000.0 ** (-np.arange(0, 16, 2) / 16)
    factors = matrices(reader)["rope_freqs.weight"][1]
    np.testing.assert_allclose(plain / factors, model.rope.frequencies.numpy(), rtol=1e-5)
    assert factors.max() == pytest.approx(4) and value(reader, "llama.rope.scaling.attn_factor") == pytest.approx(
        0.1 * np.log(4) + 1)  # fmt: skip
    assert value(reader, "llama.context_length") == 256


@pytest.mark.parametrize(
    "bits, symmetric, kind", [(4, True, "Q4_0"), (3, True, "Q4_0"), (4, False, "Q4_1"), (8, True, "Q8_0")]
)
@pytest.mark.parametrize("group_size", [32, 64])
def test_packed_codes_are_not_rounded_again(written, own, bits, symmetric, kind, group_size):
    model = sharp(own.vocab_size, intermediate_size=128)
    pack(model, Grid(bits=bits, group_size=group_size, symmetric=symmetric))
    assert settled_type(model, None) == kind
    found = matrices(written(model))
    for name, path in {"attn_v": "self_attn.v_proj", "ffn_down": "mlp.down_proj"}.items():
        dense = dense_weight(model.get_submodule(f"layers.1.{path}")).numpy()
        stored, numbers = found[f"blk.1.{name}.weight"]
        least = 0 if kind != "Q4_1" else 2**-11 * np.abs(dense).max() * 2  # its minimum is an f16
        assert stored == kind and np.abs(numbers - dense).max() <= least
    assert found["token_embd.weight"][0] == "F16"
    with pytest.raises(InputError, match=f"type: Q5.* second time that are packed as {kind}"):
        settled_type(model, "Q5")
    assert matrices(written(model, "F32"))["blk.1.ffn_down.weight"][0] == "F32"


def refused(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_has_no_form(written, own, tmp_path):
    for law, words in (
        (DynamicNtkRope(factor=2.0), "dynamic_ntk goes by the length"),
        (ClexRope(), "clex goes by the length"),
    ):
        model = sharp(own.vocab_size)
        model.config = extended(model.config, law)
        model.rope = make_rope(model.config)
        refused(lambda model=model: written(model), words)
    model = sharp(own.vocab_size)
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    refused(lambda: written(model), r"layers\.0\.mlp\.up_proj: holds weights above 65504")
    assert matrices(written(model, "BF16"))
    model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    refused(lambda: written(model), "no finite numbers")
    model = sharp(own.vocab_size)
    pack(model, Grid(group_size=16))
    refused(lambda: written(model), "groups of 16 of 64 inputs are no whole blocks.*group_size=32")
    for adapter in (Dora(rank=2), Lora(rank=2, train=("norms",))):
        model = sharp(own.vocab_size)
        attach(model, adapter, 0)
        refused(lambda model=model: write_lora(model, tmp_path / "l.gguf", "l"), "adapter=merge")
    assert not (tmp_path / "l.gguf").exists()


def test_vocabularies_that_llamacpp_would_cut_otherwise(written, tmp_path, own):
    import json
    from dataclasses import replace

    from tokenizers import Tokenizer as Backend

    def changed(tokenizer, change):
        content = json.loads(tokenizer.backend.to_str())
        change(content)
        return replace(tokenizer, backend=Backend.from_str(json.dumps(content)), sentencepiece_model=None)

    def other_cut(content):
        content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}{1,2}"

    def whole_tail(piece):
        return piece[1:]

    def by_parts(content):
        merges = content["model"]["merges"]
        whole = next(a + b for a, b in merges if len(a + b) > 2 and whole_tail(a + b) not in content["model"]["vocab"])
        content["model"]["vocab"][whole_tail(whole)] = len(content["model"]["vocab"])
        merges.append([whole[1], whole[2:]])

    pieces = vocabulary("sentencepiece", tmp_path)
    for tokenizer, words in (
        (changed(own, other_cut), "no name in llama.cpp"),
        (changed(pieces, by_parts), "no scores"),
    ):
        refused(lambda t=tokenizer: written(sharp(t.vocab_size), tokenizer=t), words)


def test_a_full_disk_leaves_nothing(tmp_path, own):
    """A real small file system where one may be mounted; else a limit on the size of files."""
    save(sharp(own.vocab_size, hidden_size=256, intermediate_size=1024), own, tmp_path / "model")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = sys.platform == "linux" and os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode == 0  # fmt: skip
    if not mounted:
        pytest.skip("needs a real full disk")
    try:
        model = read_model(tmp_path / "model")
        refused(lambda: write_gguf(model, own, disk / "a.gguf", "F32", "a"), r"disk is full \(\d+ MiB free\)")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
