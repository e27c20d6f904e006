"""prepare with dedup: what stays, what is said of it, and that a kill at any point changes nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import alive, recipe, save_tokenizer, until, write_lines

from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.distinct import kept, restored
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources import readers
from babyllama.data.sources.documents import Chat, Preference, Text
from babyllama.errors import InputError
from babyllama.tokenizer.tokenizer import Tokenizer

HANZI = "".join(map(chr, range(0x4E00, 0x4E00 + 800)))
FOOTER = "本站内容由网友提供，转载请注明出处，谢谢。"


def texts(count: int, seed: int = 0, length: int = 200) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choice(HANZI) for _ in range(length)) for _ in range(count)]


def read(folder: Path, label: str) -> list[str]:
    """All documents of a corpus, of both splits."""
    prepared, tokenizer = Prepared.open(folder), Tokenizer.load(folder)
    found = []
    for split in ("train", "val"):
        store = prepared.store(label, split)
        for a, b in pairwise(store.document_offsets.tolist()):
            found.append(tokenizer.decode(store.tokens(a, b).tolist(), skip_special=True))
    return found


def test_one_of_each_stays_the_longest_or_the_one_held_out(tmp_path: Path) -> None:
    tokenizer, (one, two, three) = save_tokenizer(tmp_path / "tok"), texts(3)
    first = [{"text": one}, {"text": two}, {"text": three[:190], "held_out": True}]
    second = [{"text": one}, {"text": two + "。又一句话，所以更长。"}, {"text": three}]
    named = (("a", first), ("b", second))
    corpora = [{"path": str(write_lines(tmp_path / f"{name}.jsonl", lines))} for name, lines in named]
    prepare(recipe(tmp_path / "out", tokenizer, corpora, "workers=1", "dedup=[exact, near]", "validation=0"))
    assert read(tmp_path / "out", "a") == [one, three[:190]] and read(tmp_path / "out", "b") == [
        two + "。又一句话，所以更长。"
    ]
    clusters = [json.loads(line) for line in (tmp_path / "out" / "duplicates.jsonl").read_text("utf-8").splitlines()]
    assert [(c["kept"]["corpus"], [(o["corpus"], o["how"]) for o in c["others"]]) for c in clusters] == [
        ("a", [("b", "same")]), ("b", [("a", "alike")]), ("a", [("b", "alike")])]  # fmt: skip
    assert not (tmp_path / "out" / "clean").exists()


def test_lines_of_many_documents_stay_in_the_first(tmp_path: Path) -> None:
    tokenizer, made = save_tokenizer(tmp_path / "tok"), texts(6)
    records = [{"text": f"{text}\n{FOOTER}"} for text in made[:5]] + [
        {"text": made[0] + "\n" + FOOTER},
        {"text": made[5]},
    ]
    path = write_lines(tmp_path / "a.jsonl", [*records, {"text": FOOTER}])
    many = "dedup=[exact, {kind: lines, documents: 6}]"
    prepare(recipe(tmp_path / "out", tokenizer, [{"path": str(path)}], "workers=1", many, "validation=0"))
    assert read(tmp_path / "out", "a") == [made[0] + "\n" + FOOTER, *made[1:6]]
    few = "dedup=[exact, {kind: lines, documents: 7}]"  # the copy of the first document does not count
    prepare(recipe(tmp_path / "few", tokenizer, [{"path": str(path)}], "workers=1", few, "validation=0"))
    assert len(read(tmp_path / "few", "a")) == 7
    entries = Prepared.open(tmp_path / "out").manifest["corpora"]["a"]["cleaning"]
    assert [(e["filter"], e["documents"], e["dropped"], e["changed"]) for e in entries] == [
        ("exact", 8, 1, 0), ("lines", 7, 1, 4)]  # fmt: skip


def test_pairs_that_differ_in_what_is_rejected_are_not_the_same() -> None:
    asked = ({"role": "user", "content": "问"},)
    answers = [({"role": "assistant", "content": text},) for text in ("好", "坏", "更坏")]
    pairs = [Preference(asked, answers[0], answers[1]), Preference(asked, answers[0], answers[2])]
    assert kept(pairs[0]) != kept(pairs[1]) and [restored(kept(pair)) for pair in pairs] == pairs


@settings(max_examples=50)
@given(st.text(), st.none() | st.booleans(), st.booleans())
def test_documents_come_back_as_they_were(text: str, held_out: bool | None, learned: bool) -> None:
    chat = Chat(
        ({"role": "user", "content": text}, {"role": "assistant", "content": "好", "learned": learned}),
        held_out,
        ({"name": text, "parameters": {"at_most": float("inf")}},) * learned,
    )
    for document in (Text(text.encode("utf-8", "ignore").decode(), held_out), chat):
        assert restored(kept(document)) == document


def test_each_kind_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dedup: each of exact, near and lines may be there once"):
        recipe(tmp_path / "out", tmp_path, [{"path": "a"}], "dedup=[near, {kind: near, threshold: 0.9}]")
    with pytest.raises(InputError, match="dedup: 'nea' is unknown; did you mean near"):
        recipe(tmp_path / "out", tmp_path, [{"path": "a"}], "dedup=nea")


PROGRAM = """
if __name__ == "__main__":  # its workers run this file too, and need none of it
    import sys
    from itertools import pairwise
    from pathlib import Path
    from small_data import recipe
    from babyllama.commands.prepare import main
    from babyllama.data.sources import readers
    readers.read_blobs.__defaults__ = ("auto", 15_000, "utf-8")
    out, tokenizer, first, second = map(Path, sys.argv[1:])
    corpora = [{"path": str(first)}, {"path": str(second)}]
    main(recipe(out, tokenizer, corpora, "workers=2", "clean=zh-web", "dedup=[exact, near, lines]", "validation=0.1"))
