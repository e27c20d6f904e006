"""The engine: requests of token ids in, tokens out, many at once. No text, no template.

`add` puts a request in line, each `step` goes one token further with all that are at work, `remove` drops one: prompts
are read in chunks beside the rows that decode, and what a prompt shares with an earlier text is not read again.
`generate` and `stream` are clients of these three. A request gives the same tokens alone and in any company (in
float32). One thread at a time. In one file although it is long: adding, reading, decoding and telling share the state
of every request. Not here: how a token is chosen (choosing.py), one step of decoding (step.py), which row
a request gets (slots.py), the cache (model/cache.py), tokenizers.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from babyllama.errors import InputError
from babyllama.infer.choosing import Uses
from babyllama.infer.fused import FusedStep, suits
from babyllama.infer.guess import Guess, Pace
from babyllama.infer.native import NativeStep
from babyllama.infer.prompts import Prompts, uses_of
from babyllama.infer.request import Event, Proposer, Request
from babyllama.infer.rows import Rows, Sampled
from babyllama.infer.sampling import Sampling
from babyllama.infer.slots import SMALLEST, Job, Slot, Slots
from babyllama.infer.speculate import guessed, verify
from babyllama.infer.step import Captured, Launched, ModelForward, Step, power
from babyllama.infer.threads import Threads
from babyllama.model.cache import KVCache
from babyllama.model.lora import only
from babyllama.model.transformer import Transformer
from babyllama.model.wrappers import Adapted

BROKEN = ("the model's logits are not finite: its weights are damaged, or precision=fp16 is too narrow for it; try "
          "precision=fp32 or an earlier checkpoint")  # fmt: skip
MEMORY = 0.7  # of what a GPU has free, for keys and values of a server
SOME = 4  # steps in a row on a GPU while somebody waits to be read
FIRST = 8  # steps after the first token: a longer graph the host would launch while the GPU waits
MANY = 16  # rows from which those that decode on a GPU do not wait for prompts
SPARE = 1  # tokens too many at most, where one graph then makes all the last ones
UNFIT = "no token goes on in the form that was asked for, or the model's logits are not finite"


class Engine:
    """Generation with one model.

    Args:
        vocab_size: the tokenizer's; the model's rows beyond it are padding and are never drawn.
        sinks: above 0, text may go on without end: so many first tokens and the newest stay in the cache, the rest is
            forgotten.
        slots: requests at work at the same time; the others wait in line.
        make_step: (model, rows, cache) → how decoding is computed; called for each adapter that is in use.
        propose: makes what guesses the next tokens of a request, which are then read at once: `speculate.NGrams` or a
            `speculate.Draft`. It changes no token. Not with sinks, nor with laws that go by the length.

    Attributes:
        ahead: with so many rows at work a step begins the next tokens before it waits for the last ones, so that the
            host works while the GPU does; what ends meanwhile is computed a step too far.

    Raises:
        InputError: more sinks than a context has room for.
    """

    def __init__(self, model: Transformer, vocab_size: int, sinks: int = 0, slots: int = 256,
                 make_step: Callable[[Transformer, Rows, KVCache], Step] | None = None,
                 propose: Callable[[Request], Proposer] | None = None) -> None:  # fmt: skip
        self.model, self.vocab_size, self.sinks = model, vocab_size, sinks
        self.window = model.config.max_position_embeddings
        if 2 * sinks > self.window:
            raise InputError(f"sinks: {sinks} must be at most half of the model's context of {self.window}")
        self.context = sys.maxsize if sinks else self.window
        weight, static = model.embed_tokens.weight, model.rope.static
        self.cache = KVCache(model.config, 1, min(SMALLEST, self.window), weight.device, weight.dtype, static, sinks,
                             self.window)  # fmt: skip
        self.rows = Rows(vocab_size, 1, weight.device)
        trained = sys.maxsize if static or sinks else model.config.rope.trained  # type: ignore[union-attr]
        self.slots = Slots(self.cache, self.rows, slots, self.window, trained)
        self.prompts = Prompts(model, self.rows, self.cache, self.slots)
        self.propose, self.pace = propose if static and not sinks else None, Pace()
        self.make_step = make_step or default_step
        self._steps: dict[str | None, Step] = {}  # by adapter
        self._groups: list[tuple[str | None, list[Slot], Uses]] = []  # rows that decode, in their order
        self._wrappers: list[Any] = []  # of the model's adapters
        self._waiting: deque[Job] = deque()
        self._ended: list[Event] = []  # not told yet
        self._sent: deque[list[Sent]] = deque()  # what was launched, in order: tokens that the host has not seen
        self.ahead = 1 if weight.device.type == "cuda" else sys.maxsize
        self._mail: dict[int, deque[Event]] = {}  # of requests whose events `stream` and `generate` want
        self.threads = Threads() if weight.device.type == "cpu" else nullcontext()
        self._guessing = False  # whether the last step read guesses
        self._ids = itertools.count()

    # ── requests ───────────────────────────────────────────────────────────────────────────────────────────────
    def add(self, request: Request) -> int:
        """Put a request in line; the id that its events carry.

        Raises:
            InputError: an empty prompt, one that leaves no room for an answer, a token that the model does not have,
                an adapter that is not there.
        """
        room = self._room(request.prompt, request.max_tokens)
        if not 0 <= min(request.prompt) <= max(request.prompt) < self.model.config.vocab_size:
            raise InputError(f"the prompt holds a token id outside 0 … {self.model.config.vocab_size - 1}")
        if request.adapter is not None:
            self._wrappers = [module for module in self.model.modules() if isinstance(module, Adapted)]
            names = sorted({module.name for module in self._wrappers})
            if request.adapter not in names:
                raise InputError(f"adapter {request.adapter!r} is not attached to this model; "
                                 f"there are: {', '.join(names) or 'none'}")  # fmt: skip
        unknown = [token for token in request.sampling.logit_bias if token >= self.vocab_size]
        if unknown:
            raise InputError(f"logit_bias: token {unknown[0]} is outside the vocabulary of {self.vocab_size}")
        job = Job(next(self._ids), request, room)
        if self.propose is not None and request.mask is None:
            job.guess = Guess(self.propose(request), self.pace)
        if room > 0:
            self._waiting.append(job)
        else:
            self._ended.append(Event(job.id, finish="length"))
        return job.id

    def remove(self, id: int) -> bool:
        """Drop a request, whose "cancelled" comes with the next step; False where it has ended already."""
        found = self._drop(id)
        if found:
            self._ended.append(Event(id, finish="cancelled"))
        return found

    def step(self) -> list[Event]:
        """One step with every request that has a row: its next token, or the next piece of its prompt.

        Events of requests that `stream` or `generate` wait for go there.
        """
        with self.threads:
            self._advance()
        ended, self._ended = self._ended, []
        events: deque[Event] = deque()
        for event in ended:
            self._mail.get(event.id, events).append(event)
        return list(events)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._ended or self.slots.active)

    def step_of(self, adapter: str | None) -> Step:
        """How an adapter's rows are decoded."""
        if adapter not in self._steps:
            self._steps[adapter] = self.make_step(self.model, self.rows, self.cache)
        return self._steps[adapter]

    def trim(self, keep: int = 0) -> None:
        """Give memory back: forget all earlier texts but the `keep` newest."""
        self.slots.trim(keep)

    def forget(self) -> None:
        """The model's weights have changed, in their place: no earlier text's keys and values serve any more. Between
        requests only."""
        assert not self.slots.active, "requests are at work with the weights of before"
        self.slots.forget()
        if self._device.type == "cpu":
            self._steps.clear()  # what is compiled holds copies of norms; on a GPU all is read where it lies

    @torch.inference_mode()
    def warm(self) -> int:
        """On a GPU take the memory of all rows, each of a whole context, and record what they replay, before the first
        request: none waits for either. How many rows there are then: fewer than `slots` where memory does not hold
        them."""
        if self._device.type != "cuda":
            return self.slots.most
        self._steps[None] = step = self.make_step(self.model, self.rows, self.cache)
        if not isinstance(step, FusedStep):
            return self.slots.most
        found = self.slots.fill(int(MEMORY * torch.cuda.mem_get_info(self._device)[0]))
        step.warm()
        self.prompts.warm()
        return found

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, max_tokens: int | None = None,
                 stop: Collection[int] = (), seeds: Sequence[int] | None = None) -> list[list[int]]:  # fmt: skip
        """One answer for each prompt, all at once.

        An answer ends with the first token of `stop`, which is its last id, or after `max_tokens` (None: no limit),
        or where prompt and answer fill the model's context.

        Args:
            seeds: one for each prompt; sampling.seed, sampling.seed + 1, … when absent.

        Raises:
            InputError: an empty prompt, one that leaves no room for an answer, logits that are not finite.
        """
        seeds = seeds or range(sampling.seed, sampling.seed + len(prompts))
        stop, ids = frozenset(stop), list[int]()
        try:
            for prompt, seed in zip(prompts, seeds, strict=True):
                ids.append(self._ask(Request(prompt, sampling, max_tokens, stop, seed)))
            return [list(self._answer(id)) for id in ids]
        finally:
            for id in ids:
                self._forget(id)

    def stream(self, prompt: Sequence[int], sampling: Sampling, max_tokens: int | None = None,
               stop: Collection[int] = (), seed: int | None = None) -> Iterator[int]:  # fmt: skip
        """The tokens of one answer as they come; the same ones as `generate` with this seed (sampling.seed).

        The iterator may be left at any token; streams may overlap.

        Raises:
            InputError: as `generate`, before the first token.
        """
        request = Request(prompt, sampling, max_tokens, frozenset(stop), seed)
        self._room(prompt, max_tokens)
        return self._tokens(request)

    def _tokens(self, request: Request) -> Iterator[int]:
        with closing(self.events(request)) as events:
            yield from itertools.chain.from_iterable(event.tokens for event in events)

    def events(self, request: Request) -> Generator[Event, None, None]:
        """The events of one request as they come; leaving the iterator drops the request.

        Raises:
            InputError: as `add`, at the first event; logits that are not finite.
        """
        id = self._ask(request)
        try:
            yield from self._events(id)
        finally:
            self._forget(id)

    # ── clients ────────────────────────────────────────────────────────────────────────────────────────────────
    def _ask(self, request: Request) -> int:
        id = self.add(request)
        self._mail[id] = deque()
        return id

    def _events(self, id: int) -> Iterator[Event]:
        mail = self._mail[id]
        while True:
            while not mail:
                others = self.step()
                self._ended += others  # who asks for them will
            event = mail.popleft()
            if event.error is not None:
                raise InputError(event.error)
            if event.finish is not None:
                del self._mail[id]
            yield event
            if event.finish is not None:
                return

    def _answer(self, id: int) -> Iterator[int]:
        return itertools.chain.from_iterable(event.tokens for event in self._events(id))

    def _forget(self, id: int) -> None:
        if self._mail.pop(id, None) is not None:  # else its end has been told
            self._drop(id)

    def _drop(self, id: int) -> bool:
        for job in self._waiting:
            if job.id == id:
                self._waiting.remove(job)
                return True
        for slot in self.slots.active:
            if slot.job is not None and slot.job.id == id:
                self.slots.release(slot)
                return True
        return False

    # ── one step ───────────────────────────────────────────────────────────────────────────────────────────────
    @torch.inference_mode()
    def _advance(self) -> None:
        """Give rows to who waits, read prompts, decode; what comes of it goes to `_ended`.

        On a GPU what the step before decoded goes there, so that the host works while the GPU does; and
        the first tokens of what this one read, which are there before it has decoded.
        """
        try:
            if not self._goes_ahead():
                self._see()
            while self._waiting and self.slots.admit(self._waiting[0]):
                self._waiting.popleft()
            if self.slots.arrange():
                sides = itertools.groupby((s for s in self.slots.active if s.decoding), key=_adapter)
                self._groups = [(adapter, slots := list(side), uses_of(slots)) for adapter, side in sides]
            active = self.slots.active
            began, decoding = time.perf_counter(), sum(len(group) for _, group, _ in self._groups)
            self._prepare(active)
            made, later = list[tuple[list[Slot], Sampled]](), self._goes_ahead()
            for part in (self._read, self._decode):
                if found := part(active, decoding):
                    self._sent.append([Sent.of(slots, sampled, later) for slots, sampled in found])
                    made += found
            self._see(1 if later and made else 0)
            if made and isinstance(self.threads, Threads):
                self.threads.tokens = max(len(sampled.tokens) for _, sampled in made)
            if self.propose is not None and decoding == len(active) > 0:
                self.pace.note(self._guessing, time.perf_counter() - began, len(made[0][1].tokens))
        except BaseException:  # an interruption: the device may have gone further than the lists here say
            self._sent.clear()
            self.slots.again()
            raise

    def _goes_ahead(self) -> bool:
        """Whether the next tokens may be begun before the last ones are known."""
        jobs = [slot.job for slot in self.slots.active if slot.job is not None]
        if len(jobs) < self.ahead or self.propose is not None:
            return False
        return not [job for job in jobs if job.request.mask is not None]

    def _see(self, left: int = 0) -> None:
        """Wait for the tokens that are on their way, but for the `left` launched last."""
        while len(self._sent) > left:
            for sent in self._sent.popleft():
                self._note(sent)
        if not self.slots.active:
            self._sent.clear()  # of answers that have ended

    def _prepare(self, active: list[Slot]) -> None:
        """Tell the device what it does not know yet: new jobs, which tokens a mask allows."""
        new = [(row, slot, slot.job) for row, slot in enumerate(active) if slot.job is not None and not slot.placed]
        if new:
            self.rows.place([row for row, _, _ in new], [(job.request, job.answer) for _, _, job in new])
            for _, slot, _ in new:
                slot.placed = True
        for row, slot in enumerate(active):
            if slot.job is not None and slot.job.request.mask is not None:
                self.rows.allow(row, slot.job.request.mask)

    def _read(self, active: list[Slot], decoding: int) -> list[tuple[list[Slot], Sampled]]:
        """The next pieces of prompts, of the rows after those that decode; the first tokens where one ends."""
        if decoding == len(active):
            return []
        reading = self.prompts.next(active[decoding:], decoding)
        with self._adapted(reading[0].adapter):
            ended = self.prompts.read(reading, decoding)
        self.slots.stale |= bool(ended)  # they decode from the next step on
        return ended

    def _decode(self, active: list[Slot], decoding: int) -> list[tuple[list[Slot], Sampled]]:
        """A step of every adapter's rows, which are side by side: the first `decoding` of the active ones."""
        made, first, self._guessing = [], 0, False
        self.rows.go(decoding)
        for adapter, group, uses in self._groups:
            guesses = guessed(group) if self.propose is not None else []
            if any(guesses):
                self._guessing = True
                with self._adapted(adapter):
                    made.append((group, verify(self.prompts, group, guesses, first, uses)))
                first += len(group)
                continue
            step = self.step_of(adapter)
            longest = max([slot.held for slot in group])
            limit = min(1 if uses.mask else step.most, self._ahead(group, longest, decoding < len(active)))
            if limit > 0:
                end = longest + limit
                self.slots.reserve(end)
                with self._adapted(adapter):
                    made.append((group, step(slice(first, first + len(group)), end, uses, limit)))
            first += len(group)
        return made

    def _ahead(self, group: list[Slot], longest: int, others: bool) -> int:
        """How many tokens to go on without asking who has ended: on a GPU who has computes for nothing, but the others
        need not stop for it, nor is a token too many worth a graph more. 0 or less: all that may come is on its way.
        `longest`: tokens that a row of them holds."""
        cpu = self._device.type == "cpu"
        jobs = [slot.job for slot in group if slot.job is not None]
        every = [job.room - len(job.known) + job.start - job.ahead for job in jobs]
        left = min(every) if cpu else max(every)
        few = left if not others or (not cpu and len(group) >= MANY) else 1 if cpu else SOME
        if not cpu and max(job.given + job.ahead for job in jobs) <= 1:  # the answers have only begun
            few = min(few, FIRST)
        left = min(left, self.context - longest, few)
        whole = power(left) if left > 0 else left
        return whole if not cpu and whole - left <= SPARE else left

    def _note(self, sent: Sent) -> None:
        """Tokens that came, (n, B), to the texts that they belong to; this waits for the device."""
        sampled = sent.sampled
        if sent.ready is not None:
            sent.ready.synchronize()
        columns, count = sampled.tokens.T.tolist(), len(sampled.tokens)
        told = None
        if sampled.logprobs is not None and sampled.top is not None and sampled.top_logprobs is not None:
            told = (
                sampled.logprobs.T.tolist(),
                sampled.top.transpose(0, 1).tolist(),
                sampled.top_logprobs.transpose(0, 1).tolist(),
            )
        for column, (slot, job) in enumerate(zip(sent.slots, sent.jobs, strict=True)):
            if job is None or slot.job is not job:
                continue
            job.ahead -= count
            event, wanted = self._given(slot, job, columns[column]), job.request.logprobs
            if told is not None and wanted is not None:
                chosen, top, logprobs = (part[column][: len(event.tokens)] for part in told)
                tops = [list(zip(t[:wanted], p[:wanted], strict=True)) for t, p in zip(top, logprobs, strict=True)]
                event = event._replace(logprobs=chosen, tops=tops)
            if event.tokens or event.finish is not None:
                self._ended.append(event)

    def _given(self, slot: Slot, job: Job, tokens: list[int]) -> Event:
        """Some more tokens of an answer, all at once: each costs the host a fraction of what one by one they would."""
        run, finish = job.cut(tokens)
        if job.given and run:
            self.slots.decoded(slot, [job.known[-1], *run[:-1]], len(job.known))
        job.known += run
        if (mask := job.request.mask) is not None:
            for token in run:
                mask.accept(token)
        fault = None
        if finish == "error":
            fault = BROKEN if job.request.mask is None else UNFIT
        if finish is not None:
            self.slots.release(slot, broken=finish == "error")
        return Event(job.id, run, finish, error=fault)

    # ── facts ──────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def _device(self) -> torch.device:
        return self.rows.device

    def _adapted(self, name: str | None) -> AbstractContextManager[None]:
        """Inside, only the adapter `name` is on; None: as it is."""
        return nullcontext() if name is None else only(self._wrappers, name)

    def _room(self, prompt: Sequence[int], max_tokens: int | None) -> int:
        """How many tokens the answer may have."""
        if not prompt:
            raise InputError("the prompt is empty: the model needs at least one token to go on from")
        if self.sinks and max_tokens is None:
            raise InputError("max_tokens must be given with sinks: the text has no other end")
        left = self.context - len(prompt)
        if left < 1:
            raise InputError(f"the prompt has {len(prompt)} tokens and the model's context is {self.context}: "
                             f"shorten the prompt to at most {self.context - 1} tokens")  # fmt: skip
        return left if max_tokens is None else min(left, max_tokens)


