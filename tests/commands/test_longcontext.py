"""From a trained run to four times its context with every law, then the verb that compares them."""

from __future__ import annotations

import json
import shutil
import signal
import warnings

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from babyllama.commands import train as verb
from babyllama.commands.chat import ChatRecipe
from babyllama.commands.evaluate import EvaluateRecipe
from babyllama.commands.evaluate import main as evaluate
from babyllama.commands.generate import GenerateRecipe
from babyllama.commands.generate import main as generate
from babyllama.commands.longcontext import LongContextRecipe, draw, free_folder
from babyllama.commands.longcontext import main as longcontext
from babyllama.commands.merge import MergeRecipe
from babyllama.commands.merge import main as merge
from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.errors import InputError, Interrupted
from babyllama.load import load
from babyllama.model.attention import ShiftedSparse, attend_sdpa
from babyllama.model.checkpoint import save_model
from babyllama.model.laws import DynamicNtkRope, LinearRope, YarnRope
from babyllama.model.transformer import Transformer
from babyllama.recipe import BUNDLED, load_recipe

from .small_run import small_tokenizer

L = 16
SENTENCES = ["春眠不觉晓，", "处处闻啼鸟。", "夜来风雨声，", "花落知多少。", "白日依山尽，", "黄河入海流。"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tokenizer, long documents, and a base run trained at 16 tokens."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "tok").mkdir()
    small_tokenizer().save(folder / "tok")
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(SENTENCES, 60)) for _ in range(60)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    (folder / "text.txt").write_text("".join(texts), "utf-8")
    given = [f"out={folder / 'data'}", f"tokenizer={folder / 'tok'}", f"corpora=[{{path: {folder / 'text.jsonl'}}}]"]
    prepare(load_recipe(PrepareRecipe, None, [*given, "workers=1", "validation=0.2"]))
    train(folder, "base", "init.model.preset=tiny", f"init.model.max_position_embeddings={L}",
          "init.model.hidden_size=32", "init.model.num_attention_heads=4", "init.model.num_hidden_layers=2",
          "plan.steps=60", "optimizer.kind=adamw", "optimizer.lr=0.01")  # fmt: skip
    return folder


def recipe_of(folder, name, *words):
    given = [f"out={folder / name}", f"data.path={folder / 'data'}", "plan.micro_batch_size=8", "device=cpu",
             "plan.validation_tokens=400", *words]  # fmt: skip
    return load_recipe(verb.TrainRecipe, None, given)


def train(folder, name, *words):
    verb.main(recipe_of(folder, name, *words))
    return folder / name


def extend(folder, name, *words):
    start = ["init.kind=from", f"init.path={folder / 'base'}", "optimizer.kind=adamw", "optimizer.lr=0.002"]
    return train(folder, name, *start, "plan.steps=6", "plan.micro_batch_size=4", *words)


def interrupted(monkeypatch, start, folder, out, *words):
    """`start` a run, stop it in its third step, start it again."""
    step, opened, runs = verb.Watch.step, verb.open_run, []

    def stop(self, number, *rest):
        step(self, number, *rest)
        if number == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(verb.Watch, "step", stop)
        patch.setattr(verb, "open_run", lambda *args: runs.append(opened(*args)) or runs[0])
        with pytest.raises(Interrupted):
            start(folder, out, *words)
    runs[0].unlock()
    return start(folder, out, *words)


LAWS = {kind: f"{{kind: {kind}, factor: 4.0}}" for kind in ("linear", "ntk", "dynamic_ntk", "by_parts", "yarn")}
LAWS["clex"] = "{kind: clex, max_t: 4}"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", LAWS)
def test_every_law_extends_a_run(place, tmp_path, kind, precision):
    run = extend(place, tmp_path / "run", f"init.rope={LAWS[kind]}", f"precision={precision}",
                 *(["plan.context=32"] if kind == "clex" else []))  # fmt: skip
    config = load(run).model.config
    assert (config.max_position_embeddings, config.rope.kind, config.rope.original) == (4 * L, kind, L)
    if kind == "clex":
        weights = load_file(run / "model" / "model.safetensors")
        assert weights["model.rope.down"].dtype == torch.float32 and weights["model.rope.down"].abs().sum() > 0


