"""rollouts.jsonl: every answer that was learned from, one a line, token by token. Not here: when (rollouts.py)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babyllama.atomic import disk_errors, json_text
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
        text = "".join(json_text(line) + "\n" for line in lines).encode()
        if writes:
            path = self.folder / NAME
            with disk_errors(path), path.open("ab") as handle:
                handle.write(text)
        self.bytes += len(text)


def lines_of(group: Group, tokenizer: Tokenizer, tools: bool, advantages: Sequence[float],
             by_token: Sequence[Sequence[float]] | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """What is kept of the answers to one prompt.

    Args:
        advantages: of each answer.  by_token: of each of its tokens, where they differ.
    """
    prompt, reference = tokenizer.decode(group.prompt.tokens), tokenizer.decode(group.prompt.answer)
    found = []
    for number, (answer, mark) in enumerate(zip(group.drawn, group.marks, strict=True)):
        text = tokenizer.decode(answer.tokens, skip_special=False) if tools else tokenizer.decode(answer.tokens)
        found.append({
            "prompt": prompt, "reference": reference, "answer": text, "tokens": len(answer.tokens),
            "ended": answer.ended, **({"calls": answer.calls, "answered": answer.answered} if tools else {}),
            "reward": mark.total if math.isfinite(mark.total) else None, "parts": mark.parts,
            "advantage": advantages[number], **({"fault": mark.fault} if mark.fault else {}),
            **_tokens_of(answer, tokenizer, None if by_token is None else by_token[number])})  # fmt: skip
    return found


def _tokens_of(answer: Played, tokenizer: Tokenizer, advantages: Sequence[float] | None) -> dict[str, Any]:
    """By token: its text; the engine's log-probability, where that was asked for, and the advantage, where there are
    several; null where a tool wrote it."""
    logprobs = iter(answer.logprobs)
    told = [round(next(logprobs), DIGITS) if own else None for own in answer.own] if answer.logprobs else None
    worth = None if advantages is None else [
        round(value, DIGITS) if own else None for value, own in zip(advantages, answer.own, strict=True)]  # fmt: skip
    found = {"pieces": pieces(tokenizer, answer.tokens), "logprobs": told, "advantages": worth}
    return {name: value for name, value in found.items() if value is not None}


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """The text of each token, markers too; a character of several tokens is its last one's."""
    stream, found = tokenizer.stream(), list[str]()
    for token in tokens:
        special = token in tokenizer.special_ids
        found.append(stream.flush() + tokenizer.decode([token], skip_special=False) if special else stream.push(token))
    if found:
        found[-1] += stream.flush()
    return found
