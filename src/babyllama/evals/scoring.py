"""Scoring: how likely a model finds a completion after a prompt, for many pairs at once.

What several pairs have in common at their beginning is read once: the options of a question share its prompt, the
questions of a few-shot test their examples. The pairs form a tree of such beginnings (beginnings.py). It is read depth
first, as many tokens in one row as fit; what the next row goes on from keeps its keys and values. A CPU reads one row
at a time, without padding; other devices read `BATCH` tokens at a time, in several rows where texts are short enough.

Not here: dividing by a length, choosing among options, cutting to the model's context (the caller's); whole corpora
(bits.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from babyllama.evals.beginnings import Laid, Node, Order, Row, parted, portions, stacks, tree
from babyllama.evals.branches import Above, Branches, attends_in_branches
from babyllama.infer.rows import sent
from babyllama.model.transformer import Transformer
from babyllama.train.validation import CHUNK_ROWS

CPU_ROW = 2048  # tokens of a row: what fits a CPU's caches
BATCH = 8192  # tokens that are read at a time elsewhere
ROW = 1024  # of them in a row, if what cannot be parted is not longer: attention looks at a row's tokens by each other


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
def score(model: Transformer, pairs: Iterable[Pair], batch: int | None = None, vocab_size: int | None = None
          ) -> list[Score]:  # fmt: skip
    """One score for each pair, in their order. The result is the same in any company up to rounding.

    Args:
        batch: tokens that are read at a time; what is longer and cannot be parted is read alone. None: what suits the
            device.
        vocab_size: the tokenizer's; rows of the head beyond it are padding, which nobody draws. None: all rows count.

    Raises:
        ValueError: an empty prompt or completion.
    """
    rows = []
    for number, (prompt, completion) in enumerate(pairs):
        if not (len(prompt) and len(completion)):
            raise ValueError(f"pair {number}: prompt and completion need at least one token each")
        rows.append(Row(number, [*prompt, *completion[:-1]], len(prompt) - 1, completion))
    batch = batch or (CPU_ROW if model.embed_tokens.weight.is_cpu else BATCH)
    reader = _Reader(model, batch, len(rows), vocab_size)
    if model.rope.static:
        nodes = tree(sorted(rows, key=lambda row: row.inputs))
    else:  # what a beginning is depends on how long the whole is
        nodes = [Node(0, row.inputs, [row]) for row in rows]
    reader.read(nodes)
    found = zip(reader.loglikelihood.tolist(), reader.greedy.tolist(), rows, strict=True)
    return [Score(nats, len(row.completion), greedy) for nats, greedy, row in found]


_Found = tuple[Tensor, Tensor, Tensor]  # (numbers of pairs, log p of a token of theirs, whether it is the likeliest)


class _Reader:
    """Reads nodes, and adds up what they score."""

    def __init__(self, model: Transformer, batch: int, pairs: int, vocab_size: int | None) -> None:
        self.model, self.batch, self.vocab_size = model, batch, vocab_size
        self.device = model.embed_tokens.weight.device
        self.loglikelihood = torch.zeros(pairs, dtype=torch.float64)
        self.greedy = torch.ones(pairs, dtype=torch.bool)

    def read(self, nodes: list[Node]) -> None:
        """Nodes of the first level with all below them.

        On a CPU every thread reads rows of its own: none waits for another at each operator, and a row's figures are
        the same whatever the machine. Another device is never waited for before the end.
        """
        with attends_in_branches(self.model):
            if self.one_by_one:
                self._add(self._in_threads(portions(nodes, self.batch)))
            else:
                row = min(ROW, self.batch)
                orders = portions([part for node in nodes for part in parted(node, row)], row)
                self._add(map(self._stack, stacks(orders, self.batch)))

    @property
    def one_by_one(self) -> bool:
        """Rows are; elsewhere several are read at a time."""
        return self.device.type == "cpu"

    def _in_threads(self, orders: list[Order]) -> Iterable[list[_Found]]:
        threads = torch.get_num_threads()
        workers = min(len(orders), threads)
        if workers <= 1:
            return map(self._portion, orders)
        torch.set_num_threads(1)  # also of the pool's threads, which begin with it
        try:
            with ThreadPoolExecutor(workers) as pool:
                return list(pool.map(self._portion, orders))
        finally:
            torch.set_num_threads(threads)

    def _add(self, scored: Iterable[list[_Found]]) -> None:
        found = [*chain.from_iterable(scored)]
        if found:
            pairs, logps, likeliest = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
            self.loglikelihood.index_add_(0, pairs, logps.double())
            self.greedy[pairs[~likeliest]] = False

    @torch.inference_mode()
    def _portion(self, order: Order) -> list[_Found]:
        """One row after the other."""
        above, found = list[Above](), list[_Found]()
        start = 0
        while start < len(order):
            stop, size = start, 0
            while stop < len(order) and (stop == start or size + len(order[stop][1].tokens) <= self.batch):
                size += len(order[stop][1].tokens)
                stop += 1
            after = order[stop][0] if stop < len(order) else 0  # depth of what comes next: as many nodes above it
            scored, above = self._row(Laid.of(order[start:stop]), above, after)
            found += scored
            start = stop
        return found

    def _row(self, laid: Laid, above: list[Above], after: int) -> tuple[list[_Found], list[Above]]:
        """Some nodes' scores, and what those that come next, at the depth `after`, go on from."""
        depths = laid.depths
        above = [Above(one.layers, laid.begins[next((i for i, d in enumerate(depths) if d <= depth), len(depths))])
                 for depth, one in enumerate(above)]  # fmt: skip
        path, lowest = dict(zip(depths, laid.spans, strict=True)), min(depths)  # the last span at each depth
        keep = [path[depth] for depth in range(lowest, after)]
        branches = Branches(above, [laid.spans], keep, self.device)
        found = self._scored(self._hidden(branches, [laid]), [laid])
        return found, [*above[: min(lowest, after)], *(Above(x, 0) for x in branches.kept)]

    def _stack(self, stack: list[Order]) -> list[_Found]:
        """Portions side by side; a single one, which may be too long, row after row."""
        if len(stack) == 1:
            return self._portion(stack[0])
        rows = [Laid.of(order) for order in stack]
        branches = Branches([], [laid.spans for laid in rows], [], self.device)
        return self._scored(self._hidden(branches, rows), rows)

    def _hidden(self, branches: Branches, rows: list[Laid]) -> Tensor:
        """(B, T, C)."""

        def padded(values: Callable[[Node], Iterable[int]], fill: int) -> Tensor:
            lists = [[value for node in laid.nodes for value in values(node)] for laid in rows]
            return sent([one + [fill] * (branches.width - len(one)) for one in lists], self.device)

        tokens, positions = padded(lambda node: node.tokens, 0), padded(lambda node: range(node.begin, node.end), 0)
        lengths = None if self.model.rope.static else padded(lambda node: [node.end] * len(node.tokens), 1)
        return branches.hidden(self.model, tokens, positions, lengths)

    def _scored(self, hidden: Tensor, rows: list[Laid]) -> list[_Found]:
        """Of all rows. What several pairs ask of one place is computed once."""
        asked = sorted((number * hidden.shape[1] + begin + offset, pair, token) for number, laid in enumerate(rows)
                       for node, begin in zip(laid.nodes, laid.begins, strict=False)
                       for offset, token, pair in node.targets())  # fmt: skip
        if not asked:
            return []
        places, pairs, targets = torch.tensor(asked).unbind(1)
        places, which = places.unique_consecutive(return_inverse=True)
        states, found = hidden.flatten(0, 1)[sent(places, self.device)], list[_Found]()
        for start, some in zip(range(0, len(places), CHUNK_ROWS), states.split(CHUNK_ROWS), strict=True):
            logits = self.model.lm_head(some)[:, : self.vocab_size].float()
            here = (which >= start) & (which < start + CHUNK_ROWS)
            row, token = sent(which[here] - start, self.device), sent(targets[here], self.device)
            found.append((pairs[here], logits.log_softmax(-1)[row, token], logits.argmax(-1)[row] == token))
        return found
