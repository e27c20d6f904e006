"""Filters that repair characters: Unicode, traditional to simplified, text that was read in a wrong encoding.

None of them touches punctuation, width, case, digits or blanks: decimals, addresses, code, English and classical
punctuation come out byte for byte. (NFKC, the usual normalisation, would turn ， into a comma, ① into 1, … into three
dots and ㎏ into kg; so it is not used.)
"""

from __future__ import annotations

import re
import unicodedata
from codecs import utf_8_decode
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import Field

from babyllama.data.clean.filters import Filter
from babyllama.errors import needs_extra

_LINE_ENDS = re.compile("\r\n?|[\x85\u2028\u2029]")
# C0 and C1 but for tab and line end; soft hyphen; zero-width space, marks of direction, word joiner, byte order mark.
# The joiners U+200C and U+200D stay: emoji and other scripts are written with them.
_HIDDEN = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad"
    "\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb"
)
_INVISIBLE = re.compile(f"[{_HIDDEN}]")
_RADICALS = re.compile("[\u2e80-\u2fd5]")  # ⼀ for 一: what text out of a PDF is full of
_JUNK = re.compile(f"[\r\xa0\u2028\u2029\u2e80-\u2fd5{_HIDDEN}\x85]")  # any of these


class Normalise(Filter):
    """Unicode NFC; line ends as \\n; no control or invisible characters; a plain blank for a no-break one; Kangxi and
    CJK radicals as the hanzi that they stand for."""

    kind: Literal["normalise"] = "normalise"
    chats: ClassVar[bool] = True

    def __call__(self, text: str) -> str:
        if text.isascii() and text.isprintable():
            return text
        if _JUNK.search(text):
            text = _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)).replace("\xa0", " ")
            text = _RADICALS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
        return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


class Simplify(Filter):
    """Traditional characters → simplified, by OpenCC's tables.

    ``t2s`` goes by characters and words; ``tw2sp`` and ``hk2s`` also by the usage of Taiwan and Hong Kong.
    """

    kind: Literal["simplify"] = "simplify"
    chats: ClassVar[bool] = True
    table: Literal["t2s", "tw2s", "tw2sp", "hk2s"] = Field(
        default="t2s", description="from which traditional script, by OpenCC's names"
    )

    def __call__(self, text: str) -> str:
        return text if text.isascii() else _opencc(self.table).convert(text)

    def check(self) -> None:
        """Raise InputError where OpenCC is not installed."""
        _opencc(self.table)


@lru_cache(maxsize=4)
def _opencc(table: str) -> Any:
    try:
        import opencc
    except ImportError:
        raise needs_extra("opencc", "data") from None
    return opencc.OpenCC(table)


class Mojibake(Filter):
    """Lines that were decoded in a wrong encoding: UTF-8 read as Latin (ä½ å¥½, by ftfy) or as GBK (浣犲ソ, here).

    A line is taken for UTF-8 read as GBK when all of it becomes valid UTF-8 again, with three hanzi or more: chance
    does that to no real text, whose bytes in GBK are no UTF-8.
    """

    kind: Literal["mojibake"] = "mojibake"
    chats: ClassVar[bool] = True

    def __call__(self, text: str) -> str:
        if text.isascii():
            return text
        lines = text.split("\n")
        repaired = [line if line.isascii() else _repaired(line) for line in lines]
        return text if repaired == lines else "\n".join(repaired)

    def check(self) -> None:
        """Raise InputError where ftfy is not installed."""
        _ftfy()


@lru_cache(maxsize=1)
def _ftfy() -> tuple[Any, Any]:
    try:
        import ftfy
    except ImportError:
        raise needs_extra("ftfy", "data") from None
    # Only encodings: its other repairs turn “ ” into " and ， into a comma.
    only = ftfy.TextFixerConfig(
        unescape_html=False, remove_terminal_escapes=False, fix_latin_ligatures=False, fix_character_width=False,
        uncurl_quotes=False, fix_line_breaks=False, fix_surrogates=False, remove_control_chars=False,
        normalization=None, explain=False,
    )  # fmt: skip
    return ftfy.fix_text, only


_LATIN = re.compile("[\x80-\xff][\x80-\uffff]")  # a lead byte of UTF-8 seen as Latin, and what follows it
_HANZI = re.compile("[\u3400-\u9fff]")


def _repaired(line: str) -> str:
    if _LATIN.search(line):
        fix, only = _ftfy()
        line = fix(line, only)
    try:
        utf_8_decode(line[:8].encode("gbk"), "strict", False)  # the end may be cut: most lines fail here
        found = line.encode("gbk").decode("utf-8")
    except UnicodeError:
        return line
    return found if len(_HANZI.findall(found)) >= 3 else line