def test_clex_is_learned_bit_for_bit_after_an_interruption(place, tmp_path, monkeypatch):
    words = [f"init.rope={LAWS['clex']}", "plan.context=16", "plan.recompute=true", "optimizer.kind=muon"]
    words += ["optimizer.lr=0.002"]
    whole = extend(place, tmp_path / "whole", *words)
    cut = interrupted(monkeypatch, extend, place, tmp_path / "cut", *words, "plan.log_every=1")
    first, second = (load_file(run / "model" / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_shifted_attention_trains_and_nothing_else(place, tmp_path, monkeypatch):
    """Groups in training; full attention in validation, samples and the saved model."""
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    hidden = Transformer.hidden

    def noting(self, *args, **kwargs):
        attend = self.layers[0].self_attn.attend
        seen[torch.is_grad_enabled()].add("full" if attend is attend_sdpa else attend.kind)
        return hidden(self, *args, **kwargs)

    monkeypatch.setattr(Transformer, "hidden", noting)
    words = [f"init.rope={LAWS['yarn']}", "attend={kind: shifted_sparse, group_size: 16}"]
    run = extend(place, tmp_path / "run", *words, "samples.prompts=[春眠]")
    assert seen == {True: {"shifted_sparse"}, False: {"full"}}
    monkeypatch.undo()
    plain = extend(place, tmp_path / "plain", words[0])
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (run, plain))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_attention_in_groups_compiles():
    attend, args = ShiftedSparse(group_size=4), [torch.randn(1, 4, 12, 8) for _ in range(3)]
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, None), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*args), attend(*args, None))


def test_bad_extensions_are_one_line(place, tmp_path):
    for words, said in (
        (["init.rope={kind: yarn, factor: 0.5}"], r"init.rope.factor: input should be greater than or equal to 1"),
        (["init.rope={kind: yarn, factor: 1.0}"], "rope.factor: 1 changes nothing"),
        (["init.rope={factor: 2.0}"], "kind must be given, one of none, linear"),
        (["init.rope={kind: none, factor: 2.0}"], "factor has no effect with kind none"),
        ([f"init.rope={LAWS['yarn']}", "plan.context=128"], "plan.context: 128 is above the model's 64 positions"),
        (
            [f"init.rope={LAWS['clex']}", "engine.kind=deepspeed"],
            "rope.kind: clex learns in float32, which deepspeed does not mix with halves; use engine.kind=ddp or fsdp",
        ),
        (["data.stretch=4"], "data.stretch: 4 × 16 trained tokens are above the model's 16 positions"),
        ([f"init.rope={LAWS['yarn']}", "attend.kind=shifted_sparse", "attend.group_size=3"], "multiple of 2"),
        (
            [f"init.rope={LAWS['yarn']}", "attend.kind=shifted_sparse", "attend.group_size=64"],
            "attend.group_size: 64 leaves nothing out of rows of 64 tokens; give a quarter of that, 16, or",
        ),
    ):
        with pytest.raises(InputError, match=said) as error:
            extend(place, tmp_path / "bad", *words)
        assert "\n" not in str(error.value)


