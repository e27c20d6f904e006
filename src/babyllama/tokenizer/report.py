"""What a vocabulary makes of texts: how many tokens, of which scripts, which pieces are of no use, what comes back.

Pure functions of a tokenizer and texts. Not here: which texts, tables and figures (commands/tokenizer_report.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from babyllama.tokenizer.tokenizer import Tokenizer

# The first that matches says a character's script.
SCRIPTS = {
    "hanzi": r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]",
    "kana": r"[\u3040-\u30ff\u31f0-\u31ff]",
    "hangul": r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]",
    "digits": r"\d",
    "latin": r"[A-Za-z\u00c0-\u024f]",
    "blanks": r"\s",
    "ascii signs": r"[!-/:-@\[-`{-~]",
    "chinese signs": r"[\u3000-\u303f\uff00-\uffef\u2010-\u2027\u2030-\u205e\u00b7]",
    "emoji": r"[\u2600-\u27bf\U0001f000-\U0001faff\u200d\ufe0f]",
}
OTHER = "other"
_SCRIPT = re.compile("|".join(f"({pattern})" for pattern in SCRIPTS.values()))
_NAMES = [*SCRIPTS, OTHER]

# What a text may hold although no one expects it: name → ranges of code points.
Planes = Mapping[str, Sequence[tuple[int, int]]]
PLANES: Planes = {
    "CJK unified": [(0x4E00, 0x9FFF)], "CJK extension A": [(0x3400, 0x4DBF)], "CJK extension B": [(0x20000, 0x2A6DF)],
    "CJK extensions C to F, I": [(0x2A700, 0x2EE5D)], "CJK extensions G, H": [(0x30000, 0x323AF)],
    "CJK compatibility": [(0xF900, 0xFAFF), (0x2F800, 0x2FA1F)],
    "radicals, strokes": [(0x2E80, 0x2FDF), (0x31C0, 0x31EF)],
    "CJK signs": [(0x3000, 0x303F), (0xFF00, 0xFFEF)],
    "emoji": [(0x2600, 0x27BF), (0x1F000, 0x1FAFF)], "control characters": [(0x00, 0x1F), (0x7F, 0x9F)],
    "formats, separators": [(0x00AD, 0x00AD), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF)],
    "private use": [(0xE000, 0xF8FF)], "noncharacters": [(0xFDD0, 0xFDEF), (0xFFFE, 0xFFFF)],
}  # fmt: skip
SEQUENCES = [
    "👨\u200d👩\u200d👧\u200d👦",
    "🏳️\u200d🌈",
    "🇨🇳🇭🇰",
    "👍🏽",
    "1️⃣",
    "e\u0301",
    "ก็",
    "葛\U000e0100",
    "が",
    "\r\n",
    "  ",
    " ▁ ",
]
_AROUND = ("", "\n", "中", "a", " ")
_RULER = 8  # times the same character


@dataclass
class Seen:
    """What became of some texts. `tokens_of` and `characters_of` go by script, a token by its first character's."""

    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    words: int = 0
    tokens_of: Counter[str] = field(default_factory=Counter)
    characters_of: Counter[str] = field(default_factory=Counter)

    @property
    def characters_per_token(self) -> float:
        return self.characters / max(self.tokens, 1)

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(self.tokens, 1)


def measured(tokenizer: Tokenizer, texts: Iterable[str], counts: Counter[int]) -> Seen:
    """Of texts; `counts` is added how often each id occurred."""
    seen = Seen()
    for text in texts:
        scripts = script_of(text)
        encoded = tokenizer.backend.encode(text, add_special_tokens=False)
        seen.characters += len(text)
        seen.bytes += len(text.encode())
        seen.tokens += len(encoded.ids)
        seen.words += len(re.findall(SCRIPTS["latin"] + "+", text))
        seen.characters_of.update(scripts)
        counts.update(encoded.ids)
        for start, stop in encoded.offsets:
            blanks = len(text[start:stop]) - len(text[start:stop].lstrip())
            seen.tokens_of[scripts[start + blanks if start + blanks < stop else start]] += 1
    return seen


def script_of(text: str) -> list[str]:
    """The script of each character."""
    return [_NAMES[(match.lastindex or 0) - 1] if (match := _SCRIPT.match(c)) else OTHER for c in text]


@dataclass(frozen=True)
class Pieces:
    """Ids by what is wrong with them.

    dead: no text becomes them, for their own text becomes other tokens.  unseen: none of the texts has them, so a model
    that is trained on such texts never learns them.  strange: control, private or unassigned characters, U+FFFD, or a
    ruler of one character.  parts: bytes of a character, which say nothing alone.
    """

    dead: tuple[int, ...]
    unseen: tuple[int, ...]
    strange: tuple[int, ...]
    parts: tuple[int, ...]


def pieces(tokenizer: Tokenizer, counts: Counter[int]) -> Pieces:
    """Look at every token that is text."""
    ids = sorted(tokenizer.text_ids)
    texts = [tokenizer.backend.decode([i], skip_special_tokens=False) for i in ids]
    parts = {i for i, text in zip(ids, texts, strict=True) if "\ufffd" in text or not text}
    alive = {i for i in ids if counts[i]} | parts
    for around in _AROUND:
        left = [(i, text) for i, text in zip(ids, texts, strict=True) if i not in alive]
        found = tokenizer.encode_much([around + text for _, text in left])
        alive |= {i for (i, _), tokens in zip(left, found, strict=True) if len(tokens) and tokens[-1] == i}
    strange = (i for i, text in zip(ids, texts, strict=True) if i not in parts and is_strange(text))
    return Pieces(tuple(i for i in ids if i not in alive), tuple(i for i in ids if not counts[i]), tuple(strange),
                  tuple(sorted(parts)))  # fmt: skip


def is_strange(text: str) -> bool:
    """As `Pieces` says."""
    plain = text.strip()
    odd = any(unicodedata.category(c) in ("Cc", "Co", "Cn") and c not in "\t\n\r" for c in text)
    return odd or (len(plain) >= _RULER and len(set(plain)) == 1)


@dataclass(frozen=True)
class Returned:
    """Of some characters: how many there are, are one token each, and do not come back as they were."""

    characters: int
    single: int
    lost: tuple[str, ...]


def returned(tokenizer: Tokenizer, planes: Planes = PLANES) -> dict[str, Returned]:
    """Each character of the planes between others, and whether decoding its tokens gives it back."""
    found = {name: _returned(tokenizer, list(_characters(ranges))) for name, ranges in planes.items()}
    return {**found, "sequences": _returned(tokenizer, SEQUENCES)}


def _characters(ranges: Sequence[tuple[int, int]]) -> Iterator[str]:
    return map(chr, chain.from_iterable(range(first, last + 1) for first, last in ranges))


def _returned(tokenizer: Tokenizer, characters: list[str]) -> Returned:
    alone = tokenizer.encode_much([f"\n{c}" for c in characters])
    opening = len(tokenizer.encode("\n"))
    between = [f"中{c}a" for c in characters]
    ids = [found.tolist() for found in tokenizer.encode_much(between)]
    back = tokenizer.backend.decode_batch(ids, skip_special_tokens=False)
    lost = (c for c, text, got in zip(characters, between, back, strict=True) if text != got)
    return Returned(len(characters), sum(len(ids) - opening == 1 for ids in alone), tuple(lost))
