"""A recipe says what the keys of one's own tables are; then these are read, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.data.sources.records import parse
from babyllama.errors import InputError
from babyllama.recipe import load_recipe

TURNS = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]


def written(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("record", "columns", "kind", "text"),
    [
        ({"患者": "头疼", "医生": "多休息"}, {"question": "患者", "answer": "医生"}, "chat", "头疼\n多休息"),
        ({"text": "x", "患者": "头疼", "医生": "休息"}, {"question": "患者", "answer": "医生"}, "chat", "头疼\n休息"),
        ({"question": 7, "instruction": "广告", "q": "头疼", "a": "多休息"}, {"question": "q", "answer": "a"}, "chat",
         "头疼\n多休息"),
        ({"设定": "你是医生", "q": "头疼", "补充": "三天", "a": "多休息"},
         {"system": "设定", "question": "q", "input": "补充", "answer": "a"}, "chat", "你是医生\n头疼\n三天\n多休息"),
        ({"之前": [["你好", "你好！"]], "q": "头疼", "a": "休息"}, {"history": "之前", "question": "q", "answer": "a"},
         "chat", "你好\n你好！\n头疼\n休息"),
        ({"对话": TURNS}, {"messages": "对话"}, "chat", "问\n答"),
        ({"对话": json.dumps(TURNS)}, {"messages": "对话"}, "chat", "问\n答"),
        ({"段落": "春天", "text": "广告"}, {"text": "段落"}, "text", "春天"),
        ({"q": "头疼", "好": "多休息", "坏": "别管"}, {"question": "q", "chosen": "好", "rejected": "坏"}, "preference",
         "头疼\n多休息"),
        ({"q": "头疼", "a": "别管", "赞": False}, {"question": "q", "answer": "a", "label": "赞"}, "rated",
         "头疼\n别管"),
    ],
)  # fmt: skip
def test_every_kind(tmp_path: Path, record: dict[str, Any], columns: dict[str, str], kind: str, text: str) -> None:
    choice = CorpusChoice.model_validate({"path": written(tmp_path / "a.jsonl", record), "columns": columns})
    (found,) = read_documents(choice)
    assert (found.kind, found.text) == (kind, text)


def test_what_is_not_named_is_not_read_and_is_said(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl", {"id": 1, "held_out": True, "q": "问", "a": "答", "科室": "内科", "output": "广告"}
    )
    source = CorpusChoice(path=path, columns={"question": "q", "answer": "a", "system": "设定"}).open()
    (parsed,) = [parse(blob, source.shape) for blob in source.blobs()]
    assert parsed.notes == {"key 科室": 1, "key output": 1, "key id": 1} and len(parsed.ids) == 1
    assert [(document.text, document.held_out) for document in parsed.documents] == [("问\n答", True)]


def test_from_the_command_line_and_from_tables(tmp_path: Path) -> None:
    path = tmp_path / "门诊.csv"
    path.write_text("编号;提问;回复\n1;头疼;多休息\n", "utf-8")
    choice = load_recipe(CorpusChoice, None, [f"path={path}", "columns={question: 提问, answer: 回复}"])
    assert [document.text for document in read_documents(choice)] == ["头疼\n多休息"]


def test_faults(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"q": "问", "a": "答"})
    with pytest.raises(InputError, match=r"a\.jsonl:1: no key 'b', which columns calls answer: keys are q, a;"):
        list(read_documents(CorpusChoice(path=path, columns={"question": "q", "answer": "b"})))
    with pytest.raises(InputError, match=r"of a chat say which is which: columns: \{question: …, answer: …\}"):
        list(read_documents(CorpusChoice(path=path)))
    with pytest.raises(InputError, match="give field or columns, not both"):
        load_recipe(CorpusChoice, None, [f"path={path}", "columns={text: q}", "field=q"])
    with pytest.raises(InputError, match=r"columns.*question"):
        load_recipe(CorpusChoice, None, [f"path={path}", "columns={提问: q}"])


def test_a_folder_of_texts_and_chats_is_not_mixed_in_silence(tmp_path: Path) -> None:
    """The first record decides: chats after a text lose who says what, which is said; a text after chats stops it."""
    written(tmp_path / "b.jsonl", {"问题": "问", "答案": "答"})
    (tmp_path / "c.txt").write_text("春天", "utf-8")
    with pytest.raises(InputError, match=r"c\.txt, document 1: .*keys are text, which is a text, but .* two corpora"):
        list(read_documents(CorpusChoice(path=str(tmp_path))))
    (tmp_path / "c.txt").rename(tmp_path / "a.txt")
    source = CorpusChoice(path=str(tmp_path)).open()
    notes = [note for blob in source.blobs() for note in parse(blob, source.shape).notes]
    assert source.kind == "text" and len(notes) == 1 and "who says what in chats" in notes[0]
