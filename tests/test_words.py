"""The words of a command line, in every spelling and order; what is near, what is missing, what goes on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from babyllama.errors import InputError, pasted
from babyllama.recipe import Recipe, load_recipe, maker
from babyllama.words import understand


class Plan(Recipe):
    steps: int = 1
    micro_batch_size: int = 8


class Example(Recipe):
    out: Path = Path("x")
    plan: Plan = Plan()
    prompt: str = ""
    lr: float = 1.0
    compile: bool | None = None
    shuffle: bool = True
    device: Literal["cpu", "cuda"] = "cpu"
    runs: tuple[Path, ...] = ()
    model: Path | None = None


def read(*words, subject=None):
    said = understand(Example, words, "train", subject)
    return load_recipe(Example, said.source, said.settings)


@pytest.mark.parametrize("words", [
    ["plan.steps=5", "lr=-1.5"], ["--plan.steps", "5", "--lr", "-1.5"], ["--plan.steps=5", "--lr=-1.5"],
    ["--lr", "-1.5", "plan.steps=5"]])  # fmt: skip
def test_every_spelling_of_a_key(words):
    assert read(*words) == Example(plan=Plan(steps=5), lr=-1.5)


def test_dashes_are_underscores_in_keys_only():
    assert read("--plan.micro-batch-size", "3", "--prompt", "a-b").plan.micro_batch_size == 3
    assert read("plan.micro-batch-size=3", "prompt=a-b") == read("--plan.micro_batch_size=3", "--prompt=a-b")


def test_switches():
    assert read("--compile").compile is True
    assert (read("--no-compile").compile, read("--no-shuffle").shuffle) == (False, False)
    assert read("--compile", "false", "--shuffle", "--lr", "2") == Example(compile=False, shuffle=True, lr=2.0)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda t: t[0] not in "\"'"))
def test_any_text_is_a_value_as_it_stands(text):
    if text.strip():
        assert read(f"prompt={text}").prompt == text
        assert read(f"--prompt={text}").prompt == text


def test_the_recipe_stands_anywhere(tmp_path):
    (tmp_path / "r.yaml").write_text("lr: 3.0\nprompt: a\n")
    recipe = str(tmp_path / "r.yaml")
    expected = Example(lr=3.0, prompt="b")
    for words in ([recipe, "prompt=b"], ["prompt=b", recipe], ["--prompt", "b", recipe]):
        assert read(*words) == expected
    with pytest.raises(InputError, match="takes one recipe"):
        read(recipe, recipe)


def test_what_a_verb_is_about(tmp_path):
    assert read("lr=2", "runs/base", subject="model") == Example(lr=2.0, model=Path("runs/base"))
    assert read("a", "lr=2", "b c", subject="runs").runs == (Path("a"), Path("b c"))
    (tmp_path / "r.yaml").write_text("lr: 3.0\n")
    assert read(str(tmp_path / "r.yaml"), "base", subject="model") == Example(lr=3.0, model=Path("base"))
    with pytest.raises(InputError, match="takes one model"):
        read("a", "b", subject="model")
    with pytest.raises(InputError, match="model is given twice"):
        read("a", "model=b", subject="model")
    bundled = understand(Example, ["quickstart/cpu/evaluate-unseen", "model=b"], "evaluate", "model")
    assert bundled.source == "quickstart/cpu/evaluate-unseen" and bundled.settings == ["model=b"]


def test_a_path_with_an_equals_sign_is_no_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=2").mkdir()
    assert read("lr=2", "runs/a=b", subject="runs").runs == (Path("lr=2"), Path("runs/a=b"))


def test_a_run_is_continued_in_place(tmp_path):
    run = tmp_path / "moved"
    run.mkdir()
    (run / "recipe.yaml").write_text("out: before\nlr: 3.0\n")
    (run / "run.json").write_text(json.dumps({"verb": "train"}))
    assert read(str(run)) == Example(out=run, lr=3.0)
    assert read(str(run), "out=copy").out == Path("copy")
    (run / "run.json").write_text(json.dumps({"verb": "prepare"}))
    with pytest.raises(InputError, match=f"holds a prepare run; continue it with: babyllama prepare {run}$"):
        read(str(run))
    with pytest.raises(InputError, match="no run to continue"):
        read(str(tmp_path))


@pytest.mark.parametrize(("words", "said"), [
    (["--plan.stps", "3"], "plan.stps: unknown key; did you mean plan.steps?"),
    (["--micro-batch-size", "3"], "micro_batch_size: unknown key; did you mean plan.micro_batch_size?"),
    (["--devise"], "--devise: no such option; did you mean --device?"),
    (["--lr"], "--lr: needs a value: --lr VALUE"),
    (["--lr", "--plan.steps=3"], "--lr: needs a value: --lr VALUE"),
    (["--no-lr"], "--no_lr: no such option"),
])  # fmt: skip
def test_wrong_words(words, said):
    with pytest.raises(InputError) as error:
        read(*words)
    assert said in str(error.value)


class Needy(Recipe):
    plan: Plan = Field(description="how long", examples=["plan.steps=5"])


@pytest.mark.parametrize(("words", "meant"), [
    (["plan.steps＝2"], "plan.steps=2"), (["steps：2"], "steps=2"), (["plan.steps:2"], "plan.steps=2"),
    (["plan.steps", "=", "2"], "plan.steps=2"), (["lr", "=2"], "lr=2"), (["lr =2"], "lr=2"), (["—lr", "2"], "--lr"),
    (["——lr=2"], "--lr=2"), (["--lr＝2"], "--lr=2"),
])  # fmt: skip
def test_what_an_input_method_makes_of_a_setting_is_told(words, meant):
    with pytest.raises(InputError, match=rf"{meant}$"):
        read(*words)


def test_what_only_looks_like_it_stays_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lr：2").mkdir()
    assert read("lr：2", subject="model").model == Path("lr：2")  # a folder of this name
    assert read("--prompt", "=5").prompt == "=5" and read("prompt=a：b").prompt == "a：b"
    assert read("--prompt", "—lr", "C：x", subject="model") == Example(prompt="—lr", model=Path("C：x"))


@pytest.mark.parametrize(("path", "typed"), [
    ("runs/sft-4bit", "runs/sft-4bit"), ("runs/我的模型", "runs/我的模型"), ("runs/我的 模型", "'runs/我的 模型'"),
    ("a'b", """'a'"'"'b'"""), ("runs/a(1)", "'runs/a(1)'"),
])  # fmt: skip
def test_printed_commands_can_be_pasted(path, typed):
    assert pasted(Path(path)) == typed and shlex.split(typed) == [path]
    assert f"out={typed} " in maker("train", Path(path))


def test_a_list_that_the_shell_cut_is_told_to_be_quoted():
    with pytest.raises(InputError, match=r"put it in quotes: 'runs=\[a, b\]'"):
        understand(Example, ["lr=2", "runs=[a,", "b]"], "train")
    assert understand(Example, ["prompt=a [", "b].yaml"], "train").settings == ["prompt=a ["]  # a text as it stands


def test_missing_keys_say_what_to_write():
    with pytest.raises(InputError, match=r"^plan: this key must be given \(how long\); write plan.steps=5$"):
        load_recipe(Needy)


def test_a_setting_longer_than_any_file_name():
    assert read(f"prompt={'长' * 5000}").prompt == "长" * 5000
