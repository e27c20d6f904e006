"""As what a training may go on: from another place, on another engine, with other logging; never with other data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from babyllama.commands.continuing import continued
from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.commands.tokenizer import TokenizerRecipe
from babyllama.commands.tokenizer import main as make_tokenizer
from babyllama.commands.train import main as train
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.errors import InputError, Interrupted
from babyllama.recipe import load_recipe
from babyllama.run import Run
from babyllama.train.plan import Plan
from babyllama.train.watch import Watch

SHAPE = "{preset: tiny, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 16}"
WORDS = (f"init.model={SHAPE}", "plan.steps=12", "plan.micro_batch_size=4", "plan.save_every=3", "plan.log_every=1",
         "device=cpu", "schedule.decay=0.5", "optimizer.kind=adamw")  # fmt: skip


def prepared(folder: Path, texts: list[str]) -> None:
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts))
    source = f"[{{path: {folder}/text.jsonl}}]"
    if not (folder / "tok").exists():
        make_tokenizer(load_recipe(TokenizerRecipe, None, [f"out={folder}/tok", "source.kind=train",
                                   "source.vocab_size=300", f"source.corpora={source}"]))  # fmt: skip
    shutil.rmtree(folder / "data", ignore_errors=True)
    prepare(load_recipe(PrepareRecipe, None, [f"out={folder}/data", f"tokenizer={folder}/tok", f"corpora={source}",
                        "validation=0"]))  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data, a run that is finished, and one that was stopped after step 4."""
    folder = tmp_path_factory.mktemp("continuing")
    prepared(folder, [f"小猫看见花园，第{n}天。" for n in range(60)])
    train(recipe(folder, "whole"))
    stop_at(folder, "stopped", 4)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made, tmp_path / "all")


def recipe(folder: Path, out: str, *words: str) -> TrainRecipe:
    return load_recipe(TrainRecipe, None, [f"out={folder}/{out}", f"data.path={folder}/data", *WORDS, *words])


def stop_at(folder: Path, out: str, at: int) -> None:
    import os
    import signal

    def step(self, step, steps, values):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "step", step)
        with pytest.raises(Interrupted):
            train(recipe(folder, out))
    unlock(folder / out)


def unlock(run: Path) -> None:
    """The lock is this process's, which goes on."""
    (run / ".lock").unlink()


