"""Packed folders: what is loaded is what was saved, for every kind; an independent reader; faults are one line."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_calibrate import batches

from babyllama.errors import InputError
from babyllama.load import read_model
from babyllama.model.checkpoint import load_model, save_model
from babyllama.model.lora import Lora, attach
from babyllama.model.transformer import Transformer, initialise
from babyllama.quant.awq import Awq
from babyllama.quant.calibrate import Ends, quantise
from babyllama.quant.folder import is_packed, packing_of, to_dense
from babyllama.quant.gptq import Gptq
from babyllama.quant.int8 import Int8
from babyllama.quant.onebit import PackSigns, start
from babyllama.quant.rtn import Rtn
from babyllama.train.tuning import Full, put_on

SIXTEEN = {"group_size": 16, "short_group": True}
WALKS = [Rtn(**SIXTEEN), Gptq(bits=3, group_size=32, act_order=True, short_group=True), Gptq(bits=2, **SIXTEEN),
         Gptq(bits=8, group_size=None, symmetric=True), Awq(group_size=None)]  # fmt: skip


@pytest.fixture
def variants(two_variants):
    return two_variants


def saved(model, method, folder, ends=None):
    """The model quantised, in half precision but for the packed weights, and its folder."""
    made = copy.deepcopy(model).requires_grad_(False)
    if isinstance(method, PackSigns):
        start(made)
    quantise(made, batches(), method, ends)
    made.half()
    save_model(made, folder, 1, 2, packing_of(made, method.kind))
    return made


def same(model, folder, tokens):
    found = read_model(folder)
    assert type(found) is Transformer and found.norm.weight.dtype == torch.float16 and is_packed(found)
    assert {name for name, value in found.state_dict().items() if value.is_meta} == set()
    assert torch.equal(found.float()(tokens), model.float()(tokens))
    return found


@pytest.mark.parametrize("method", [*WALKS, Int8(threshold=1.0), PackSigns()], ids=lambda m: m.kind)
def test_what_is_loaded_is_what_was_saved(model, method, tokens, tmp_path):
    same(saved(model, method, tmp_path), tmp_path, tokens)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ends", [Ends(head="rtn"), Ends(embedding="rtn"), Ends(head="gptq", embedding="rtn", bits=4)])
def test_ends_too(model, ends, tied, tokens, tmp_path):
    model = Transformer(model.config.model_copy(update={"tie_word_embeddings": tied}))
    initialise(model, 0)
    found = same(saved(model, Gptq(**SIXTEEN), tmp_path, ends), tmp_path, tokens)
    if tied:
        assert found.embed_tokens.packed is found.lm_head


def test_a_head_of_other_bits_than_the_blocks(model, tokens, tmp_path):
    same(saved(model, Gptq(bits=3, **SIXTEEN), tmp_path, Ends(head="rtn", bits=4)), tmp_path, tokens)


def reader(folder, name, bits):
    """(out, in), written from the format's definition alone."""
    tensors = load_file(folder / "model.safetensors")
    part = {
        key: tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales", "g_idx") if f"{name}.{key}" in tensors
    }
    awq = "g_idx" not in part
    form = json.loads((folder / "config.json").read_text())["quantization_config"].get("checkpoint_format")

    def stream(word_rows, count):
        """Integers of `bits` bits out of one column of words, as one long number."""
        number = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(word_rows))
        return [number >> (bits * i) & (2**bits - 1) for i in range(count)]

    if awq:

        def unpack(words):
            rows = []
            for row in words.tolist():
                values = []
                for word in row:
                    nibbles = [(word & 0xFFFFFFFF) >> (4 * i) & 15 for i in range(8)]
                    values += [nibbles[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
                rows.append(values)
            return torch.tensor(rows)

        codes, zeros = unpack(part["qweight"]), unpack(part["qzeros"])
        group = torch.arange(len(codes)) // (len(codes) // len(zeros))
    else:
        inputs, outputs = len(part["g_idx"]), part["scales"].shape[1]
        codes = torch.tensor([stream(column, inputs) for column in part["qweight"].T.tolist()]).T
        zeros = torch.tensor([stream(row, outputs) for row in part["qzeros"].tolist()]) + (form == "gptq")
        group = part["g_idx"].long()
    return ((codes - zeros[group]) * part["scales"].float()[group]).T


@pytest.mark.parametrize("method", WALKS, ids=lambda m: f"{m.kind}{m.bits}")
def test_an_independent_reader_sees_the_same_matrices(model, method, tmp_path):
    made = saved(model, method, tmp_path)
    for name in ("layers.0.self_attn.q_proj", "layers.2.mlp.down_proj"):
        assert torch.equal(reader(tmp_path, f"model.{name}", method.bits), made.get_submodule(name).dense_weight())
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == ("awq" if method.kind == "awq" else "gptq")
    assert settings["bits"] == method.bits and settings["group_size"] == (method.group_size or -1)


def test_adapters_train_over_it_and_merge_into_a_dense_model(model, tokens, tmp_path):
    found = same(saved(model, Gptq(**SIXTEEN), tmp_path), tmp_path, tokens)
    attach(found, Lora(rank=2), 0)
    found(tokens).sum().backward()
    assert all(p.grad is not None for name, p in found.named_parameters() if "lora_B" in name)
    dense = read_model(tmp_path).float()
    expected = dense(tokens)
    to_dense(dense)
    assert not is_packed(dense)
    torch.testing.assert_close(dense(tokens), expected)
    with pytest.raises(InputError, match="packed in few bits"):
        put_on(read_model(tmp_path), Full(), 0)
    with pytest.raises(InputError, match="packed already"):
        put_on(read_model(tmp_path), Lora(rank=2, base="nf4"), 0)


def test_faults_are_one_line(model, tmp_path):
    saved(model, Gptq(**SIXTEEN), tmp_path)
    with pytest.raises(InputError, match="holds packed weights"):
        load_model(tmp_path)
    good = (tmp_path / "config.json").read_text()

    def with_settings(**change):
        config = json.loads(good)
        config["quantization_config"] |= change
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    for change, said in (({"quant_method": "hqq"}, "is 'hqq'; can be read: gptq, awq"),
                         ({"group_size": 32}, "is meant by config.json's bits and group_size")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            read_model(with_settings(**change))
    with_settings()
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    for change, said in (({f"{name}.g_idx": torch.zeros_like(weights[f"{name}.g_idx"])}, "groups of other sizes"),
                         ({f"{name}.qweight": weights[f"{name}.qweight"][:-1]}, "in 2, 3, 4 or 8 bits"),
                         ({"model.layers.9.mlp.up_proj.qweight": weights[f"{name}.qweight"]}, "belongs to no matrix"),
                         ({f"{name}.scales": None}, "no qzeros or scales")):  # fmt: skip
        changed = {key: value for key, value in {**weights, **change}.items() if value is not None}
        save_file({key: value.clone() for key, value in changed.items()}, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=said):
            read_model(tmp_path)
