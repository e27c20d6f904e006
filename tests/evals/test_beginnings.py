"""The tree of beginnings, and which of its nodes are read together: cases by hand."""

from __future__ import annotations

from babyllama.evals import beginnings
from babyllama.evals.beginnings import Laid, Node, Row, depth_first, parted, portions, size_of, stacks, tree


def test_texts_that_go_apart_again_and_again_need_no_recursion(monkeypatch):
    monkeypatch.setattr(beginnings, "SHARED", 1)
    rows = [Row(n, [*[1] * n, 2], n, [3]) for n in range(2000)]
    nodes, depth = tree(sorted(rows, key=lambda row: row.inputs)), 0
    while nodes:
        nodes, depth = [child for node in nodes for child in node.after], depth + 1
    assert depth == 1999


def test_a_node_reaches_to_where_nothing_goes_on_from_it(monkeypatch):
    monkeypatch.setattr(beginnings, "SHARED", 1)
    texts = [[1, 1, 2, 3], [1, 1, 2, 4, 4], [1, 1, 5], [6]]
    rows = [Row(n, text, len(text) - 1, [9]) for n, text in enumerate(texts)]
    laid = Laid.of(depth_first(tree(rows)))
    assert [node.tokens for node in laid.nodes] == [[1, 1], [2], [3], [4, 4], [5], [6]]
    assert laid.depths == [0, 1, 2, 2, 1, 0] and laid.begins == [0, 2, 3, 4, 6, 7, 8]
    assert [span.reach for span in laid.spans] == [7, 6, 4, 6, 7, 8]
    assert [list(node.targets()) for node in laid.nodes] == [
        [], [], [(0, 9, 0)], [(1, 9, 1)], [(0, 9, 2)], [(0, 9, 3)],
    ]  # fmt: skip


def test_portions_and_stacks_hold_all_and_no_more_than_they_may():
    sizes = [30, 5, 6, 7, 100, 40, 1, 20, 20, 19]
    nodes = [Node(0, [n] * size, []) for n, size in enumerate(sizes)]
    found = portions(nodes, 40)
    assert [node for order in found for _, node in order] == nodes
    assert [size_of(order) for order in found] == [35, 13, 100, 40, 21, 39]
    assert [[size_of(order) for order in stack] for stack in stacks(found, 80)] == [[100], [40, 39], [35, 21], [13]]


def test_a_large_node_is_read_in_parts_where_its_own_tokens_are_few():
    rows = [Row(0, [1, 1], 1, [9])]
    node = Node(0, [1] * 10, rows, [Node(10, [n] * 30, []) for n in range(5)])
    parts = parted(node, 80)
    assert [[child.tokens[0] for child in part.after] for part in parts] == [[0, 1], [2, 3], [4]]
    assert all(part.tokens == node.tokens and size_of(depth_first([part])) <= 80 for part in parts)
    assert [part.rows for part in parts] == [rows, [], []]
    assert parted(node, 160) == parted(node, 79) == [node]
