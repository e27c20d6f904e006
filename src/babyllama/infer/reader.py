"""Few tokens of prompts by the kernels of decoding, as CUDA graphs. Not here: the kernels (kernels.py), their launch
(fused.py), longer pieces (prompts.py)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from babyllama.infer.fused import Decoder, packed, suits, tiles_for
from babyllama.infer.rows import Rows
from babyllama.infer.step import Recorder, power
from babyllama.model.cache import KVCache
from babyllama.model.transformer import Transformer

LEAST, MOST = 16, 128  # tokens of a pass: a tensor core takes as many at least; more were not measured
SEEN = 1 << 15  # slots that all tokens of a pass see together, at most: each reads them by itself


class Reader:
    """Every token is a row of a batch; rows of one text share its slots, and each sees those up to its own.

    Five kernels a layer instead of some fifty: what a short prompt costs is their number. One for each state of rows
    and cache, whose tensors its graphs read.
    """

    def __init__(self, model: Transformer, rows: Rows, cache: KVCache, record: Recorder) -> None:
        self.model, self.rows, self.cache, self.record = model, rows, cache, record
        self.works = suits(model, cache) and not packed(model)
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
        key, (decoder, inputs) = (T, B), self._decoder(T, B)
        inputs.copy_(fed.pin_memory() if inputs.is_cuda else fed, non_blocking=True)
        if key not in self.graphs:
            self.graphs[key] = None
            return decoder.read(inputs[3 * T :])
        found = self.graphs[key] or self.record(lambda: decoder.read(inputs[3 * T :]))
        if found is None:
            return decoder.read(inputs[3 * T :])
        self.graphs[key] = found
        found[0].replay()
        return found[1]
