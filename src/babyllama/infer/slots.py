"""Which request has which row of the cache: the longest prefix that is already there, room, and order.

Invariant after `arrange`: rows that decode come first (those of one adapter side by side), then those that still read
their prompts, in order of arrival, then idle ones; so every step works on a slice. Idle rows keep their tokens until
the row is needed. In one file although it is long: finding, giving, exchanging and adding rows keep one invariant.
Not here: when a request gets a row (engine.py).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from babyllama.infer.choosing import NOT_FINITE
from babyllama.infer.guess import Guess
from babyllama.infer.request import Finish, Request
from babyllama.infer.rows import SKIPPED, Rows, sent
from babyllama.model.cache import KVCache

SMALLEST = 64  # slots that a cache has at least; then twice as many each time
WORTH = 16  # first tokens that a text must share with one that is going on: to copy fewer costs more than to read them
RECENT = 32  # idle rows that are looked at for fewer
KEPT = 8  # idle conversations for which a cache grows before the oldest is given up


@dataclass
class Job:
    """A request at work: `known` is its prompt and the answer so far. `room`: tokens that the answer may have.
    `ahead`: so many more are computed, or being computed, and not known yet."""

    id: int
    request: Request
    room: int
    known: list[int] = field(init=False)
    start: int = field(init=False)  # tokens of the prompt
    ends: frozenset[int] = field(init=False)  # its stop tokens, and what stands where no token is
    ahead: int = 0
    guess: Guess | None = None

    def __post_init__(self) -> None:
        self.known, self.ends = list(self.request.prompt), frozenset(self.request.stop) | {NOT_FINITE, SKIPPED}
        self.start = len(self.known)

    @property
    def answer(self) -> list[int]:
        return self.known[self.start :]

    @property
    def given(self) -> int:
        """Tokens of the answer that are known."""
        return len(self.known) - self.start

    def cut(self, tokens: list[int]) -> tuple[list[int], Finish | None]:
        """Of tokens that came, those that belong to the answer, and how it ends with the last of them, if it does."""
        room = self.room - len(self.known) + self.start
        if len(tokens) < room and self.ends.isdisjoint(tokens):
            return tokens, None
        if SKIPPED in tokens:
            tokens = tokens[: tokens.index(SKIPPED)]
        tokens = tokens[:room]
        if not self.ends.isdisjoint(tokens):
            last = next(i for i, token in enumerate(tokens) if token in self.ends)
            return (tokens[:last], "error") if tokens[last] == NOT_FINITE else (tokens[: last + 1], "stop")
        return tokens, "length" if len(tokens) == room else None


@dataclass(eq=False)
class Slot:
    """A row of the cache: the tokens whose keys and values it holds.

    `plain`: so many of them were read while the text was within the trained context, so that they are what any text
    that begins with them would have. `dropped`: so many are gone again, after the sinks.
    """

    tokens: list[int] = field(default_factory=list)
    head: tuple[int, ...] = ()  # the first WORTH of them
    adapter: str | None = None
    plain: int = 0
    dropped: int = 0
    job: Job | None = None
    last: int = 0  # when it was last in use
    placed: bool = False  # whether the device knows the job

    @property
    def decoding(self) -> bool:
        return self.job is not None and self.job.given + self.job.ahead > 0

    @property
    def held(self) -> int:
        """Tokens whose keys and values the row holds once all that was launched is computed."""
        if self.job is None or not self.job.ahead:
            return len(self.tokens)
        return len(self.job.known) + self.job.ahead - 1


class Slots:
    """All rows. `trained`: tokens within which a law that goes by the length leaves the frequencies as they are."""

    def __init__(self, cache: KVCache, rows: Rows, most: int, context: int, trained: int = sys.maxsize) -> None:
        self.cache, self.rows, self.most, self.context, self.trained = cache, rows, most, context, trained
        self.all = [Slot() for _ in range(rows.count)]
        self.idle: dict[Slot, None] = dict.fromkeys(self.all)  # rows without a job: empty ones, then by their last use
        self.clock, self.stale = 0, False  # stale: the rows may be out of order
        self.blank = True  # no row holds a token
        self.heads: dict[tuple[int, ...], dict[Slot, None]] = {}  # rows by their first WORTH tokens
        self._released: list[Slot] = []  # since the rows were last in order
        self.least = 1, SMALLEST  # rows and slots that `trim` leaves

    @property
    def active(self) -> list[Slot]:
        return [slot for slot in self.all if slot.job is not None]

    # ── getting and giving up a row ────────────────────────────────────────────────────────────────────────────
    def admit(self, job: Job) -> bool:
        """Give the job a row with as much of its prompt as any row holds; False where all are in use."""
        if not self.idle and len(self.all) == self.most:
            return False
        best, shared = self._longest(job)
        fits = best is not None and best.job is None and 2 * shared >= len(best.tokens)
        slot = best if fits and best is not None else self._free()
        if slot is not best:
            self._restart(slot)
            shared = 0 if self.cache.sinks else shared  # a ring that has turned has no prefix to copy
            if shared and best is not None:
                self.cache.copy(self.all.index(best), self.all.index(slot), shared)
                slot.plain = best.plain
        slot.tokens, slot.plain = job.known[:shared], min(slot.plain, shared)
        self._begins(slot)
        slot.adapter, slot.job, slot.placed, self.stale = job.request.adapter, job, False, True
        del self.idle[slot]
        self.reserve(len(job.known) + 1)
        return True

    def release(self, slot: Slot, broken: bool = False) -> None:
        """The job is done; a broken row forgets its tokens."""
        self.clock += 1
        if self.cache.sinks:  # also for what was computed too far
            slot.dropped = max(slot.dropped, slot.held - self.cache.window)
        slot.job, slot.last, slot.placed, self.stale = None, self.clock, False, True
        self.idle[slot] = None
        if broken:
            with torch.inference_mode():  # here alone: to enter it costs more than all the rest
                self.cache.wipe(self.all.index(slot))
            self._restart(slot)
            self.idle = {slot: None, **self.idle}
        self._released.append(slot)

    def again(self) -> None:
        """After an interruption: nothing is on its way, the device is told all of the jobs once more, and what gives
        an answer's first token is read once more."""
        self.stale = True
        for slot in self.active:
            slot.placed = False
            if slot.job is not None:
                slot.job.ahead = 0
                if not slot.job.given:
                    slot.tokens = slot.tokens[: slot.job.start - 1]
                    slot.plain = min(slot.plain, len(slot.tokens))
                    self._begins(slot)

    def read(self, slot: Slot, tokens: Sequence[int], length: int) -> None:
        """The row has read these too, as part of a text of `length` tokens."""
        plain = slot.plain == len(slot.tokens) and length <= self.trained
        self.blank = False
        slot.tokens += tokens
        if len(slot.head) < WORTH:
            self._begins(slot)
        slot.plain = len(slot.tokens) if plain else slot.plain
        if self.cache.sinks:
            slot.dropped = max(slot.dropped, len(slot.tokens) - self.cache.window)

    def decoded(self, slot: Slot, tokens: Sequence[int], length: int) -> None:
        """The row has read these one by one, the first as the last of a text of `length` tokens."""
        if length + len(tokens) - 1 <= self.trained or length > self.trained:
            self.read(slot, tokens, length)
        else:
            for i, token in enumerate(tokens):
                self.read(slot, [token], length + i)

    def _longest(self, job: Job) -> tuple[Slot | None, int]:
        """The row that holds most of the job's prompt, and how much; rather an idle one, and the one used last.

        Of a text that is going on at least WORTH tokens; where no row has so many, one of the RECENT idle ones that has
        about as many as any of them.
        """
        if self.blank:
            return None, 0
        known = job.known[:-1]  # its last token has to be read in any case
        head, adapter = tuple(known[:WORTH]), job.request.adapter
        best, most = None, (0, False, -1)
        for slot in self.heads.get(head, ()):
            if slot.tokens[: most[0]] == known[: most[0]]:  # else it holds less than one before
                share = self._shared(slot, job, known), slot.job is None, slot.last
                best, most = (slot, share) if share > most else (best, most)
        if most[0] or not head:
            return (best, most[0]) if most[0] else (None, 0)
        like, count = [*itertools.islice(reversed(self.idle), RECENT)][::-1], 1
        while count < WORTH and (found := [s for s in like if s.head[:count] == head[:count] and s.adapter == adapter]):
            like, best, count = found, found[-1], 2 * count
        share = 0 if best is None else self._shared(best, job, known)
        return (best, share) if share else (None, 0)

    def _begins(self, slot: Slot) -> None:
        """Note what the row's text begins with."""
        if (rows := self.heads.get(slot.head)) is not None:
            rows.pop(slot, None)
            if not rows:
                del self.heads[slot.head]
        slot.head = tuple(slot.tokens[:WORTH])
        if len(slot.head) == WORTH:
            self.heads.setdefault(slot.head, {})[slot] = None

    def _shared(self, slot: Slot, job: Job, known: list[int]) -> int:
        """How many tokens of `known` the row holds in a form that serves the job."""
        if slot.adapter != job.request.adapter or not known:
            return 0
        shared = min(shared_prefix(slot.tokens, known), slot.plain if len(job.known) <= self.trained else 0)
        if slot.dropped and (shared < len(slot.tokens) or slot.dropped > len(slot.tokens) - self.cache.window):
            return 0  # what is gone would be missed: only the whole text may go on without it
        return shared

    def _free(self) -> Slot:
        """An empty row, a new one, or the one that was idle longest."""
        oldest = next(iter(self.idle), None)
        if oldest is None or (oldest.tokens and len(self.idle) < KEPT and len(self.all) < self.most):
            self._resize(min(self.most, 2 * len(self.all)), self.cache.max_tokens)
            oldest = next(iter(self.idle))
        return oldest

    def _restart(self, slot: Slot) -> None:
        slot.tokens, slot.plain, slot.dropped = [], 0, 0
        self._begins(slot)
        if self.cache.sinks:
            self.cache.dropped[self.all.index(slot)] = 0

    # ── room ───────────────────────────────────────────────────────────────────────────────────────────────────
    def open(self, rows: int, end: int) -> None:
        """At least so many rows, with slots for `end` tokens."""
        rows = max(len(self.all), min(self.most, 1 << (rows - 1).bit_length()))
        slots = max(self.cache.max_tokens, min(self.context, _power(end)))
        if rows > len(self.all) or slots > self.cache.max_tokens:
            self._resize(rows, slots)

    def reserve(self, end: int) -> None:
        """Slots for `end` tokens in every row."""
        if min(end, self.context) > self.cache.max_tokens:
            self._resize(len(self.all), min(self.context, _power(end)))

    @torch.inference_mode()
    def fill(self, room: int) -> int:
        """Take `room` bytes, or less, for as many rows of a whole context as can be: how many there are from now on."""
        row = self.cache.row_bytes(self.context)
        self.most = max(1, min(self.most, room // row))
        self._resize(self.most, self.context)
        self.least = self.most, self.context
        return self.most

    def forget(self) -> None:
        """No row's tokens are a prefix of anything any more, and none is at work; the memory stays. Rows are given in
        their order again, so that requests that come together need not change places."""
        self.idle, self.blank = dict.fromkeys(self.all), True
        for slot in self.idle:
            self._restart(slot)

    @torch.inference_mode()
    def trim(self, keep: int = 0) -> None:
        """Forget all idle rows but the `keep` newest, and give their memory back."""
        idle = [slot for slot in self.idle if slot.tokens]
        for slot in idle[: max(0, len(idle) - keep)]:
            self._restart(slot)
        held = [slot for slot in self.all if slot.job is not None or slot.tokens]
        longest = max((max(s.held, len(s.job.known) if s.job else 0) for s in held), default=0) + 1
        rows = max(self.least[0], 1 << max(len(held) - 1, 0).bit_length())
        slots = max(self.least[1], min(self.context, _power(longest)))
        if rows < len(self.all) or slots < self.cache.max_tokens:
            self._resize(min(rows, len(self.all)), min(slots, self.cache.max_tokens), held)

    def _resize(self, rows: int, max_tokens: int, held: list[Slot] | None = None) -> None:
        held = self.all if held is None else held
        kept = [self.all.index(slot) for slot in held]
        self.cache.resize(kept, rows, max_tokens)
        if rows != len(self.all) or len(held) != len(self.all):
            self.rows.resize(kept, rows)
        self.all = [*held, *(Slot() for _ in range(rows - len(held)))]
        idle = (slot for slot in self.all if slot.job is None)
        self.idle = dict.fromkeys(sorted(idle, key=lambda slot: (bool(slot.tokens), slot.last)))

    # ── order ──────────────────────────────────────────────────────────────────────────────────────────────────
    def arrange(self) -> bool:
        """Exchange as few rows as the invariant needs; whether anything may have changed since the last time."""
        if not self.stale:
            return False
        self.stale, before = False, list(self.all)
        kinds = list(map(_class, before))
        wrong = [row for row, kind in enumerate(sorted(kinds)) if kinds[row] != kind]
        moved = sorted(wrong, key=kinds.__getitem__)
        for target, source in zip(wrong, moved, strict=True):
            self.all[target] = before[source]
        if wrong:
            self._move(moved, wrong)
        numbers = {slot: row for row, slot in enumerate(self.all)} if self._released else {}
        released = (numbers[slot] for slot in self._released if slot in numbers)
        idle = [(row, self.all[row]) for row in dict.fromkeys([*released, *wrong]) if self.all[row].job is None]
        if idle:
            self.rows.rest([(row, slot.tokens[-1] if slot.tokens else 0, len(slot.tokens)) for row, slot in idle])
        self._released = []
        return True

    def _move(self, sources: list[int], targets: list[int]) -> None:
        """Tell the device which rows are others than before: state that it still needs, and what they hold."""
        pairs = [(source, target, self.all[target]) for source, target in zip(sources, targets, strict=True)]
        if known := [(source, target) for source, target, slot in pairs if slot.placed]:
            old, new = sent(known, self.rows.device).unbind(1)
            self.rows.move(old, new)
        # A row that holds nothing may have whatever is there; a ring is told so.
        if held := [one for one in pairs if one[2].held or self.cache.sinks]:
            old, new = sent([one[:2] for one in held], self.rows.device).unbind(1)
            self.cache.move(old, new, [slot.held for _, _, slot in held])


def _class(slot: Slot) -> tuple[int, str, int]:
    """The order of rows."""
    if slot.job is None:
        return 2, "", 0
    adapter = slot.adapter or ""
    return (0, adapter, 0) if slot.decoding else (1, "", slot.job.id)


def _power(count: int) -> int:
    return max(SMALLEST, 1 << (count - 1).bit_length())


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the start."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    equal, unequal = 0, length  # so many are equal, among so many one is not
    while unequal - equal > 1:
        middle = min(2 * equal + 1, (equal + unequal) // 2)  # most differ early
        equal, unequal = (middle, unequal) if one[equal:middle] == other[equal:middle] else (equal, middle)
    return equal
