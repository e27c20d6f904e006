"""BitNet b1.58 and OneBit in training: the formulas typed out, straight-through gradients, the verb to its end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_run import messages_of, save_taught
from transformers import AutoConfig

from babyllama.commands import prepare, train
from babyllama.data.sources.corpora import CorpusChoice
from babyllama.errors import InputError
from babyllama.load import load
from babyllama.model.bitnet import BitLinear, OneBitLinear, rounded_tokens, ternary
from babyllama.model.checkpoint import load_model, save_model
from babyllama.model.config import ModelChoice
from babyllama.model.config_json import to_hugging_face
from babyllama.quant.onebit import pack_trained
from babyllama.recipe import load_recipe
from babyllama.run import Run
from babyllama.train.checkpoints import Checkpoints
from conftest import sharp_model, tiny_config

CPU = torch.device("cpu")
OTHERS = [(f"{i}乘一等于几？", f"等于{i}。") for i in range(20)]  # some are held out
TEXTS = [("天空是什么颜色？", "天空是蓝色的。"), ("火热不热？", "火很热。"), ("雪是什么颜色？", "雪是白色的。")]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def layer_of(inputs, outputs, dtype=torch.float32):
    layer = BitLinear(inputs, outputs)
    layer.weight.data = torch.randn(outputs, inputs, generator=generator(1)) * 0.1
    return layer.to(dtype)


def law(x, weight):
    """RoundClip(W / γ, −1, 1) · γ times each token's 8-bit rounding, in float64."""
    w, x = weight.detach().double().numpy(), x.detach().double().numpy()
    gamma = np.abs(w).mean()
    signs = np.maximum(-1, np.minimum(1, np.round(w / gamma)))
    step = np.abs(x).max(-1, keepdims=True) / 127
    codes = np.round(x / np.where(step == 0, 1, step))
    return torch.tensor(codes * step), torch.tensor(signs * gamma)


def test_answering_makes_the_codes_once_and_again_after_a_change(monkeypatch):
    """On a CPU without gradients; by the integers of the same formula."""
    layer, x = layer_of(64, 33), torch.randn(2, 64, generator=generator(2))
    made, formula = [], ternary
    monkeypatch.setattr("babyllama.model.bitnet.ternary", lambda weight: made.append(1) or formula(weight))
    for change in (lambda: layer.weight.mul_(-1), lambda: layer.weight.copy_(layer.weight.flip(0)),
                   lambda: setattr(layer.weight, "data", layer.weight.data.roll(1, 0)), lambda: layer.bfloat16(),
                   lambda: layer.load_state_dict({"weight": layer_of(64, 33).weight * 2})):  # fmt: skip
        with torch.no_grad():
            change()
            rounded, matrix = law(x, layer.weight.float())
            expected = rounded @ matrix.T
            for _ in range(2):
                assert (layer(x).double() - expected).norm() < 1e-2 * expected.norm()
    assert len(made) == 5


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 5), (64, 33), (1000, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_is_the_papers_formula(inputs, outputs, dtype):
    layer = layer_of(inputs, outputs, dtype)
    x = (torch.randn(2, 7, inputs, generator=generator(2)) * 3).to(dtype)
    x[0, 3] = 0
    rounded, matrix = law(x, layer.weight)
    expected = rounded @ matrix.T
    bound = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(layer.dense_weight().double(), matrix, rtol=1e-5, atol=0)
    assert (layer(x).double() - expected).norm() < bound * expected.norm()
    assert not layer(x)[0, 3].any()


def test_sums_of_a_thousand_full_codes_fit_float16():
    """1,000 codes of 127 are 127,000, beyond float16's 65,504: sums must be kept smaller."""
    layer = layer_of(1000, 3)
    layer.weight.data = torch.full((3, 1000), 0.01)
    found = layer.half()(torch.ones(2, 1000, dtype=torch.float16))
    torch.testing.assert_close(found.float(), torch.full((2, 3), 10.0), rtol=2e-3, atol=0)


def test_codes():
    codes, scale = ternary(torch.tensor([[0.4, -0.6, 2.0, -0.1, 0.9, -2.0]]))
    assert scale.item() == pytest.approx(1.0) and codes.tolist() == [[0, -1, 1, 0, 1, -1]]
    assert not ternary(torch.zeros(3, 4))[0].any()
    x = torch.randn(5, 30, generator=generator(3))
    codes, step = rounded_tokens(x)
    assert codes.abs().amax(-1).tolist() == [127] * 5 and ((codes * step - x).abs() <= 0.5001 * step).all()


def test_gradients_are_straight_through():
    layer, x = layer_of(64, 33), torch.randn(3, 5, 64, generator=generator(4)).requires_grad_()
    g = torch.randn(3, 5, 33, generator=generator(5))
    layer(x).backward(g)
    rounded, matrix = law(x, layer.weight)
    torch.testing.assert_close(x.grad.double(), g.double() @ matrix, rtol=1e-4, atol=1e-5)
    expected = g.flatten(0, 1).T.double() @ rounded.flatten(0, 1)
    torch.testing.assert_close(layer.weight.grad.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_is_ours_alone_and_loads_strictly(tmp_path, tokens, tied):
    config = tiny_config(tied=tied).model_copy(update={"weights": "ternary"})
    model = sharp_model(config)
    assert sum(isinstance(m, BitLinear) for m in model.modules()) == 21
    assert config.parameters == sum(p.numel() for p in model.parameters())
    save_model(model, tmp_path, 1, 2)
    loaded = load_model(tmp_path)
    assert loaded.config == config and torch.equal(loaded(tokens), model(tokens))
    with pytest.raises(ValueError, match="babyllama"):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="no form in a Hugging Face"):
        to_hugging_face(config, 1, 2, "float32", stock=True)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, "weights": "onebit"}))
    with pytest.raises(InputError, match="weights do not fit"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**written, "weights": "binary"}))
    with pytest.raises(InputError, match="weights"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in written.items() if k != "weights"}))
    with pytest.raises(InputError, match="model_type"):
        load_model(tmp_path)


