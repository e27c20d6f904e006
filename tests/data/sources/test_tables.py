"""What parts the columns of a table is told by its names, and never guessed wrongly: what does not fit is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.data.sources.files import Bytes, Lines, Unreadable
from babyllama.data.sources.tables import read_rows
from babyllama.errors import InputError

ROWS = [["什么是海？", "很多水;很深，很大"], ["他说,什么", '"你好"\n再见\t!'], ["甲", ""]]


def rows(path: Path, usual: str = ",") -> list[dict[str, str] | Unreadable]:
    with Bytes(path) as handle:
        return list(read_rows(path, Lines(handle, "utf-8"), usual))


def written(path: Path, delimiter: str, start: str = "", names: tuple[str, ...] = ("问题", "答案")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        handle.write(start)
        csv.writer(handle, delimiter=delimiter).writerows([names, *ROWS])
    return path


@pytest.mark.parametrize("usual", [",", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\r\n \r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_parts_the_names_parts_the_rows(tmp_path: Path, delimiter: str, start: str, usual: str) -> None:
    path = written(tmp_path / "a.csv", delimiter, start)
    assert rows(path, usual) == [dict(zip(("问题", "答案"), row, strict=True)) for row in ROWS]


@pytest.mark.parametrize("delimiter", [";", "|", ","])
def test_excels_own_line_decides(tmp_path: Path, delimiter: str) -> None:
    path = written(tmp_path / "a.csv", delimiter, f"sep={delimiter}\r\n", names=("a,b", "a;b"))
    assert rows(path) == [dict(zip(("a,b", "a;b"), row, strict=True)) for row in ROWS]


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2)), st.sampled_from([",", ";", "\t"]))
def test_any_cell_survives(tmp_path_factory: pytest.TempPathFactory, cells: list[list[str]], delimiter: str) -> None:
    path = tmp_path_factory.mktemp("t") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, delimiter=delimiter).writerows([["问", "答"], *cells])
    assert rows(path) == [{"问": question, "答": answer} for question, answer in cells]


def test_what_excel_leaves_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(" 问题 ,答案,,\n一,二,,\n三,四,旁注,\n五,六,,,,\n,,,\n", encoding="utf-8")
    assert rows(path) == [
        {"问题": one, "答案": two, "column 3": more, "column 4": ""}
        for one, two, more in (("一", "二", ""), ("三", "四", "旁注"), ("五", "六", ""), ("", "", ""))
    ]
    assert [document.text for document in read_documents(CorpusChoice(path=str(path)))] == [
        "一\n二",
        "三\n四",
        "五\n六",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("问题，答案\n一，二\n", "a.csv:1: the first row must name the columns, such as question,answer "
                                 "(or 问题,答案); here ， stands between them: write commas"),
        ("q|a\n一|二\n", "here | stands between them"),
        ("春" * 101 + ",二\n三,四\n", "but holds a text: 春春"),
        ('一,"二\n三"\n', "but holds a text: 二…"),
        ("问题,问题 \n一,二\n", "a.csv:1: the column '问题' is there twice"),
        ('问"题"x,"答"x\n一,二\n', "a.csv: line 1: not valid CSV"),
        ("问题,答案\r一,二\r", "a line end of old Macs (CR)"),
        ('问题;答案\n一;"二', "a.csv:2: a quotation that begins here does not end"),
    ],
)  # fmt: skip
def test_names_that_are_none_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content, encoding="utf-8", newline="")
    with pytest.raises(InputError) as caught:
        rows(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_that_does_not_fit_is_one_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("问题;答案\n一;二;三\n四\n五;六\n", encoding="utf-8")
    more, fewer, good = rows(path)
    assert good == {"问题": "五", "答案": "六"}
    assert isinstance(more, Unreadable) and "line 2: 3 fields, but the header has 2; a text that" in more.reason
    assert fewer == Unreadable("line 3: 1 fields, but the header has 2")
