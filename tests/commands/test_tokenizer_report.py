"""The verb, as typed: a file, a figure, tables; faults in one line."""

import json
import warnings
from pathlib import Path

import pytest
from small import SMALL_TEXT

from babyllama import verbs
from babyllama.errors import InputError
from babyllama.tokenizer.train import train_bpe


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    for size in (380, 460):
        train_bpe(SMALL_TEXT, size).save(folder / f"v{size}")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SMALL_TEXT))
    return folder


def test_two_vocabularies_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "report.json"
    words = ["tokenizer", "report", str(folder / "v380"), str(folder / "v460"), f"out={out}", "preset=tiny"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a missing glyph
        assert verbs.call([*words, f"corpora=[{{path: {folder / 'texts.jsonl'}, label: 小语料}}]"]) == 0
    found = json.loads(out.read_text())["tokenizers"]
    small, large = found["v380"], found["v460"]
    characters = sum(map(len, SMALL_TEXT))
    assert small["domains"]["小语料"]["characters"] == large["domains"]["小语料"]["characters"] == characters
    assert small["domains"]["小语料"]["tokens"] > large["domains"]["小语料"]["tokens"]
    assert small["embedding_share"] < large["embedding_share"] < 1
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "v380" in said and f"{small['domains']['小语料']['characters_per_token']:.2f}" in said


def test_faults(folder: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        verbs.call(["tokenizer", "report", str(folder / "none")])
    twice = [{"path": str(folder / "texts.jsonl")}] * 2
    with pytest.raises(InputError, match="same label"):
        verbs.call(["tokenizer", "report", str(folder / "v380"), f"corpora={json.dumps(twice)}"])
