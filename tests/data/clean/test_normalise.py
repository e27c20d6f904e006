"""Characters are repaired, and what is right comes out byte for byte."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babyllama.data.clean.markup import Boilerplate, Html, RepeatedLines
from babyllama.data.clean.normalise import Mojibake, Normalise, Simplify
from babyllama.data.clean.personal import Personal

REPAIRS = (Normalise(), Simplify(), Mojibake(), Html(), Boilerplate(), RepeatedLines(), Personal())
NUMBER = st.one_of(
    st.floats(-1e9, 1e9, allow_nan=False).map(repr), st.integers(-(10**6), 10**6).map("{:,}".format),
    st.decimals(-1000, 1000, places=3).map(str),
    st.sampled_from(["１２３", "３．１４", "①", "½", "12:30", "2.5%", "1/3", "1e-5"]),
)  # fmt: skip
WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=9)
URL = st.builds("https://{}.example.com/{}?{}={}&copy={}#{}".format, WORD, WORD, WORD, WORD, WORD, WORD)
CODE = st.sampled_from(
    ["if a < b and c > d:\n\treturn a[0]", "std::vector<int> v; v.push_back(1);", "x = y ? \"是\" : '否';  // <b>",
     "#include <stdio.h>", "for (i = 0; i<n; i++) { s += i * 0.5; }", "```html\n<div>甲</div>&nbsp;\n```", "`<br>`",
     "SELECT * FROM t WHERE a <> 'b' AND c<=3;", "git push origin HEAD~2", "git@github.com:me/it.git", "@property"]
)  # fmt: skip
ENGLISH = st.sampled_from(
    ["It's \"quoted\" — isn't it? Yes… 3.5 kg, e.g. naïve café.", "AT&T, R&D; <3", "“Curly” and ‘single’, “第1章”",
     "<think>Let me see.</think>", "the ﬁrst ﬂoor"]
)  # fmt: skip
CLASSICAL = st.sampled_from(
    ["子曰：「學而時習之，不亦說乎？」", "《诗》云：『如切如磋，如琢如磨。』", "〔注〕音某。〖疏〗●按　　某曰",
     "春眠不觉晓，处处闻啼鸟。",
     "天地玄黄　宇宙洪荒", "（一）甲、乙；丙……丁——戊！", "某某﹏﹏某·某〈某〉【某】"]
)  # fmt: skip
SIMPLE = str.maketrans("學時習說", "学时习说")
RIGHT = st.lists(st.one_of(NUMBER, URL, CODE, ENGLISH, CLASSICAL), min_size=1, max_size=8).map("\n".join)


@settings(max_examples=150)
@given(RIGHT)
def test_what_is_right_comes_out_byte_for_byte(text: str) -> None:
    for repair in REPAIRS:
        found = repair(text)
        same = text.translate(SIMPLE) if isinstance(repair, Simplify) else text
        if isinstance(repair, RepeatedLines):  # a line that is there twice
            assert list(dict.fromkeys(text.split("\n"))) == list(dict.fromkeys(str(found).split("\n")))
        else:
            assert found == same, repair.name


@settings(max_examples=150)
@given(st.text())
def test_normalising_twice_is_normalising_once_and_is_nfc(text: str) -> None:
    once = Normalise()(text)
    assert Normalise()(once) == once and unicodedata.is_normalized("NFC", once)
    gone = {"\r", "\x00", "\xa0", "\u2028", "\u200b", "\ufeff", "\xad"}
    assert not gone & set(once)
    kept = set(text) - gone
    assert all(c in once for c in kept if "\u4e00" <= c <= "\u9fff" or (c.isascii() and c.isprintable()))


@pytest.mark.parametrize(("text", "expected"), [
    ("甲\r\n乙\r丙\u2028丁\x85戊", "甲\n乙\n丙\n丁\n戊"),
    ("\ufeff零\u200b宽\x07\u2060字\xad符\u202e", "零宽字符"),
    ("⼀个⽉，⺟", "一个月，母"),
    ("a\xa0b", "a b"),
    ("cafe\u0301", "café"),
    ("👩‍👩‍👧‍👦，Ａ１，①㎏…", "👩‍👩‍👧‍👦，Ａ１，①㎏…"),
])  # fmt: skip
def test_normalise(text: str, expected: str) -> None:
    assert Normalise()(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("繁體中文：「漢字」，３.１４ 與 3.14", "繁体中文：「汉字」，３.１４ 与 3.14"),
    ("乾隆皇帝、乾燥、皇后、後來", "乾隆皇帝、干燥、皇后、后来"),
])  # fmt: skip
def test_simplify(text: str, expected: str) -> None:
    assert Simplify()(text) == expected


def test_mojibake_leaves_real_text() -> None:
    for right in (
        "今天天气很好，我们去公园。",
        "联通",
        "联通公司的手机",
        "naïve café, Übergröße",
        "Ä Ö Ü 的用法",
        "É, È",
    ):
        assert Mojibake()(right) == right


@settings(max_examples=100)
@given(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), min_size=4, max_size=40))
def test_mojibake_repairs_utf8_read_as_gbk_and_as_latin(text: str) -> None:
    for encoding in ("gbk", "latin-1"):
        try:
            broken = text.encode().decode(encoding)
        except UnicodeDecodeError:
            continue
        assert Mojibake()(f"好的一行。\n{broken}") == f"好的一行。\n{text}"
