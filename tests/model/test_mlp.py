"""Experts against a plain loop over tokens in float64 and against transformers; what does not take them says so."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import silu

from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.model import grouped
from babyllama.model.checkpoint import load_model, save_model
from babyllama.model.config import ModelChoice, ModelConfig, Moe
from babyllama.model.lora import Lora, attach, merge
from babyllama.model.mlp import MoE, routers
from babyllama.model.transformer import Transformer
from babyllama.quant.calibrate import check
from babyllama.quant.rtn import Rtn
from babyllama.train.tuning import OneBit, put_on
from conftest import sharp_model, tiny_config

KINDS = {"mixtral": Moe(experts=5, active=2), "qwen2_moe": Moe(experts=5, active=3, shared=2)}


def config_of(kind: str) -> ModelConfig:
    tied = kind == "mixtral"
    return ModelConfig(**{**tiny_config(tied=tied).model_dump(), "intermediate_size": 24, "moe": KINDS[kind]})


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind) -> Transformer:
    return sharp_model(config_of(kind))


def by_hand(module: MoE, x: torch.Tensor) -> torch.Tensor:
    """(N, C) → (N, C), token by token, as the papers say it."""
    found = []
    for token in x:
        probability = (module.gate.weight @ token).softmax(0)
        best = probability.sort(descending=True).indices[: module.active]
        out = torch.zeros_like(token)
        for e in best:
            gate, up, down = (getattr(module.experts, f"{name}_proj")[e] for name in ("gate", "up", "down"))
            out = out + probability[e] / probability[best].sum() * (down @ (silu(gate @ token) * (up @ token)))
        if module.shared_expert is not None:
            s = module.shared_expert
            shared = s.down_proj.weight @ (silu(s.gate_proj.weight @ token) * (s.up_proj.weight @ token))
            out = out + (module.shared_expert_gate.weight @ token).sigmoid() * shared
        found.append(out)
    return torch.stack(found)


def test_values_and_gradients_are_those_of_a_loop_over_tokens(model):
    module = copy.deepcopy(model.layers[0].mlp).double().requires_grad_(True)
    g = torch.Generator().manual_seed(5)
    x, slope = (torch.randn(11, 32, generator=g).double() for _ in range(2))
    wanted = [x.requires_grad_(True), *module.parameters()]
    ours, theirs = module(x.view(1, 11, 32)).view(11, 32), by_hand(module, x)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-6)  # the shares are float32
    grads = [torch.autograd.grad((y * slope).sum(), wanted) for y in (ours, theirs)]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, atol=5e-6, rtol=1e-5)


def test_every_expert_has_a_gradient_though_no_token_came(model):
    """DDP waits for each."""
    module = copy.deepcopy(model.layers[0].mlp).requires_grad_(True)
    module(torch.randn(1, 1, 32)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    idle = module.experts.gate_proj.grad.flatten(1).abs().sum(1) == 0
    assert idle.sum() == len(idle) - module.active


@pytest.mark.parametrize("counts", [(3, 0, 4, 1), (0, 0, 0, 8), (2, 2, 2, 2)])
def test_the_product_of_a_gpu_is_the_one_by_segments(counts):
    g = torch.Generator().manual_seed(1)
    x, weights = torch.randn(8, 16, generator=g), torch.randn(4, 24, 16, generator=g)
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        mine = grouped.by_segments(x.to(dtype), weights.to(dtype), ends)
        other = torch._grouped_mm(x.to(dtype), weights.to(dtype).transpose(1, 2), offs=ends)
        torch.testing.assert_close(mine, other, atol=most, rtol=1e-2)


def test_transformers_computes_the_same_and_both_read_the_other(model, kind, tmp_path):
    from transformers import AutoModelForCausalLM

    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    save_model(model, tmp_path / "ours", 1, 2)
    both: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True,
                                                      attn_implementation="eager")  # fmt: skip
    twin, said = both
    assert twin.config.model_type == kind and not any(said.values())
    tokens = torch.randint(67, (2, 22), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), twin(tokens).logits, atol=1e-5, rtol=1e-5)
    twin.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        found = load_model(tmp_path / folder)
        assert found.config == model.config
        assert all(map(torch.equal, found.state_dict().values(), model.state_dict().values()))


def test_a_folder_without_one_expert_is_refused_by_its_name(model, tmp_path):
    from safetensors.torch import load_file, save_file

    save_model(model, tmp_path, 1, 2)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if ".experts.3." in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"missing model\.layers\.0\.mlp\.experts\.") as error:
        load_model(tmp_path)
    assert ".experts.2." in str(error.value)  # those that are there without it


@pytest.mark.parametrize("key,value", [
    ("qkv_bias", True), ("norm_topk_prob", False), ("mlp_only_layers", [0]), ("decoder_sparse_step", 2),
    ("shared_expert_intermediate_size", 25),
])  # fmt: skip
def test_another_mathematics_is_refused(tmp_path, key, value):
    import json

    save_model(sharp_model(config_of("qwen2_moe")), tmp_path, 1, 2)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(InputError, match=rf"{key} = .* is not supported here"):
        load_model(tmp_path)


def test_answers_are_the_same_in_company(model):
    prompts = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 7, 8]]
    engine, greedy = Engine(model, 67), Sampling(temperature=0.0)
    together = engine.generate(prompts, greedy, 8)
    assert [Engine(model, 67).generate([prompt], greedy, 8)[0] for prompt in prompts] == together
    tokens = list(prompts[0])
    for _ in range(8):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert together[0] == tokens[3:]


def test_what_routers_say_is_noted_only_inside_and_lets_go(model):
    tokens = torch.randint(67, (2, 6), generator=torch.Generator().manual_seed(0))
    with routers(model.layers) as found:
        model(tokens)
    assert [logits.shape for logits in found] == [(12, 5)] * 3
    model(tokens)
    assert all(block.mlp.seen is None for block in model.layers)
    copy.deepcopy(model)


def test_a_dense_models_size_is_shared_out_and_counted():
    dense = ModelChoice(preset="seed").build(1000)
    config = ModelChoice(preset="seed", moe=Moe(experts=8, active=2, shared=1)).build(1000)
    assert config.intermediate_size == 480 and dense.intermediate_size <= 3 * 480 < dense.intermediate_size + 96
    with torch.device("meta"):
        model = Transformer(config)
    assert config.parameters == sum(p.numel() for p in model.parameters())
    idle = sum(p.numel() * 6 // 8 for name, p in model.named_parameters() if ".experts." in name)
    assert config.active_parameters == config.parameters - idle
    multiplied = config.active_parameters - sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert config.flops_per_token(64) == 6 * multiplied + 6 * 8 * 64 * 512


def test_an_adapter_on_attention_and_shared_experts_merges_to_what_it_computed():
    model = sharp_model(config_of("qwen2_moe"))
    tokens = torch.randint(67, (1, 9), generator=torch.Generator().manual_seed(0))
    attach(model, Lora(rank=2), seed=1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
        before = model(tokens)
        merge(model)
        torch.testing.assert_close(model(tokens), before, atol=1e-4, rtol=1e-4)


def test_what_does_not_take_experts_says_so(model):
    with pytest.raises(InputError, match="experts cannot be put in few bits"):
        check(model, Rtn())
    with pytest.raises(InputError, match="nf4 packs no experts"):
        put_on(model, Lora(base="nf4"), 1)
    with pytest.raises(InputError, match="this model's have experts"):
        put_on(model, OneBit(), 1)
    with pytest.raises(InputError, match="not for experts"):
        ModelChoice(preset="tiny", weights="ternary", moe=Moe()).build(100)


def test_more_active_experts_than_there_are_is_one_clear_line():
    with pytest.raises(ValueError, match="active 9 is more than the 8 experts there are"):
        Moe(active=9)
