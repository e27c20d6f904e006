"""A run directory: damaged states, cut metrics, which directory may be used and by whom.

Kills and full disks are in test_run_atomic.py.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from babyllama.errors import InputError
from babyllama.recipe import Recipe
from babyllama.run import Run


class Plan(Recipe):
    steps: int = 10


class Example(Recipe):
    out: str = "x"
    plan: Plan = Plan()
    names: tuple[str, ...] = ()


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", "train", Example())


def fill_with(text: str):
    def fill(folder: Path) -> None:
        (folder / "a.txt").write_text(text * 20_000)
        (folder / "b.txt").write_text(text)

    return fill


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ── damaged states ─────────────────────────────────────────────────────────────────────────────────────────────────
def truncate(folder: Path) -> None:
    (folder / "a.txt").write_bytes((folder / "a.txt").read_bytes()[:-1])


def flip(folder: Path) -> None:
    raw = bytearray((folder / "a.txt").read_bytes())
    raw[1234] ^= 1
    (folder / "a.txt").write_bytes(raw)


DAMAGES = {
    "truncated": (truncate, "truncated or changed: a.txt"),
    "flipped": (flip, "truncated or changed: a.txt"),
    "missing": (lambda folder: (folder / "b.txt").unlink(), "truncated or changed: b.txt"),
    "added": (lambda folder: (folder / "c.txt").write_text(""), "truncated or changed: c.txt"),
    "no-checksums": (lambda folder: (folder / "files.json").unlink(), "unreadable"),
    "cut-checksums": (lambda folder: (folder / "files.json").write_text('{"a.txt": {'), "unreadable"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_state_falls_back(run, damage, said):
    run.save_state(5, fill_with("a"))
    run.save_state(10, fill_with("b"))
    damage(run.path / "state/step-0000010")
    warnings: list[str] = []
    assert run.latest_state(warnings.append) == (5, run.path / "state/step-0000005")
    assert len(warnings) == 1
    assert "step-0000010" in warnings[0]
    assert said in warnings[0]
    run.drop_states(after=5)
    assert [step for step, _ in run.states()] == [5]


def test_all_damaged_is_the_users_decision(run):
    for step in (5, 10):
        run.save_state(step, fill_with("a"))
        flip(run.path / f"state/step-{step:07d}")
    with pytest.raises(InputError, match="every checkpoint is damaged") as error:
        run.latest_state(lambda text: None)
    one_line(error)


def test_no_state_is_a_fresh_start(run):
    assert run.latest_state(pytest.fail) is None


def test_only_the_newest_states_are_kept(run):
    for step in (9, 10, 100, 1_000_000, 10_000_000):  # the last has more digits than the name pads to
        run.save_state(step, fill_with("a"), keep=3)
    assert [step for step, _ in run.states()] == [100, 1_000_000, 10_000_000]


# ── metrics ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_last_line_cut_anywhere_is_left_out(run):
    run.log(1, kind="train", text="甲")
    run.log(2, kind="validation", corpora={"b": {"loss": {"sum": 1.0}}})  # closes with three braces
    path = run.path / "metrics.jsonl"
    raw = path.read_bytes()
    end_of_first = raw.index(b"\n") + 1
    for cut in range(len(raw)):
        path.write_bytes(raw[:cut])
        assert [m["step"] for m in run.metrics()] == ([] if cut < end_of_first else [1]), cut
    path.write_bytes(raw)
    assert [m["step"] for m in run.metrics()] == [1, 2]


def test_text_with_line_separators_stays_one_line(run):
    run.log(1, text="a\u2028b\x85c\nd")
    assert run.metrics() == [{"step": 1, "text": "a\u2028b\x85c\nd"}]


def test_what_is_no_number_is_null_in_the_file_and_nan_in_the_metrics(run):
    run.log(1, kind="guard", loss=float("nan"), norm=float("inf"), bits_per_byte=None)
    line = (run.path / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(line, parse_constant=pytest.fail)["norm"] is None
    (found,) = [m for m in run.metrics() if m.get("kind") == "guard"]
    assert math.isnan(found["loss"]) and math.isnan(found["norm"]) and found["bits_per_byte"] is None


def test_rewind(run):
    assert run.metrics() == []
    for step in (1, 2, 2, 3):
        run.log(step, kind="train")
    with (run.path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 4, "lo')
    run.rewind_metrics(2)
    run.log(3, kind="again")
    assert [(m["step"], m["kind"]) for m in run.metrics()] == [(1, "train"), (2, "train"), (2, "train"), (3, "again")]


# ── which directory ────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_same_recipe_continues(run):
    run.log(1)
    created = run.info["created"]
    run.unlock()
    again = Run.create(run.path, "train", Example())
    assert again.info["created"] == created
    assert len(again.metrics()) == 1
    assert not again.finished
    again.finish(loss=2.5)
    assert again.finished
    assert Run.open(run.path).info["summary"] == {"loss": 2.5}


def test_another_recipe_names_the_keys(run):
    run.unlock()
    with pytest.raises(InputError) as error:
        Run.create(run.path, "train", Example(plan=Plan(steps=20), names=("a",)))
    said = one_line(error)
    assert "plan.steps: 10 → 20" in said
    assert "names: [] → ['a']" in said
    assert said.endswith(f"choose another out=…, or go on from its model: init=from init.path={run.path}, or remove it")
    assert "out:" not in said


def test_values_that_differ_are_shown_as_they_are_written(tmp_path):
    class Several(Recipe):
        plans: tuple[Plan, ...] = ()

    Run.create(tmp_path / "run", "prepare", Several(plans=(Plan(steps=3),))).unlock()
    with pytest.raises(InputError, match=r"plans: \[\{'steps': 3\}\] → \[\]\); choose"):
        Run.create(tmp_path / "run", "prepare", Several())


def test_another_verb(run):
    run.unlock()
    with pytest.raises(InputError, match="holds a train run; choose another out=… for prepare"):
        Run.create(run.path, "prepare", Example())


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a run"):
        Run.create(tmp_path, "train", Example())
    with pytest.raises(InputError, match="exists and is not a run"):
        Run.create(tmp_path / "thesis.txt", "train", Example())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_open_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        Run.open(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        Run.open(tmp_path / "nothing")


def test_what_create_writes(run):
    assert (run.path / "recipe.yaml").read_text() == "out: x\nplan:\n  steps: 10\nnames: []\n"
    env = json.loads((run.path / "env.json").read_text())
    assert env["python"] == ".".join(map(str, sys.version_info[:3]))
    assert env["torch"]
    assert env["cpu_count"] == os.cpu_count()
    assert run.info["parent"] is None
    assert run.info["status"] == "started"


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_one_writer_at_a_time(tmp_path):
    hold = "\n".join((
        "import sys; from pathlib import Path; from babyllama.run import Run",
        "sys.path.insert(0, sys.argv[2]); from test_run import Example",
        "run = Run.create(Path(sys.argv[1]), 'train', Example()); print('ready', flush=True); sys.stdin.read()",
    ))  # fmt: skip
    command = [sys.executable, "-c", hold, str(tmp_path / "run"), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(InputError, match="another process is writing this run") as error:
            Run.create(tmp_path / "run", "train", Example())
        one_line(error)
        assert Run.open(tmp_path / "run").info["verb"] == "train"  # looking is free
        child.kill()
    Run.create(tmp_path / "run", "train", Example())  # a kill frees the lock


def test_a_key_that_came_with_a_later_version_has_its_default(tmp_path):
    class Longer(Recipe):
        steps: int = 3
        later: int = 7

    class Shorter(Recipe):
        steps: int = 3

    Run.create(tmp_path / "run", "train", Shorter()).unlock()
    Run.create(tmp_path / "run", "train", Longer()).unlock()
    with pytest.raises(InputError, match="later: 7 → 8"):
        Run.create(tmp_path / "run", "train", Longer(later=8))


def test_a_folder_of_runs_says_which_are_in_it(tmp_path):
    for when, name in enumerate(("base", "tokenizer", "sft")):
        Run.create(tmp_path / name, "train", Example())
        os.utime(tmp_path / name / "run.json", (when, when))
    with pytest.raises(InputError, match=r"holds the runs base, sft, tokenizer: give one of them, such as .*/sft$"):
        Run.open(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"; give the folder of a run$"):
        Run.open(tmp_path / "empty")
