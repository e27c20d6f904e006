"""Answers of a rollout as batches: a row each, or all answers to a prompt in one row behind it, which is read once.

In few shapes, and with where the targets are, so that a GPU need not ask and can record what it does. Not here: which
answers (rollouts.py), what is made of them (losses/policy.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from babyllama.data.streams.batches import IGNORE, Batch

WIDTH, TARGETS = 8, 4  # rows are filled up to a multiple of so many tokens, and a batch's targets of so many a row
LONGEST = 768  # tokens of a packed row: in a longer one the pairs that do not see each other outweigh the prompts


def batch_of(tensors: dict[str, Tensor], rows: Tensor, extras: Sequence[str] = ()) -> Batch:
    """Some answers of a rollout as a batch, no wider than the longest needs; extras are taken along where there are
    any."""
    first, stop = tensors["first"][rows, None], tensors["stop"][rows, None]
    width = min(rounded(int(stop.max()), WIDTH), tensors["tokens"].shape[1])
    tokens = tensors["tokens"][rows, :width].long()
    place = torch.arange(1, width)
    learned = (place >= first) & (place < stop) & tensors["counted"][rows, None]
    if "given" in tensors:
        learned &= ~tensors["given"][rows, 1:width]
    by_target = {name: tensors[name][rows, : width - 1].where(learned, 0) for name in extras if name in tensors}
    targets = tokens[:, 1:].where(learned, IGNORE)
    worth = tensors["advantages"][rows]
    found = {"advantages": worth if worth.ndim == 1 else worth[:, : width - 1], "answered": _places(learned),
             **by_target}  # fmt: skip
    return Batch(tokens[:, :-1].contiguous(), targets, count=int(learned.sum()), extras=found)


def rounded(count: int, least: int) -> int:
    """Up to a multiple of `least`, or of a sixteenth of the next power of two: batches of few shapes, for each of which
    a GPU records a graph."""
    unit = max(least, (1 << (count - 1).bit_length()) // 16)
    return max(1, -(-count // unit)) * unit


def _places(learned: Tensor) -> Tensor:
    """(B, T) bool → (B, A) int64: where it is true, counted through all rows, then a place where it is not."""
    rows, width = learned.shape
    places, flat = learned.flatten().nonzero()[:, 0], learned.flatten()
    each = min(width, rounded(-(-len(places) // rows), TARGETS))
    filling = (~flat).byte().argmax().expand(rows * each - len(places))
    return torch.cat([places, filling]).view(rows, each)


def packed_of(tensors: dict[str, Tensor], rows: Tensor, size: int, extras: Sequence[str] = ()) -> Batch:
    """The same where the answers `rows` are whole groups of `size`: P rows of tokens, the prompt but for its last
    token, then of each answer that one and its own. All else is by answer, (P · size, W). As `batch_of` where the rows
    would be too long.
    """
    first, stop = tensors["first"][rows, None], tensors["stop"][rows, None]  # (N, 1)
    own, trunk = rounded(int((stop - first).max()), TARGETS), rounded(int(first.max()) - 1, WIDTH)
    if size == 1 or trunk + size * own > LONGEST:
        return batch_of(tensors, rows, extras)
    place = first - 1 + torch.arange(own + 1)  # (N, W + 1)
    learned = (place[:, 1:] < stop) & tensors["counted"][rows, None]
    place = place.clamp(max=tensors["tokens"].shape[1] - 1)
    branches = tensors["tokens"][rows].gather(1, place).long()
    if "given" in tensors:
        learned &= ~tensors["given"][rows].gather(1, place[:, 1:])
    column = torch.arange(trunk)
    prompts = tensors["tokens"][rows[::size]][:, column.clamp(max=tensors["tokens"].shape[1] - 1)].long()
    alone = size + 1  # the number of what fills a prompt up
    numbers = torch.where(column < first[::size] - 1, 0, alone)  # (P, trunk)
    branch = torch.arange(1, alone).repeat_interleave(own).expand(len(prompts), -1)
    by_target = {name: tensors[name][rows].gather(1, place[:, :-1].clamp(max=tensors[name].shape[1] - 1)).where(
        learned, 0) for name in extras if name in tensors}  # fmt: skip
    worth = tensors["advantages"][rows]
    if worth.ndim == 2:
        worth = worth.gather(1, place[:, :-1].clamp(max=worth.shape[1] - 1))
    return Batch(
        torch.cat([prompts, branches[:, :-1].reshape(len(prompts), -1)], 1),
        branches[:, 1:].where(learned, IGNORE),
        torch.cat([column.expand(len(prompts), -1), place[:, :-1].reshape(len(prompts), -1)], 1),
        torch.cat([numbers, branch], 1), int(learned.sum()),
        {"advantages": worth, "answered": _places(learned), **by_target})  # fmt: skip
