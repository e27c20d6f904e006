"""The audit page: figures of the ledgers, self-contained, escaped, in both languages, the same every time."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from babyllama.commands.audit import AuditRecipe, bars, flow, main
from babyllama.data.clean.cleaning import Cleaning
from babyllama.data.clean.presets import PRESETS
from babyllama.data.sources.documents import Text
from babyllama.errors import InputError

EVIL = "<script>alert('坏')</script><img src=http://evil.example/x.png>"


def make(folder: Path, corpora: dict[str, list[str]]) -> Path:
    found = {}
    for label, texts in corpora.items():
        cleaning = Cleaning(PRESETS["zh-web"])
        list(cleaning(map(Text, texts)))
        found[label] = {"cleaning": cleaning.ledger}
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"corpora": found}), "utf-8")
    return folder


def balanced(page: str) -> None:
    class Check(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Check()
    parser.feed(re.sub(r"<(rect|path)[^>]*/>", "", page))
    assert not parser.open


def test_the_page(tmp_path: Path) -> None:
    good = [f"第{i}篇文章说的是春天的花和秋天的月，夏天的雨和冬天的雪，年年如此，岁岁不同。" for i in range(40)]
    run = make(
        tmp_path / "run", {"好": [*good, "短", EVIL + "电话13812345678" + EVIL], "又": [good[0] + "\u200b", "短"]}
    )
    for language, words in (("en", "documents in"), ("zh", "进入文档")):
        out = tmp_path / f"{language}.html"
        main(AuditRecipe(runs=(run,), out=out, language=language))
        page = out.read_text("utf-8")
        main(AuditRecipe(runs=(run,), out=out, language=language))
        assert page == out.read_text("utf-8") and words in page
        assert (
            "<script" not in page
            and "http" not in page.replace("http://evil.example", "")
            and "13812345678" not in page
        )
        balanced(page)
        assert "44" in page and ("all corpora" in page or "全部语料" in page)


def test_drawings_hold_the_figures() -> None:
    entry = {"filter": "length", "documents": 100, "dropped": 25, "bins": [0, 3, 6], "top": 1.0}
    drawn = flow([entry, {**entry, "filter": "hanzi", "documents": 75, "dropped": 0}], lambda en, zh: en, str)
    assert "length −25" in drawn and "out: 75 (75 %)" in drawn and "hanzi" not in drawn
    heights = [float(x) for x in re.findall(r'height="([\d.]+)" class="kept"', drawn)]
    assert heights == [120.0, 90.0]
    assert [float(x) for x in re.findall(r'height="([\d.]+)"><title>', bars(entry))] == [0.0, 28.0, 56.0]


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest.json: cannot be read .*babyllama prepare"):
        main(AuditRecipe(runs=(tmp_path,)))
    (tmp_path / "manifest.json").write_text('{"corpora": {"a": {}}}')
    with pytest.raises(InputError, match="nothing was cleaned in it; prepare it with clean=zh-web"):
        main(AuditRecipe(runs=(tmp_path,)))
