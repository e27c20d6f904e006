"""Batches on their way through the blocks, and the moments of what enters a block's matrices.

Not here: in which order blocks and matrices are taken (calibrate.py), what moments are for (rtn.py, gptq.py, awq.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.model.attention import documents
from babyllama.model.transformer import Angles, Transformer
from babyllama.quant.rtn import Moments


class Part:
    """One batch on its way: x (B, T, C) is the input of the block that is worked on."""

    def __init__(self, model: Transformer, batch: Batch) -> None:
        batch = batch.to(model.embed_tokens.weight.device)
        self.x = model.embed_tokens(batch.tokens)
        positions = batch.positions
        if positions is None:
            positions = torch.arange(batch.tokens.shape[1], device=self.x.device)[None]
        self._angles, self._segments = Angles(model.rope, positions, batch.segments), batch.segments
        counts = (batch.targets != IGNORE).int().flip(1).cumsum(1).flip(1)
        self.kept = counts > 0  # (B, T); behind a row's last target there is padding

    def through(self, block: nn.Module) -> Tensor:
        return block(self.x, self._angles, None if self._segments is None else documents(self._segments), None)


class _Stop(Exception):
    """What comes after the watched input is not needed."""


def watch(block: nn.Module, names: Sequence[str], parts: Sequence[Part]) -> dict[str, Moments]:
    """Moments of the inputs of some linears of a block."""
    found: dict[str, Moments] = {}
    kept: list[Tensor] = []

    def noting(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            found.setdefault(name, Moments(args[0].shape[-1], args[0].device)).add(args[0][kept[0]])
            if len(names) == 1:
                raise _Stop

        return note

    handles = [block.get_submodule(name).register_forward_pre_hook(noting(name)) for name in names]
    try:
        for part in parts:
            kept[:] = [part.kept]
            try:
                part.through(block)
            except _Stop:
                continue
    finally:
        for handle in handles:
            handle.remove()
    return found
