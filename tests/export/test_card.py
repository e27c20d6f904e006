"""The card says what the runs wrote down, in both languages; the folder is one that transformers opens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from exported import pack, save, sharp, vocabulary
from transformers import AutoModelForCausalLM, AutoTokenizer

from babyllama.errors import InputError
from babyllama.export.card import card, history, write_cards
from babyllama.export.folder import check_readable, fill
from babyllama.export.hub import check_repository, listing
from babyllama.model.config import extended
from babyllama.model.config_json import to_hugging_face
from babyllama.model.laws import ClexRope
from babyllama.model.transformer import make_rope
from babyllama.plain_yaml import parse_yaml
from babyllama.quant.grid import Grid
from babyllama.run import Run


def a_run(place: Path, verb: str, parent: Path | None, data: Path | None, **summary) -> Path:
    place.mkdir()
    (place / "recipe.yaml").write_text(f"out: {Path.home()}/x\ndata: {{path: {data}}}\nseed: {len(place.name)}\n")
    info = {"verb": verb, "status": "finished", "parent": parent and str(parent), "summary": summary}
    (place / "run.json").write_text(json.dumps(info))
    return place


@pytest.fixture
def runs(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    corpora = {
        "诗": {"kind": "text", "licence": "CC0", "source": "shi|ji"},
        "mine": {"kind": "chat", "licence": "not stated", "source": f"{Path.home()}/a.jsonl"},
    }
    for corpus in corpora.values():
        corpus["splits"] = {split: {"documents": 1234, "shards": []} for split in ("train",)}
    manifest = {"version": 1, "dtype": "uint16", "validation": 0.1, "corpora": corpora}
    (data / "manifest.json").write_text(json.dumps(manifest))
    base = a_run(tmp_path / "base", "train", None, data, tokens=5000, bits_per_byte=2.25)
    sft = a_run(tmp_path / "sft", "train", base / "model", data, tokens=700, validation_loss=1.5)
    (sft / "evals").mkdir()
    evaluation = {"documents": "held out", "loss": {"诗": {"bits_per_byte": 1.75}},
                  "answers": {"mine": {"f1": 0.5, "asked": 8}}}  # fmt: skip
    (sft / "evals" / "val.json").write_text(json.dumps(evaluation))
    return sft


def test_what_the_runs_wrote_down(runs):
    steps = history(runs / "model")
    assert [(step.verb, step.summary["tokens"]) for step in steps] == [("train", 5000), ("train", 700)]
    text = card({"hidden_size": 64, "vocab_size": 460}, steps, "小羊驼")
    front = parse_yaml(text.split("---\n")[1], "front")
    assert front["license"] == "other" and front["pipeline_tag"] == "text-generation" and "# 小羊驼" in text
    assert text.count("| 诗 | text | 1,234 | CC0 | shi\\|ji |") == 2  # once in each language
    assert "held out): 1.75 bits per byte" in text and "F1 0.500 of 8 answers" in text and "bits per byte 2.25" in text
    assert "make sure of it" in text and "发布模型之前请先确认" in text and str(Path.home()) not in text
    assert re.findall(r"```yaml\n.*?seed: (\d)", text, re.DOTALL) == ["4", "3"]  # the base's recipe first
    assert card({}, [], "x", "apache-2.0").split("---\n")[1].count('license: "apache-2.0"') == 1


def test_best_is_told_by_its_own_step(runs):
    """Not by the figures of the newest model, nor by what was evaluated of that."""
    place = runs.parent / "longer"
    a_run(place, "train", runs / "best", None, tokens=900, best_step=8, validation_loss=9.5, bits_per_byte=9.25)
    found = [(4, "validation", 3.5), (8, "train", 0.5), (8, "validation", 1.25), (12, "validation", 9.5)]
    lines = [{"step": step, "kind": kind, "loss": loss, "bits_per_byte": loss / 2} for step, kind, loss in found]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("model", "best"):
        save(sharp(64), vocabulary("own", place), place / name)
    write_cards(Run(place))
    newest, best = ((place / name / "README.md").read_text("utf-8") for name in ("model", "best"))
    assert "validation loss 9.5" in newest and "# longer" in newest
    assert "validation loss 1.25" in best and "bits per byte 0.625" in best and "9.5" not in best and "# longer" in best
    assert "F1 0.500" not in newest  # of the parent its model/ was evaluated, not its best/


def test_a_folder_to_publish(tmp_path, runs):
    tokenizer, folder = vocabulary("own", tmp_path), tmp_path / "out"
    model = sharp(tokenizer.vocab_size)
    folder.mkdir()
    (tmp_path / "licence.txt").write_text("do as you like")
    fill(folder, model, tokenizer, runs, "小羊驼", None, "mit", tmp_path / "licence.txt", {})
    assert (folder / "LICENSE").read_text() == "do as you like" and "README.md  " in listing(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor([[7, 8, 9]])
    torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"


def test_what_no_other_program_reads(tmp_path):
    tokenizer = vocabulary("own", tmp_path)
    model = sharp(tokenizer.vocab_size)
    model.config = extended(model.config, ClexRope())
    model.rope = make_rope(model.config)
    with pytest.raises(InputError, match="clex has no form in a Hugging Face"):
        check_readable(model, None)
    packed = sharp(tokenizer.vocab_size)
    pack(packed, Grid(group_size=32, symmetric=True))
    check_readable(packed, "gptq")
    with pytest.raises(InputError, match="weights: matrices packed in this way have no form"):
        to_hugging_face(packed.config, 0, 0, "float32", stock=True, own=True)
    with pytest.raises(InputError, match="push: "):
        check_repository("a//b")
