"""The verb: what it writes and shows, how it fails, and that a kill costs at most the blobs in work."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from small_data import CHATS, TEXTS, alive, prepared, recipe, save_tokenizer, until, write_lines
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.shards import Prepared
from babyllama.errors import InputError
from babyllama.tokenizer.tokenizer import Tokenizer


def test_shows_and_finishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = prepared(tmp_path)
    shown = capsys.readouterr().out
    assert "text" in shown and "chat" in shown and f"{len(TEXTS) + len(CHATS)} documents" in shown
    assert Tokenizer.load(tmp_path / "out").hash == found.manifest["tokenizer"]
    prepared(tmp_path)
    assert "is finished" in capsys.readouterr().out


def test_template(tmp_path: Path) -> None:
    assert prepared(tmp_path, "template=bos").manifest["chat_template"] == "bos"


def test_faults(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path / "tok")
    text = str(write_lines(tmp_path / "a.jsonl", [{"text": "文"}]))
    with pytest.raises(InputError, match="the label 'a' is there twice"):
        recipe(tmp_path / "out", tokenizer, [{"path": text}, {"path": text}])
    with pytest.raises(InputError, match="no such file"):
        prepare(recipe(tmp_path / "out", tokenizer, [{"path": text + "x"}]))
    assert not (tmp_path / "out").exists()
    empty = str(write_lines(tmp_path / "empty.jsonl", [{"text": " "}]))
    with pytest.raises(InputError, match=r"corpus empty: no document in .* \(1 too long or with nothing to learn, 0"):
        prepare(recipe(tmp_path / "out", tokenizer, [{"path": empty}]))


def test_a_finished_folder_needs_its_sources_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = prepared(tmp_path).hash
    given = recipe(
        tmp_path / "out", tmp_path / "tok", [{"path": str(tmp_path / f"{n}.jsonl")} for n in ("text", "chat")]
    )
    (tmp_path / "text.jsonl").unlink(), (tmp_path / "chat.jsonl").unlink()
    shutil.rmtree(tmp_path / "tok")
    prepare(given)
    assert "is finished" in capsys.readouterr().out and Prepared.open(tmp_path / "out").hash == before


def test_corpora_keep_the_order_that_was_given(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path / "tok")
    paths = [str(write_lines(tmp_path / f"{name}.jsonl", [{"text": f"{name}文"}])) for name in "bca"]
    prepare(recipe(tmp_path / "out", tokenizer, [{"path": path} for path in paths], "workers=1", "validation=0"))
    assert list(Prepared.open(tmp_path / "out").corpora) == ["b", "c", "a"]


def test_nothing_held_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, said = save_tokenizer(tmp_path / "tok"), "nothing is held out: too few documents"
    few = str(write_lines(tmp_path / "few.jsonl", [{"text": "文"}]))
    for share, expected in (("0.001", 1), ("0", 0)):  # with 0 nothing was wanted
        prepare(recipe(tmp_path / share, tokenizer, [{"path": few}], "workers=1", f"validation={share}"))
        assert capsys.readouterr().out.count(said) == expected


def test_skipping_continues_what_a_bad_record_stopped(tmp_path: Path) -> None:
    tokenizer, path = save_tokenizer(tmp_path / "tok"), tmp_path / "a.jsonl"
    path.write_text('{"text": "文"}\n{"text": \n{"text": "字"}\n', "utf-8")
    with pytest.raises(InputError, match=r"a\.jsonl:2: not valid JSON.*on_bad=skip"):
        prepare(recipe(tmp_path / "out", tokenizer, [{"path": str(path)}]))
    prepare(recipe(tmp_path / "out", tokenizer, [{"path": str(path)}], "on_bad=skip", "workers=1"))
    corpus = Prepared.open(tmp_path / "out").manifest["corpora"]["a"]
    assert corpus["bad"] == 1 and sum(split["documents"] for split in corpus["splits"].values()) == 2
    with pytest.raises(InputError, match="holds a run of another recipe"):
        prepare(recipe(tmp_path / "out", tokenizer, [{"path": str(path)}], "validation=0.2"))


@pytest.mark.parametrize("mended", [[], ["dedup=[exact]"], ["clean=[normalise]", "validation=0.2"]])
def test_what_an_error_asks_for_continues_what_it_stopped(tmp_path: Path, mended: list[str]) -> None:
    """No folder is left that refuses the mended command, and nothing of the first attempt is left in it."""
    tokenizer, texts = save_tokenizer(tmp_path / "tok"), tmp_path / "书"
    texts.mkdir()
    (texts / "a.txt").write_text("春眠不觉晓，处处闻啼鸟。", "utf-8")
    (texts / "b.txt").write_text("夜来风雨声，花落知多少。", "gbk")
    with pytest.raises(InputError, match=r"b\.txt.*say encoding: gb18030 \(or auto, where files differ\)"):
        prepare(recipe(tmp_path / "out", tokenizer, [{"path": str(texts)}], "dedup=[exact, lines]", "workers=1"))
    with pytest.raises(InputError, match=r"b\.txt"):
        prepare(recipe(tmp_path / "out", tokenizer, [{"path": str(texts)}], "workers=1"))
    choice = [{"path": str(texts), "encoding": "auto", "label": "新"}]
    for out in ("out", "fresh"):
        prepare(recipe(tmp_path / out, tokenizer, choice, "workers=1", *mended))
    files = [sorted(p.relative_to(tmp_path / out) for p in (tmp_path / out).rglob("*")) for out in ("out", "fresh")]
    assert files[0] == files[1]
    assert Prepared.open(tmp_path / "out").manifest == Prepared.open(tmp_path / "fresh").manifest


def test_characters_that_the_vocabulary_cannot_write_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A foreign one without bytes makes <unk> of them, and the model never learns them."""
    signs = ["<unk>", "<s>", "</s>", *"春眠不觉晓，处闻啼鸟。"]
    words = tokenizers.Tokenizer(WordLevel({sign: i for i, sign in enumerate(signs)}, unk_token="<unk>"))
    words.pre_tokenizer, words.decoder = Split("", "isolated"), Fuse()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}')
    own = save_tokenizer(tmp_path / "tok")
    for text, tokenizer, lost in (("春眠不觉晓，处处闻啼鸟。", tmp_path, ""), ("春眠 不觉晓晓\n龘", tmp_path, "33.3%"),
                                  ("春眠 不觉晓晓\n龘", own, "")):  # fmt: skip
        path = write_lines(tmp_path / "a.jsonl", [{"text": text}])
        prepare(recipe(tmp_path / f"out{lost}{tokenizer.name}", tokenizer, [{"path": str(path)}], "workers=1"))
        said = capsys.readouterr().out
        assert ("of the characters are lost" in said) == bool(lost) and lost in said
        assert not lost or all(sign in said for sign in (r"'\n'", "' '", "龘"))


