"""What chats, pairs and rated answers of a prepared folder hold: turns, roles, tools, thoughts, lengths of answers.

Told by the tokens that the template writes: of the template ``roles`` everything, of ``bos`` all but roles and tools,
of a folder's own template only what is learned; what cannot be told is null. Not here: what holds for texts, too
(statistics.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from babyllama.data.sources.documents import GOOD, Kind
from babyllama.tokenizer.answers import CALL, THINK, without_thought
from babyllama.tokenizer.tokenizer import Tokenizer

Json = dict[str, Any]
_PERCENTILES = (5, 25, 50, 75, 95, 99)
_SYSTEM, _TOOLS, _CALLS, _THINKING = "with_system", "with_tools", "with_calls", "with_thinking"


def spread(values: np.ndarray) -> Json:
    """Mean, percentiles that are values themselves, least and most; of none, nothing."""
    if not len(values):
        return {}
    cuts = np.percentile(values, _PERCENTILES, method="inverted_cdf").tolist()
    return {"mean": float(values.mean()), "least": int(values.min()), "most": int(values.max()),
            "percentiles": {str(at): int(cut) for at, cut in zip(_PERCENTILES, cuts, strict=True)}}  # fmt: skip


@dataclass
class Talks:
    """The chats of one corpus as they are counted."""

    tokenizer: Tokenizer
    kind: Kind
    marked: np.ndarray  # (ids,) bool: whether "<" is in it; only a chat with such a token has tools, calls or thoughts
    roles: dict[str, int]  # role → id; empty where the template has none
    opens: int | None  # the token that opens every answer; None where the template is a folder's own
    counts: Counter[str] = field(default_factory=Counter)
    answers: list[np.ndarray] = field(default_factory=list)  # of each chat, how many
    learned: int = 0  # answers
    prompts: list[np.ndarray] = field(default_factory=list)  # tokens before the first that is learned
    sizes: list[np.ndarray] = field(default_factory=list)  # tokens that are learned
    good: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, tokenizer: Tokenizer, kind: Kind, contents: Sequence[bytes]) -> Talks:
        roles = tokenizer.role_ids if tokenizer.chat_template == "roles" else {}
        opens = roles.get("assistant", tokenizer.bos_id if tokenizer.chat_template == "bos" else None)
        special = [
            tokenizer.decode([i], skip_special=False) if not content else "" for i, content in enumerate(contents)
        ]
        marked = [b"<" in content or THINK in name for content, name in zip(contents, special, strict=True)]
        return cls(tokenizer, kind, np.array(marked), roles, opens)

    def add(self, tokens: np.ndarray, marks: np.ndarray, borders: np.ndarray) -> None:
        """Whole documents: ids, marks of the mask, where each begins and the last ends."""
        starts, learned = borders[:-1], marks > 0
        before = np.concatenate([[False], learned[:-1]])
        before[starts] = False
        runs = np.add.reduceat(learned & ~before, starts, dtype=np.int64)
        self.learned += int(runs.sum())
        self.answers.append(
            runs if self.opens is None else np.add.reduceat(tokens == self.opens, starts, dtype=np.int64)
        )
        for role, token in self.roles.items():
            self.counts[role] += int(np.count_nonzero(tokens == token))
        if self.roles:
            self.counts[_SYSTEM] += int(np.count_nonzero(tokens[starts] == self.roles["system"]))
        for number in np.flatnonzero(np.logical_or.reduceat(self.marked[tokens], starts)).tolist():
            span = slice(int(borders[number]), int(borders[number + 1]))
            self.counts.update(self._says(tokens[span], learned[span]))
        if self.kind != "chat":
            places = np.where(learned, np.arange(len(tokens)), len(tokens))
            self.prompts.append(np.minimum.reduceat(places, starts) - starts)
            self.sizes.append(np.add.reduceat(learned, starts, dtype=np.int64))
            self.good.append(np.maximum.reduceat(marks, starts) == GOOD)

    def _says(self, tokens: np.ndarray, learned: np.ndarray) -> set[str]:
        """What one chat has of tools, calls and thoughts."""
        found = set[str]()
        for role, text in self._parts(tokens, learned):
            if role == "system" and "<tools>\n" in text:
                found.add(_TOOLS)
            elif role == "assistant":
                found |= {_THINKING} if text.lstrip().startswith(THINK) else set()
                found |= {_CALLS} if f"{CALL}\n" in without_thought(text) else set()
        return found

    def _parts(self, tokens: np.ndarray, learned: np.ndarray) -> Iterator[tuple[str, str]]:
        """Role and text of its messages; those of answers alone where the template has no roles."""
        if self.opens is None:
            cuts = np.flatnonzero(np.diff(learned.astype(np.int8), prepend=0))
        else:
            cuts = np.flatnonzero(np.isin(tokens, list(self.roles.values()) or [self.opens]))
        names = {token: role for role, token in self.roles.items()}
        for first, stop in zip(cuts.tolist(), [*cuts.tolist()[1:], len(tokens)], strict=True):
            if self.opens is None and not learned[first]:
                continue
            part = tokens[first:stop].tolist()
            yield names.get(part[0], "assistant"), self.tokenizer.decode(part, skip_special=self.opens is not None)

    def json(self) -> Json:
        """Under ``chats``, and what answers that people compared or rated have beside it."""
        answers, roles = np.concatenate([np.empty(0, np.int64), *self.answers]), bool(self.roles)
        chats = {
            "answers": spread(answers), "messages": {role: self.counts[role] for role in self.roles} or None,
            "answers_not_learned": int(answers.sum()) - self.learned if self.opens is not None else None,
            **{key: self.counts[key] if roles else None for key in (_SYSTEM, _TOOLS)},
            _CALLS: self.counts[_CALLS] if self.opens is not None else None, _THINKING: self.counts[_THINKING],
        }  # fmt: skip
        if self.kind == "chat":
            return {"chats": chats}
        prompts, sizes = (np.concatenate([np.empty(0, np.int64), *part]) for part in (self.prompts, self.sizes))
        good = np.concatenate([np.empty(0, bool), *self.good])
        sides = {"good": int(good.sum()), "bad": int((~good).sum()), "prompt": spread(prompts),
                 "good_answer": spread(sizes[good]), "bad_answer": spread(sizes[~good])}  # fmt: skip
        if self.kind == "rated":
            return {"chats": chats, "rated": sides}
        longer = float((sizes[::2] > sizes[1::2]).mean()) if len(sizes) else None
        return {"pairs": {"pairs": len(sizes) // 2, "prompt": spread(prompts[::2]), "chosen": spread(sizes[::2]),
                          "rejected": spread(sizes[1::2]), "chosen_longer": longer}}  # fmt: skip
