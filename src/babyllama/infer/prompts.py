"""Reading several tokens of several rows in one pass: pieces of prompts. Not here: when (engine.py)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from babyllama.infer.choosing import Uses
from babyllama.infer.fused import choose_of, plain, runs
from babyllama.infer.native import MOST_READ, native
from babyllama.infer.passes import Passes
from babyllama.infer.rows import Rows, Sampled, numbered, sent
from babyllama.infer.sampling import used_by
from babyllama.infer.slots import Slot, Slots
from babyllama.infer.step import any_shape
from babyllama.infer.threads import wide
from babyllama.model.cache import KVCache
from babyllama.model.transformer import Transformer

ALONE, LEAST = 8192, 64  # prompt tokens a step when no row decodes, and at least of each prompt
BESIDE = {"cpu": 512, "cuda": 4096}  # beside rows that decode: on a GPU a pass over fewer takes as long


class Prompts:
    """The pieces of prompts that are read in a step, an equal share of each: a long one holds nobody up."""

    def __init__(self, model: Transformer, rows: Rows, cache: KVCache, slots: Slots) -> None:
        self.model, self.rows, self.cache, self.slots = model, rows, cache, slots
        known = model.rope.static and cache.rotated and not cache.sinks
        self.passes = Passes(model, rows, cache) if rows.device.type == "cuda" and known else None

    def warm(self) -> None:
        """On a GPU compile and record what passes replay, while no row holds anything."""
        if self.passes is None:
            return
        self.passes.warm()
        if runs(self.rows.device):
            choose_of(self.rows, self.rows.index[:1], torch.zeros(1, self.rows.vocab_size, device=self.rows.device))

    def next(self, slots: list[Slot], decoding: int) -> list[Slot]:
        """Those of `slots`, which read in order of arrival, that are served now: one adapter's, and with sinks one,
        since what pads a piece would stay in its ring. What is read once counts once."""
        budget = BESIDE.get(self.rows.device.type, BESIDE["cpu"]) if decoding else ALONE
        like = self._like(slots)
        self.share = max(LEAST, budget // len(set(like)))
        together = not decoding and self.rows.device.type == "cuda"
        found, once, longest, far = list[Slot](), 0, 0, 0
        for row, slot in enumerate(slots):
            longest = max(longest, piece := len(self._piece(slot)))  # the others of the pass are filled up to it
            far = max(far, len(slot.tokens) + piece)
            count = (once + (like[row] == row)) * longest
            # Many short prompts that begin together also go on in step: no more attention than one long prompt's.
            fits = count <= budget or (together and count * far <= ALONE**2)
            if found and (slot.adapter != slots[0].adapter or self.cache.sinks or not fits):
                break
            found.append(slot)
            once += like[row] == row
        return found

    def read(self, slots: list[Slot], first: int) -> list[tuple[list[Slot], Sampled]]:
        """Read the next pieces of neighbouring rows from `first` on; the first tokens where a prompt ends. Equal
        prompts that are equally far are read once."""
        pieces = [self._piece(slot) for slot in slots]
        whole = [len(slot.job.request.prompt) for slot in slots if slot.job is not None]
        read = [len(slot.tokens) + len(piece) for slot, piece in zip(slots, pieces, strict=True)]
        like = self._like(slots)
        once = sorted(set(like))  # these alone are read
        ended = [row for row in once if read[row] == whole[row]]
        logits = self._after([slots[row] for row in once], [pieces[row] for row in once], [first + row for row in once],
                             [number for number, row in enumerate(once) if read[row] == whole[row]],
                             [min(whole[row], self.cache.window) for row in once])  # fmt: skip
        if copied := [row for row in range(len(slots)) if like[row] != row]:
            begin = min(len(slots[row].tokens) for row in copied)
            self.cache.spread([first + like[row] for row in copied], [first + row for row in copied], begin,
                              max(read[row] for row in copied))  # fmt: skip
        for slot, piece, length in zip(slots, pieces, whole, strict=True):
            self.slots.read(slot, piece, length)
        if logits is None or not ended:
            return []
        place = {row: number for number, row in enumerate(ended)}
        told = [row for row in range(len(slots)) if like[row] in place]
        rows, at = sent([[first + row for row in told], [place[like[row]] for row in told]], self.rows.device)
        done = [slots[row] for row in told]
        return [(done, self._choose(rows, logits if len(told) == len(ended) else logits[at], uses_of(done)))]

    def together(self, prompts: Sequence[list[int]], uses: Uses, starts: Sequence[int]) -> Sampled:
        """What follows prompts, of each of which the first rows hold `starts` tokens; equal ones are read once."""
        firsts = dict[tuple[int, ...] | int, int]()
        like = [firsts.setdefault(row if starts[row] else tuple(prompt), row) for row, prompt in enumerate(prompts)]
        once, pieces = list(firsts.values()), [prompt[starts[row] :] for row, prompt in enumerate(prompts)]
        each = max(1, ALONE // max(map(len, pieces)))
        parts = [once[first : first + each] for first in range(0, len(once), each)]
        logits = torch.cat([self._last([pieces[row] for row in part], [starts[row] for row in part], part)
                            for part in parts])  # fmt: skip
        if copied := [row for row in range(len(prompts)) if like[row] != row]:
            self.cache.spread([like[row] for row in copied], copied, 0, max(map(len, prompts)))
        number = {row: n for n, row in enumerate(once)}
        rows, at = sent([range(len(prompts)), [number[row] for row in like]], self.rows.device)
        return self._choose(rows, logits[at], uses)

    def _choose(self, rows: Tensor, logits: Tensor, uses: Uses) -> Sampled:
        """The next tokens of the rows of these numbers, by one kernel where it can."""
        fused = runs(self.rows.device) and plain(uses)
        return choose_of(self.rows, rows, logits) if fused else self.rows.choose(rows, logits, uses)

    def _last(self, pieces: list[list[int]], starts: list[int], rows: list[int]) -> Tensor:
        """Logits after the last token of each piece, which comes after `starts` tokens of its row."""
        found = None if self.passes is None else self.passes(pieces, starts, rows, None)
        if found is not None:
            return found.clone()  # the next pass writes there
        hidden = self.hidden(starts, pieces, rows, [s + len(p) for s, p in zip(starts, pieces, strict=True)])
        last = sent([len(piece) - 1 for piece in pieces], self.rows.device)
        return self._head(hidden[torch.arange(len(pieces), device=hidden.device), last])

    def _like(self, slots: Sequence[Slot]) -> list[int]:
        """For each the first that has the same prompt and has read as much of it."""
        if self.cache.sinks or not self.cache.rotated:
            return list(range(len(slots)))
        first = dict[tuple[str | None, int, tuple[int, ...]], int]()
        return [first.setdefault((slot.adapter, len(slot.tokens), tuple(slot.job.request.prompt)), row)
                for row, slot in enumerate(slots) if slot.job is not None]  # fmt: skip

    def _after(self, slots: list[Slot], pieces: list[list[int]], rows: list[int], ended: list[int],
               lengths: list[int]) -> Tensor | None:  # fmt: skip
        """Read pieces of some rows; logits after the last tokens of those `ended`, where there are any."""
        ends = list(itertools.accumulate(map(len, pieces)))
        logits = self._compiled(slots, pieces, rows, [ends[number] - 1 for number in ended])
        if logits is None and self.passes is not None:
            logits = self._replayed(slots, pieces, rows, ended)
        if logits is not None:
            return logits
        hidden = self.hidden([len(slot.tokens) for slot in slots], pieces, rows, lengths)
        if not ended:
            return None
        at, last = sent([(number, len(pieces[number]) - 1) for number in ended], self.rows.device).unbind(1)
        return self._head(hidden[at, last])

    def logits(self, slots: list[Slot], pieces: list[list[int]], first: int) -> list[Tensor]:
        """Of what follows each token of a piece, which is fed after each row's tokens: place by place (B, V); a row
        whose piece is shorter repeats its last."""
        ends, longest = list(itertools.accumulate(map(len, pieces))), max(map(len, pieces))
        rows = list(range(first, first + len(slots)))
        found = self._compiled(slots, pieces, rows, list(range(ends[-1])))
        if found is None:
            starts = [len(slot.tokens) for slot in slots]
            hidden = self.hidden(starts, pieces, rows, [start + longest for start in starts])
            return list(self._head(hidden).unbind(1))
        begins = [end - len(piece) for end, piece in zip(ends, pieces, strict=True)]
        return [found[[min(begin + place, end - 1) for begin, end in zip(begins, ends, strict=True)]]
                for place in range(longest)]  # fmt: skip

    def _compiled(self, slots: list[Slot], pieces: list[list[int]], rows: list[int], wanted: list[int]
                  ) -> Tensor | None:  # fmt: skip
        """On a CPU a few tokens go the compiled way: logits (W, V) after the tokens `wanted`, counted through all
        pieces. None where that cannot be, or is not faster."""
        count = sum(map(len, pieces))
        made = native(self.model) if count <= MOST_READ and self.cache.rotated and not self.cache.sinks else None
        if made is None or count > made.most_read:
            return None
        starts = [len(slot.tokens) for slot in slots]
        self.slots.reserve(max(start + len(piece) for start, piece in zip(starts, pieces, strict=True)))
        fed = [(token, start + i, row) for row, start, piece in zip(rows, starts, pieces, strict=True)
               for i, token in enumerate(piece)]  # fmt: skip
        tokens, positions, places = torch.tensor(fed).unbind(1)
        found = made.step(tokens, positions, self.cache, places, torch.tensor(wanted, dtype=torch.int64))
        return found[:, : self.rows.vocab_size]

    def _replayed(self, slots: list[Slot], pieces: list[list[int]], rows: list[int], ended: list[int]
                  ) -> Tensor | None:  # fmt: skip
        """On a GPU a pass that is short goes as a graph: logits after the last token of the pieces `ended`. None where
        it is not short."""
        assert self.passes is not None
        starts = [len(slot.tokens) for slot in slots]
        self.slots.reserve(max(start + len(piece) for start, piece in zip(starts, pieces, strict=True)))
        logits = self.passes(pieces, starts, rows, slots[0].adapter)
        if logits is None or len(ended) == len(slots):
            return logits
        return logits[sent(ended, self.rows.device, torch.int64)]  # maybe none of them

    @wide()
    def _head(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden)[..., : self.rows.vocab_size]

    @wide()
    def hidden(self, starts: Sequence[int], pieces: Sequence[list[int]], rows: Sequence[int], lengths: Sequence[int]
               ) -> Tensor:  # fmt: skip
        """Feed a piece after the first tokens of each row, (B, T, C); rows of shorter pieces are filled up.

        Args:
            starts: how many tokens each row holds.
            lengths: tokens of each row's text, for laws that go by it.
        """
        device, longest = self.rows.device, max(map(len, pieces))
        end = max(starts) + longest
        self.slots.reserve(end)
        # Filled up by tokens of the piece, so that what follows a row is as sound as the row.
        tokens = sent([piece + piece[-1:] * (longest - len(piece)) for piece in pieces], device)
        numbers = sent(starts, device)[:, None] + torch.arange(longest, device=device)
        if not self.cache.sinks:
            numbers = numbers.clamp(max=self.cache.max_tokens - 1)  # only what fills up comes that far
        cache = self.cache.part(numbered(rows, device), min(end, self.cache.max_tokens))
        positions = cache.positions(numbers)
        with any_shape(device):
            return self.model.hidden(tokens, positions, cache=cache, lengths=sent(lengths, device))

    def _piece(self, slot: Slot) -> list[int]:
        """The prompt's next tokens. With sinks: up to the window, then as its cache allows, whoever else is there."""
        assert slot.job is not None
        start, share = len(slot.tokens), self.share
        if self.cache.sinks:
            window = self.cache.window
            share = min(share, window - start) if start < window else self.cache.piece
        return list(slot.job.request.prompt[start : start + share])


def uses_of(slots: Sequence[Slot]) -> Uses:
    """What any of the rows asks for."""
    requests = [slot.job.request for slot in slots if slot.job is not None]
    logprobs = max((r.logprobs for r in requests if r.logprobs is not None), default=None)
    return used_by([r.sampling for r in requests], any(r.mask is not None for r in requests), logprobs)
