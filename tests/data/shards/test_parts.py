"""prepare on several machines: parts in processes of their own, one of them killed, give what one machine gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_data import alive, recipe, save_tokenizer, until, write_lines
from test_distinct import FOOTER, texts

from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.workers import Part
from babyllama.data.sources import readers
from babyllama.errors import InputError
from babyllama.run import Run

PROGRAM = """
if __name__ == "__main__":
    import json, sys
    from pathlib import Path
    from small_data import recipe
    from babyllama.commands.prepare import main
    from babyllama.data.sources import readers
    readers.read_blobs.__defaults__ = ("auto", int(sys.argv[1]), "utf-8")
    main(recipe(Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]), *sys.argv[5:]))
"""
OF_THE_RUN = (".lock", "run.json", "env.json", "recipe.yaml")  # which names its folder
DEDUP = ("clean=zh-web", "dedup=[exact, near, lines]", "validation=0.1")


def corpora(folder: Path, count: int) -> list[dict[str, Any]]:
    made = [f"{text}。\n{FOOTER}" for text in texts(count)]
    write_lines(folder / "a.jsonl", [{"text": text} for text in made])
    write_lines(folder / "b.jsonl", [{"text": text.replace("。", "！") + "完。"} for text in made[::2]])
    return [{"path": str(folder / name)} for name in ("a.jsonl", "b.jsonl")]


def contents(folder: Path) -> dict[str, bytes]:
    """All that is prepared, but for what tells of the run itself, and what a killed process had half written."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial")
    found = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in found.items() if name not in OF_THE_RUN}


@pytest.mark.parametrize("more", [(), DEDUP], ids=["once", "distinct"])
def test_parts_one_after_the_other_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    monkeypatch.setattr(readers.read_blobs, "__defaults__", ("auto", 8_000, "utf-8"))
    given, tokenizer = corpora(tmp_path, 60), save_tokenizer(tmp_path / "tok")
    prepare(recipe(tmp_path / "whole", tokenizer, given, "workers=1", *more))
    capsys.readouterr()
    said = []
    for part in (2, 3, 1, 2, 3):  # with dedup parts 2 and 3 have to wait for the first pass of part 1
        prepare(recipe(tmp_path / "out", tokenizer, given, "workers=1", f"part={part}/3", *more))
        said.append(capsys.readouterr().out.splitlines()[-1])
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert said[0].startswith("part 2/3 is " + ("read and cleaned" if more else "written"))
    assert said[-1] == "part 3/3 is written; all parts are; run the same without part, which joins them"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").rglob("*.bin")}
    prepare(recipe(tmp_path / "out", tokenizer, given, "workers=1", *more))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").rglob("*.bin")}
    assert contents(tmp_path / "out") == contents(tmp_path / "whole") and len(before) > 5


@pytest.mark.parametrize("count", [120, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_part_that_is_killed_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    size, given, tokenizer = count * 120, corpora(tmp_path, count), save_tokenizer(tmp_path / "tok")
    (tmp_path / "program.py").write_text(PROGRAM)
    out = tmp_path / "out"

    def start(part: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(tmp_path / "program.py"), str(size), str(out), str(tokenizer),
                   json.dumps(given), "workers=1", f"part={part}/2", *DEDUP]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)

    first, second = start(1), start(2)  # at the same time, in the same folder
    until(lambda: len(list(out.glob("clean/*/*.json"))) > 1 or second.poll() is not None, 90)
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    until(lambda: not alive(second.pid))
    assert first.wait() == 0
    monkeypatch.setattr(readers.read_blobs, "__defaults__", ("auto", size, "utf-8"))
    for part in (2, 1):
        prepare(recipe(out, tokenizer, given, "workers=1", f"part={part}/2", *DEDUP))
    for folder in (out, tmp_path / "whole"):
        prepare(recipe(folder, tokenizer, given, "workers=1", *DEDUP))
    assert contents(out).keys() == contents(tmp_path / "whole").keys()
    assert contents(out) == contents(tmp_path / "whole")


def test_a_whole_run_waits_for_its_parts(tmp_path: Path) -> None:
    given, tokenizer = corpora(tmp_path, 4), save_tokenizer(tmp_path / "tok")
    prepare(recipe(tmp_path / "out", tokenizer, given, "workers=1", "part=1/2"))
    part = Run(tmp_path / "out")
    part.lock(shared=True)
    prepare(recipe(tmp_path / "out", tokenizer, given, "workers=1", "part=2/2"))
    with pytest.raises(InputError, match="another process is writing this run"):
        prepare(recipe(tmp_path / "out", tokenizer, given, "workers=1"))
    part.unlock()


@pytest.mark.parametrize("name", ["0/3", "4/3", "3", "a/b", "1/0", ""])
def test_a_part_is_one_of_several(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="such as 3/8"):
        recipe(tmp_path / "out", tmp_path, [{"path": "a"}], f"part='{name}'")


def test_parts_share_all_jobs_and_none_twice() -> None:
    shares = [list(Part(number, 3).share(range(10), lambda job: None)) for number in (1, 2, 3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    part = Part(2, 3)
    assert list(part.share(range(7), lambda job: job if job in (3, 5) else None)) == [1, 3, 4, 5] and part.missing == 3
