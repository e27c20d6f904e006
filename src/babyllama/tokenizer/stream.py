"""Tokens → text as they come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import tokenizers


class Decoder(Protocol):
    """What a stream needs of a tokenizer."""

    @property
    def backend(self) -> tokenizers.Tokenizer: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str: ...


class TextStream:
    """Tokens → text as they come: the pushes and the flush together are `decode` of all the tokens.

    Text is held back while the next token could still change it: an unfinished character, or a run of SentencePiece
    byte tokens, which stands or falls as a whole. Tokens already given out stay as context, since a decoder may treat
    the very first blank specially: `after` are those of the text that is continued.
    """

    def __init__(self, tokenizer: Decoder, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = self._kept(after)
        self._pending: list[int] = []

    def push(self, *tokens: int) -> str:
        """The text that became certain with some more tokens; often empty."""
        new = self._kept(tokens)
        self._pending += new
        for end in range(len(self._pending), len(self._pending) - len(new), -1):
            text = self._text(end)
            if text and not text.endswith("\ufffd") and not self._is_byte(self._pending[end - 1]):
                self._context, self._pending = self._pending[:end], self._pending[end:]
                return text
        return ""

    def flush(self) -> str:
        """What is left, unfinished bytes as U+FFFD; the stream starts anew after it."""
        text = self._text(len(self._pending))
        self._context, self._pending = [], []
        return text

    def _kept(self, tokens: Sequence[int]) -> list[int]:
        """Those that are text."""
        special, name = self._tokenizer.special_ids, self._tokenizer.backend.id_to_token
        return [token for token in map(int, tokens) if token not in special and name(token) is not None]

    def _is_byte(self, token: int) -> bool:
        return re.fullmatch("<0x[0-9A-Fa-f]{2}>", self._tokenizer.backend.id_to_token(token) or "") is not None

    def _text(self, end: int) -> str:
        """Of so many tokens after the context."""
        before = self._tokenizer.decode(self._context, skip_special=False)
        return self._tokenizer.decode(self._context + self._pending[:end], skip_special=False)[len(before) :]