def end(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(run: Path, other: Path) -> bool:
    mine, theirs = end(run), end(other)
    return all(torch.equal(weight, theirs[name]) for name, weight in mine.items())


def test_a_stopped_run_goes_on_from_another_place(here):
    """Moved, data moved, named by ./ and a trailing slash; logged, saved and sampled otherwise; cut otherwise."""
    (here / "stopped").rename(here / "elsewhere")
    (here / "data").rename(here / "moved")
    words = ["plan.log_every=5", "plan.save_every=100", "samples.prompts=[小猫]", "plan.micro_batch_size=2",
             "plan.accumulate=2", "engine.kind=ddp", "compile=false", "plan.recompute=true"]  # fmt: skip
    train(load_recipe(TrainRecipe, None, ["out=./all/elsewhere/", "data.path=./all/moved/", *WORDS, *words]))
    assert [m["step"] for m in Run(here / "elsewhere").metrics() if m["kind"] == "train"][:4] == [1, 2, 3, 4]
    for name, weight in end(here / "elsewhere").items():  # another cut adds in another order: Muon would make whole
        torch.testing.assert_close(weight, end(here / "whole")[name], atol=1e-6, rtol=1e-5)  # steps of that rounding
    assert yaml.safe_load((here / "elsewhere" / "recipe.yaml").read_text())["plan"]["log_every"] == 5


def test_a_run_is_continued_by_its_directory_to_the_bit(here, capsys):
    (here / "stopped").rename(here / "elsewhere")
    train(continued(here / "elsewhere", ["plan.log_every=2"]))
    said = "".join(capsys.readouterr())  # a model of texts is no chat model
    assert f"is ready: babyllama generate {here / 'elsewhere'} prompt=…" in said
    assert same(here / "elsewhere", here / "whole")


def test_other_data_under_the_same_path_are_refused(here):
    prepared(here, [f"完全不同的文字，第{n}天。" for n in range(60)])
    with pytest.raises(InputError, match=r"data\.path: .*/data is not what the run began with \(\w+ → \w+\)") as error:
        train(recipe(here, "stopped"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("word,said", [
    ("optimizer.lr=0.01", "optimizer.lr: 0.001 → 0.01"), ("seed=2", "seed: 1 → 2"),
    ("plan.accumulate=2", "plan.rows: 4 → 8"),
    ("precision=bf16", "precision: bf16 is not what the run began with (fp32 → bf16)"),
    ("plan.guard.spike=5.0", "plan.guard.spike: 10.0 → 5.0"), ("plan.clip=0.5", "plan.clip: 1.0 → 0.5"),
    ("init.model.hidden_size=32", "init.model.hidden_size: 16 → 32"), ("plan.context=8", "plan.context: None → 8"),
    ("schedule.warmup=0.5", "schedule.warmup: 0.02 → 0.5"),
    ("objective.fp8_head=true", "objective.fp8_head: False → True"), ("fp8_blocks=true", "fp8_blocks: False → True"),
])  # fmt: skip
def test_what_is_learnt_may_not_change(here, word, said):
    with pytest.raises(InputError) as error:
        train(recipe(here, "stopped", word))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_run_of_an_earlier_version_is_compared_by_its_paths(here):
    info = here / "stopped" / "run.json"
    info.write_text(json.dumps({k: v for k, v in json.loads(info.read_text()).items() if k != "inputs"}))
    with pytest.raises(InputError, match=r"data\.path: "):
        train(recipe(here, "stopped"))  # its data were at another place
    old = here / "stopped" / "recipe.yaml"
    said = yaml.safe_load(old.read_text())
    said["data"]["path"] = str(here / "data")
    old.write_text(yaml.safe_dump(said))
    train(recipe(here, "stopped"))
    assert same(here / "stopped", here / "whole")
    assert Run(here / "stopped").inputs["precision"] == "fp32"


def test_the_arithmetic_is_chosen_once(here, monkeypatch):
    """A stopwatch that says otherwise the second time changes nothing."""
    for module in ("babyllama.load", "babyllama.train.optimizers.optim"):
        monkeypatch.setattr(f"{module}.bf16_is_faster", lambda _: False)
    train(recipe(here, "slow", "precision=fast", "optimizer.kind=muon", "plan.steps=4"))
    inputs = Run(here / "slow").inputs
    assert inputs["precision"] == "fp32" and inputs["optimizer.rounding"] == "fp32"
    info = here / "slow" / "run.json"
    info.write_text(info.read_text().replace('"finished"', '"started"'))
    unlock(here / "slow")
    for module in ("babyllama.load", "babyllama.train.optimizers.optim"):
        monkeypatch.setattr(f"{module}.bf16_is_faster", lambda _: True)
    train(recipe(here, "slow", "precision=fast", "optimizer.kind=muon", "plan.steps=4"))
    assert Run(here / "slow").inputs == inputs and Run(here / "slow").info["summary"]["precision"] == "fp32"


# ── another length ────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_finished_training_becomes_longer_from_before_its_decay(here):
    """Its rates up to step 6 are those of a longer one, with the same warm-up (of no step here)."""
    assert [step for step, _ in Run(here / "whole").states()] == [6, 9, 12]
    train(recipe(here, "longer", "plan.steps=20", "schedule.warmup=0.0"))
    train(recipe(here, "twelve", "schedule.warmup=0.0"))
    unlock(here / "twelve")
    train(recipe(here, "twelve", "plan.steps=20", "schedule.warmup=0.0"))
    assert same(here / "twelve", here / "longer") and Run(here / "twelve").info["summary"]["steps"] == 20
    steps = [m["step"] for m in Run(here / "twelve").metrics() if m["kind"] == "train"]
    assert steps == list(range(1, 21))


@pytest.mark.parametrize("end,kept", [(0.7, 6), (0.25, 3)])  # after the rate began to fall, and before it
def test_a_sampled_loss_may_become_longer_from_its_first_stage(here, end, kept):
    words = "schedule.warmup=0.0", f"objective.sampled.stages=[[{end}, 0.2], [0.9, 0.5]]"
    train(recipe(here, "twelve", *words))
    assert [step for step, _ in Run(here / "twelve").states()] == [kept, 9, 12]
    unlock(here / "twelve")
    for out in ("twelve", "longer"):
        train(recipe(here, out, "plan.steps=20", *words))
    assert same(here / "twelve", here / "longer")


def test_a_sampled_loss_without_a_state_of_its_first_stage_says_so(here):
    words = "schedule.warmup=0.0", "plan.save_every=5", "objective.sampled.stages=[[0.25, 0.2], [0.9, 0.5]]"
    train(recipe(here, "twelve", *words))
    unlock(here / "twelve")
    shutil.rmtree(here / "twelve" / "state" / "step-0000003")
    with pytest.raises(InputError, match=r"become 20: objective\.sampled takes another share .* from step 3") as error:
        train(recipe(here, "twelve", "plan.steps=20", *words))
    assert "\n" not in str(error.value) and Run(here / "twelve").finished


def test_what_cannot_become_longer_says_why(here):
    with pytest.raises(InputError, match=r"begun as 12 steps and cannot become 2,000: .*warmed up for 2,000") as error:
        train(recipe(here, "whole", "plan.steps=2000"))
    assert "\n" not in str(error.value) and Run(here / "whole").finished
    train(recipe(here, "cosine", "schedule={kind: cosine}"))
    unlock(here / "cosine")
    with pytest.raises(InputError, match=r"schedule\.kind=cosine depend on the length from the first step on"):
        train(recipe(here, "cosine", "schedule={kind: cosine}", "plan.steps=20"))


def test_the_marks_of_what_may_change_are_where_the_fields_are():
    """What is learnt, written by hand once: a field that changes sides must be changed here too."""
    assert set(Plan(steps=1).identity()) == {"context", "clip", "rows"} | {
        f"guard.{key}" for key in ("action", "patience", "spike", "settle")
    }
    top = {key.partition(".")[0] for key in TrainRecipe.model_validate(
        {"out": Path("x"), "data": {"path": Path("d")}, "plan": {"steps": 1}}).identity()}  # fmt: skip
    assert top == {"data", "replay", "init", "objective", "attend", "fp8_blocks", "adapter", "optimizer", "schedule",
                   "plan", "seed", "precision", "rewards", "rollouts", "average"}  # fmt: skip


def test_a_sink_that_is_not_installed_is_said_before_there_is_a_run(here, monkeypatch):
    monkeypatch.setattr("babyllama.train.sinks.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"^sinks: wandb is not installed"):
        train(recipe(here, "new", "sinks=[{kind: wandb}]"))
    assert not (here / "new").exists()


@pytest.mark.parametrize(("word", "said"), [
    ("init.model.num_hidden_layers=1000000000", "init.model: its .* weights take .* GiB, and this machine has"),
    ("plan.micro_batch_size=1000000000", r"plan.micro_batch_size: 1000000000 rows × .* GiB"),
    ("plan.accumulate=1000000000000", r"plan.accumulate: .* rows × 1000000000000"),
    ("seed=99999999999999999999", "seed: input should be less than"),
])  # fmt: skip
def test_numbers_that_no_machine_holds_are_refused_at_once(here, word, said):
    with pytest.raises(InputError, match=said):
        train(recipe(here, "new", word))
    assert not (here / "new").exists()
