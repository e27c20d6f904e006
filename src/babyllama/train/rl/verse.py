"""Chinese verse: lines, their length, and whether even lines rhyme by today's reading. Needs the extra `rl` for rhyme.

Not here: tones and their patterns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from babyllama.errors import InputError

_ENDS = re.compile(r"[，。！？；、,.!?;\s]+")

# Rhymes of 中华新韵 (2005): finals that rhyme, as pypinyin writes them (v for ü; -i after z, zh … told apart below).
_RHYMES = ("a ia ua", "o e uo", "ie ve ue", "ai uai", "ei uei ui", "ao iao", "ou iou iu", "an ian uan van",
           "en in uen un vn", "ang iang uang", "eng ing ueng ong iong", "i er v", "-i", "u")  # fmt: skip
_RHYME = {final: number for number, finals in enumerate(_RHYMES) for final in finals.split()}
_BUZZING = ("zh", "ch", "sh", "r", "z", "c", "s")  # after these, i is no [i]


def lines_of(text: str) -> list[str]:
    """The lines of a poem, which any punctuation or line break ends."""
    return [line for line in _ENDS.split(text) if line]


def form(lines: Sequence[str], wanted: int, characters: int) -> float:
    """Share of lines that are there and have so many Chinese characters; lines too many count as wrong."""
    fit = sum(len(line) == characters and all("\u4e00" <= c <= "\u9fff" for c in line) for line in lines[:wanted])
    return fit / max(wanted, len(lines), 1)


def rhymed(lines: Sequence[str]) -> float:
    """Share of the even lines after the second that rhyme with it, by other characters; 0 where there is none.

    Of a character with several readings any may rhyme. A couplet's two lines rhyme with each other.
    """
    even = [line[-1] for line in lines[1::2]]
    if len(even) == 1 and len(lines) == 2:
        even = [lines[0][-1], even[0]]
    if len(even) < 2:
        return 0.0
    first, others = even[0], even[1:]
    good = sum(bool(rhymes(first) & rhymes(other)) and other not in even[:i] for i, other in enumerate(others, 1))
    return good / len(others)


@lru_cache(maxsize=8192)
def rhymes(character: str) -> frozenset[int]:
    """The classes of all its readings; none for what is no Chinese character."""
    try:
        from pypinyin import Style, pinyin
        from pypinyin.contrib.tone_convert import to_finals, to_initials
    except ImportError:
        raise InputError("rewards: poem: rhyme needs pypinyin: pip install 'babyllama[rl]', or give rhyme: false"
                         ) from None  # fmt: skip
    if not "\u4e00" <= character <= "\u9fff":
        return frozenset()
    (readings,) = pinyin(character, style=Style.NORMAL, heteronym=True)
    finals = ("-i" if to_initials(s) in _BUZZING and to_finals(s) == "i" else to_finals(s) for s in readings)
    return frozenset(_RHYME[final] for final in finals if final in _RHYME)
