"""The benchmarks run from end to end in toy sizes, and their yardsticks are right."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.commands.train import TrainRecipe
from babyllama.commands.train import main as train
from babyllama.model.config import ModelConfig
from babyllama.recipe import load_recipe
from babyllama.tokenizer.train import train_bpe

BENCH = Path(__file__).parents[2] / "bench"
TEXTS = [f"第{i}篇：" + "春眠不觉晓，处处闻啼鸟。" * (i % 7 + 1) for i in range(150)]


@pytest.fixture(scope="module", autouse=True)
def bench_importable():
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))


def script(name: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCH / name), "--small", *args], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COMMIT": "abc"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_train_speed(tmp_path: Path) -> None:
    shown = script(
        "train_speed.py", "--results", str(tmp_path), "--contenders", "ours-adamw", "earlier", "transformers"
    )
    found = {line["contender"]: line for line in results(tmp_path / "train_speed.jsonl")}
    assert list(found) == ["ours-adamw", "earlier", "transformers"], shown
    assert found["earlier"]["commit"] == "abc" and found["earlier"]["rounds"] == 2
    rates = [found[name]["tokens_per_second"] for name in ("ours-adamw", "earlier")]
    assert min(rates) > 0 and found["earlier"]["times_faster"].keys() == {"ours-adamw 2×32"}


def test_cpu_decode(tmp_path: Path) -> None:
    shown = script("cpu_decode.py", "--results", str(tmp_path))
    found = results(tmp_path / "cpu_decode.jsonl")[0]["contenders"]
    widths = {f"{bits} bits{ends}" for bits in (8, 4, 3, 2) for ends in ("", ", head too")}
    assert widths <= found.keys() and found["4 bits"]["bytes"] < found["float32"]["bytes"], shown
    assert all(one["tokens_per_second"] > 0 for one in found.values())
    assert all(f"{name}, PyTorch" in found or name.endswith("PyTorch") for name in found)


def test_linear_ce(tmp_path: Path) -> None:
    script("linear_ce.py", "--results", str(tmp_path), "--contenders", "ours", "eager")
    found = results(tmp_path / "linear_ce.jsonl")
    assert [line["contender"] for line in found] == ["ours", "eager"] and all(line["passed"] for line in found)


@pytest.mark.slow
def test_time_to_quality(tmp_path: Path) -> None:
    tokenizer, text = tmp_path / "tok", tmp_path / "text.jsonl"
    tokenizer.mkdir()
    train_bpe(iter(TEXTS), 330).save(tokenizer)
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), "utf-8")
    given = [f"out={tmp_path / 'data'}", f"tokenizer={tokenizer}", f"corpora=[{{path: {text}}}]", "validation=0.1"]
    prepare(load_recipe(PrepareRecipe, None, [*given, "workers=1"]))
    extra = ("--candidate", "{name: mine, steps: 6, optimizer: {kind: adamw}}", "--plot", str(tmp_path / "curve.png"))
    script("time_to_quality.py", str(tmp_path / "data"), "--only", "earlier", "--results", str(tmp_path))
    shown = script("time_to_quality.py", str(tmp_path / "data"), "--only", "ours", "--results", str(tmp_path), *extra)
    assert "mine" in shown and "reaches the goal" in shown and (tmp_path / "curve.png").stat().st_size > 1000
    found = results(tmp_path / "time_to_quality.jsonl")
    assert {line["name"] for line in found} == {"earlier", "mine"} and [line["last"] for line in found].count(True) == 2
    assert all(0 < line["bits_per_byte"] < 20 and line["seconds"] > 0 for line in found)


@pytest.mark.slow
def test_fine_tuning(tmp_path: Path) -> None:
    small = ["init.model.hidden_size=64", "init.model.num_attention_heads=4", "init.model.num_hidden_layers=2"]
    plan = ["plan.steps=6", "plan.micro_batch_size=4", "plan.context=64", "plan.save_every=6", "device=cpu"]
    tokenizer, base = tmp_path / "tok", tmp_path / "base"
    tokenizer.mkdir()
    train_bpe(iter([*TEXTS, "等于几？加一"]), 330).save(tokenizer)
    chats = [{"messages": [{"role": "user", "content": f"{i}加一等于几？"},
                           {"role": "assistant", "content": f"等于{i + 1}。"}]} for i in range(60)]  # fmt: skip
    for name, records in (("corpus", [{"text": t} for t in TEXTS]), ("medical-chats", chats)):
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
        given = [f"out={tmp_path / name}", f"tokenizer={tokenizer}", f"corpora=[{{path: {source}}}]"]
        prepare(load_recipe(PrepareRecipe, None, [*given, "validation=0.2", "workers=1"]))
    data = f"data.path={tmp_path / 'corpus'}"
    train(load_recipe(TrainRecipe, None, [f"out={base}", data, "init.model.preset=tiny", *small, *plan]))
    words = (str(tmp_path), "--results", str(tmp_path / "results"))
    shown = script("fine_tuning.py", *words, "--plot", str(tmp_path / "figure.png"))
    found = {line["name"]: line for line in results(tmp_path / "results" / "fine_tuning.jsonl")}
    assert list(found) == ["base", "full", "full+replay", "full+neftune", "lora", "lora+replay", "lora+emb+norms",
                           "dora", "qlora", "lisa", "galore"], shown  # fmt: skip
    assert all(line["chat_loss"] > 0 and line["text_bits_per_byte"] > 0 for line in found.values())
    assert found["full"]["trained_parameters"] == found["full"]["parameters"] > 3 * found["lora"]["trained_parameters"]
    assert found["lora"]["model_mib"] < found["full"]["model_mib"]
    assert found["lora"]["state_mib"] < found["galore"]["state_mib"] < found["full"]["state_mib"]
    assert "lora+replay" in shown and (tmp_path / "figure.png").stat().st_size > 1000
    again = script("fine_tuning.py", *words)
    assert again.count("there already") == len(found)
    shutil.rmtree(tmp_path / "medical-chats")  # the others ask for texts alone
    script("fine_tuning.py", *words, "--study", "long", "--context", "48")
    long = [r["name"] for r in results(tmp_path / "results" / "fine_tuning.jsonl") if r["study"] == "long"]
    assert long[:5] == ["base", "full", "lora", "lora+norms", "lora+emb+norms"] and len(long) == 9
    swept = ["--study", "long", "--context", "40", "--lr", "1e-5", "1e-3", "--rank", "2", "4", "--whole-lr", "1e-4",
             "--only", "full", "lora+emb+norms s2", "lora s2"]  # fmt: skip
    shown = script("fine_tuning.py", *words, *swept)
    assert shown.count("lora+emb+norms s2 lr=0.001 rank=4 whole_lr=0.0001") == 2 and "full lr=1e-05" in shown
    assert [r["name"] for r in results(tmp_path / "results" / "fine_tuning.jsonl") if r["context"] == 40] == [
        "base", "full", "lora s2", "lora+emb+norms s2", "lora s2", "lora+emb+norms s2", "full"]  # fmt: skip
    shown = script("fine_tuning.py", *words, "--study", "speed", "--lengths", "48", "96", "--law", "yarn")
    timed = [r for r in results(tmp_path / "results" / "fine_tuning.jsonl") if r["study"] == "speed"]
    assert [(r["context"], r["name"]) for r in timed] == [(n, name) for n in (48, 96) for name in ("full", "full s2")]
    assert all(r["step_s"] > 0 and r["law"] == "yarn" for r in timed) and "times faster" in shown


def test_a_sweep_runs_each_way_once_for_what_concerns_it() -> None:
    import fine_tuning

    args = argparse.Namespace(study="long", context=64, only=[], lr=[1e-4, 1e-3], adapter_lr=[1e-3], rank=[2, 4],
                              whole_lr=[None, 1e-4], replay=0.1)  # fmt: skip
    found = [(way.name, *way.settings.values()) for way in fine_tuning.sweep(args, Path("texts"))]
    assert len(found) == len(set(found)) == 2 * (2 + 2 + 4 + 4)  # full: rates; lora: ranks; with modules: times rates
    args.only = ["full"]
    assert [way.words for way in fine_tuning.sweep(args, Path("texts"))] == [
        [f"optimizer={{kind: adamw, lr: {lr}, weight_decay: 0.01}}"] for lr in (1e-4, 1e-3)]  # fmt: skip
    args.study, args.only = "sft", []
    assert len(list(fine_tuning.sweep(args, Path("texts")))) == 4 * 2 + 4 * 2 + 4 + 2  # GaLore's rank is 4 or more


def test_gaps_are_to_the_best_full_training(capsys) -> None:
    from fine_tuning import summarise

    losses = {("full", 1e-4): 4.1, ("full", 1e-3): 4.0, ("lora s2", 1e-3): 4.03}
    summarise([{"study": "long", "device": "card", "steps": 2, "tokens_a_step": 8, "name": name, "text_loss": loss,
                "settings": {"lr": lr}, "text_bits_per_byte": 1.5} for (name, lr), loss in losses.items()])  # fmt: skip
    rows = [line.split()[:5] for line in capsys.readouterr().out.splitlines()[3:]]
    assert rows == [["full", "lr=0.0001", "60.34", "+10.5%", "1.5000"],
                    ["full", "lr=0.001", "54.60", "+0.0%", "1.5000"],
                    ["lora", "s2", "lr=0.001", "56.26", "+3.0%"]]  # fmt: skip


def test_the_earlier_model_computes_a_llama() -> None:
    from earlier import EarlierModel

    shape = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 16}  # fmt: skip
    model = EarlierModel(ModelConfig(**shape)).eval()
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    twin = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_parameters=rope))
    weights = {}
    for name, value in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # neighbouring pairs there, halves here
            value = value.unflatten(0, (4, 4, 2)).transpose(1, 2).flatten(0, 2)
        for part, projections in {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}.items():
            for projection in projections:
                name = name.replace(f".{projection}_proj", f".{part}.{projection}_proj")
        weights[name if name.startswith("lm_head") else f"model.{name}"] = value * (6 if value.ndim == 2 else 1)
    twin.load_state_dict(weights)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 6 if parameter.ndim == 2 else 1
        tokens = torch.randint(0, 67, (2, 16), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model(tokens), twin.eval()(tokens).logits, atol=1e-4, rtol=1e-4)


def test_the_earlier_schedule() -> None:
    from earlier import learning_rate

    rates = [learning_rate(step) for step in (0, 500, 1_000, 40_500, 80_000, 90_000)]
    assert rates == pytest.approx([0, 1.5e-4, 3e-4, 1.65e-4, 3e-5, 3e-5])


def test_the_gate_knows_the_truth() -> None:
    from linear_ce import draw, eager, errors, reference

    inputs = draw(0, 50, 16, 71, 2.5, torch.float32, torch.device("cpu"))
    doubled = tuple(part.detach().double().requires_grad_() for part in inputs[:2])
    eager_64 = torch.nn.functional.cross_entropy(doubled[0] @ doubled[1].T, inputs.targets, reduction="sum")
    expected = (eager_64, *torch.autograd.grad(eager_64, doubled))
    for found, right in zip(reference(inputs, chunk_rows=16), expected, strict=True):
        torch.testing.assert_close(found, right)
    wrong = errors(lambda hidden, weight, targets: eager(hidden, weight, targets) * 1.1, inputs, reference(inputs))
    assert all(error == pytest.approx(0.1, rel=1e-3) for error in wrong.values())


def test_compiling_is_not_training() -> None:
    from time_to_quality import WARM, Clock

    clock = Clock(torch.device("cpu"), lambda count: None, WARM + 10, [9.0, 2.0, 1.0, 0.5], 10.0)
    assert clock.step_s == 1.0 and clock.seconds == 10 + 1 + 1 + 1 + 0.5 and clock.compile_s == 9.0


def test_reading_a_curve() -> None:
    from time_to_quality import at, comparable, reached

    curve = [{"seconds": s, "bits_per_byte": b} for s, b in ((20, 3.0), (40, 2.0), (60, 1.8))]
    assert at(curve, 30) == 2.5 and at(curve, 60.2) == pytest.approx(1.8) and at(curve, 70) is None
    assert reached(curve, 2.0) == 40 and reached(curve, 1.9) == pytest.approx(50) and reached(curve, 1.0) is None
    same = {"device": "a", "tokenizer": "t", "train_tokens": 1, "held_out_bytes": 2, "context": 3}
    points = [{**same, "name": "x", "run": "1"}, {**same, "name": "x", "run": "2"}, {**same, "name": "y", "run": "1"}]
    assert comparable([{**points[0], "device": "b"}, *points]) == points[1:]


@pytest.mark.slow
def test_long_context(tmp_path: Path) -> None:
    from babyllama.commands.train import TrainRecipe
    from babyllama.commands.train import main as train

    tokenizer, text = tmp_path / "tok", tmp_path / "text.jsonl"
    tokenizer.mkdir()
    train_bpe(iter(TEXTS), 330).save(tokenizer)
    text.write_text("".join(json.dumps({"text": t * 9}) + "\n" for t in TEXTS), "utf-8")
    given = [f"out={tmp_path / 'data'}", f"tokenizer={tokenizer}", f"corpora=[{{path: {text}}}]", "validation=0.1"]
    prepare(load_recipe(PrepareRecipe, None, [*given, "workers=1"]))
    train(load_recipe(TrainRecipe, None, [
        f"out={tmp_path / 'base'}", f"data.path={tmp_path / 'data'}", "init.model.preset=tiny", "plan.steps=2",
        "init.model.max_position_embeddings=16", "init.model.num_hidden_layers=1", "plan.micro_batch_size=4",
        "init.model.hidden_size=48", "device=cpu"]))  # fmt: skip
    words = [str(tmp_path / "base"), str(tmp_path / "data"), "--results", str(tmp_path), "--out", str(tmp_path / "t"),
             "--times", "1", "4", "8", "--stream", "3", "--hooks"]  # fmt: skip
    shown = script("long_context.py", *words, "--plot", str(tmp_path / "figure.png"))
    found = results(tmp_path / "long_context.jsonl")
    laws = ["none", "linear", "ntk", "dynamic_ntk", "by_parts", "yarn", "clex"]
    assert [(f["name"], f["phase"]) for f in found] == [
        *((law, phase) for law in laws for phase in ("zero_shot", "tuned")),
        ("4 sinks", "streaming"), ("0 sinks", "streaming"), ("16× full", "tuned"), ("16× S²-Attn", "tuned"),
    ], shown  # fmt: skip
    assert all(set(f["loss"]) == {"16", "64", "128"} for f in found if f["phase"] != "streaming")
    assert (tmp_path / "figure.png").stat().st_size > 1000 and "perplexity, tuned" in shown
    script("long_context.py", *words)
    assert len(results(tmp_path / "long_context.jsonl")) == len(found)  # nothing is run twice


@pytest.mark.slow
def test_corpora(tmp_path: Path) -> None:
    train_bpe(iter(TEXTS), 300).save(tmp_path)
    lines = [
        json.dumps({"text": f"{text}{i}、这一篇讲的是另外一件事情，与别的不同。"}) for i, text in enumerate(TEXTS * 2)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    given = [f"tokenizer={tmp_path}", f"corpora=[{tmp_path / 'a.jsonl'}]", "workers=1"]

    def shown(name: str, *more: str) -> str:
        command = [sys.executable, str(BENCH / name), *given, *more]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout

    table = shown("corpora.py", "texts=100", "slow=50")
    assert "| read (zst, JSON) | 300 | 300 |" in table and "| .parquet |" in table and "babyllama: tokens" in table
    memory = shown("large_corpus.py", "gigabytes=0.001", f"folder={tmp_path / 'large'}")
    assert "process 0: " in memory and memory.rstrip().endswith("exit code 0")
