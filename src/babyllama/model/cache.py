"""The key-value cache: what attention has read so far, for every layer and row. Not here: attention, RoPE."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from babyllama.model.config import ModelConfig

MOVED = 4096  # slots of a layer that are moved at once, in all layers


class KVCache:
    """Keys and values of every layer, at slot = position: rows of different length share one batch.

    A slot that a row has not reached yet holds garbage which the mask hides (key position > query position), so
    right-padded prompts need no other bookkeeping: decoding overwrites the padding.

    With `sinks` its memory is constant for text without end (StreamingLLM, arXiv 2309.17453): of more than `window`
    tokens the first `sinks` and the newest stay. Token i ≥ sinks then lies at sinks + (i − sinks) mod (window − sinks),
    and what counts as its position is its place among the tokens that are left, so none is beyond the trained ones.

    Args:
        rotated: True keeps keys after RoPE (static laws: nothing to redo). False keeps them before it, and every
            read rotates them anew, which laws whose frequencies change with the length need, and sinks.
        window: tokens that a row may have, or keeps when there are sinks; `max_tokens` when absent.
        slides: keep the newest without sinks too, which is known to break models (StreamingLLM's comparison).

    Attributes:
        keys, values: (L, rows, K, max_tokens, D), contiguous for each layer, row and head.
        dropped: (rows, 1) int64, tokens of each row that are gone; stays 0 without sinks.
        version: changes when the tensors are other ones than before.
    """

    def __init__(self, config: ModelConfig, rows: int, max_tokens: int, device: torch.device | str, dtype: torch.dtype,
                 rotated: bool = True, sinks: int = 0, window: int | None = None, slides: bool = False
                 ) -> None:  # fmt: skip
        self.shape = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        self.slides = slides or sinks > 0
        self.rotated, self.sinks, self.window = rotated and not self.slides, sinks, window or max_tokens
        self.rows: Tensor | None = None  # of a part: which of all rows its own are, where it is no slice
        self.used, self.version = 0, 0  # used: slots that any row has written, which is what attention has to read
        self._new(rows, max_tokens, device, dtype)

    def _new(self, rows: int, max_tokens: int, device: torch.device | str, dtype: torch.dtype) -> None:
        layers, heads, size = self.shape
        self.keys = torch.zeros((layers, rows, heads, max_tokens, size), device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.dropped = torch.zeros((rows, 1), device=device, dtype=torch.int64)
        self.max_tokens = max_tokens
        self.version += 1

    # ── what the model calls ───────────────────────────────────────────────────────────────────────────────────
    def append(self, count: int) -> int:
        """Make room for `count` tokens after those in use, for rows that go in step; the position of the first.

        Raises:
            ValueError: the cache is full; with sinks, more tokens than there are places beside them.
        """
        gone = self.used + count - self.window
        if self.slides and gone > 0:
            if gone > self.used - self.sinks:
                raise ValueError(f"the cache has {self.window - self.sinks} places beside its sinks, "
                                 f"{count} tokens are fed at once")  # fmt: skip
            self.used -= gone
            self.dropped += gone
        start = self.used
        self.reserve(start + count)
        return start

    def reserve(self, end: int) -> None:
        """Announce that slots below `end` are about to be written. Raises ValueError beyond max_tokens."""
        if end > self.max_tokens:
            raise ValueError(f"the cache holds {self.max_tokens} tokens, {end} are asked for")
        self.used = max(self.used, end)

    def mask(self, positions: Tensor) -> Tensor:
        """positions (B, T) → (B, 1, T, used): a query sees the slots at or before its own position."""
        return self.key_positions(positions.device)[:, None, None, :] <= positions[:, None, :, None]

    def key_positions(self, device: torch.device) -> Tensor:
        """(1 or B, used): the position that each slot stands for."""
        slots = torch.arange(self.used, device=device)[None]
        if not self.slides:
            return slots
        turned = self.sinks + (slots - self.sinks - self.dropped) % (self.window - self.sinks)
        return torch.where(slots < self.sinks, slots, turned)

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, D) at positions (B, T); return all used slots, (B, K, used, D) each."""
        if self.slides:
            tokens = positions + self.dropped
            turned = self.sinks + (tokens - self.sinks) % (self.window - self.sinks)
            positions = torch.where(tokens < self.sinks, tokens, turned)
        rows = torch.arange(k.shape[0], device=k.device) if self.rows is None else self.rows
        self.keys[layer][rows[:, None], :, positions] = k.transpose(1, 2)
        self.values[layer][rows[:, None], :, positions] = v.transpose(1, 2)
        keys, values = self.keys[layer, :, :, : self.used], self.values[layer, :, :, : self.used]
        return (keys, values) if self.rows is None else (keys[rows], values[rows])

    # ── what the engine calls ──────────────────────────────────────────────────────────────────────────────────
    def part(self, rows: slice | Tensor, end: int) -> KVCache:
        """Some of the rows, of which slots below `end` are read; it writes to this cache.

        Args:
            rows: a slice, or numbers (B,) on the device, which a CUDA graph may have changed between two replays; then
                what is read is copied first. Numbers not with sinks.
        """
        found = copy.copy(self)
        if isinstance(rows, Tensor):
            found.rows = rows
        else:
            found.keys, found.values, found.dropped = self.keys[:, rows], self.values[:, rows], self.dropped[rows]
        found.used = min(end, self.window)
        return found

    def positions(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens in their texts (B, T) → positions; with sinks, drops what does not fit beside them."""
        if not self.slides:
            return tokens
        torch.maximum(self.dropped, tokens[:, -1:] + 1 - self.window, out=self.dropped)
        return tokens - self.dropped

    @property
    def piece(self) -> int:
        """Tokens to feed at a time beyond the window: each still sees three quarters of it."""
        return max(1, (self.window - self.sinks) // 4)

    def row_bytes(self, max_tokens: int) -> int:
        """What a row of so many slots takes."""
        layers, heads, size = self.shape
        return 2 * layers * heads * size * max_tokens * self.keys.element_size()

    def resize(self, kept: Sequence[int], rows: int, max_tokens: int) -> None:
        """Other numbers of rows and slots. The old rows `kept` become the first ones."""
        keys, values, dropped = self.keys, self.values, self.dropped
        self._new(rows, max_tokens, keys.device, keys.dtype)
        slots = min(max_tokens, keys.shape[3])
        for new, old in enumerate(kept):
            self.keys[:, new, :, :slots] = keys[:, old, :, :slots]
            self.values[:, new, :, :slots] = values[:, old, :, :slots]
            self.dropped[new] = dropped[old]

    def copy(self, source: int, target: int, count: int) -> None:
        """The first `count` tokens of one row become another's."""
        for kept in (self.keys, self.values):
            kept[:, target, :, :count] = kept[:, source, :, :count]
        self.dropped[target] = self.dropped[source]

    def spread(self, sources: Sequence[int], targets: Sequence[int], begin: int, end: int) -> None:
        """Slots `begin` … `end` of the rows `sources` also become those of the rows `targets`, which are others; of as
        many layers at a time as `move`."""
        at = torch.tensor([sources, targets])
        given, taken = at.pin_memory().to(self.keys.device, non_blocking=True) if self.keys.is_cuda else at
        for kept in (self.keys, self.values):
            for part in (kept,) if len(targets) * (end - begin) <= MOVED else kept.split(1):
                part[:, taken, :, begin:end] = part[:, given, :, begin:end]

    def move(self, sources: Tensor, targets: Tensor, counts: Sequence[int]) -> None:
        """The rows `sources` become the rows `targets`, the same ones in another order. Of each only its first slots
        hold anything, as many as `counts` says. On a GPU all at once, or layer by layer where that would take much
        memory; on a CPU one by one, which is faster there."""
        counts = [min(count, self.max_tokens) for count in counts]
        longest, rows = max(counts), targets.tolist() if not self.keys.is_cuda else []
        for kept in (self.keys, self.values):
            for part in (kept,) if len(counts) * longest <= MOVED else kept.split(1):
                if self.keys.is_cuda:
                    part[:, targets, :, :longest] = part[:, sources, :, :longest]
                    continue
                held = [part[:, row, :, :count].clone() for row, count in zip(sources.tolist(), counts, strict=True)]
                for row, count, moved in zip(rows, counts, held, strict=True):
                    part[:, row, :, :count] = moved
        if self.sinks:
            self.dropped[targets] = self.dropped[sources]

    def wipe(self, row: int) -> None:
        """Zeros: NaN in a slot would break even those that do not look at it."""
        self.keys[:, row] = 0
        self.values[:, row] = 0
        self.dropped[row] = 0
