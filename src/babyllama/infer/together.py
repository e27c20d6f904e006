"""Whole answers to many prompts that begin together, for who wants none of them earlier: rollouts.

All go in step, so the host need not follow each: it launches what may come, looks once in some tokens which have ended,
and cuts them out at the end. The same tokens as the engine gives one by one. Not here: requests that come and go
(engine.py), how a token is computed and chosen (step.py, prompts.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from babyllama.errors import InputError
from babyllama.infer.choosing import NOT_FINITE
from babyllama.infer.engine import BROKEN, Engine, copied
from babyllama.infer.request import Request
from babyllama.infer.rows import sent
from babyllama.infer.sampling import Sampling, used_by
from babyllama.infer.step import power

LOOK = 16  # tokens that are on their way at least while the host waits for those before


class Held(NamedTuple):
    """What an engine's rows hold after `answers`: of each (N,) the row, and how many tokens of prompt and answer lie
    there. Good until the engine does anything else."""

    rows: np.ndarray
    tokens: np.ndarray

    def of(self, answers: Sequence[int]) -> Held:
        """Of these alone."""
        return Held(self.rows[[*answers]], self.tokens[[*answers]])


class Block(NamedTuple):
    """Tokens (n, B) on their way to the host, from number `start` of the answers `who` on."""

    who: np.ndarray
    start: int
    tokens: Tensor
    ready: torch.cuda.Event | None


def suits(engine: Engine, prompts: Sequence[Sequence[int]], max_tokens: int) -> bool:
    """Whether all of them fit in side by side to their last tokens."""
    lengths = list(map(len, prompts))
    plain = engine.cache.rotated and not engine.cache.sinks and engine.propose is None
    return (plain and len(prompts) <= engine.slots.most and min(lengths) > 0
            and max(lengths) + max_tokens <= engine.window)  # fmt: skip


@torch.inference_mode()
def answers(engine: Engine, prompts: Sequence[list[int]], sampling: Sampling, max_tokens: int, stop: Collection[int],
            seeds: Sequence[int], meanwhile: Callable[[], None] = lambda: None, held: Held | None = None
            ) -> tuple[list[tuple[list[int], bool]], Held]:  # fmt: skip
    """Of each prompt the answer's tokens, and whether a token of `stop` ends it; and where they lie. The engine is at
    rest, and forgets all earlier texts.

    Args:
        seeds: of the draws, one for each prompt.
        meanwhile: called once, when much is on its way.
        held: of each prompt what it begins with and where that lies, from the call before; default: nowhere.

    Raises:
        InputError: logits that are not finite.
    """
    engine.forget()  # only what its lists say of the rows
    count, longest, uses = len(prompts), max(map(len, prompts)), used_by([sampling])
    engine.slots.open(count, longest + max_tokens)
    starts = [0] * count
    if held is not None:
        starts = held.tokens.tolist()
        at, to = sent([held.rows.tolist(), range(count)], engine.rows.device)
        engine.cache.move(at, to, starts)
    requests = [Request(prompt, sampling, max_tokens, stop, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    engine.rows.place(range(count), [(request, ()) for request in requests])
    way = _Way(np.arange(count), np.zeros((count, max_tokens), np.int64), frozenset(stop))
    way.send(engine.prompts.together(prompts, uses, starts).tokens)
    step = engine.step_of(None)
    while way.made < max_tokens:
        if way.ahead >= 2 * LOOK:
            meanwhile()
            meanwhile = _nothing
            while way.ahead >= 2 * LOOK:
                way.see()
        if way.gone.all():
            break
        if (moved := way.fewer())[0]:
            at, to = sent(moved, engine.rows.device)
            engine.rows.move(at, to)
            engine.cache.move(at, to, [longest + way.made - 1] * len(moved[0]))
        engine.rows.go(len(way.who))
        limit = max_tokens - way.made
        way.send(step(slice(0, len(way.who)), longest + max_tokens, uses, limit).tokens)
    meanwhile()
    while way.blocks:
        way.see()
    found = way.cut()
    # The last token of an answer was chosen, and need not have been read.
    tokens = [len(prompt) + len(answer) - 1 for prompt, (answer, _) in zip(prompts, found, strict=True)]
    return found, Held(way.row, np.array(tokens))


@dataclass
class _Way:
    """What has been launched for which answers, and what of it is known.

    Attributes:
        who: the answers in the first rows.  row: (N,) where each answer lies.
        found: (N, T) their tokens, as far as they are seen.
        gone: (N,) those that are known to have ended.  made: tokens of each that are launched.
    """

    who: np.ndarray
    found: np.ndarray
    stop: frozenset[int]
    made: int = 0
    blocks: deque[Block] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.row = self.who.copy()
        self.gone, self._ends = np.zeros(len(self.who), bool), np.array([*self.stop, NOT_FINITE])

    @property
    def ahead(self) -> int:
        """Tokens that are not seen yet."""
        return self.made - self.blocks[0].start if self.blocks else 0

    def send(self, tokens: Tensor) -> None:
        """Tokens (n, B) go to the host: where they are now others may be written."""
        kept, ready = copied(tokens), torch.cuda.Event(blocking=True) if tokens.is_cuda else None
        if ready is not None:
            ready.record()
        self.blocks.append(Block(self.who, self.made, kept, ready))
        self.made += len(tokens)

    def see(self) -> None:
        """Wait for the oldest of them."""
        block = self.blocks.popleft()
        if block.ready is not None:
            block.ready.synchronize()
        tokens = block.tokens.numpy().T
        self.found[block.who, block.start : block.start + tokens.shape[1]] = tokens
        self.gone[block.who] |= np.isin(tokens, self._ends).any(1)

    def fewer(self) -> tuple[list[int], list[int]]:
        """Where so many have ended that a smaller power of two holds the others: which rows change places with which,
        so that those others come first. Else none."""
        goes = ~self.gone[self.who]
        count = int(goes.sum())
        if power(count) == power(len(self.who)):
            return [], []
        ended, later = np.flatnonzero(~goes[:count]), count + np.flatnonzero(goes[count:])
        who = self.who.copy()  # blocks on their way know the old one
        who[ended], who[later] = self.who[later], self.who[ended]
        self.row[who], self.who = np.arange(len(who)), who[:count]
        return [*later.tolist(), *ended.tolist()], [*ended.tolist(), *later.tolist()]

    def cut(self) -> list[tuple[list[int], bool]]:
        """All up to the first token that ends each."""
        over = np.isin(self.found, self._ends)
        lengths = np.where(over.any(1), over.argmax(1) + 1, self.found.shape[1])
        last = self.found[np.arange(len(self.found)), lengths - 1]
        if (last == NOT_FINITE).any():
            raise InputError(BROKEN)
        ended = np.isin(last, [*self.stop]).tolist()
        return [(tokens[:length], end)
                for tokens, length, end in zip(self.found.tolist(), lengths.tolist(), ended, strict=True)]  # fmt: skip


def _nothing() -> None: ...
