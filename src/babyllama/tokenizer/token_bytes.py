"""The bytes that one token adds to a text, and how people are shown them.

Not here: the text of several tokens (tokenizer.py), text piece by piece (stream.py).
"""

from __future__ import annotations

import re
from functools import cache

from babyllama.tokenizer.tokenizer import Tokenizer

_VISIBLE = str.maketrans({"\n": "↵", "\t": "⇥", " ": "␣", "\r": "␍"})


@cache
def _bytes_of_characters() -> dict[str, int]:
    """Byte-level BPE's alphabet (GPT-2): a printable byte is its own character, the others follow from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """What a token adds to a text, also where it is a part of a character; a special token's name."""
    name = tokenizer.backend.id_to_token(token) or ""
    if token in tokenizer.special_ids:
        return name.encode()
    if byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", name):
        return bytes([int(byte[1], 16)])
    text = tokenizer.decode([token])
    if "\ufffd" in text and all(character in _bytes_of_characters() for character in name):
        return bytes(_bytes_of_characters()[character] for character in name)
    return (" " + text if name.startswith("▁") and not text.startswith(" ") else text).encode()


def visible(tokenizer: Tokenizer, token: int) -> str:
    """A token as people read it: blanks and breaks by signs, a part of a character by its bytes."""
    content = token_bytes(tokenizer, token)
    try:
        return content.decode().translate(_VISIBLE)
    except UnicodeDecodeError:
        return f"<{content.hex(' ')}>"
