"""Folders that are not a whole LLaMA are refused in one clear line that names the file and the fault."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from babyllama.errors import InputError
from babyllama.model.checkpoint import load_model, read_config, save_model
from conftest import sharp_model, tiny_config

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    save_model(sharp_model(tiny_config(tied=False)), tmp_path, bos_id=1, eos_id=2)
    return tmp_path


def refusal(folder) -> str:
    with pytest.raises(InputError) as error:
        load_model(folder)
    said = str(error.value)
    assert said.startswith(str(folder))
    assert "\n" not in said
    return said


def edit_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def edit_config(folder, **changes):
    data = json.loads((folder / CONFIG).read_text("utf-8"))
    (folder / CONFIG).write_text(json.dumps({**data, **changes}), "utf-8")


def test_a_good_folder_loads(folder):
    assert load_model(folder).config == tiny_config(tied=False)


def test_missing_tensor(folder):
    edit_weights(folder, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    assert "missing model.layers.1.mlp.up_proj.weight" in refusal(folder)


def test_unexpected_tensor(folder):
    edit_weights(folder, lambda w: w.update({"model.layers.9.mlp.up_proj.weight": torch.zeros(2)}))
    assert "unexpected model.layers.9.mlp.up_proj.weight" in refusal(folder)


def test_wrong_shape(folder):
    edit_weights(folder, lambda w: w.update({"model.norm.weight": torch.zeros(31)}))
    assert "model.norm.weight has shape [31], config.json asks for [32]" in refusal(folder)


def test_many_faults_are_counted(folder):
    edit_config(folder, num_hidden_layers=5)
    said = refusal(folder)
    assert said.count("missing") == 5
    assert "and 13 more" in said  # two layers of nine tensors each


def test_missing_head_of_an_untied_model(folder):
    edit_weights(folder, lambda w: w.pop("lm_head.weight"))
    assert "missing lm_head.weight" in refusal(folder)


def test_tied_model_that_stores_its_head_twice(tmp_path):
    save_model(sharp_model(tiny_config(tied=True)), tmp_path, bos_id=1, eos_id=2)
    edit_weights(tmp_path, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    model = load_model(tmp_path)
    assert model.lm_head.weight is model.embed_tokens.weight


def test_a_tied_model_with_a_head_of_its_own_computes_with_it_as_transformers_does(tmp_path, tokens):
    save_model(sharp_model(tiny_config(tied=True)), tmp_path, bos_id=1, eos_id=2)
    tied = load_model(tmp_path)
    edit_weights(tmp_path, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].flip(0)}))
    ours = load_model(tmp_path)
    twin = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(ours(tokens), twin(tokens).logits, rtol=0, atol=2e-5)
    assert (ours(tokens) - tied(tokens)).abs().max() > 0.1
    (tmp_path / "again").mkdir()
    save_model(ours, tmp_path / "again", bos_id=1, eos_id=2)
    assert torch.equal(load_model(tmp_path / "again")(tokens), ours(tokens))


@pytest.mark.parametrize("kept", [0, 4, 700, -1])
def test_truncated_weights(folder, kept):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    assert "not a whole safetensors file" in refusal(folder)


def test_pickles_are_never_opened(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    said = refusal(folder)
    assert "pytorch_model.bin is a pickle" in said
    assert "safetensors" in said


def test_no_weights_at_all(folder):
    (folder / WEIGHTS).unlink()
    assert "no model.safetensors" in refusal(folder)


def test_sharded_index(folder):
    whole = load_file(folder / WEIGHTS)
    expected = load_model(folder).state_dict()
    names = sorted(whole)
    parts = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, inside in parts.items():
        save_file({name: whole[name] for name in inside}, folder / file)
    (folder / WEIGHTS).unlink()
    where = {name: file for file, inside in parts.items() for name in inside}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}), "utf-8")
    loaded = load_model(folder).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    (folder / "b.safetensors").unlink()
    assert "files that are not there: b.safetensors" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": null}'])
def test_broken_index(folder, text):
    (folder / INDEX).write_text(text, "utf-8")
    assert "not a safetensors index" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
            "rope_scaling = {'rope_theta': 10000.0, 'rope_type': 'l",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor = 0.5 must be a number from 1"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling.factor = None must be a number from 1"),
        ({"rope_scaling": "yarn"}, "rope_scaling = 'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "'rope_type': 'llama3'} is not supported"),
        ({"babyllama": {"rope": 3}}, "babyllama.rope is damaged"),
        (
            {"babyllama": {"rope": {"kind": "linear", "factor": 2.0, "original": 8}, "max_position_embeddings": 16}},
            "rope_scaling and babyllama.rope say different things",
        ),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"head_dim": 16}, "head_dim = 16"),
        ({"hidden_size": "32"}, "hidden_size: input should be a valid integer"),
        ({"num_attention_heads": 0}, "num_attention_heads: input should be greater than 0"),
        ({"num_attention_heads": 3}, "hidden_size 32 must be a multiple"),
        ({"rope_theta": "big"}, "rope.theta: input should be a valid number"),
    ],
)
def test_unsupported_config(folder, changes, said):
    edit_config(folder, **changes)
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not valid JSON"),
        (b'{"model_type": "llama",', "not valid JSON"),
        (b'{"model_type": "\xff"}', "not valid JSON"),
        (b"[1]", "must hold a JSON object"),
        (b'{"model_type": "llama", "hidden_size": 8}', "num_attention_heads"),
    ],
)
def test_broken_config(folder, raw, said):
    (folder / CONFIG).write_bytes(raw)
    assert said in refusal(folder)


def test_no_config(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        read_config(tmp_path)


def test_defaults_of_an_old_config(folder):
    """LLaMA-1's files lack these keys; transformers' defaults fill them."""
    data = json.loads((folder / CONFIG).read_text("utf-8"))
    old = {"num_key_value_heads", "tie_word_embeddings", "rms_norm_eps", "max_position_embeddings", "rope_theta"}
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in data.items() if k not in old}), "utf-8")
    config = read_config(folder)
    assert (config.num_key_value_heads, config.tie_word_embeddings) == (4, False)
    assert (config.rms_norm_eps, config.max_position_embeddings, config.rope.theta) == (1e-6, 2048, 10_000.0)
