"""A run directory survives a kill at any instant and a full disk: every file is the old or the new one, whole."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from babyllama.atomic import (
    DEEPEST,
    check_writable,
    json_text,
    parse_json,
    read_json,
    write_atomic,
    write_folder,
    write_json,
)
from babyllama.errors import InputError, readable
from babyllama.run import Run
from test_run import Example, fill_with, one_line


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", "train", Example())


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if ".partial" in p.name or p.name.endswith(".old")]


# ── killed at any instant ──────────────────────────────────────────────────────────────────────────────────────────
WRITER = """
import itertools, sys
from pathlib import Path
from babyllama.atomic import write_atomic
from babyllama.run import Run
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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_get_what_the_umask_gives(tmp_path, umask):
    """safetensors writes 0600 whatever the umask says: what others may read, they must be able to read here."""

    def fill(folder: Path) -> None:
        save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
        (folder / "config.json").touch(0o600)

    before = os.umask(umask)
    try:
        run = Run.create(tmp_path / "run", "train", Example())
        run.save_model(fill)
        run.save_state(1, fill)
        write_folder(run.path / "best", fill)
        write_atomic(run.path / "note.json", "{}")
        run.finish()
    finally:
        os.umask(before)
    files = [path for path in run.path.rglob("*") if path.is_file() and path.name != "lock"]
    modes = {str(path.relative_to(run.path)): oct(path.stat().st_mode & 0o777) for path in files}
    assert modes == dict.fromkeys(modes, oct(0o666 & ~umask)) and len(modes) == 12
    folders = [path for path in run.path.rglob("*") if path.is_dir()]
    assert {oct(path.stat().st_mode & 0o777) for path in folders} == {oct(0o777 & ~umask)}


def test_a_fill_that_fails_changes_nothing(run):
    run.save_model(fill_with("a"))

    def fail(folder: Path) -> None:
        fill_with("b")(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save_model(fail)
    assert whole(run.model) == "a"
    assert leftovers(run.path) == []


# ── a power cut ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def asked(monkeypatch):
    """What the disk is asked to keep, in turn, as inodes; of each whether the new content had its name by then."""
    found, named = [], {}
    monkeypatch.setattr(os, "fsync", lambda handle: found.append((os.fstat(handle).st_ino, named["path"].exists())))
    return found, named


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, asked):
    found, named = asked
    named["path"] = path = tmp_path / "new" / "note.txt"
    write_atomic(path, "x")
    assert found == [(path.stat().st_ino, False), (path.parent.stat().st_ino, True)]


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, asked):
    found, named = asked
    named["path"] = folder = tmp_path / "model"
    write_folder(folder, lambda partial: [(partial / name).write_text(name) for name in "ab"])
    inside = [path.stat().st_ino for path in (folder / "a", folder / "b", folder)]
    assert found == [*((inode, False) for inode in inside), (tmp_path.stat().st_ino, True)]


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
    import torch  # here, so that the children start fast
    from safetensors.torch import save_file

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


def make_file(path: Path) -> None:
    write_atomic(path, "x")


def make_folder(path: Path) -> None:
    write_folder(path, fill_with("a"))


def make_run(path: Path) -> None:
    Run.create(path, "train", Example())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
@pytest.mark.parametrize("make", [make_file, make_folder, make_run, check_writable])
@pytest.mark.parametrize("name", ["/proc/x", "/proc/x/y", "loop/x", "/"])
def test_a_place_that_takes_no_files_is_one_line(tmp_path, make, name):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError) as error:
        make(tmp_path / name)
    one_line(error)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("make", [make_file, check_writable])
def test_a_device_is_not_renamed_away(tmp_path, make):
    """As root ``out=/dev/null`` would otherwise replace it for every process of the machine."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no file but a device or a pipe") as error:
        make(tmp_path / "pipe")
    one_line(error)
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_was_removed_meanwhile_is_one_line(tmp_path):
    run = Run.create(tmp_path / "run", "train", Example())
    shutil.rmtree(run.path)
    with pytest.raises(InputError, match="cannot write here") as error:
        run.log(1, loss=1.0)
    one_line(error)


def test_another_file_that_is_missing_stays_a_defect_of_ours(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_folder(tmp_path / "model", lambda folder: (tmp_path / "other").read_bytes())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))  # fmt: skip
def test_json_is_strict_and_only_what_it_cannot_say_is_lost(data):
    said = json.loads(json_text(data), parse_constant=pytest.fail)

    def lost(value):
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {key: lost(inner) for key, inner in value.items()}
        return [lost(inner) for inner in value] if isinstance(value, list) else value

    assert said == lost(data)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("书/啊.jsonl: 第 3 行", "书/啊.jsonl: 第 3 行"), ("半 \ud83d 个", "半 \ufffd 个"),
        ("书/" + "圓明園(完).txt".encode("gb18030").decode("utf-8", "surrogateescape") + ":3: 没有",
         "书/圓明園(完).txt:3: 没有"),
        (b"a/\xff".decode("utf-8", "surrogateescape") + "/b", "a/\ufffd/b"),
    ],
)  # fmt: skip
def test_names_that_are_no_utf_8_are_written_as_people_read_them(tmp_path, text, shown):
    """Programs of old Windows unpack Chinese names in GBK; reports and progress name such files."""
    write_json(tmp_path / "a.json", {"first": text})
    assert read_json(tmp_path / "a.json") == {"first": shown} and readable(text) == shown


@pytest.mark.parametrize("kind", [str, str.encode])
def test_json_that_nests_for_ever_is_none(kind):
    """Python's parser fails on it beyond a thousand levels, and its writer some levels before that."""
    assert parse_json(kind("[" * DEEPEST + "]" * DEEPEST)) and parse_json(kind("[" + "[{}]," * 999 + "1]"))
    assert math.isnan(parse_json(kind("NaN"))) and parse_json(kind("NaN"), parse_constant=str) == "NaN"
    for deep in (DEEPEST + 1, 900, 100_000):
        for begins, ends in (("[", "]"), ('{"[": ', "}")):
            with pytest.raises(ValueError, match=f"nested more than {DEEPEST} deep"):
                parse_json(kind(begins * deep + "0" + ends * deep))


def test_on_windows_a_file_that_somebody_reads_is_replaced_a_little_later(tmp_path, monkeypatch):
    tries, replace = [], Path.replace

    def busy(self, target):
        tries.append(self)
        if len(tries) < 3:
            raise PermissionError(13, "Access is denied")
        return replace(self, target)

    monkeypatch.setattr("babyllama.atomic.WINDOWS", True)
    monkeypatch.setattr(Path, "replace", busy)
    write_atomic(tmp_path / "run.json", "{}")
    assert (tmp_path / "run.json").read_text() == "{}" and len(tries) == 3