PROGRAM = """
if __name__ == "__main__":  # its workers run this file too, and need none of it
    import sys
    from pathlib import Path
    from small_data import recipe
    from babyllama.commands.prepare import main
    from babyllama.data.sources import readers
    readers.read_blobs.__defaults__ = ("auto", 40_000, "utf-8")
    main(recipe(Path(sys.argv[1]), Path(sys.argv[2]), [{"path": sys.argv[3]}], "workers=2", "validation=0.1"))
"""


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """SIGKILL of the main process: no worker stays behind, and the second run gives the same bytes."""
    program, tokenizer = tmp_path / "program.py", save_tokenizer(tmp_path / "tok")
    program.write_text(PROGRAM)
    path = write_lines(tmp_path / "text.jsonl", [{"text": f"{i}" + text} for i in range(30) for text in TEXTS])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(program), str(out), str(tokenizer), str(path)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)

    killed = start(tmp_path / "killed")
    records = tmp_path / "killed" / "shards" / "text"
    until(lambda: len(list(records.glob("*.json"))) > 3 or killed.poll() is not None)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    until(lambda: not alive(killed.pid))
    assert not (tmp_path / "killed" / "manifest.json").exists()
    assert start(tmp_path / "killed").wait() == 0 and start(tmp_path / "whole").wait() == 0
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.suffix in (".bin", ".docs")
                      or p.name == "manifest.json"} for name in ("killed", "whole"))  # fmt: skip
    assert first == second and len(first) > 20


def test_a_record_says_itself_whether_it_is_held_out(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path / "tok")
    lines = [{"text": f"第{i}篇：春眠不觉晓", "held_out": i % 4 == 0} for i in range(40)]
    chats = [{**chat, "held_out": i % 3 == 0} for i, chat in enumerate(CHATS)]
    corpora = [
        {"path": str(write_lines(tmp_path / "t.jsonl", lines))},
        {"path": str(write_lines(tmp_path / "c.jsonl", chats))},
    ]
    prepare(recipe(tmp_path / "out", tokenizer, corpora, "workers=1", "validation=0.5"))
    manifest = Prepared.open(tmp_path / "out").manifest["corpora"]
    held = {label: corpus["splits"]["val"]["documents"] for label, corpus in manifest.items()}
    assert held == {"t": 10, "c": 30} and not any(corpus["notes"] for corpus in manifest.values())
    write_lines(tmp_path / "bad.jsonl", [{"text": "春眠", "held_out": "test"}])
    with pytest.raises(InputError, match=r"bad.jsonl:1: held_out must be true or false, got 'test'"):
        prepare(recipe(tmp_path / "no", tokenizer, [{"path": str(tmp_path / "bad.jsonl")}], "workers=1"))
