"""A tiny real tokenizer and prepared folders for the tests of data."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.shards import Prepared
from babyllama.recipe import load_recipe
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe

TEXTS = [f"第{i}篇：" + "春眠不觉晓，处处闻啼鸟。" * (i % 7 + 1) for i in range(150)]
CHATS = [
    {"messages": [{"role": "user", "content": f"{i}加一等于几？"}, {"role": "assistant", "content": f"等于{i + 1}。"}]}
    for i in range(90)
]


def save_tokenizer(folder: Path) -> Path:
    """Train and save a tokenizer; returns its folder."""
    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer: Tokenizer = train_bpe(iter([*TEXTS, "等于几？加一"]), 330)
        tokenizer.save(folder)
    return folder


def write_lines(path: Path, records: list[Any]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


def recipe(out: Path, tokenizer: Path, corpora: list[dict[str, Any]], *more: str) -> PrepareRecipe:
    """As the command line builds it."""
    given = [f"out={out}", f"tokenizer={tokenizer}", f"corpora={json.dumps(corpora)}", *more]
    return load_recipe(PrepareRecipe, None, given)


def prepared(folder: Path, *more: str, texts: list[str] | None = None) -> Prepared:
    """A text and a chat corpus, prepared under `folder`."""
    tokenizer = save_tokenizer(folder / "tok")
    text = write_lines(folder / "text.jsonl", [{"text": t} for t in (TEXTS if texts is None else texts)])
    chat = write_lines(folder / "chat.jsonl", CHATS)
    prepare(recipe(folder / "out", tokenizer, [{"path": str(text)}, {"path": str(chat)}], "workers=1", *more))
    return Prepared.open(folder / "out")


def until(condition: Callable[[], bool], seconds: float = 30, fault: str = "it never came true") -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, fault
        time.sleep(0.02)


def alive(group: int) -> bool:
    """Any process left in the group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