"""


@pytest.mark.parametrize("which", [(0, 2), pytest.param(None, marks=pytest.mark.slow, id="ten points")])
def test_killed_at_several_points_the_manifest_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: tuple[int, ...] | None
) -> None:
    program, tokenizer = tmp_path / "program.py", save_tokenizer(tmp_path / "tok")
    program.write_text(PROGRAM)
    made = [f"{text}。\n{FOOTER}" for text in texts(260)]
    first = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in made])
    second = write_lines(tmp_path / "b.jsonl", [{"text": text.replace("。", "！") + "完。"} for text in made[::2]])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    out = tmp_path / "killed"

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(program), str(folder), str(tokenizer), str(first), str(second)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)

    def there(pattern: str) -> int:
        return len(list(out.glob(pattern)))

    if which is None:  # ten points anywhere, drawn by how much is there
        drawn = sorted(random.Random(7).sample(range(1, 32), 10))
        points = [lambda least=least: there("clean/*/*.json") + there("shards/*/*.json") >= least for least in drawn]
    else:
        named = (
            lambda: there("clean/a/*.json") > 2,
            lambda: there("clean/b/*.json") > 1,
            lambda: there("shards/*/*.json") > 1,
            lambda: there("shards/*/*.json") > 8,
        )
        points = [named[number] for number in which]
    for point in points:
        killed = start(out)
        until(lambda point=point, killed=killed: point() or killed.poll() is not None, 60)
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        until(lambda killed=killed: not alive(killed.pid))
    assert start(out).wait() == 0
    monkeypatch.setattr(readers.read_blobs, "__defaults__", ("auto", 15_000, "utf-8"))
    corpora = [{"path": str(first)}, {"path": str(second)}]
    whole = tmp_path / "whole"
    prepare(
        recipe(whole, tokenizer, corpora, "workers=1", "clean=zh-web", "dedup=[exact, near, lines]", "validation=0.1")
    )
    for name in ("manifest.json", "duplicates.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    bins = [{p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.bin")} for folder in (out, whole)]
    assert bins[0] == bins[1] and len(bins[0]) > 10
