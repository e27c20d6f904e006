"""Which encoding a text is in, by its bytes alone: a byte order mark says it, and Chinese text shows it.

Text of one of these encodings that is read as another is full of faults (UTF-8) or of rare characters (GB18030 and
Big5, whose common characters stand together): of novels, poems, laws and manuals at least 0.56 of the characters beyond
ASCII are common ones in their own encoding, of traditional characters in GB18030 too, and at most 0.37 in another.
What shows none of them is never guessed. Not here: reading (files.py).
"""

from __future__ import annotations

import codecs
import re

MARKS = {  # the longer one first, since UTF-32's begins like UTF-16's
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8",
}  # fmt: skip
_COMMON = {  # the first bytes of signs and of common characters; the second is at least the last
    "gb18030": ({*range(0xA1, 0xA4), *range(0xB0, 0xD8)}, 0xA1),
    "cp950": ({*range(0xA1, 0xC7)}, 0x40),
}
_SAMPLE = 16 << 10  # bytes to look at
_WIDE = re.compile(rb"[\x80-\xff]")
_FEW = 8  # characters beyond ASCII; fewer may be valid by chance


def marked(start: bytes) -> str | None:
    """What the byte order mark says at the start of a file; None where there is none."""
    return next((codec for mark, codec in MARKS.items() if start.startswith(mark)), None)


def told(data: bytes) -> str | None:
    """``utf-8``, ``gb18030`` or ``cp950`` (Big5); None where none of them shows. The end may be cut anywhere."""
    text, faults = _beyond_ascii(data, "utf-8")
    if 2 * faults <= len(text):
        return "utf-8"
    shares = {codec: _common_share(data, codec) for codec in _COMMON}
    found = max(shares, key=shares.__getitem__)
    return found if shares[found] >= 0.5 and b"\0" not in data else None


def is_utf8(data: bytes) -> bool:
    """Whether it can be nothing else: some characters beyond ASCII, and not one fault."""
    text, faults = _beyond_ascii(data, "utf-8")
    return not faults and len(text) >= _FEW


def _beyond_ascii(data: bytes, codec: str) -> tuple[str, int]:
    """The characters beyond ASCII, from the first one on, and how many stand for what is no text in this encoding."""
    first = _WIDE.search(data)
    start = first.start() if first else len(data)
    text = codecs.getincrementaldecoder(codec)("replace").decode(data[start : start + _SAMPLE])
    wide = "".join(sign for sign in text if sign > "\x7f")
    return wide, wide.count("\ufffd")


def _common_share(data: bytes, codec: str) -> float:
    """Of the characters beyond ASCII those that are common; 0 where it is no text in this encoding."""
    first, second = _COMMON[codec]
    text, faults = _beyond_ascii(data, codec)
    pairs = [pair for sign in text if len(pair := sign.encode(codec, "ignore")) == 2]
    low = sum(pair[1] < 0x80 for pair in pairs)  # of Big5 nearly half; of the encodings of Japanese and Korean none
    if not pairs or 20 * faults > len(text) or (codec == "cp950" and 10 * low < len(pairs)):
        return 0.0
    return sum(pair[0] in first and pair[1] >= second for pair in pairs) / len(text)
