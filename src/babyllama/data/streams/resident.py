"""A stream's tokens in the GPU's memory: rows are cut there, and no batch crosses the bus.

The same rows as the stream's own, in the same order. For streams of text cut in rows; chats, and rows that keep
documents apart, need masks and stay on the host. Not here: the order (batches.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from babyllama.data.streams.batches import IGNORE, Batch, Stream
from babyllama.data.streams.rows import Windows


@dataclass(frozen=True, eq=False)
class Resident:
    """`stream` with its tokens on `device`, two bytes each where the ids allow it.

    Attributes:
        tokens: every corpus after an end token and before a row of padding, int16 (to be read unsigned) or int32.
        bases: where each corpus begins in them.
    """

    stream: Stream
    context: int
    tokens: Tensor
    bases: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, stream: Stream, context: int, device: torch.device, share: float = 0.1) -> Resident | None:
        """None where the stream is not made of plain rows or needs more than `share` of the device's free memory."""
        corpora = stream.corpora
        if not all(isinstance(c, Windows) and not c.separate and c.store.kind == "text" for c in corpora):
            return None
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else np.inf
        if sum((len(c.store) + context + 1) * c.store.dtype.itemsize for c in corpora) > share * free:
            return None
        parts, bases, at = [], [], 0
        for corpus in corpora:
            dtype, eos = corpus.store.dtype, corpus.eos
            padding = np.full(context, eos, dtype)
            parts += [np.array([eos], dtype), corpus.store.tokens(0, len(corpus.store)), padding]
            bases.append(at)
            at += len(corpus.store) + context + 1
        joined = np.concatenate(parts)
        signed = joined.view(np.int16 if joined.dtype.itemsize == 2 else np.int32)
        lengths = [len(corpus.store) for corpus in corpora]
        return cls(stream, context, torch.from_numpy(signed).to(device), torch.tensor(bases), torch.tensor(lengths))

    def batch(self, first_row: int, count: int) -> Batch:
        """As the stream's, on the device."""
        corpora, rows = torch.tensor(self.stream.places(first_row, count)).unbind(1)
        starts = rows * self.context  # in its corpus
        kept = (self.lengths[corpora] - starts).clamp(max=self.context)  # targets; fewer in a corpus' last row
        device = self.tokens.device
        where = torch.stack([self.bases[corpora] + starts, kept])
        where = where.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else where
        columns = torch.arange(self.context + 1, device=device)
        found = self.tokens[where[0, :, None] + columns].long()  # (B, T + 1)
        if self.tokens.dtype == torch.int16:
            found = found & 0xFFFF
        targets = found[:, 1:].masked_fill(columns[:-1] >= where[1, :, None], IGNORE)
        return Batch(found[:, :-1], targets, count=int(kept.sum()))
