"""Passes over pieces of prompts as CUDA graphs: by the model's own operators, and of few tokens by the kernels of
decoding. Not here: which pieces (prompts.py), the kernels (kernels.py), their launch (fused.py)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from babyllama.infer.decoding import Decoder, tiles_for
from babyllama.infer.fused import suits
from babyllama.infer.rows import Rows
from babyllama.infer.step import SLOTS, Recorder, any_shape, power
from babyllama.model.cache import KVCache
from babyllama.model.transformer import Transformer

SHORT, RECORDED = 16, 2048  # tokens of a piece at least, of a pass at most that a graph computes
COPIED = 1 << 15  # slots that such a pass copies at most
MANY = 8192  # tokens of such a pass at most where little comes before its pieces
LEAST, MOST = 16, 128  # tokens of a pass of few: a tensor core takes as many at least; more were not measured
SEEN = 1 << 15  # slots that all tokens of such a pass see together, at most: each reads them by itself


class Reader:
    """Every token is a row of a batch; rows of one text share its slots, and each sees those up to its own.

    Five kernels a layer instead of some fifty: what a short prompt costs is their number. One for each state of rows
    and cache, whose tensors its graphs read.
    """

    def __init__(self, model: Transformer, rows: Rows, cache: KVCache, record: Recorder) -> None:
        self.model, self.rows, self.cache, self.record = model, rows, cache, record
        self.works = suits(model, cache)
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor] | None] = {}
        self.decoders: dict[tuple[int, int], tuple[Decoder, Tensor]] = {}

    def __call__(self, pieces: Sequence[list[int]], starts: Sequence[int], rows: Sequence[int]) -> Tensor | None:
        """Logits (B, V) after the last token of each piece, which comes after `starts` tokens of its row, until the
        next call; None for more than it takes."""
        count, end = sum(map(len, pieces)), max(start + len(piece) for start, piece in zip(starts, pieces, strict=True))
        B, T = power(len(pieces)), max(LEAST, power(count))
        if not self.works or T > MOST or T * power(end) > SEEN:
            return None
        fed = [(token, start + n, row) for piece, start, row in zip(pieces, starts, rows, strict=True)
               for n, token in enumerate(piece)]  # fmt: skip
        fed += fed[-1:] * (T - count)  # filled up by the last token, which then writes the same again
        last = [length - 1 for length in itertools.accumulate(map(len, pieces))]
        columns = itertools.chain(*zip(*fed, strict=True), last, last[-1:] * (B - len(last)))
        return self._run(T, B, torch.tensor(list(columns)))[: len(pieces)]

    def warm(self) -> None:
        """Compile and record all there is, while no row holds anything."""
        if not self.works:
            return
        sizes = [LEAST << n for n in range((MOST // LEAST).bit_length())]
        with ThreadPoolExecutor() as pool:  # the compiler leaves Python to others most of the time
            list(pool.map(Decoder.compile, [self._decoder(T, 1)[0] for T in sizes]))
        for T in sizes:
            for B in (1 << n for n in range(power(min(T, self.rows.count)).bit_length())):
                for _ in ("launched", "recorded"):
                    self._run(T, B, torch.zeros(3 * T + B, dtype=torch.int64))

    def _decoder(self, T: int, B: int) -> tuple[Decoder, Tensor]:
        """One of T tokens, and what it and B pieces are fed."""
        if (T, B) not in self.decoders:
            inputs = torch.zeros(3 * T + B, dtype=torch.int64, device=self.rows.device)
            tokens, places, rows = inputs[: 3 * T].view(3, T).unbind()
            decoder = Decoder(self.model, self.rows, self.cache, T, tiles_for(T), fed=(tokens, places, rows))
            self.decoders[T, B] = decoder, inputs
        return self.decoders[T, B]

    def _run(self, T: int, B: int, fed: Tensor) -> Tensor:
        """fed (3 T + B,): T tokens, their places, their rows; which are the last."""
        decoder, inputs = self._decoder(T, B)
        inputs.copy_(fed.pin_memory() if inputs.is_cuda else fed, non_blocking=True)
        return self.record.repeated(self.graphs, (T, B), lambda: decoder.read(inputs[3 * T :]))


class Passes:
    """Passes over pieces of prompts as CUDA graphs: launched one by one, a short pass's kernels take longer to launch
    than to compute. Pieces, their tokens and the slots that are read are filled up to powers of two.
    """

    def __init__(self, model: Transformer, rows: Rows, cache: KVCache) -> None:
        self.model, self.rows, self.cache, self.record = model, rows, cache, Recorder()
        self.versions, self.reader = (0, 0), Reader(model, rows, cache, self.record)
        self.graphs: dict[tuple[int, int, int, str | None], tuple[torch.cuda.CUDAGraph, Tensor] | None] = {}
        self.inputs: dict[tuple[int, int], Tensor] = {}  # of graphs that take B pieces of T tokens

    def __call__(self, pieces: Sequence[list[int]], starts: Sequence[int], rows: Sequence[int],
                 adapter: str | None) -> Tensor | None:  # fmt: skip
        """Logits (B, V) after the last token of each piece, which comes after `starts` tokens of its row, until the
        next call. None where a pass is too large to gain by it."""
        self._renew()
        if adapter is None and (found := self.reader(pieces, starts, rows)) is not None:
            return found
        longest = max(map(len, pieces))
        B, T = power(len(pieces)), max(SHORT, power(longest))
        end = max(T if B * T > RECORDED else SLOTS, power(max(starts) + longest))
        end = min(self.cache.max_tokens, end)
        if not fits(B, T, end):
            return None
        # Filled up by tokens of the piece, and by the last piece once more: it then writes the same twice.
        fed = [[*piece, *piece[-1:] * (T - len(piece)), start, row, len(piece) - 1]
               for piece, start, row in zip(pieces, starts, rows, strict=True)]  # fmt: skip
        return self._run(torch.tensor(fed + fed[-1:] * (B - len(fed))), T, end, adapter)[: len(pieces)]

    def warm(self) -> None:
        """Record all there is, while no row holds anything."""
        self._renew()
        self.reader.warm()
        slots = [1 << n for n in range(power(SLOTS).bit_length() - 1, power(self.cache.max_tokens).bit_length())]
        lengths = [SHORT << n for n in range((MANY // SHORT).bit_length())]
        for B in (1 << n for n in range(power(self.rows.count).bit_length())):
            for T in lengths:
                ends = {min(self.cache.max_tokens, end) for end in (slots if B * T <= RECORDED else (T, 2 * T))}
                for end in ends or {self.cache.max_tokens}:
                    if fits(B, T, end) and power(end) >= T:
                        fed = torch.zeros(B, T + 3, dtype=torch.int64)
                        for _ in ("launched", "recorded"):
                            self._run(fed, T, end, None)

    def _renew(self) -> None:
        versions = self.rows.version, self.cache.version
        if self.versions != versions:  # the graphs read tensors that are gone
            self.graphs, self.record, self.versions = {}, Recorder(), versions
            self.reader = Reader(self.model, self.rows, self.cache, self.record)

    def _run(self, fed: Tensor, T: int, end: int, adapter: str | None) -> Tensor:
        """fed (B, T + 3): tokens, the number of the first in its text, the row, the last one's place."""
        B, V = len(fed), self.rows.vocab_size
        inputs = self.inputs.setdefault((B, T), torch.empty_like(fed, device=self.rows.device))
        inputs.copy_(fed.pin_memory() if inputs.is_cuda else fed, non_blocking=True)

        def compute() -> Tensor:
            tokens, (start, row, last) = inputs[:, :T], inputs[:, T:].unbind(1)
            numbers = start[:, None] + torch.arange(T, device=inputs.device)
            numbers = numbers.clamp(max=self.cache.max_tokens - 1)  # only what fills up comes that far
            with any_shape(inputs.device):
                hidden = self.model.hidden(tokens, numbers, cache=self.cache.part(row, end))
            return self.model.lm_head(hidden[torch.arange(B, device=inputs.device), last])[:, :V]

        return self.record.repeated(self.graphs, (B, T, end, adapter), compute)


def fits(B: int, T: int, end: int) -> bool:
    """Whether B pieces of T tokens that read `end` slots are short enough to gain by a graph."""
    return (MANY if end <= 2 * T else RECORDED) >= B * T and B * end <= COPIED
