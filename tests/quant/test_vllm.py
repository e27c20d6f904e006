"""vLLM: its configuration classes take our folders, its layers load their weights, and these mean what ours do.

Its kernels need a GPU and are not run: what they would multiply by is unpacked by vLLM's own functions.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from test_folder import saved

from babyllama.load import read_model
from babyllama.model.config import ModelConfig
from babyllama.model.surgery import dense_weight
from babyllama.model.transformer import Transformer, initialise
from babyllama.quant.awq import Awq
from babyllama.quant.gptq import Gptq

pytestmark = pytest.mark.slow
READ = [Gptq(symmetric=True), Gptq(symmetric=True, bits=8), Gptq(symmetric=True, group_size=None),
        Gptq(symmetric=True, act_order=True, static_groups=True), Gptq(symmetric=True, act_order="groups"),
        Gptq(symmetric=True, act_order=True, group_size=None), Awq(), Awq(group_size=None)]  # fmt: skip
REFUSED = {"sym=False": Gptq(), "desc_act=True": Gptq(symmetric=True, act_order=True),
           "bits=3": Gptq(symmetric=True, bits=3)}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def library():
    return pytest.importorskip("vllm", reason="vllm is no dependency; CONTRIBUTING.md says how to try this")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(
        vocab_size=330, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False))  # fmt: skip
    initialise(model, 1)

    def make(method):
        saved(model.half().float().eval().requires_grad_(False), method, tmp_path)
        return tmp_path

    return make


def settings(folder):
    """Found as its engine finds them."""
    from vllm.config import ModelConfig as Theirs
    from vllm.model_executor.layers.quantization import get_quantization_config

    found = Theirs(model=str(folder), tokenizer=str(folder), skip_tokenizer_init=True, dtype="float16")
    return get_quantization_config(found.quantization).from_config(found.model_arch_config.quantization_config)


@pytest.fixture(scope="module")
def context(library, tmp_path_factory):
    """One process of its tensor parallelism; no kernel is chosen, for there is none for this device."""
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import cleanup_dist_env_and_memory, init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.layers.quantization import auto_awq, auto_gptq

    with pytest.MonkeyPatch.context() as patch, set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))):
        for module in (auto_gptq, auto_awq):
            patch.setattr(module, "verify_marlin_supported", lambda **_: None)
            patch.setattr(module, "choose_mp_linear_kernel", lambda _: NoKernel)
        init_distributed_environment(1, 0, f"file://{tmp_path_factory.mktemp('world') / 'store'}", 0, "gloo")
        initialize_model_parallel(1)
        yield
        cleanup_dist_env_and_memory()


class NoKernel:
    def __init__(self, *_, **__):
        pass


def layers(config):
    """Its layers, each with the parts that it is loaded from: name in our block → shard."""
    from vllm.model_executor.layers import linear

    shared = {"bias": False, "quant_config": config, "params_dtype": torch.float16}
    yield linear.QKVParallelLinear(256, 64, 4, 2, prefix="qkv_proj", **shared), {
        f"self_attn.{shard}_proj": shard for shard in "qkv"}  # fmt: skip
    yield linear.RowParallelLinear(256, 256, prefix="o_proj", **shared), {"self_attn.o_proj": None}
    yield linear.MergedColumnParallelLinear(256, [512, 512], prefix="gate_up_proj", **shared), {
        "mlp.gate_proj": 0, "mlp.up_proj": 1}  # fmt: skip
    yield linear.RowParallelLinear(512, 256, prefix="down_proj", **shared), {"mlp.down_proj": None}


def dequantised(layer, config):
    """(N, K), from the codes as vLLM unpacks them."""
    from vllm.model_executor.layers.quantization.auto_awq import _convert_awq_to_standard_format
    from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32 as unpack

    kind = config.quant_type
    if config.get_name() == "auto_awq":
        _convert_awq_to_standard_format(layer, "qweight", "qzeros", kind.size_bits)
        zeros = unpack(layer.qzeros.data, kind, packed_dim=0).T  # (G, N)
    else:
        zeros = torch.full(layer.scales.shape, kind.bias, dtype=torch.int32)
    codes, scales = unpack(layer.qweight.data, kind, packed_dim=0), layer.scales.data.float()  # (K, N), (G, N)
    size = len(codes) // len(scales)
    return ((codes - zeros.repeat_interleave(size, 0)) * scales.repeat_interleave(size, 0)).T


@pytest.mark.parametrize("method", READ, ids=str)
def test_it_loads_ours(context, folder, method):
    path = folder(method)
    config, tensors, ours = settings(path), load_file(path / "model.safetensors"), read_model(path)
    for layer, parts in layers(config):
        for name, shard in parts.items():
            for key, parameter in layer.named_parameters():
                loaded = tensors[f"model.layers.0.{name}.{key}"]
                parameter.weight_loader(parameter, loaded, *([] if shard is None else [shard]))
        expected = torch.cat([dense_weight(ours.get_submodule(f"layers.0.{name}")).float() for name in parts])
        assert torch.equal(dequantised(layer, config), expected)


@pytest.mark.parametrize("why", REFUSED)
def test_it_refuses_others(folder, why):
    path = folder(REFUSED[why])
    assert json.loads((path / "config.json").read_text("utf-8"))["quantization_config"]["quant_method"] == "gptq"
    with pytest.raises(ValueError, match=why):
        settings(path)
