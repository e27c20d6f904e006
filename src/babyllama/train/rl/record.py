"""rollouts.jsonl: every answer that was learned from, one a line, token by token. Not here: when (rollouts.py)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from babyllama.atomic import disk_errors
from babyllama.tokenizer.stream import CONTEXT, byte_ids
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.rl.agents import Played
from babyllama.train.rl.groups import Group

NAME = "rollouts.jsonl"
DIGITS = 4  # of a token's figures


@dataclass
class Record:
    """`bytes`: how much of the file is valid; goes into checkpoints."""

    folder: Path
    bytes: int = 0

    def cut(self) -> None:
        """Drop what was written after the checkpoint that a run goes on from, half a line perhaps."""
        path = self.folder / NAME
        if path.exists():
            with disk_errors(path):
                os.truncate(path, min(self.bytes, path.stat().st_size))

    def add(self, lines: Sequence[dict[str, Any]], writes: bool) -> None:
        """Append lines, on the rank that writes; the others count along."""
        text = b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)
        if writes:
            path = self.folder / NAME
            with disk_errors(path), path.open("ab") as handle:
                handle.write(text)
        self.bytes += len(text)


def lines_of(group: Group, pieces: Pieces, tools: bool, advantages: Sequence[float],
             by_token: Sequence[Sequence[float]] | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """What is kept of the answers to one prompt.

    Args:
        advantages: of each answer.  by_token: of each of its tokens, where they differ.
    """
    tokenizer = pieces.tokenizer
    prompt, reference = tokenizer.decode(group.prompt.tokens), tokenizer.decode(group.prompt.answer)
    found = []
    for number, (answer, mark) in enumerate(zip(group.drawn, group.marks, strict=True)):
        told = pieces(answer.tokens)
        text = "".join(told)
        if not tools and not tokenizer.special_ids.isdisjoint(answer.tokens):
            text = tokenizer.decode(answer.tokens)
        found.append({
            "prompt": prompt, "reference": reference, "answer": text, "tokens": len(answer.tokens),
            "ended": answer.ended, **({"calls": answer.calls, "answered": answer.answered} if tools else {}),
            "reward": mark.total if math.isfinite(mark.total) else None, "parts": mark.parts,
            "advantage": advantages[number], **({"fault": mark.fault} if mark.fault else {}),
            **_tokens_of(answer, told, None if by_token is None else by_token[number])})  # fmt: skip
    return found


def _tokens_of(answer: Played, pieces: list[str], advantages: Sequence[float] | None) -> dict[str, Any]:
    """By token: its text; the engine's log-probability, where that was asked for, and the advantage, where there are
    several; null where a tool wrote it."""
    logprobs = iter(answer.logprobs)
    told = [round(next(logprobs), DIGITS) if own else None for own in answer.own] if answer.logprobs else None
    worth = None if advantages is None else [
        round(value, DIGITS) if own else None for value, own in zip(advantages, answer.own, strict=True)]  # fmt: skip
    found = {"pieces": pieces, "logprobs": told, "advantages": worth}
    return {name: value for name, value in found.items() if value is not None}


@dataclass(eq=False)
class Pieces:
    """The text of each token, markers too; a character of several tokens is its last one's.

    `known`: what a token says at the beginning of a text; `later`: after others. Nothing where it is a part of a
    character.
    """

    tokenizer: Tokenizer
    known: dict[int, str] = field(default_factory=dict)
    later: dict[int, str] = field(default_factory=dict)

    def __call__(self, tokens: Sequence[int]) -> list[str]:
        """As many texts as tokens; together they are the text."""
        special, parts = self.tokenizer.special_ids, list[int]()
        found: list[str | None] = list(map(self.later.get, tokens))
        begins = True  # a text, here
        for place, text in enumerate(found):
            if text and not parts and not begins:
                continue
            found[place], parts = self._alone(tokens, place, begins, parts)
            begins = tokens[place] in special
        if parts:
            found[-1] = f"{found[-1]}{self.tokenizer.decode(parts)}"
        return [text or "" for text in found]

    def _alone(self, tokens: Sequence[int], place: int, begins: bool, parts: list[int]) -> tuple[str, list[int]]:
        """What one token says, after `parts` of a character, and what parts there are then."""
        token, known = tokens[place], self.known if begins else self.later
        if token in self.tokenizer.special_ids:
            return self.tokenizer.decode([*parts, token], skip_special=False), []
        if parts:
            if token in byte_ids(self.tokenizer):  # a run of bytes stands or falls as a whole
                return "", [*parts, token]
            text = self.tokenizer.decode([*parts, token])
            text = "" if text.endswith("\ufffd") else text
        elif (text := known.get(token)) is None:
            before = () if begins else tokens[max(0, place - CONTEXT) : place]
            text = known[token] = self.tokenizer.stream(before).push(token)
        return text, [] if text else [*parts, token]