def test_dense_folders_are_as_before():
    assert "weights" not in to_hugging_face(tiny_config(), 1, 2, "float32")
    assert ModelChoice(preset="tiny").build(100).weights == "dense"


# ── the verb ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A taught base, chats of which it knows none."""
    folder = tmp_path_factory.mktemp("few")
    save_taught(folder / "base" / "model")
    lines = [json.dumps({"messages": messages_of(*chat)}) for chat in TEXTS * 8 + OTHERS]
    (folder / "chats.jsonl").write_text("\n".join(lines), "utf-8")
    prepare.main(prepare.PrepareRecipe(
        out=folder / "data", tokenizer=folder / "base" / "model", validation=0.4, workers=1,
        corpora=(CorpusChoice(path=str(folder / "chats.jsonl"), label="chats"),)))  # fmt: skip
    return folder


SMALL = ["init.model.preset=tiny", "init.model.hidden_size=48", "init.model.num_hidden_layers=2",
         "init.model.num_attention_heads=4", "init.model.max_position_embeddings=96"]  # fmt: skip
WAYS = {
    "ternary": [*SMALL, "init.model.weights=ternary"],
    "onebit": ["init.kind=from", "init.path={}/base", "adapter.kind=onebit", "optimizer.kind=adamw",
               "optimizer.lr=0.004"],
}  # fmt: skip


def run(folder, out, way, *overrides):
    given = [f"out={folder}/{out}", f"data.path={folder}/data", "data.packing=documents", "plan.steps=60",
             "plan.micro_batch_size=4", "plan.log_every=1", "plan.save_every=20", "plan.validate_every=60",
             "device=cpu", *(word.format(folder) for word in WAYS[way])]  # fmt: skip
    made = load_recipe(train.TrainRecipe, None, [*given, *overrides])
    train.main(made)
    return made.out


@pytest.fixture(scope="module", params=WAYS)
def trained(request, folder):
    return request.param, run(folder, request.param, request.param)


def losses(path):
    return [m["loss"] for m in Run.open(path).metrics() if m["kind"] == "train"]