def test_a_second_result_leaves_the_first_alone(tmp_path):
    first = tmp_path / "longcontext"
    assert free_folder(first) == first
    for name in ("longcontext", "longcontext-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text("{}")
    assert free_folder(first) == tmp_path / "longcontext-3"


def test_one_override_for_chat_generate_and_evaluate(place, capsys):
    words = ["rope.kind=yarn", "rope.factor=4"]
    assert load_recipe(ChatRecipe, None, [f"model={place / 'base'}", *words]).rope == YarnRope(factor=4.0)
    assert load(place / "base", rope=YarnRope(factor=4.0)).model.config.max_position_embeddings == 64
    given = [f"model={place / 'base'}", "prompt=春眠", "temperature=0", "device=cpu"]
    generate(load_recipe(GenerateRecipe, None, [*given, "max_tokens=50", *words]))
    long = capsys.readouterr().out
    generate(load_recipe(GenerateRecipe, None, [*given, "max_tokens=50"]))
    assert len(long) > len(capsys.readouterr().out)  # the plain model ends at 16 tokens
    generate(load_recipe(GenerateRecipe, None, [*given, "max_tokens=320", "sinks=4"]))  # 20 contexts
    assert len(capsys.readouterr().out) > 100
    given = [f"model={place / 'base'}", f"data={place / 'data'}", "context=64", "device=cpu", "questions=0"]
    with pytest.raises(InputError, match="context: 64 is above the model's 16 positions"):
        evaluate(load_recipe(EvaluateRecipe, None, given))
    evaluate(load_recipe(EvaluateRecipe, None, [*given, *words]))


def test_the_verb(place, monkeypatch):
    given = [f"model={place / 'base'}", f"data={place / 'data'}", "lengths=[16, 32, 64]", "device=cpu", "depths=0"]
    longcontext(
        load_recipe(LongContextRecipe, None, [*given, "laws=[none, linear, ntk, dynamic_ntk, by_parts, yarn, clex]"])
    )
    folder = place / "base" / "evals" / "longcontext"
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert list(result["contenders"]) == ["base", "none", "linear", "ntk", "dynamic_ntk", "by_parts", "yarn", "clex"]
    assert (folder / "figure.png").stat().st_size > 5000
    page = (folder / "index.html").read_text("utf-8")
    assert "data:image/png;base64," in page and "http" not in page.replace("https", "http").split("base64,")[0]
    found = {name: values["perplexity"] for name, values in result["contenders"].items()}
    assert found["base"] == found["none"]
    assert found["dynamic_ntk"]["16"] == found["clex"]["16"] == found["none"]["16"]  # plain up to the trained length
    assert found["linear"]["16"] != found["none"]["16"]
    text = [f"model={place / 'base'}", f"text={place / 'text.txt'}", "lengths=[160]", "device=cpu", "laws=[yarn]"]
    longcontext(load_recipe(LongContextRecipe, None, [*text, "documents=2", "trials=1", "depths=2"]))
    second = folder.with_name("longcontext-2")  # beside the first, which stays
    keys = json.loads((second / "result.json").read_text("utf-8"))["contenders"]["yarn"]["passkey"]
    assert [entry["depth"] for entry in keys] == [0, 1] and all(entry["nats"] > 0 for entry in keys)
    shutil.copytree(place / "base" / "model", place / "other")
    names = json.loads((place / "other" / "tokenizer.json").read_text("utf-8"))
    names["added_tokens"][-1]["content"] += "!"
    (place / "other" / "tokenizer.json").write_text(json.dumps(names), "utf-8")
    monkeypatch.setattr("babyllama.commands.longcontext.measure", lambda *_: pytest.fail("measured before it looked"))
    for words, said in (
        ([*given, "lengths=[9000]"], "the longest text has"),
        ([f"model={place / 'base'}"], "give data .a prepared folder. or text"),
        ([*given, "scored=17"], "scored: 17 is above the shortest length, 16"),
        ([*given, f"against=[{place / 'nowhere'}]"], "nowhere: does not exist"),
        ([*given, f"against=[{place / 'other'}]"], "other: another tokenizer than .*base's"),
    ):
        with pytest.raises(InputError, match=said):
            longcontext(load_recipe(LongContextRecipe, None, words))


def test_a_figure_shows_no_boxes_in_place_of_hanzi(tmp_path):
    """A run's name may be Chinese; where no font has hanzi, its number in the page's table stands for it."""
    keys = [{"length": n, "depth": d, "right": d, "nats": 1.0, "trials": 1} for n in (16, 32) for d in (0.0, 1.0)]
    found = {"rope": {"kind": "none"}, "perplexity": {16: 9.0, 32: 99.0}, "by_position": [(16, 2.0), (32, 4.0)],
             "passkey": keys}  # fmt: skip
    result = {"trained_context": 16, "lengths": (16, 32), "scored": 8, "rows": 1, "contenders": {"底座": found}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a missing glyph
        draw(tmp_path / "figure.png", result)
        draw(tmp_path / "bare.png", {**result, "contenders": {"base": {**found, "passkey": []}}})
    assert (tmp_path / "figure.png").stat().st_size > (tmp_path / "bare.png").stat().st_size > 5000


@pytest.mark.parametrize("path", sorted((BUNDLED / "extend").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along(path):
    recipe = load_recipe(verb.TrainRecipe, str(path))
    assert recipe.init.rope.kind == path.stem or recipe.attend.kind == "shifted_sparse"


# ── LongLoRA: a law and an adapter in one run ──────────────────────────────────────────────────────────────────────
def longlora(folder, out, *words):
    small = [f"out={out}", f"data.path={folder / 'data'}", f"init.path={folder / 'base'}", "init.rope.factor=4.0",
             "adapter.rank=4", "attend.group_size=16", "plan.steps=6", "plan.micro_batch_size=4", "plan.accumulate=1",
             "plan.validate_every=3", "device=cpu"]  # fmt: skip
    verb.main(load_recipe(verb.TrainRecipe, "extend/longlora", [*small, *words]))
    return out


def stretched(folder, law):
    """The oracle's base: the whole folder under another law, nothing trained."""
    out = folder / f"stretched-{law.kind}"
    if not out.exists():
        loaded = load(folder / "base", torch.device("cpu"), "fp32", law)
        out.mkdir()
        save_model(loaded.model, out, loaded.tokenizer.bos_id, loaded.tokenizer.eos_id)
        loaded.tokenizer.save(out)
    return out


CHOICES = {
    "linear": (LinearRope(factor=4.0), []),
    "yarn": (YarnRope(factor=4.0), ["adapter.kind=dora"]),
    "dynamic_ntk": (DynamicNtkRope(factor=4.0), ["adapter.base=nf4"]),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_longlora_in_one_run_is_stretching_first(place, tmp_path, kind, tokens):
    """Bit for bit what the same adapter learns on a base that was stretched, whole, beforehand."""
    law, words = CHOICES[kind]
    one = longlora(place, tmp_path / "one", f"init.rope={LAWS[kind]}", *words)
    two = longlora(place, tmp_path / "two", f"init.path={stretched(place, law)}", "init.rope=null", *words)
    ours, theirs = (load_file(run / "model" / "adapter_model.safetensors") for run in (one, two))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    merged, expected = load(one, torch.device("cpu")).model, load(two, torch.device("cpu")).model
    assert merged.config == expected.config and merged.config.max_position_embeddings == 4 * L
    assert torch.equal(merged(tokens), expected(tokens))
    assert json.loads((one / "model" / "base.json").read_text("utf-8"))["rope"]["kind"] == kind
    attached = load(one, torch.device("cpu"), attach=True).model
    torch.testing.assert_close(attached(tokens), merged(tokens), rtol=1e-4, atol=5e-4)


def test_longlora_through_every_verb(place, tmp_path, capsys, tokens):
    run = longlora(place, tmp_path / "run")
    bits = EvaluateRecipe, [f"data={place / 'data'}", "context=64", "device=cpu", "questions=0"]
    evaluate(load_recipe(bits[0], None, [f"model={run}", *bits[1]]))
    with pytest.raises(InputError, match="context: 64 is above the model's 16 positions"):  # a law of one's own
        evaluate(load_recipe(bits[0], None, [f"model={run}", *bits[1], "rope.kind=none"]))
    capsys.readouterr()
    generate(load_recipe(GenerateRecipe, None, [f"model={run}", "prompt=春眠", "temperature=0", "device=cpu"]))
    assert len(capsys.readouterr().out) > 20  # beyond the 16 tokens of the base
    given = [f"model={run}", f"text={place / 'text.txt'}", "device=cpu", "depths=0", "documents=2"]
    longcontext(load_recipe(LongContextRecipe, None, given))
    result = json.loads((run / "evals" / "longcontext" / "result.json").read_text("utf-8"))
    assert (result["trained_context"], result["contenders"]["run"]["rope"]["kind"]) == (L, "yarn")
    merge(load_recipe(MergeRecipe, None, [f"model={run}", f"out={tmp_path / 'merged'}"]))
    model = load(run, torch.device("cpu")).model
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model", dtype=torch.float32)
    torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)
    assert theirs.config.max_position_embeddings == 4 * L
    # PEFT opens the adapter; the law is the base's business there: on the stretched base it computes the same.
    base = AutoModelForCausalLM.from_pretrained(stretched(place, YarnRope(factor=4.0)), dtype=torch.float32)
    found = peft.PeftModel.from_pretrained(base, run / "model").eval()
    torch.testing.assert_close(found(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)


def test_an_adapter_goes_on_from_longlora_under_its_law(place, tmp_path, tokens):
    first = longlora(place, tmp_path / "first")
    second = longlora(place, tmp_path / "second", f"init.path={first}", "init.rope=null", "adapter.train=[]")
    assert "rope" not in json.loads((second / "model" / "base.json").read_text("utf-8"))
    assert load(second, torch.device("cpu")).model.config == load(first, torch.device("cpu")).model.config
    whole = extend(place, tmp_path / "whole", f"init.path={first}", "plan.steps=1", "optimizer.lr=1.0e-12",
                   "optimizer.weight_decay=0")  # fmt: skip
    expected = load(first, torch.device("cpu")).model(tokens)
    torch.testing.assert_close(load(whole, torch.device("cpu")).model(tokens), expected, rtol=0, atol=1e-4)


def test_an_adapter_on_a_run_that_learned_clex(place, tmp_path):
    """Where the refusal of CLEX beside an adapter sends people: the law is the base's, and stays as it is."""
    base = extend(place, tmp_path / "clex", f"init.rope={LAWS['clex']}", "plan.context=32")
    run = longlora(place, tmp_path / "run", f"init.path={base}", "init.rope=null", "plan.context=32")
    model, before = load(run, torch.device("cpu")).model, load(base, torch.device("cpu")).model
    assert model.config == before.config and torch.equal(model.rope.down, before.rope.down) and before.rope.down.any()
    assert not torch.equal(model.embed_tokens.weight, before.embed_tokens.weight)


def test_longlora_goes_on_bit_for_bit(place, tmp_path, monkeypatch):
    whole = longlora(place, tmp_path / "whole", "plan.log_every=1")
    cut = interrupted(monkeypatch, longlora, place, tmp_path / "cut", "plan.log_every=1")
    first, second = (load_file(run / "model" / "adapter_model.safetensors") for run in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(InputError, match=r"init\.rope"):
        longlora(place, cut, "init.rope.factor=2.0", "plan.context=32")