class Sent(NamedTuple):
    """Tokens that a step makes for the jobs in these slots, on their way to the host, where they are once `ready`."""

    slots: list[Slot]
    jobs: list[Job | None]
    sampled: Sampled
    ready: torch.cuda.Event | None

    @classmethod
    def of(cls, slots: list[Slot], sampled: Sampled, later: bool) -> Sent:
        """`later`: the next step is computed before anybody looks: it may write where this one has."""
        jobs, count = [slot.job for slot in slots], len(sampled.tokens)
        for job in jobs:
            if job is not None:
                job.ahead += count
        ready = None
        if later:
            ready = torch.cuda.Event(blocking=True) if sampled.tokens.is_cuda else None
            parts = sampled.tokens, sampled.logprobs, sampled.top, sampled.top_logprobs
            sampled = Sampled(*(None if part is None else copied(part) for part in parts))  # type: ignore[arg-type]
            if ready is not None:
                ready.record()
        return cls(slots, jobs, sampled, ready)


def copied(part: Tensor) -> Tensor:
    """On the host, soon."""
    return torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda).copy_(part, non_blocking=True)


def _adapter(slot: Slot) -> str | None:
    return slot.adapter


def default_step(model: Transformer, rows: Rows, cache: KVCache) -> Step:
    """The forward pass, compiled on a CPU, and sampling; on a GPU fused kernels where they compute this model, and
    CUDA graphs where a step asks the host nothing."""
    if rows.device.type == "cpu":
        return NativeStep(model, rows, cache)
    step = Launched(ModelForward(model, rows, cache), rows)
    if rows.device.type != "cuda" or not model.rope.static or cache.sinks:
        return step
    captured = Captured(step, rows, cache)
    return FusedStep(model, rows, cache, captured) if suits(model, cache) else captured


def finish_reason(answer: Sequence[int], stop: Collection[int]) -> Literal["stop", "length"]:
    """Why an answer ended: by a stop token, or because `max_tokens` or the context was reached."""
    return "stop" if answer and answer[-1] in stop else "length"