def test_it_learns_and_its_run_loads(trained, folder):
    way, path = trained
    found = losses(path)
    assert sum(found[-5:]) < 0.6 * sum(found[:5])
    loaded = load(path, CPU, "fp32").model
    kind = {"ternary": BitLinear, "onebit": OneBitLinear}[way]
    assert loaded.config.weights == way and sum(isinstance(m, kind) for m in loaded.modules()) == 14
    assert load(path / "best", CPU, "fp32").model.config == loaded.config
    assert train.TrainRecipe.model_validate(load_recipe(train.TrainRecipe, str(path / "recipe.yaml"))).out == path


def test_a_resumed_training_is_the_same_to_the_bit(trained, folder, monkeypatch):
    way, path = trained
    seen = Checkpoints.save

    def stop_after(self, step, progress):
        seen(self, step, progress)
        if step == 40:
            self.wait()
            self._run.unlock()
            raise RuntimeError("cut")

    monkeypatch.setattr(Checkpoints, "save", stop_after)
    with pytest.raises(RuntimeError, match="cut"):
        run(folder, f"{way}-again", way)
    monkeypatch.undo()
    again = run(folder, f"{way}-again", way)
    assert losses(again) == losses(path)
    assert (again / "model" / "model.safetensors").read_bytes() == (path / "model" / "model.safetensors").read_bytes()


def test_what_was_trained_goes_on_and_takes_no_adapter(trained, folder):
    way, path = trained
    words = ["init.kind=from", f"init.path={path}", "plan.steps=4"]
    if way == "ternary":
        WAYS["on"] = words
        assert load(run(folder, "on", "on"), CPU, "fp32").model.config.weights == way
    WAYS["lora"] = [*words, "adapter.kind=lora"]
    with pytest.raises(InputError, match="could not be merged"):
        run(folder, f"{way}-lora", "lora")


def test_a_onebit_run_packs(folder, trained):
    way, path = trained
    if way != "onebit":
        return
    model = load(path, CPU, "fp32").model
    tokens = torch.randint(300, (2, 20), generator=generator(6))
    before = model(tokens)
    assert len(pack_trained(model)) == 14
    assert (model(tokens) - before).norm() < 0.02 * before.norm()


def test_choices_that_cannot_be(folder):
    with pytest.raises(InputError, match="needs a trained base"):
        run(folder, "none", "ternary", "adapter.kind=onebit", "objective.kind=next_token")
    with pytest.raises(InputError, match="a new model needs a teacher"):
        run(folder, "none", "ternary", "objective.kind=distil")
    with pytest.raises(InputError, match="compile"):
        run(folder, "none", "onebit", "compile=true")
    assert not (folder / "none").exists()


def test_a_named_teacher_teaches_a_new_ternary_model(folder):
    path = run(folder, "taught", "ternary", "objective.kind=distil", f"objective.teacher={folder}/base",
               "objective.alpha=0", "plan.steps=30")  # fmt: skip
    assert sum(losses(path)[-5:]) < 0.8 * sum(losses(path)[:5])


def test_the_packages_recipes_are_whole():
    ternary, onebit = (load_recipe(train.TrainRecipe, f"seed/{name}") for name in ("bitnet", "onebit"))
    assert ternary.init.model.build(64793).weights == "ternary" and ternary.objective.kind == "next_token"
    assert onebit.adapter.kind == "onebit" and onebit.objective.kind == "distil"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", WAYS)
def test_it_trains_on_a_gpu_in_half_precision(folder, way):
    """Ternary models compiled, OneBit's as they are; what was saved packs and computes there."""
    path = run(folder, f"{way}-gpu", way, "device=cuda", "precision=bf16")
    assert sum(losses(path)[-5:]) < 0.7 * sum(losses(path)[:5])
    model = load(path, torch.device("cuda"), "bf16").model
    tokens = torch.randint(300, (2, 20), generator=generator(6)).cuda()
    before = model(tokens).float()
    assert before.isfinite().all()
    if way == "onebit":
        pack_trained(model)
        assert (model(tokens).float() - before).norm() < 0.05 * before.norm()
