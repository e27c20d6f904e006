"""The real command line under real launchers: torchrun is stopped by SIGTERM, accelerate launch goes on, half a row
each."""

import json
import os
import signal
import subprocess
import sys

import pytest

from babyllama import cli
from babyllama.commands import prepare, tokenizer, train
from babyllama.recipe import load_recipe
from conftest import one_clear_line

PLAN = ["data.path=corpus", "init.model.preset=tiny", "init.model.hidden_size=32", "init.model.num_hidden_layers=2",
        "init.model.num_attention_heads=4", "init.model.num_key_value_heads=2", "plan.micro_batch_size=8",
        "plan.accumulate=2", "plan.context=48", "plan.save_every=1000", "plan.validate_every=1000", "plan.steps=24",
        "plan.log_every=1", "optimizer.lr=0.002", "optimizer.rounding=fp32", "device=cpu",
        "precision=fp32", "compile=false"]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
              "-m"]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [f"第{i}号问题是什么：第{i}号的答案。{copy}" for i in range(12) for copy in range(20)]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (tmp_path / "text.jsonl").write_text(lines, "utf-8")
    tokenizer.main(load_recipe(tokenizer.TokenizerRecipe, None, [
        "out=tok", "source.kind=train", "source.vocab_size=320", "source.corpora=[{path: text.jsonl}]"]))  # fmt: skip
    prepare.main(load_recipe(prepare.PrepareRecipe, None, [
        "out=corpus", "tokenizer=tok", "corpora=[{path: text.jsonl}]", "validation=0.05"]))  # fmt: skip
    return tmp_path


def curve(run):
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [(m["step"], m["loss"]) for m in metrics if m["kind"] == "train"]


def test_torchrun_stopped_accelerate_continues(here):
    words = ["babyllama.cli", "train", "out=run", "engine.kind=fsdp", *PLAN]
    process = subprocess.Popen([*TORCHRUN, *words], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    shown = []
    for line in process.stdout:
        shown.append(line)
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait() != 0
    assert "all saved; the same command continues from there" in said, said[-3000:]
    assert sum(line.startswith("step 2/") for line in shown) == 1  # one rank shows
    (state,) = (here / "run" / "state").glob("step-*")
    stopped = int(state.name[5:])
    assert 3 <= stopped < 24 and {"files.json", "state.json", ".metadata"} <= {p.name for p in state.iterdir()}

    command = [*ACCELERATE, *words, "engine.context=2"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(f"continuing after step {stopped}") == 1
    assert "× 2 (fsdp: shard 2, context 2)" in done.stdout

    train.main(load_recipe(train.TrainRecipe, None, ["out=alone", *PLAN]))
    assert [step for step, _ in curve(here / "run")] == list(range(1, 25))  # nothing twice
    for (_, spread), (_, alone) in zip(curve(here / "run"), curve(here / "alone"), strict=True):
        assert spread == pytest.approx(alone, abs=1e-4)
    assert (here / "run" / "model" / "model.safetensors").exists()
    info = json.loads((here / "run" / "run.json").read_text("utf-8"))
    assert info["status"] == "finished" and info["summary"]["processes"] == 2


def test_a_launcher_without_an_engine_is_one_clear_line_and_leaves_no_run(here, monkeypatch, capsys):
    """Either of two ranks, by the variables that launchers set: it is known before they meet, and the first says it."""
    words = ["train", "out=run", *PLAN]
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    one_clear_line(words, "use engine.kind=ddp", monkeypatch, capsys)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit) as ended:
        cli._run()
    assert ended.value.code == 2 and "babyllama: " not in capsys.readouterr().err
    assert not (here / "run").exists()
