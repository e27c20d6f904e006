"""Scoring: how likely a model finds a completion after a prompt, for many pairs at once.

What several pairs have in common at their beginning is read once: the options of a question share its prompt, the
questions of a few-shot test their examples. The pairs form a tree of such beginnings; each level of it is a batch that
reads on from the keys and values of the level above.

Not here: dividing by a length, choosing among options, cutting to the model's context (the caller's); whole corpora
(bits.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from babyllama.model.cache import KVCache
from babyllama.model.transformer import Transformer
from babyllama.train.validation import target_nats

SHARED = 16  # tokens: a shorter beginning is cheaper to read again than to share
BATCH = 8192  # tokens of a batch, padding and what lies in the cache included


class Pair(NamedTuple):
    """What is scored: token ids, at least one each. A text without a prompt has the end token as one."""

    prompt: Sequence[int]
    completion: Sequence[int]


class Score(NamedTuple):
    """Of one completion.

    Attributes:
        loglikelihood: log P(completion | prompt), in nats.
        tokens: of the completion.
        greedy: each of its tokens is the likeliest, so greedy decoding would give exactly it.
    """

    loglikelihood: float
    tokens: int
    greedy: bool


@torch.inference_mode()
def score(model: Transformer, pairs: Iterable[Pair], batch: int = BATCH, vocab_size: int | None = None) -> list[Score]:
    """One score for each pair, in their order. The result is the same in any company up to rounding.

    Args:
        batch: tokens that are read at a time; one pair that is longer is read alone.
        vocab_size: the tokenizer's; rows of the head beyond it are padding, which nobody draws. None: all rows count.

    Raises:
        ValueError: an empty prompt or completion.
    """
    rows = []
    for number, (prompt, completion) in enumerate(pairs):
        if not (len(prompt) and len(completion)):
            raise ValueError(f"pair {number}: prompt and completion need at least one token each")
        rows.append(_Row(number, [*prompt, *completion[:-1]], len(prompt) - 1, completion))
    reader = _Reader(model, batch, len(rows), vocab_size)
    if model.rope.static:
        nodes = _tree(sorted(rows, key=lambda row: row.inputs))
    else:  # what a beginning is depends on how long the whole is
        nodes = [_Node(0, row.inputs, [row]) for row in rows]
    reader.read(nodes)
    found = zip(reader.loglikelihood.tolist(), reader.greedy.tolist(), rows, strict=True)
    return [Score(nats, len(row.completion), greedy) for nats, greedy, row in found]


@dataclass(frozen=True, eq=False)
class _Row:
    """A pair as the model reads it: `inputs`, of which the one at `first` predicts the first of the `completion`."""

    number: int
    inputs: list[int]
    first: int
    completion: Sequence[int]


@dataclass(frozen=True, eq=False)
class _Node:
    """Some tokens from position `begin` on, read once for all `rows`; `after` them the longer rows go apart."""

    begin: int
    tokens: list[int]
    rows: list[_Row]
    after: list[_Node] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.begin + len(self.tokens)

    def targets(self) -> Iterator[tuple[int, int, int]]:
        """(offset in `tokens`, the token after it, number of the pair) of all that is scored here."""
        for row in self.rows:
            for position in range(max(self.begin, row.first), min(self.end, len(row.inputs))):
                yield position - self.begin, row.completion[position - row.first], row.number


def _tree(rows: list[_Row]) -> list[_Node]:
    """Sorted rows → the nodes of the first level, with all below them."""
    top: list[_Node] = []
    waiting = [(rows, 0, top)]  # rows that agree up to a position, and whose nodes they become
    while waiting:
        rows, begin, siblings = waiting.pop()
        for _, group in groupby(rows, key=lambda row: row.inputs[begin : begin + SHARED]):
            same = list(group)
            end = _parting(same, begin)
            node = _Node(begin, same[-1].inputs[begin:end], same)
            siblings.append(node)
            longer = [row for row in same if len(row.inputs) > end]
            if longer:
                waiting.append((longer, end, node.after))
    return top


def _parting(same: list[_Row], begin: int) -> int:
    """Where sorted rows that agree up to `begin` first go apart. One that only ends before is read in passing."""
    last = same[-1].inputs
    for row in same:  # sorted, so all from this one on have in common what it has with the last
        end = next((i for i in range(begin, len(row.inputs)) if row.inputs[i] != last[i]), len(row.inputs))
        if end < len(row.inputs):
            return end
        begin = end
    return len(last)


class _Reader:
    """Reads nodes in batches, and adds up what they score."""

    def __init__(self, model: Transformer, batch: int, pairs: int, vocab_size: int | None) -> None:
        self.model, self.batch, self.vocab_size = model, batch, vocab_size
        self.loglikelihood = torch.zeros(pairs, dtype=torch.float64)
        self.greedy = torch.ones(pairs, dtype=torch.bool)

    def read(self, nodes: list[_Node]) -> None:
        """Nodes of the first level with all below them; a level's cache lives until what goes on from it is read."""
        waiting: list[tuple[list[_Node], KVCache | None, list[int]]] = []
        if nodes:
            waiting.append((nodes, None, [0] * len(nodes)))
        while waiting:
            level, cache, parents = waiting.pop()
            order = sorted(range(len(level)), key=lambda i: -level[i].end)
            count = max(1, self.batch // level[order[0]].end)
            picked, left = order[:count], order[count:]
            if left:
                waiting.append(([level[i] for i in left], cache, [parents[i] for i in left]))
            batch = [level[i] for i in picked]
            own = self._batch(batch, cache, [parents[i] for i in picked])
            after = [(child, row) for row, node in enumerate(batch) for child in node.after]
            if after:
                waiting.append(([child for child, _ in after], own, [row for _, row in after]))

    def _batch(self, nodes: list[_Node], cache: KVCache | None, parents: Sequence[int]) -> KVCache | None:
        """Read and score nodes that go on from rows of a cache; what they leave behind for those after them."""
        device, width = self.model.embed_tokens.weight.device, max(len(node.tokens) for node in nodes)
        tokens = torch.tensor([node.tokens + [0] * (width - len(node.tokens)) for node in nodes], device=device)
        begin = torch.tensor([[node.begin] for node in nodes], device=device)
        lengths = torch.tensor([node.end for node in nodes], device=device)
        positions = begin + torch.arange(width, device=device)  # (B, T); padding writes where nobody looks
        own = self._cache(nodes, width, cache, parents)
        self._add(self.model.hidden(tokens, positions, cache=own, lengths=lengths), nodes)
        return own

    def _cache(self, nodes: list[_Node], width: int, cache: KVCache | None, parents: Sequence[int]) -> KVCache | None:
        """With the parents' keys and values and room for the nodes'; None where nothing comes before or after."""
        places = max(node.begin for node in nodes) + width
        if cache is not None:
            own = copy.copy(cache)
            own.resize(parents, len(nodes), max(places, cache.used))
        elif any(node.after for node in nodes):
            weight = self.model.embed_tokens.weight
            own = KVCache(self.model.config, len(nodes), places, weight.device, weight.dtype)
        else:
            return None
        own.reserve(places)
        return own

    def _add(self, hidden: Tensor, nodes: list[_Node]) -> None:
        """hidden: (B, T, C)."""
        scored = [(row, *target) for row, node in enumerate(nodes) for target in node.targets()]
        if not scored:
            return
        row, offset, target, pair = torch.tensor(scored, device=hidden.device).unbind(1)
        nats, likeliest = target_nats(self.model, hidden[row, offset], target, self.vocab_size)
        pair = pair.cpu()  # added up there: in a fixed order
        self.loglikelihood.index_add_(0, pair, -nats.cpu().double())
        self.greedy[pair[~likeliest.cpu()]] = False
