"""Shapes: the parameter count against the real module, presets, the depth dial, what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from babyllama.errors import InputError
from babyllama.model.config import PRESETS, ModelChoice, Swiglu, swiglu_width
from babyllama.model.config_json import to_hugging_face
from babyllama.model.transformer import MLPS, Block, Transformer


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def theirs(config):
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**config.model_dump(exclude={"rope"})))


def test_parameters_equal_the_modules(variants):
    assert variants.parameters == count(Transformer(variants)) == count(theirs(variants))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    config = ModelChoice.model_validate({"preset": preset}).build(64_793)
    assert config.parameters == count(theirs(config))
    assert config.hidden_size // config.num_attention_heads >= 32


def test_seed_is_the_58_million_model():
    config = ModelChoice(preset="seed").build(64_793)
    assert 57.5e6 < config.parameters < 59e6
    assert (config.hidden_size, config.num_hidden_layers, config.max_position_embeddings) == (512, 8, 512)


def test_base_218m_is_named_after_its_size():
    assert round(ModelChoice(preset="base-218m").build(64_793).parameters / 1e6) in range(214, 223)


@pytest.mark.parametrize("depth", range(1, 33))
def test_depth_dial(depth):
    config = ModelChoice(depth=depth).build(1000)
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (depth, 64 * depth, 64)
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert config.intermediate_size % 32 == 0
    assert 0 <= config.intermediate_size - config.hidden_size * 8 / 3 < 32
    if depth > 1:
        assert config.parameters > ModelChoice(depth=depth - 1).build(1000).parameters


@pytest.mark.parametrize(("width", "expected"), [(96, 256), (192, 512), (512, 1376), (1024, 2752), (4096, 10944)])
def test_swiglu_width(width, expected):
    assert swiglu_width(width) == expected


def test_a_field_on_top_carries_what_hangs_on_it():
    config = ModelChoice(preset="tiny", hidden_size=96, num_attention_heads=3).build(500)
    assert (config.intermediate_size, config.num_key_value_heads) == (256, 3)
    assert config.num_hidden_layers == PRESETS["tiny"]["num_hidden_layers"]
    kept = ModelChoice(preset="tiny", num_key_value_heads=2, intermediate_size=64).build(500)
    assert (kept.num_key_value_heads, kept.intermediate_size, kept.num_attention_heads) == (2, 64, 6)
    assert ModelChoice(preset="tiny", tie_word_embeddings=False).build(500).tie_word_embeddings is False


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({}, "either preset"),
        ({"preset": "tiny", "depth": 3}, "either preset"),
        ({"depth": 2, "hidden_size": 100, "num_attention_heads": 3}, "hidden_size 100 must be a multiple"),
        ({"depth": 4, "num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple"),
        ({"depth": 1, "hidden_size": 9, "num_attention_heads": 3}, "head_dim 3"),
        ({"depth": 1, "hidden_size": 0}, "hidden_size: input should be greater than 0"),
    ],
)
def test_bad_shapes_are_one_line(choice, said):
    with pytest.raises(InputError) as error:
        ModelChoice.model_validate(choice).build(100)
    assert said in str(error.value)
    assert str(error.value).startswith("model")


def test_flops_by_hand(config):
    """6 FLOPs a multiplied weight (every matrix and the head), 6·L·T·C for causal scores and values."""
    model = Transformer(config)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2)  # tied: the embedding is the head
    assert config.flops_per_token(10) == 6 * matrices + 6 * config.num_hidden_layers * 10 * config.hidden_size


def test_what_follows_attention_is_a_value_and_no_key():
    """Its size stands in Hugging Face's field; files and recipes say nothing else of it."""
    config = ModelChoice(preset="tiny").build(500)
    assert config.mlp == Swiglu(width=config.intermediate_size) and "mlp" not in config.model_dump()
    mlp = Block(config, 0).mlp
    assert type(mlp) is MLPS[config.mlp.kind]
    assert sum(p.numel() for p in mlp.parameters()) == config.mlp.parameters(config.hidden_size)
    assert "mlp" not in to_hugging_face(config, 1, 2, "float32")
