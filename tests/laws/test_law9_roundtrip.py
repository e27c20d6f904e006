"""Law 9: save → load → save is byte-identical; transformers reads our folders and we read its, with equal logits."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from babyllama.model.checkpoint import load_model, save_model


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_save_load_save_is_byte_identical(tmp_path, model, dtype):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    save_model(model.to(dtype), first, bos_id=1, eos_id=2)
    loaded = load_model(first)
    assert loaded.config == model.config
    save_model(loaded, second, bos_id=1, eos_id=2)
    assert contents(first) == contents(second)
    assert set(contents(first)) == {"config.json", "generation_config.json", "model.safetensors"}


def test_transformers_reads_our_folder(tmp_path, model, tokens):
    save_model(model, tmp_path, bos_id=1, eos_id=2)
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype="auto")
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.float32
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (1, 2)
    assert sum(p.numel() for p in theirs.parameters()) == model.config.parameters
    torch.testing.assert_close(theirs.eval()(tokens).logits, model(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("shards", ["1GB", "20KB"], ids=["one-file", "sharded"])
def test_we_read_a_folder_of_transformers(tmp_path, variants, tokens, shards, theta):
    torch.manual_seed(7)
    shape = variants.model_dump(exclude={"rope"})
    rope = {"rope_type": "default", "rope_theta": theta}
    theirs = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope, initializer_range=0.15)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "20KB")
    ours = load_model(tmp_path).eval()
    assert ours.config.rope.theta == theta
    assert (ours.lm_head.weight is ours.embed_tokens.weight) == variants.tie_word_embeddings
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


def test_we_read_a_config_of_transformers_4(tmp_path, model, tokens):
    """Before transformers 5, theta stood beside rope_scaling and head_dim was not written."""
    save_model(model, tmp_path, bos_id=1, eos_id=2)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    for key in ("head_dim", "attention_bias", "mlp_bias", "dtype"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    assert torch.equal(load_model(tmp_path)(tokens), model(tokens))
