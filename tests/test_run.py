"""A run directory survives what happens to machines: kills, full disks, damaged files, two commands at once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from babyllama.errors import InputError
from babyllama.recipe import Recipe
from babyllama.run import Run, write_atomic, write_folder


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


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if ".partial" in p.name or p.name.endswith(".old")]


# ── killed at any instant ──────────────────────────────────────────────────────────────────────────────────────────
WRITER = """
import itertools, sys
from pathlib import Path
from babyllama.run import Run, write_atomic
sys.path.insert(0, sys.argv[2])
from test_run import Example, fill_with
run = Run.create(Path(sys.argv[1]), "train", Example())
first = max([step for step, _ in run.states()], default=0) + 1
for i in itertools.count(first):
    text = "abcdefghij"[i % 10]
    write_atomic(run.path / "note.txt", text * 30_000)
    run.save_state(i, fill_with(text))
    run.save_state(i, fill_with(text))  # once more over the same step: a swap
    run.save_model(fill_with(text))
    run.log(i, kind="validation", corpora={"a": {"loss": 1.0}, "b": {"loss": 2.0}})
    if i == first:
        print("ready", flush=True)
"""


def whole(folder: Path) -> str:
    a, b = (folder / "a.txt").read_text(), (folder / "b.txt").read_text()
    assert len(b) == 1
    assert a == b * 20_000
    return b


def test_sigkill_leaves_old_or_new(tmp_path):
    path, here = tmp_path / "run", str(Path(__file__).parent)
    last = 0
    for delay_ms in (1, 4, 9, 17, 26, 38):  # after the first round, anywhere in the ones that follow
        command = [sys.executable, "-c", WRITER, str(path), here]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(delay_ms / 1000)
            child.kill()
        run = Run.open(path)
        warnings: list[str] = []
        found = run.latest_state(warnings.append)
        assert found is not None
        assert warnings == []
        step, state = found
        assert whole(state) == "abcdefghij"[step % 10]
        assert step > last  # each child got somewhere
        assert whole(run.model) in {"abcdefghij"[step % 10], "abcdefghij"[(step - 1) % 10]}
        note = (path / "note.txt").read_text()
        assert note == note[0] * 30_000
        assert [m["step"] for m in run.metrics()] == sorted({m["step"] for m in run.metrics()})
        run.rewind_metrics(step)  # as the trainer does when it continues
        last = step


@pytest.mark.parametrize("name", ["model", "state/step-0000003"])
def test_kill_between_the_two_renames_of_a_swap(run, name):
    run.save_model(fill_with("a"))
    run.save_state(3, fill_with("a"))
    folder = run.path / name
    folder.rename(folder.with_name(f".{folder.name}.old"))
    run.unlock()
    assert whole(Run.open(run.path).path / name) == "a"
    write_folder(folder.with_name(f".{folder.name}.old"), fill_with("z"))  # or just after the second rename
    assert whole(Run.open(run.path).path / name) == "a"
    assert leftovers(run.path) == []


def test_a_reader_leaves_a_live_swap_alone(run):
    """While a writer lives, its ``.old`` is no wreck: putting it back would make the writer's second rename fail."""
    run.save_model(fill_with("a"))
    old = run.path / ".model.old"
    run.model.rename(old)
    Run.open(run.path)
    assert old.exists()
    assert not run.model.exists()


@pytest.mark.parametrize("left", [[".lock"], [".lock", "recipe.yaml"], [".lock", "recipe.yaml", ".env.json.7.partial"]])
def test_kill_while_the_run_is_being_made(tmp_path, left):
    """The same command must go through the second time."""
    for name in left:
        (tmp_path / name).write_text("half")
    assert Run.create(tmp_path, "train", Example()).info["verb"] == "train"
    assert "half" not in (tmp_path / "recipe.yaml").read_text()


def test_a_fill_that_fails_changes_nothing(run):
    run.save_model(fill_with("a"))

    def fail(folder: Path) -> None:
        fill_with("b")(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save_model(fail)
    assert whole(run.model) == "a"
    assert leftovers(run.path) == []


# ── full disk ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A folder that takes 1 MiB: a real file system where we may mount one, else an fsync that finds the disk full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if sys.platform == "linux" and os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        yield disk
        subprocess.run(["umount", "-l", str(disk)], check=True)
        return

    def full(handle: int) -> None:
        if os.fstat(handle).st_size > 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    yield disk


def save_big(folder: Path) -> None:
    save_file({"w": torch.ones(1 << 20)}, folder / "model.safetensors")


@pytest.mark.parametrize("write", [
    lambda run: write_atomic(run.path / "note.txt", "b" * (4 << 20)),
    lambda run: run.save_model(lambda folder: (folder / "a.txt").write_bytes(b"b" * (4 << 20))),
    lambda run: run.save_model(save_big),
    lambda run: run.save_state(2, save_big),
], ids=["file", "folder", "safetensors", "state"])  # fmt: skip
def test_full_disk(small_disk, write):
    run = Run.create(small_disk / "run", "train", Example())
    write_atomic(run.path / "note.txt", "old")
    run.save_model(fill_with("a"))
    run.save_state(1, fill_with("a"))
    with pytest.raises(InputError, match=r"the disk is full \(\d+ MiB free\)") as error:
        write(run)
    assert one_line(error).startswith(str(run.path))
    assert (run.path / "note.txt").read_text() == "old"
    assert whole(run.model) == "a"
    assert run.latest_state(pytest.fail) == (1, run.path / "state/step-0000001")
    assert leftovers(run.path) == []


def test_full_disk_while_logging(small_disk):
    run = Run.create(small_disk / "run", "train", Example())
    for step in (1, 2):
        run.log(step, text="好")
    if not os.path.ismount(small_disk):
        pytest.skip("needs a real full disk")
    with pytest.raises(InputError, match="the disk is full"):
        for step in range(3, 5000):
            run.log(step, text="好" * 200)
    steps = [m["step"] for m in run.metrics()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 2


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic names of errors differ")
def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write here \(Not a directory\)") as error:
        write_atomic(tmp_path / "file" / "run" / "note.txt", "x")
    one_line(error)
    assert (tmp_path / "file").read_text() == "mine"


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
    assert "out:" not in said


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
    assert env["torch"] == torch.__version__
    assert env["cpu_count"] == os.cpu_count()
    assert run.info["parent"] is None
    assert run.info["status"] == "started"


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_one_writer_at_a_time(tmp_path):
    hold = WRITER.split("first =")[0] + "print('ready', flush=True); sys.stdin.read()"
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
