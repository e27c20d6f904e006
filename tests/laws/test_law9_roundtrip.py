"""Law 9: save → load → save is byte-identical; transformers reads our folders and we read its, with equal logits."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from babyllama.errors import InputError
from babyllama.model import laws
from babyllama.model.checkpoint import load_model, save_model
from babyllama.model.config import extended
from babyllama.model.config_json import to_hugging_face
from babyllama.model.transformer import make_rope


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


# ── RoPE laws ──────────────────────────────────────────────────────────────────────────────────────────────────────
THEIRS = [laws.LinearRope(factor=2.0), laws.NtkRope(factor=3.0), laws.DynamicNtkRope(factor=2.0),
          laws.ByPartsRope(factor=4.0), laws.YarnRope(factor=4.0),
          laws.YarnRope(factor=2.5, attention_factor=1.4, alpha=2.0, beta=9.0)]  # fmt: skip
OURS = [laws.YarnRope(factor=4.0, ramp="rotations"), laws.ClexRope(max_t=4)]
TRAINED = 16  # so that 22 tokens are beyond it


def stretched(model, law):
    """The model as if trained at 16 tokens, with another law; what a law learns is not at its start."""
    config = model.config.model_copy(update={"max_position_embeddings": TRAINED})
    model.config = extended(config, law)
    model.rope = make_rope(model.config).requires_grad_(False)
    for parameter in model.rope.parameters():
        parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return model


def ids(law):
    return f"{law.kind}-{getattr(law, 'factor', getattr(law, 'max_t', ''))}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("law", THEIRS + OURS, ids=ids)
def test_every_law_comes_back(tmp_path, model, tokens, law, dtype):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    model = stretched(model, law).to(dtype)
    save_model(model, first, bos_id=1, eos_id=2)
    loaded = load_model(first).eval()
    assert loaded.config == model.config and loaded.config.rope.original == TRAINED
    assert all(p.dtype == torch.float32 for p in loaded.rope.parameters())
    assert loaded.embed_tokens.weight.dtype == dtype
    assert sum(p.numel() for p in loaded.parameters()) == model.config.parameters
    save_model(loaded, second, bos_id=1, eos_id=2)
    assert contents(first) == contents(second)
    assert torch.equal(loaded(tokens), model(tokens))


@pytest.mark.parametrize("law", THEIRS, ids=ids)
def test_transformers_computes_the_same_with_every_law_it_knows(tmp_path, model, tokens, law):
    plain = model(tokens)
    model = stretched(model, law)
    save_model(model, tmp_path, bos_id=1, eos_id=2)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    logits = model(tokens)
    torch.testing.assert_close(theirs(tokens).logits, logits, rtol=0, atol=2e-5)
    assert (logits - plain).abs().max() > 1e-2  # the law did something
    theirs.save_pretrained(tmp_path / "again")  # and what they write, we read
    again = load_model(tmp_path / "again").eval()
    assert again.config == model.config
    assert torch.equal(again(tokens), logits)


@pytest.mark.parametrize(
    "law", [laws.LinearRope(factor=2.0), laws.DynamicNtkRope(factor=2.0), laws.YarnRope(factor=4.0)], ids=ids
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_their_words_alone_are_enough(tmp_path, model, tokens, law, key):
    """A folder that never was ours, from transformers 5 (rope_parameters) or 4 (rope_scaling beside rope_theta)."""
    model = stretched(model, law)
    save_model(model, tmp_path, bos_id=1, eos_id=2)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    for other in {"rope_parameters", "rope_scaling", "babyllama"} - {key}:
        del config[other]
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    loaded = load_model(tmp_path).eval()
    assert loaded.config.rope.kind == law.kind and loaded.config.rope.original == TRAINED
    assert loaded.config.max_position_embeddings == model.config.max_position_embeddings
    assert torch.equal(loaded(tokens), model(tokens))


@pytest.mark.parametrize("law", OURS, ids=ids)
def test_what_has_no_form_of_theirs_is_refused(tmp_path, model, law):
    model = stretched(model, law)
    with pytest.raises(InputError, match=f"rope.kind: {law.kind} has no form in a Hugging Face config.json"):
        to_hugging_face(model.config, 1, 2, "float32", stock=True)
    save_model(model, tmp_path, bos_id=1, eos_id=2)
    with pytest.raises(Exception):  # noqa: B017  loud, whatever it is: never another model
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_another_law_for_stored_weights(tmp_path, config):
    from conftest import sharp_model

    model = stretched(sharp_model(config), laws.ClexRope(max_t=4))
    save_model(model, tmp_path, bos_id=1, eos_id=2)
    longer = load_model(tmp_path, laws.YarnRope(factor=8.0))
    assert longer.config.max_position_embeddings == 8 * TRAINED and not list(longer.rope.parameters())
    anew = load_model(tmp_path, laws.ClexRope(max_t=6))
    assert not anew.rope.down.any() and anew.config.max_position_embeddings == 6 * TRAINED
    kept = load_model(tmp_path, laws.ClexRope(max_t=4))
    assert torch.equal(kept.rope.down, model.rope.down)
    assert load_model(tmp_path, laws.PlainRope()).config.max_position_embeddings == TRAINED
