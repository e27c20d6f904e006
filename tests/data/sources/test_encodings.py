"""A file's encoding is told by its bytes where they show it, never guessed where they do not, and never overruled."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.data.sources.encodings import is_utf8, marked, told
from babyllama.data.sources.readers import read_blobs
from babyllama.errors import InputError

SIMPLE = "春天来了，小河边的柳树发了芽。孩子们在草地上放风筝，老人坐在门前晒太阳，谈论今年的收成。" * 3
JAPANESE, FRENCH = "これは日本語のテキストです。今日はいい天気", "déjà vu à Noël, naïve, où ça"
OLD = "春天來了，小河邊的柳樹發了芽。孩子們在草地上放風箏，老人坐在門前曬太陽，談論今年的收成。" * 3


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        (SIMPLE, "utf-8", "utf-8"), (SIMPLE, "gbk", "gb18030"), (SIMPLE, "gb18030", "gb18030"), (OLD, "utf-8", "utf-8"),
        (OLD, "gb18030", "gb18030"), (OLD, "big5", "cp950"), ("plain words", "ascii", "utf-8"), ("", "ascii", "utf-8"),
        (SIMPLE, "utf-16-le", None), (SIMPLE, "utf-16-be", None), (JAPANESE, "shift_jis", None),
        (JAPANESE, "euc_jp", None), (FRENCH, "latin-1", None),
        ("Привет, как дела? Это текст", "cp1251", None),
    ],
)  # fmt: skip
def test_what_shows(text: str, encoding: str, shown: str | None) -> None:
    data = text.encode(encoding)
    assert told(data) == shown
    for cut in range(1, 4):  # a sample ends anywhere
        assert told(data[:-cut] if len(data) > 20 else data) == shown


def test_a_few_faults_do_not_make_another_encoding_of_it() -> None:
    """UTF-8 with broken bytes would read as rare characters of GB18030 without a single fault."""
    broken = SIMPLE.encode()[:101] + b"\xff" + SIMPLE.encode()[104:]
    assert told(broken) == "utf-8" and not is_utf8(broken)
    assert told(SIMPLE.encode("gbk")[:-40] + b"\xff" + SIMPLE.encode("gbk")[-40:]) == "gb18030"


@given(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), min_size=1))
def test_a_mark_says_it(text: str) -> None:
    for codec in ("utf-8-sig", "utf-16", "utf-32"):
        assert marked(text.encode(codec)) == codec.removesuffix("-sig")


@pytest.mark.parametrize("given_as", ["utf-8", "gb18030", "utf-16", "auto"])
@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_decides_whatever_was_given(tmp_path: Path, codec: str, given_as: str) -> None:
    (tmp_path / "a.txt").write_bytes(SIMPLE.encode(codec))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(f"id\ttext\n1\t{OLD}\n".encode(codec)))
    found = read_documents(CorpusChoice(path=str(tmp_path), encoding=given_as))
    assert [document.text for document in found] == [SIMPLE, OLD]


def test_a_folder_of_several_encodings(tmp_path: Path) -> None:
    """Also where the first signs beyond ASCII come late; and it is said what each file was taken for."""
    late = "a line of a licence\n" * 20_000
    (tmp_path / "a.txt").write_bytes(SIMPLE.encode())
    (tmp_path / "b.txt").write_bytes(SIMPLE.encode("gbk"))
    (tmp_path / "c.txt").write_bytes(OLD.encode("big5"))
    (tmp_path / "d.txt").write_bytes((late + SIMPLE).encode("gbk"))
    (tmp_path / "e.txt").write_bytes(SIMPLE.encode("utf-16"))
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr("a.txt", SIMPLE.encode("gbk"))
        archive.writestr("b.txt", SIMPLE.encode())
    choice = CorpusChoice(path=str(tmp_path), encoding="auto")
    text = "".join(document.text for document in read_documents(choice))
    assert text.replace(late.strip(), "").replace("\n", "").count(SIMPLE) == 6 and OLD in text and "�" not in text
    shown = "files by the encodings that they show: utf-8 2, gb18030 1, cp950 1, utf-16 1, gb18030+utf-8 1"
    assert shown in choice.open().hints


def test_what_does_not_show_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(JAPANESE.encode("shift_jis"))
    with pytest.raises(InputError, match=r"a\.txt: neither UTF-8 nor GB18030 \(GBK\) nor Big5; save it in"):
        list(read_documents(CorpusChoice(path=str(tmp_path), encoding="auto")))
    assert "unknown 1" in CorpusChoice(path=str(tmp_path), encoding="auto", kind="text").open().hints[-1]


@pytest.mark.parametrize("codec", ["gb18030", "big5", "latin-1"])
def test_utf_8_is_not_read_as_something_else(tmp_path: Path, codec: str) -> None:
    """It would decode without a fault, and the model would learn nonsense."""
    (tmp_path / "a.jsonl").write_text('{"text": "春眠不觉晓处处闻啼鸟"}\n', "utf-8")
    with pytest.raises(InputError, match=rf"a\.jsonl: is UTF-8, not {codec}.*; say encoding: auto"):
        list(read_blobs([tmp_path / "a.jsonl"], encoding=codec))


@pytest.mark.parametrize(("codec", "name"), [("gbk", r"GB18030 \(GBK\)"), ("big5", "Big5")])
def test_the_fault_names_the_encoding(tmp_path: Path, codec: str, name: str) -> None:
    (tmp_path / "a.txt").write_bytes(OLD.encode("big5") if codec == "big5" else SIMPLE.encode("gbk"))
    with pytest.raises(
        InputError, match=rf"not valid UTF-8, but it reads as {name}; if it is that, say encoding: \w+ \("
    ):
        list(read_documents(CorpusChoice(path=str(tmp_path / "a.txt"))))


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16"])
def test_tests_in_other_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    from babyllama.evals.sources import rows_of

    (tmp_path / "family_val.csv").write_bytes(f"id;question;A;B;answer\n0;{OLD[:30]}?;小河;老人;A\n".encode(encoding))
    (row,) = rows_of(tmp_path)
    assert row.record == {"id": "0", "question": OLD[:30] + "?", "A": "小河", "B": "老人", "answer": "A"}
