"""Documents through lists of filters: what chats see, the ledger, its samples, names of lists, and prepare with it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import recipe, save_tokenizer, write_lines

from babyllama.commands.prepare import main as prepare
from babyllama.data.clean.cleaning import Cleaning
from babyllama.data.clean.ledger import added
from babyllama.data.clean.measures import Length
from babyllama.data.clean.normalise import Normalise
from babyllama.data.clean.personal import Personal
from babyllama.data.clean.presets import FILTERS, PRESETS, named
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources import readers
from babyllama.data.sources.documents import Chat, Preference, Text
from babyllama.errors import InputError
from babyllama.tokenizer.tokenizer import Tokenizer

PHONE = "13812345678"


def test_chats_see_repairs_and_masks_only() -> None:
    asked = {"role": "user", "content": f"我的电话是{PHONE}\u200b"}
    said = (asked, {"role": "assistant", "content": "好。", "learned": True})
    cleaning = Cleaning((Normalise(), Length(at_least=100), Personal()))
    (chat,) = cleaning([Chat(said, held_out=True)])
    assert chat == Chat(({"role": "user", "content": "我的电话是[电话号码]"}, said[1]), held_out=True)
    pair = Preference(said[:1], said[1:], ({"role": "assistant", "content": f"打{PHONE}"},))
    (pair,) = cleaning([pair])
    assert isinstance(pair, Preference) and pair.rejected[0]["content"] == "打[电话号码]"
    assert [(e["documents"], e["dropped"], e["changed"]) for e in cleaning.ledger] == [(2, 0, 2), (2, 0, 0), (2, 0, 2)]


def test_what_is_left_without_text_is_dropped() -> None:
    cleaning = Cleaning((Normalise(),))
    assert list(cleaning([Text("\u200b\ufeff"), Text("文")])) == [Text("文")]
    assert cleaning.ledger[0]["reasons"] == {"nothing left": 1} and cleaning.dropped == 1


TEXTS = st.lists(st.text("甲乙\u200b\n13812345678 ", min_size=1, max_size=30).filter(str.strip), max_size=20)


@settings(max_examples=60)
@given(TEXTS, st.data())
def test_a_ledger_is_the_same_however_the_documents_are_parted(texts: list[str], data: st.DataObject) -> None:
    filters = (Normalise(), Length(at_least=5), Personal())

    def ledger(part: list[str]) -> list[dict]:
        cleaning = Cleaning(filters)
        for _ in cleaning(map(Text, part)):
            pass
        return cleaning.ledger

    cut = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=3)))
    parts = [ledger(texts[a:b]) for a, b in zip([0, *cut], [*cut, len(texts)], strict=True)]
    whole = ledger(texts)
    assert json.dumps(added(parts)) == json.dumps(added([whole])) == json.dumps(added(parts[::-1]))
    for entry, after in pairwise(whole):
        assert entry["documents"] - entry["dropped"] == after["documents"]
        assert entry["characters_out"] == after["characters"]


def test_samples_never_show_personal_data() -> None:
    cleaning = Cleaning((Normalise(), Personal()))
    texts = [f"{'前' * n}联系\u200b：{PHONE}{'后' * (300 - n)}" for n in range(0, 300, 7)]
    list(cleaning(map(Text, texts)))
    shown = json.dumps(cleaning.ledger, ensure_ascii=False)
    assert "1381" not in shown and "2345" not in shown and "[电话号码]" in shown


def test_lists_by_name() -> None:
    assert named("zh-web", FILTERS, PRESETS) == PRESETS["zh-web"]
    assert named(["length", {"kind": "length", "at_least": 9}], FILTERS, PRESETS) == (Length(), Length(at_least=9))
    with pytest.raises(ValueError, match="did you mean zh-books"):
        named(["zh-book"], FILTERS, PRESETS)
    with pytest.raises(InputError, match=r"item 1 \(length\): at_leas: unknown key; did you mean at_least"):
        named(["html", {"kind": "length", "at_leas": 1}], FILTERS, PRESETS)


def test_prepare_cleans_the_same_with_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = save_tokenizer(tmp_path / "tok")
    records = [{"text": f"第{i}篇：春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。电话{PHONE}"} for i in range(60)]
    path = write_lines(tmp_path / "a.jsonl", [*records, *({"text": f"短{i}"} for i in range(9))])
    monkeypatch.setattr(readers.read_blobs, "__defaults__", ("auto", 2000, "utf-8"))
    found = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        prepare(recipe(out, tokenizer, [{"path": str(path)}], "clean=zh-web", f"workers={workers}", "validation=0.1"))
        found.append((out / "manifest.json").read_bytes())
    assert found[0] == found[1]
    prepared = Prepared.open(tmp_path / "1")
    corpus = prepared.manifest["corpora"]["a"]
    entries = {entry["filter"]: entry for entry in corpus["cleaning"]}
    assert entries["length"]["dropped"] == 9 and entries["personal"]["changed"] == 60
    assert sum(split["documents"] for split in corpus["splits"].values()) == 60
    store = prepared.store("a", "train")
    assert PHONE not in Tokenizer.load(tmp_path / "1").decode(store.tokens(0, len(store)).tolist())
    with pytest.raises(InputError, match="holds a run of another recipe"):
        prepare(recipe(tmp_path / "1", tokenizer, [{"path": str(path)}], "clean=zh-books", "validation=0.1"))


def test_a_corpus_that_is_cleaned_away_says_by_what(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "短"}])
    with pytest.raises(InputError, match=r"corpus a: no document in .*left out by cleaning: length 1"):
        prepare(recipe(tmp_path / "out", save_tokenizer(tmp_path / "tok"), [{"path": str(path)}], "clean=[length]"))
