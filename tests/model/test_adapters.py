"""Adapter folders: PEFT reads ours, we read PEFT's, and whatever does not fit is one clear line."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from babyllama.errors import InputError
from babyllama.load import read_model
from babyllama.model.adapters import BaseLink, claim_base, save_adapter
from babyllama.model.checkpoint import save_model
from babyllama.model.lora import Dora, Lora, attach, enabled
from babyllama.model.nf4 import pack_base
from conftest import sharp_model

WHOLE = ("embed_tokens", "norms")
ADAPTERS = {
    "lora": Lora(rank=4, alpha=8),
    "lora-sqrt-ranks": Lora(rank=4, ranks={"q_proj": 2, "down_proj": 8}, scaling="sqrt_rank"),
    "lora-some": Lora(rank=3, targets=("v_proj", "up_proj")),
    "lora-plus": Lora(rank=4, train=WHOLE),
    "dora": Dora(rank=4),
    "dora-plus": Dora(rank=4, train=WHOLE),
}


@pytest.fixture
def variants(two_variants):
    return two_variants


def stir(model, size=0.1):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def saved_base(model, folder):
    folder.mkdir(parents=True)
    save_model(model, folder, bos_id=1, eos_id=2)
    return folder


def trained(base, folder, adapter):
    """An adapter on `base` whose every part has moved, in `folder`; returns the attached model."""
    model = read_model(base).float()
    pack_base(model, adapter.base)
    attach(model, adapter, seed=1)
    stir(model)
    folder.mkdir(parents=True)
    save_adapter(model, folder, adapter, BaseLink.to(base, adapter.base))
    return model.eval()


@pytest.fixture
def base(tmp_path, model):
    return saved_base(model, tmp_path / "base")


@pytest.fixture
def one(tmp_path, config):
    """A base and a LoRA of it."""
    trained(saved_base(sharp_model(config), tmp_path / "base"), tmp_path / "adapter", Lora(rank=4, train=WHOLE))
    return tmp_path / "adapter"


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_peft_reads_ours(tmp_path, base, adapter, tokens):
    ours = trained(base, tmp_path / "adapter", adapter)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = theirs.eval()(tokens).logits
    found = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    torch.testing.assert_close(found(tokens).logits, ours(tokens), rtol=0, atol=1e-5)
    assert not torch.allclose(found(tokens).logits, before, atol=1e-2)


def test_peft_finds_the_base_by_itself(one, tokens):
    found = peft.AutoPeftModelForCausalLM.from_pretrained(one).eval()
    torch.testing.assert_close(found(tokens).logits, read_model(one, attach=True)(tokens), rtol=0, atol=1e-5)


PEFTS = {  # the first key of a pattern that fits counts, and PEFT saves keys sorted: ours are
    "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "regex": {"r": 4, "target_modules": r".*\.mlp\.(up|down)_proj"},
    "all": {"r": 4, "target_modules": "all-linear"},
    "dora": {"r": 4, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "rslora": {"r": 4, "target_modules": ["q_proj"], "use_rslora": True, "lora_alpha": 16},
    "patterns": {"r": 4, "target_modules": ["q_proj", "k_proj"], "rank_pattern": {"k_proj": 2},
                 "alpha_pattern": {"k_proj": 3}},
    "expressions": {"r": 4, "target_modules": ["q_proj", "k_proj", "down_proj"], "rank_pattern": {r".*\.[01]\..*": 3},
                    "alpha_pattern": {"[qk]_proj": 24, r"model\.layers\.1\..*_proj": 2, "q_proj": 1}},
    "pissa": {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa", "lora_alpha": 12},
    "olora": {"r": 4, "target_modules": ["k_proj", "up_proj"], "init_lora_weights": "olora"},
    "pissa-more": {"r": 12, "target_modules": ["k_proj"], "init_lora_weights": "pissa", "use_dora": True,
                   "use_rslora": True},
    "some-layers": {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [0, 2]},
    "whole": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "embedding": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}  # fmt: skip


@pytest.mark.parametrize("name", PEFTS)
def test_we_read_what_peft_has_trained(tmp_path, base, name, tokens):
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **PEFTS[name])
    found = peft.get_peft_model(theirs, config).train()
    optimizer = torch.optim.SGD([p for p in found.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        found(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(found.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
    found.save_pretrained(tmp_path / "theirs")
    logits = found.eval()(tokens).logits
    plain = read_model(base)(tokens)
    assert not torch.allclose(logits, plain, atol=1e-2)
    attached, merged = read_model(tmp_path / "theirs", attach=True), read_model(tmp_path / "theirs")
    torch.testing.assert_close(attached(tokens), logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(merged(tokens), logits, rtol=0, atol=1e-4)
    with enabled(attached, False):
        assert torch.equal(attached(tokens), plain)
    again = tmp_path / "again"
    again.mkdir()
    save_model(merged, again, 1, 2)  # an embedding that came apart from its head stays so
    torch.testing.assert_close(read_model(again)(tokens), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("packed", ["dense", "nf4", "int8"])
@pytest.mark.parametrize("adapter", [Lora(rank=4, train=WHOLE), Dora(rank=4)], ids=["lora", "dora"])
def test_what_was_trained_is_what_is_loaded(tmp_path, base, adapter, packed, tokens):
    ours = trained(base, tmp_path / "adapter", adapter.model_copy(update={"base": packed}))
    assert torch.equal(read_model(tmp_path / "adapter", attach=True)(tokens), ours(tokens))
    torch.testing.assert_close(read_model(tmp_path / "adapter")(tokens), ours(tokens), rtol=1e-4, atol=5e-4)


def test_an_adapter_on_an_adapter(tmp_path, one, tokens):
    below = read_model(one)(tokens)
    second = trained(one, tmp_path / "second", Dora(rank=2))
    merged, attached = read_model(tmp_path / "second"), read_model(tmp_path / "second", attach=True)
    torch.testing.assert_close(merged(tokens), second(tokens), rtol=1e-4, atol=5e-4)
    torch.testing.assert_close(attached(tokens), second(tokens), rtol=1e-3, atol=1e-3)
    with enabled(attached, False, "second"):
        torch.testing.assert_close(attached(tokens), below, rtol=1e-4, atol=5e-4)


def test_it_is_small_and_moves_with_its_base(tmp_path, one, tokens):
    expected = read_model(one)(tokens)
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "adapter"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    assert torch.equal(read_model(tmp_path / "elsewhere" / "adapter")(tokens), expected)
    names = set(load_file(tmp_path / "elsewhere" / "adapter" / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert not any("q_proj.weight" in name for name in names)


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def refused(folder, said):
    with pytest.raises(InputError, match=said) as error:
        read_model(folder)
    assert "\n" not in str(error.value)


def edit(folder, **values):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **values}))


def test_another_base_is_refused(tmp_path, one, config):
    shutil.rmtree(tmp_path / "base")
    refused(one, r"its base .*base is not there; put it back")
    saved_base(sharp_model(config, seed=5), tmp_path / "base")
    refused(one, "trained on a base with hash .* but .*base has ")


def test_going_on_from_another_base_is_refused(tmp_path, one):
    link = BaseLink.to(tmp_path / "base", "dense")
    run = tmp_path / "run"
    run.mkdir()
    claim_base(run, link, write=True)
    claim_base(run, link, write=True)
    with pytest.raises(InputError, match="began on a base with hash"):
        claim_base(run, BaseLink(link.folder, "0" * 32), write=True)


@pytest.mark.parametrize("keep", [0, 7, 500, -10])
def test_truncated_weights_are_refused(one, keep):
    file = one / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(one, "adapter_model.safetensors: not a whole safetensors file")


def test_missing_weights_are_refused(one):
    (one / "adapter_model.safetensors").unlink()
    refused(one, "no adapter_model.safetensors$")


def test_a_pickle_is_never_opened(one):
    (one / "adapter_model.safetensors").unlink()
    (one / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    refused(one, r"adapter_model\.bin is a pickle, which may run code: convert it to safetensors")


@pytest.mark.parametrize("change,said", [
    (lambda t: t.pop("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"), r"missing layers.*lora_B"),
    (lambda t: [t.pop(n) for n in list(t) if "layers.1.mlp.up_proj" in n], r"missing layers\.1\.mlp\.up_proj\.lora_A"),
    (lambda t: t.update({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(4, 31)}),
     r"lora_A has shape \[4, 31\], the base asks for \[4, 32\]"),
    (lambda t: t.update({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 32)}),
     "layers.9.mlp.up_proj is no linear in the blocks"),
    (lambda t: t.update({"base_model.model.model.embed_tokens.lora_e_A": torch.zeros(4, 32)}), "is nothing that"),
    (lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(5)}), r"norm has shape \[5\], the base has"),
    (lambda t: t.update({"base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector": torch.zeros(56)}),
     r"unexpected layers\.0\.mlp\.up_proj\.magnitude"),
    (lambda t: [t.pop(n) for n in [n for n in t if "lora_B" in n][:5]],
     r"base: missing [^;]+; missing [^;]+; missing [^;]+ and 2 more$"),
    (lambda t: [t.pop(n) for n in [n for n in t if "lora_B" in n][:3]],
     r"missing [^;]+; missing [^;]+; missing \S+$"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_named(one, change, said):
    tensors = load_file(one / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, one / "adapter_model.safetensors")
    refused(one, said)


@pytest.mark.parametrize("values,said", [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"bias": "all"}, "bias = 'all' is not supported"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out = True is not supported"),
    ({"use_dora": True}, "missing .*magnitude"),
    ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4': PEFT took a part out of the base that nobody kept"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
    ({"alpha_pattern": {"q_proj(": 3}}, r"alpha_pattern: 'q_proj\(' is not a regular expression"),
])  # fmt: skip
def test_configs_that_we_do_not_compute_are_refused(one, values, said):
    edit(one, **values)
    refused(one, said)


def test_a_damaged_config_is_one_clear_line(one):
    (one / "adapter_config.json").write_text('{"r": ')
    refused(one, "adapter_config.json: not valid JSON")
