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
        self._context = list(after)
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that became certain; often empty."""
        token = int(token)
        name = self._tokenizer.backend.id_to_token(token)
        if name is None or token in self._tokenizer.special_ids:
            return ""
        self._pending.append(token)
        text = self._pending_text()
        if not text or text.endswith("\ufffd") or re.fullmatch("<0x[0-9A-Fa-f]{2}>", name):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """What is left, unfinished bytes as U+FFFD; the stream starts anew after it."""
        text = self._pending_text()
        self._context, self._pending = [], []
        return text

    def _pending_text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]
