"""Matrices that many processes hold, the same ones or some rows each: whoever works on whole ones works on its share.

Not here: sharding itself (engines/fsdp.py), what is done with a matrix (muon.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

Work = Callable[[Tensor], Tensor]  # (n, A, B) → (n, A, B), each matrix by itself


def shared_out(matrices: Tensor, work: Work, group: dist.ProcessGroup | None = None) -> Tensor:
    """`work` of matrices (N, A, B) that every rank of a group holds: each does its part and tells the others.

    All ranks end with the very same bits. The default group where none is given.
    """
    size, rank, count = dist.get_world_size(group), dist.get_rank(group), len(matrices)
    each = -(-count // size)
    mine = matrices[rank * each : (rank + 1) * each]
    done = mine.new_zeros(each, *mine.shape[1:])
    if len(mine):
        done[: len(mine)] = work(mine)
    found = done.new_empty(size * each, *done.shape[1:])
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its new name, its old one
    all_gather(found, done, group=group)
    return found[:count]


def on_whole(rows: Tensor, like: Tensor, work: Work) -> Tensor:
    """`work` of matrices of which every rank holds some rows: they travel to whose share they are, and back.

    Args:
        rows: (N, rows of this rank, B).
        like: a DTensor (A, B), split as they are.

    Returns:
        (N, rows of this rank, B).
    """
    assert isinstance(like, DTensor)
    group = _split(like)
    size, (count, held, columns) = dist.get_world_size(group), rows.shape
    high, each = -(-like.shape[0] // size), -(-count // size)  # torch.chunk's split: the last may have fewer, or none
    sent = rows.new_zeros(size * each, high, columns)
    sent[:count, :held] = rows
    parts = sent.new_empty(size, each, high, columns)  # of this rank's matrices, from each rank its rows
    dist.all_to_all_single(parts, sent, group=group)
    mine = parts.transpose(0, 1).flatten(1, 2)[:, : like.shape[0]]
    done = mine.new_zeros(each, size * high, columns)
    done[:, : like.shape[0]] = work(mine)
    parts = done.unflatten(1, (size, high)).transpose(0, 1).contiguous()
    found = sent.new_empty(size * each, high, columns)
    dist.all_to_all_single(found, parts, group=group)
    return found[:count, :held]


def sum_over(mine: Tensor, like: Tensor) -> Tensor:
    """The sum of a plain tensor over the ranks that share the rows of `like`, a DTensor."""
    assert isinstance(like, DTensor)
    dist.all_reduce(mine, group=_split(like))
    return mine


def copies(like: Tensor) -> dist.ProcessGroup | None:
    """The ranks that hold what this one holds of a DTensor, where it has several copies (HSDP)."""
    assert isinstance(like, DTensor)
    return like.device_mesh.get_group(0) if like.device_mesh.ndim > 1 else None


def _split(like: DTensor) -> dist.ProcessGroup:
    """The ranks that share the rows of one copy: the mesh's last dimension."""
    return like.device_mesh.get_group(like.device_mesh.ndim - 1)
