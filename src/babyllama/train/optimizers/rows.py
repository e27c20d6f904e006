"""Matrices of which every rank holds some rows (DTensors): what an optimiser needs of the other ranks' rows.

Not here: sharding itself (engines/fsdp.py).
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def gather_rows(rows: Tensor, like: Tensor) -> tuple[Tensor, int]:
    """Matrices of which every rank holds some rows, whole on every rank.

    Args:
        rows: (N, rows of this rank, B).
        like: a DTensor (A, B), split as they are.

    Returns:
        (N, A, B), and which row is this rank's first.
    """
    assert isinstance(like, DTensor)
    group = like.device_mesh.get_group()
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    each = -(-like.shape[0] // size)  # torch.chunk's split: the last ranks may have fewer rows, or none
    padded = rows.new_zeros(rows.shape[0], each, rows.shape[2])
    padded[:, : rows.shape[1]] = rows
    found = rows.new_empty(size * rows.shape[0], *padded.shape[1:])
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its new name, its old one
    all_gather(found, padded, group=group)
    return found.unflatten(0, (size, -1)).transpose(0, 1).flatten(1, 2)[:, : like.shape[0]], rank * each


def sum_over(mine: Tensor, like: Tensor) -> Tensor:
    """The sum of a plain tensor over the ranks that share the rows of `like`, a DTensor."""
    assert isinstance(like, DTensor)
    dist.all_reduce(mine, group=like.device_mesh.get_group())
    return mine
