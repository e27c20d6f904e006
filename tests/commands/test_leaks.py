"""Evaluation items in corpora: planted ones are found, others are not, in texts and chats."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from babyllama.commands.leaks import Leaks
from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.data.clean.cleaning import Cleaning
from babyllama.data.clean.leaks import HeldItems, grams
from babyllama.data.sources.documents import Chat, Text
from babyllama.errors import InputError
from babyllama.evals.tasks import TaskChoice
from babyllama.recipe import load_recipe

from .small_run import small_tokenizer

HANZI = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))


def texts(count: int, length: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choice(HANZI) for _ in range(length)) for _ in range(count)]


def held(folder: Path, **more: str) -> HeldItems:
    (folder / "items.txt").write_text("\n".join([*texts(100, 40, 1), "太短的题"]), "utf-8")
    lines = Leaks(files=(str(folder / "items.jsonl"),), **more)
    (folder / "items.jsonl").write_text(
        "".join(f'{{"text": "{t}"}}\n' for t in [*texts(100, 40, 1), "太短的题"]), "utf-8"
    )
    return lines.hashes().kept(folder)


def test_planted_items_are_found_and_nothing_else(tmp_path: Path) -> None:
    items, documents = texts(100, 40, 1), texts(400, 300, 2)
    planted = [
        d[:50] + "，".join((items[i % 100][:20], items[i % 100][20:])) + d[50:] for i, d in enumerate(documents[:200])
    ]
    short = [d[:50] + items[i][:12] + d[50:] for i, d in enumerate(documents[200:300])]
    cleaning = Cleaning((held(tmp_path),))
    kept = list(cleaning(map(Text, [*planted, *short, *documents[300:], "太短的题"])))
    assert [d.text for d in kept] == [*short, *documents[300:], "太短的题"]
    assert cleaning.ledger[0]["reasons"] == {"holds an evaluation item": 200}


def test_chats_and_report(tmp_path: Path) -> None:
    chat = Chat(({"role": "user", "content": texts(1, 40, 1)[0]}, {"role": "assistant", "content": "选甲。"}))
    assert list(Cleaning((held(tmp_path),))([chat])) == []
    cleaning = Cleaning((held(tmp_path, action="report"),))
    assert list(cleaning([chat, Text("别的")])) == [chat, Text("别的")]
    entry = cleaning.ledger[0]
    assert (entry["dropped"], entry["reasons"], len(entry["samples"]["noticed"])) == (
        0,
        {"holds an evaluation item": 1},
        1,
    )


def test_a_test_whose_files_are_missing_leaves_no_folder(tmp_path: Path) -> None:
    """A folder with the recipe of the failed try would refuse the mended one."""
    small_tokenizer().save(tmp_path / "tok")
    (tmp_path / "a.jsonl").write_text('{"text": "甲"}\n', "utf-8")
    said = [f"out={tmp_path}/out", f"tokenizer={tmp_path}/tok", f"corpora=[{{path: {tmp_path}/a.jsonl}}]"]
    with pytest.raises(InputError, match="c3: get it from"):
        prepare(load_recipe(PrepareRecipe, None, [*said, "leaks.tasks=[c3]"]))
    assert not (tmp_path / "out").exists()


def test_tests_that_evaluate_knows(tmp_path: Path) -> None:
    choice = TaskChoice(name="common_knowledge")
    item = next(i for i in choice.items(None).asked if len(grams("\n".join((i.question, *i.options)))))
    found = Leaks(tasks=(choice,)).hashes().kept(tmp_path)
    assert found.measure("\n".join((item.question, *item.options))) == 1 and found.measure(texts(1, 200, 3)[0]) == 0
    assert load_recipe(Leaks, None, ["tasks=[common_knowledge]"]).tasks == (choice,)
    with pytest.raises(InputError, match="give tasks or files"):
        load_recipe(Leaks, None, [])
