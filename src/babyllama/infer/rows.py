"""What a step reads and writes of every row beside its keys and values: tensors on the device, of fixed shapes.

So a step asks the host nothing, and a CUDA graph can replay it: the token to feed, its position, the sampling rules,
where the random numbers begin and how far they are used up. Row r of these and row r of the cache belong together.
Not here: which request has which row (engine.py), what the rules mean (choosing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from babyllama.infer.choosing import Uses, begin, choose, numbers
from babyllama.infer.request import Request, TokenMask
from babyllama.infer.sampling import used_by

SKIPPED = -2  # in the place of a token: this row made none in this one of the n steps
TABLES = ("seen", "counts", "bias", "mask")


@dataclass
class Sampled:
    """Tokens of n steps, (n, B) int64, on the device; NOT_FINITE where a row has none, SKIPPED where it stood still.

    Attributes:
        logprobs: (n, B) float32.
        top, top_logprobs: (n, B, K), the likeliest tokens first. All three None where no row asks.
    """

    tokens: Tensor
    logprobs: Tensor | None = None
    top: Tensor | None = None
    top_logprobs: Tensor | None = None


def sent(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor, or (nested) lists of numbers, on the device. On a GPU it is on its way: what is launched from now on
    finds it there, and the host need not wait for what was launched before."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def numbered(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """Rows by which a tensor is indexed: neighbours as a slice, for which the device need be told nothing."""
    together = rows[-1] - rows[0] + 1 == len(rows)  # they are ascending
    return slice(rows[0], rows[-1] + 1) if together else sent(rows, device)


class Rows:
    """The state of `count` rows.

    Attributes:
        token, position: (rows,) int64, what a row feeds next and the number of that token in its text.
        counter: (rows,) int64, tokens of its answer so far.
        begin: (rows,) int64, where a row's stream of random numbers begins, of which `counter` says the next one.
        rules: (rows, 7) float32, see `choosing.scores`.
        seen, counts, bias, mask: (rows, V), see there; None until a request asks. The mask is packed: (rows, ⌈V/32⌉).
        ends: (V,) uint8 on the CPU, tokens that end the answer of any request so far.
        live: (1,) int64: rows from this one on are not decoding, and what a step does to them is undone.
        version: changes when the tensors are other ones than before; `tables`: the same for seen, counts, bias, mask.
    """

    def __init__(self, vocab_size: int, count: int, device: torch.device) -> None:
        self.vocab_size, self.count, self.device, self.version, self.tables = vocab_size, count, device, 0, 0
        self.live, self._going = torch.zeros(1, dtype=torch.int64, device=device), 0
        self.ends, self._ends = torch.zeros(vocab_size, dtype=torch.uint8), frozenset[int]()
        self.seen = self.counts = self.bias = self.mask = None
        self.resize([], count)

    def resize(self, kept: Sequence[int], count: int) -> None:
        """Another number of rows. The old rows `kept` become the first ones."""
        old = dict(vars(self))
        self.count, self.index = count, torch.arange(count, device=self.device)
        self.token, self.position, self.counter, self.begin = (torch.zeros_like(self.index) for _ in range(4))
        self.rules = torch.zeros(count, 7, device=self.device)
        for name in TABLES:
            if old[name] is not None:
                setattr(self, name, self._table(name))
        for name in self._names() if kept else ():
            getattr(self, name)[: len(kept)] = old[name][list(kept)]
        self.version += 1

    def _table(self, name: str) -> Tensor:
        if name == "mask":
            return torch.full((self.count, -(-self.vocab_size // 32)), -1, dtype=torch.int32, device=self.device)
        dtype = torch.bool if name == "seen" else torch.float32
        return torch.zeros(self.count, self.vocab_size, dtype=dtype, device=self.device)

    def _names(self) -> list[str]:
        tables = [name for name in TABLES if getattr(self, name) is not None]
        return ["token", "position", "counter", "begin", "rules", *tables]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """The rows `sources` become the rows `targets`, the same ones in another order."""
        for name in self._names():
            tensor = getattr(self, name)
            tensor[targets] = tensor[sources]

    def go(self, count: int) -> None:
        """Those before row `count` decode from now on."""
        if count != self._going:
            self.live.fill_(count)
            self._going = count

    def place(self, rows: Sequence[int], jobs: Sequence[tuple[Request, Sequence[int]]]) -> None:
        """Give rows, ascending, to requests, each with its answer so far, often empty."""
        state, rules = [], []
        for request, answer in jobs:
            given = len(answer)
            fed, drawn = answer[-1] if answer else 0, request.sampling.temperature > 0
            state.append((fed, given, len(request.prompt) + given - 1, begin(request.draws_by) if drawn else 0))
            rules.append(request.sampling.rule)
        which = numbered(rows, self.device)
        told = sent(state, self.device).unbind(1)
        self.token[which], self.counter[which], self.position[which], self.begin[which] = told
        self.rules[which] = sent(rules, self.device, torch.float32)
        requests = [request for request, _ in jobs]
        uses = used_by((one.sampling for one in requests), any(one.mask is not None for one in requests))
        tables = uses.penalties or uses.bias or uses.mask or any(getattr(self, name) is not None for name in TABLES)
        for row, (request, answer) in zip(rows, jobs, strict=True):
            if tables:
                self._place_tables(row, request, answer)
            if not self._ends.issuperset(request.stop):
                self._ends |= frozenset(token for token in request.stop if token < self.vocab_size)
                self.ends[list(self._ends)] = 1

    def _place_tables(self, row: int, request: Request, answer: Sequence[int]) -> None:
        """The row of each table that is there, or that this request is the first to ask for."""
        uses = used_by([request.sampling], request.mask is not None)
        needed = {"seen": uses.penalties, "counts": uses.penalties, "bias": uses.bias, "mask": uses.mask}
        for name in TABLES:
            if needed[name] and getattr(self, name) is None:
                setattr(self, name, self._table(name))
                self.tables += 1
        if self.seen is not None and self.counts is not None and uses.penalties:
            self.seen[row], self.counts[row] = self._seen(request), self._counts(answer)
        if self.bias is not None:
            self.bias[row] = 0
            for token, bias in request.sampling.logit_bias.items():
                self.bias[row, token] = bias
        if self.mask is not None:
            self.mask[row] = -1

    def allow(self, row: int, mask: TokenMask) -> None:
        """Ask which tokens may come next."""
        words = torch.zeros(-(-self.vocab_size // 32), dtype=torch.int32)
        mask.fill(words)
        if self.mask is not None:
            self.mask[row] = words.to(self.device)

    def rest(self, idle: Sequence[tuple[int, int, int]]) -> None:
        """What idle rows feed in a graph that computes them too, harmless to what they hold: (row, token, position)."""
        row, token, position = sent(idle, self.device).unbind(1)
        self.token[row], self.position[row] = token, position

    def _seen(self, request: Request) -> Tensor:
        """(V,) bool: the prompt's tokens. Not stop tokens, unlike in transformers: a chat is full of them, and
        ending is no repetition."""
        seen = torch.zeros(self.vocab_size, dtype=torch.bool)
        ids = set(request.prompt) - set(request.stop)
        seen[torch.tensor([i for i in ids if i < self.vocab_size], dtype=torch.long)] = True
        return seen

    def _counts(self, answer: Sequence[int]) -> Tensor:
        return torch.bincount(torch.tensor(answer, dtype=torch.long), minlength=self.vocab_size).float()

    def choose(self, which: slice | Tensor, logits: Tensor, uses: Uses, live: Tensor | None = None) -> Sampled:
        """Logits (B, V) of some rows → their next tokens, which they feed next. Asks the host nothing.

        Args:
            which: a slice of rows, or their numbers (B,).
            live: (B,) bool, whose state goes on; by default those below `self.live`, or all that are numbered.
        """
        rows, counter = self.index[which], self.counter[which]
        draws = numbers(self.begin[which], counter) if uses.drawn else counter  # at which nobody looks then
        state = {name: None if (table := getattr(self, name)) is None else table[which] for name in TABLES[:3]}
        allowed = self._allowed(which) if uses.mask else None
        tokens = choose(logits, self.rules[which], draws, uses, allowed=allowed, **state)
        fed = tokens.clamp(min=0)
        if live is None:
            live = rows < self.live if isinstance(which, slice) else torch.ones_like(rows, dtype=torch.bool)
        self.token[which] = torch.where(live, fed, self.token[which])
        self.counter[which] += live
        self.position[which] += live
        if uses.penalties and self.counts is not None:
            self.counts.index_put_((rows, fed), live.float(), accumulate=True)
        return self._told(tokens, logits, uses)

    def _allowed(self, which: slice | Tensor) -> Tensor | None:
        """(B, V) bool of the packed mask."""
        if self.mask is None:
            return None
        bits = torch.arange(32, dtype=torch.int32, device=self.device)
        return ((self.mask[which][..., None] >> bits) & 1).bool().flatten(1)[:, : self.vocab_size]

    @staticmethod
    def _told(tokens: Tensor, logits: Tensor, uses: Uses) -> Sampled:
        if uses.logprobs is None:
            return Sampled(tokens[None])
        logprobs = logits.float().log_softmax(-1)
        top = logprobs.topk(min(uses.logprobs, logprobs.shape[-1]))
        chosen = logprobs.gather(-1, tokens.clamp(min=0)[:, None])[:, 0]
        return Sampled(tokens[None], chosen[None], top.indices[None], top.values[None])
