"""Beginnings that texts have in common, as a tree, and which of its nodes are read together.

Not here: reading them (scoring.py), attention among them (branches.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import NamedTuple

from babyllama.evals.branches import Span

SHARED = 16  # tokens: a shorter beginning is cheaper to read again than to share


@dataclass(frozen=True, eq=False)
class Row:
    """A pair as the model reads it: `inputs`, of which the one at `first` predicts the first of the `completion`."""

    number: int
    inputs: list[int]
    first: int
    completion: Sequence[int]


@dataclass(frozen=True, eq=False)
class Node:
    """Some tokens from position `begin` on, read once for all `rows`; `after` them the longer rows go apart."""

    begin: int
    tokens: list[int]
    rows: list[Row]
    after: list[Node] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.begin + len(self.tokens)

    def targets(self) -> Iterator[tuple[int, int, int]]:
        """(offset in `tokens`, the token after it, number of the pair) of all that is scored here."""
        for row in self.rows:
            for position in range(max(self.begin, row.first), min(self.end, len(row.inputs))):
                yield position - self.begin, row.completion[position - row.first], row.number


def tree(rows: list[Row]) -> list[Node]:
    """Sorted rows → the nodes of the first level, with all below them."""
    top: list[Node] = []
    waiting = [(rows, 0, top)]  # rows that agree up to a position, and whose nodes they become
    while waiting:
        rows, begin, siblings = waiting.pop()
        for _, group in groupby(rows, key=lambda row: row.inputs[begin : begin + SHARED]):
            same = list(group)
            end = _parting(same, begin)
            node = Node(begin, same[-1].inputs[begin:end], same)
            siblings.append(node)
            longer = [row for row in same if len(row.inputs) > end]
            if longer:
                waiting.append((longer, end, node.after))
    return top


def _parting(same: list[Row], begin: int) -> int:
    """Where sorted rows that agree up to `begin` first go apart. One that only ends before is read in passing."""
    last = same[-1].inputs
    for row in same:  # sorted, so all from this one on have in common what it has with the last
        end = next((i for i in range(begin, len(row.inputs)) if row.inputs[i] != last[i]), len(row.inputs))
        if end < len(row.inputs):
            return end
        begin = end
    return len(last)


Order = list[tuple[int, Node]]  # nodes with their depths


def depth_first(nodes: list[Node]) -> Order:
    """(depth, node): every node before all that is below it, and that before the next one."""
    found, waiting = [], [(0, node) for node in reversed(nodes)]
    while waiting:
        depth, node = waiting.pop()
        found.append((depth, node))
        waiting.extend((depth + 1, child) for child in reversed(node.after))
    return found


def _ends(depths: list[int]) -> list[int]:
    """Of each node, which is the first after it that does not go on from it."""
    found, open_ = [len(depths)] * len(depths), list[int]()
    for number, depth in enumerate(depths):
        while open_ and depths[open_[-1]] >= depth:
            found[open_.pop()] = number
        open_.append(number)
    return found


def size_of(order: Order) -> int:
    """Tokens."""
    return sum(len(node.tokens) for _, node in order)


def portions(nodes: list[Node], most: int) -> list[Order]:
    """Nodes of the first level in portions of at most `most` tokens, with all below them; a larger one is alone."""
    found, size = list[Order](), most
    for node in nodes:
        order = depth_first([node])
        more = size_of(order)
        if size + more > most:
            found.append([])
            size = 0
        found[-1] += order
        size += more
    return found


def parted(node: Node, most: int) -> list[Node]:
    """A node as several, each with some of all that goes on from it, if it is larger than `most` with that. Each part
    reads the node's own tokens again, so it is parted only where they are few, an eighth of `most`."""
    if len(node.tokens) > most // 8 or size_of(depth_first([node])) <= most:
        return [node]
    some = [[child for depth, child in order if not depth] for order in portions(node.after, most - len(node.tokens))]
    rows = [node.rows, *([] for _ in some[1:])]  # what it scores itself is scored once
    return [Node(node.begin, node.tokens, *part) for part in zip(rows, some, strict=True)]


def stacks(orders: list[Order], most: int) -> list[list[Order]]:
    """Portions of about the same size side by side, at most `most` tokens with the padding; a larger one is alone."""
    found, room = list[list[Order]](), 0
    for order in sorted(orders, key=size_of, reverse=True):
        if not room:
            found.append([])
            room = max(1, most // size_of(order))
        found[-1].append(order)
        room -= 1
    return found


class Laid(NamedTuple):
    """Nodes one after the other in a row: `begins` of each, and the row's end."""

    depths: list[int]
    nodes: list[Node]
    begins: list[int]
    spans: list[Span]

    @classmethod
    def of(cls, part: Order) -> Laid:
        depths, nodes = [depth for depth, _ in part], [node for _, node in part]
        begins = list(accumulate((len(node.tokens) for node in nodes), initial=0))
        reach = [begins[end] for end in _ends(depths)]
        return cls(depths, nodes, begins, [*map(Span, begins[:-1], begins[1:], reach)])
