"""GPTQModel, the library that others read and write such folders with: it computes what we do, and we what it does."""

from __future__ import annotations

import os

import pytest
import torch
from test_folder import saved
from tokenizers import Tokenizer, models

from babyllama.load import read_model
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.quant.awq import Awq
from babyllama.quant.gptq import Gptq

pytestmark = pytest.mark.slow
METHODS = [Gptq(bits=bits) for bits in (8, 4, 3, 2)]
METHODS += [Gptq(symmetric=True), Gptq(act_order=True), Gptq(act_order="groups"), Gptq(group_size=None),
            Gptq(group_size=None, act_order=True)]  # fmt: skip


@pytest.fixture(scope="module")
def library():
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    return pytest.importorskip("gptqmodel", reason="gptqmodel is no dependency; CONTRIBUTING.md says how to try this")


@pytest.fixture
def dense():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(
        vocab_size=330, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False))  # fmt: skip
    initialise(model, 1)
    return model.half().float().eval().requires_grad_(False)


def theirs(library, folder, backend, tokens):
    """Logits; their reader wants a tokenizer in the folder."""
    made = library.GPTQModel.load(str(folder), device="cpu", backend=backend, dtype=torch.float16)
    with torch.no_grad():
        return made.model.float()(input_ids=tokens).logits


def with_tokenizer(folder):
    Tokenizer(models.WordLevel({f"t{i}": i for i in range(330)}, "t0")).save(str(folder / "tokenizer.json"))
    special = '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "t1", "eos_token": "t2", "pad_token": "t2"}'
    (folder / "tokenizer_config.json").write_text(special)
    return folder


@pytest.mark.parametrize("method", [*METHODS, Awq()], ids=str)
def test_it_reads_ours(library, dense, method, tokens, tmp_path):
    made = saved(dense, method, with_tokenizer(tmp_path)).float()
    awq = method.kind == "awq"
    backend = library.BACKEND.AWQ_TORCH if awq else library.BACKEND.GPTQ_TORCH
    found, expected = theirs(library, tmp_path, backend, tokens), made(tokens)
    assert (found - expected).norm() / expected.norm() < (3e-3 if awq else 1e-5)  # its AWQ multiplies in half precision


@pytest.mark.parametrize("settings", [{"sym": True}, {"sym": False}, {"act_group_aware": True},
                                      {"sym": False, "desc_act": True}], ids=str)  # fmt: skip
def test_we_read_its(library, dense, settings, tokens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes logs where it is
    base, folder = tmp_path / "base", tmp_path / "packed"
    base.mkdir()
    save_model(dense, with_tokenizer(base), 1, 2)
    config = library.QuantizeConfig(bits=4, group_size=128, device="cpu", offload_to_disk=False,
                                    **{"desc_act": False, "act_group_aware": False, **settings})  # fmt: skip
    made = library.GPTQModel.load(str(base), config, dtype=torch.float32)
    rows = torch.randint(330, (16, 128)).tolist()
    made.quantize([{"input_ids": row, "attention_mask": [1] * 128} for row in rows], batch_size=8,
                  backend=library.BACKEND.GPTQ_TORCH)  # fmt: skip
    made.save(str(folder))
    found, expected = read_model(folder).float()(tokens), theirs(library, folder, library.BACKEND.GPTQ_TORCH, tokens)
    assert (found - expected).norm() / expected.norm() < 1e-5
