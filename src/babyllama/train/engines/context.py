"""Context parallelism: ranks that read the same rows, each its part of their tokens (Ulysses, arXiv 2309.14509).

What works on single tokens works on a part as on the whole: a rank keeps the activations of its own tokens only. Around
attention the ranks trade: each gets all tokens of its share of the heads, attends as one process would, and gives back
what each part needs. So it is exact with every attend function and mask, where a ring over keys would need a kernel of
its own for each. Not here: who reads what (mesh.py), the rotations, which go by positions (model/transformer.py).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_to_all_single_autograd

from babyllama.data.streams.batches import Batch
from babyllama.model.attention import Attend, Mask, ShiftedSparse
from babyllama.train.engines.mesh import Mesh
from babyllama.train.engines.world import World


class Part:
    """One rank's part of every row: the `number`-th of `size` equal stretches of tokens."""

    def __init__(self, world: World, mesh: Mesh, device: torch.device) -> None:
        self.size, self.number = mesh.context, world.rank % mesh.context
        self._group = world.readers(device.type, mesh).get_group("context")

    def __call__(self, columns: Tensor) -> Tensor:
        """(B, T, …) → (B, T / size, …): those of this rank's tokens."""
        width = columns.shape[1] // self.size
        return columns[:, self.number * width : (self.number + 1) * width]

    def batch(self, whole: Batch) -> Batch:
        """The targets of this rank's tokens, and what goes with them; the inputs whole, for the model to take its part
        of: positions and documents hang on all of a row. Its tokens are a multiple of `size`."""
        extras = {name: self(e) if e.shape[:2] == whole.targets.shape else e for name, e in whole.extras.items()}
        return replace(whole, targets=self(whole.targets), extras=extras, count=None)

    def attend(self, inner: Attend) -> Attend:
        """`inner` over whole rows: takes and returns this rank's tokens of all heads, (B, H, T / size, D)."""
        return Traded(inner, self._group, self.size)


class Traded:
    """An attend function between two trades of tokens for heads.

    A rank's heads are every `size`-th group of query heads with its key head, so that they come from either half of the
    model's in the same order, as S²-Attn wants them. Key heads that are too few are repeated.
    """

    def __init__(self, inner: Attend, group: ProcessGroup, size: int) -> None:
        self._inner, self._group, self._size = inner, group, size
        self._multiple = size * (2 if isinstance(inner, ShiftedSparse) else 1)  # of the heads

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        size, heads = self._size, math.lcm(k.shape[1], self._multiple)  # K of keys
        groups = q.shape[1] // heads
        k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
        each = [x.unflatten(1, (heads // size, size, -1)) for x in (q, k, v)]  # (B, K / size, size, G or 1, …)
        together = self._trade(torch.cat(each, dim=3).movedim(2, 0))  # (size, B, K / size, G + 2, T / size, D)
        rows = together.movedim(0, 3).flatten(3, 4)  # (B, K / size, G + 2, T, D)
        q, k, v = (x.flatten(1, 2) for x in rows.split((groups, 1, 1), dim=2))
        found = self._inner(q, k, v, mask)  # (B, H / size, T, D)
        parts = found.unflatten(1, (-1, groups)).unflatten(3, (size, -1))  # (B, K / size, G, size, T / size, D)
        return self._trade(parts.movedim(3, 0)).movedim(0, 2).flatten(1, 3)

    def _trade(self, parts: Tensor) -> Tensor:
        """(size, …): part r goes to rank r; from rank r comes what is part r of the answer."""
        return all_to_all_single_autograd(parts.contiguous(), None, None, self._group)
