"""``babyllama data stats``, ``sample`` and ``show``, as typed: a folder, a run, files; faults in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from small_data import CHATS, TEXTS, prepared, write_lines

from babyllama import verbs
from babyllama.commands.data_stats import bars
from babyllama.commands.looking import coloured
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.data.shards.samples import Piece
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import DataRecipe, Stream
from babyllama.errors import InputError
from babyllama.recipe import dump_recipe, load_recipe
from babyllama.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``out``: the data; ``run``: a training of them that has only just begun."""
    root = tmp_path_factory.mktemp("verbs")
    prepared(root)
    (root / "run").mkdir()
    train = load_recipe(TrainRecipe, None, [f"data.path={root / 'out'}", f"out={root / 'run'}", "plan.steps=2",
                                            "plan.context=40", 'data.weights={"chat": 3, "text": 1}'])  # fmt: skip
    (root / "run" / "recipe.yaml").write_text(dump_recipe(train))
    (root / "run" / "run.json").write_text(json.dumps({"verb": "train", "version": 1, "status": "started"}))
    return root


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert verbs.call(["data", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_stats_of_a_folder_of_a_run_and_of_files(folder, capsys):
    out = folder / "stats.json"
    said = told(capsys, "stats", folder / "out", f"out={out}")
    found = json.loads(out.read_text())
    assert found["documents"] == len(TEXTS) + len(CHATS) and list(found["corpora"]) == ["text", "chat"]
    assert list(found["corpora"]["chat"]["longer"]) == ["512", "2048"]
    assert f"{found['tokens']:,} tokens" in said and "chats with" in said and "pairs" not in said
    told(capsys, "stats", folder / "run", f"out={out}")
    chats = json.loads(out.read_text())["corpora"]["chat"]
    assert list(chats["longer"]) == ["40"]  # the run's context
    told(capsys, "stats", folder / "chat.jsonl", f"tokenizer={folder / 'tok'}", "documents=9", f"out={out}")
    some = json.loads(out.read_text())["corpora"]["chat"]
    assert some["documents"] == 9 and some["chats"]["messages"]["assistant"] == 9


def test_files_of_old_programs_are_looked_at_as_they_are(folder, capsys):
    """GBK, and what UTF-8 calls it: there is no key here that could say the encoding."""
    (folder / "旧.csv").write_text("问题;答案\n春天来了吗？;来了，柳树发了芽。\n", "gbk")
    said = told(capsys, "sample", folder / "旧.csv", f"tokenizer={folder / 'tok'}", "count=1")
    assert "[[来了，柳树发了芽。" in said


def test_a_document_is_shown_and_a_sample_says_how(folder, capsys):
    said = told(capsys, "sample", folder / "out", "corpora=chat", "count=2", "seed=3")
    first = re.search(r"── chat, (train|val), document (\d+): \d+ tokens\n(.*)\n", said)
    assert (
        told(capsys, "sample", folder / "out", "corpora=[chat]", "count=2", "seed=3") == said
    )  # as the help writes it
    assert "── text, " not in said and "── text, " in told(capsys, "sample", folder / "out", "corpora=[text]")
    again = told(capsys, "show", folder / "out", "corpora=chat", f"split={first[1]}", f"document={first[2]}")
    assert first[3] in again and re.fullmatch(r"<\|user\|>.*<\|assistant\|>\[\[.*</s>\]\]", first[3])
    each = told(capsys, "show", folder / "out", "corpora=chat", "tokens=true")
    tokenizer = Tokenizer.load(folder / "tok")
    assert re.search(rf"<\|user\|> +{tokenizer.role_ids['user']} +0 *\n", each)
    assert re.search(rf"</s> +{tokenizer.eos_id} +\d+ +yes", each)


def test_a_row_is_what_the_training_reads(folder, capsys):
    said = told(capsys, "show", folder / "run", "row=7", "tokens=true")
    ids = [int(found[1]) for found in re.finditer(r"(?m) (\d+) +\d+ +(?:yes)? *$", said)]
    stream = Stream(
        Prepared.open(folder / "out"), "train", DataRecipe(path=folder / "out", weights={"chat": 3, "text": 1}), 40, 1
    )
    batch = stream.batch(7, 1)
    ((corpus, row),) = stream.places(7, 1)
    assert f"{stream.labels[corpus]}, row {row:,} of" in said
    learned = int((batch.targets != -100).sum())
    assert f"{learned} of {len(ids)} tokens in the loss" in said and said.count(" yes") == learned
    inputs = batch.tokens[0].tolist()
    assert set(ids) <= {*inputs, *batch.targets[0].tolist()} and len(ids) >= learned


def test_colours_on_a_terminal_marks_on_a_pipe():
    pieces = [Piece("问", False), Piece("答", True)]
    terminal = Console(force_terminal=True, color_system="truecolor", width=20)
    with terminal.capture() as shown:
        terminal.print(coloured(pieces, terminal))
    assert shown.get() == "\x1b[2m问\x1b[0m\x1b[32m答\x1b[0m\n"
    assert coloured(pieces, Console(color_system=None)).plain == "问[[答]]"


def test_a_small_count_is_seen():
    assert bars([1000, 1, 0, 500]) == "█▁ ▄"


@pytest.mark.parametrize("words,fault", [
    (["stats"], "data: this key must be given"),
    (["stats", "nowhere"], "nowhere: no such file or folder"),
    (["stats", "{}/chat.jsonl"], "give tokenizer=…"),
    (["stats", "{}/tok", "tokenizer={}/tok"], "no key 'text'"),
    (["sample", "{}/out", "corpora=x"], "no corpus 'x'; it has text, chat"),
    (["show", "{}/out", "document=999"], "numbered 0 … 239"),
    (["show", "{}/out", "row=0"], "no train run"),
    (["show", "{}/run", "row=99999999999999999999"], "row: input should be less than"),
    (["show", "{}/run", "row=0", "document=1"], "document: says which document"),
    (["shw", "{}/out"], "data shw: no such verb; there are data stats, data sample, data show"),
])  # fmt: skip
def test_faults(folder, words, fault):
    with pytest.raises(InputError, match=re.escape(fault)):
        verbs.call(["data", *(word.format(folder) for word in words)])


def test_a_run_without_data(folder):
    (folder / "other").mkdir()
    write_lines(folder / "other" / "run.json", [{"verb": "tokenizer"}])
    (folder / "other" / "recipe.yaml").write_text("source: {kind: train}\n")
    with pytest.raises(InputError, match="names no prepared data"):
        verbs.call(["data", "stats", str(folder / "other")])
