"""The engine: prompts of token ids in, answers of token ids out. No text, no template.

Every answer is made the same way: prefill the prompt into a key-value cache, then decode token by token through the
model's one forward path. Row i of a batch and the same prompt alone give the same tokens (in float32).
Not here: how a token is chosen (sampling.py), one step of decoding (decoder.py), the cache (model/attention.py),
tokenizers.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from babyllama.errors import InputError
from babyllama.infer.decoder import Decoder
from babyllama.infer.sampling import NOT_FINITE, Sampling, uniforms
from babyllama.model.attention import KVCache, SinkCache
from babyllama.model.transformer import Transformer


@dataclass
class _Past:
    """One conversation's tokens whose keys and values are in `cache`, at slot = position."""

    cache: KVCache
    decoder: Decoder
    tokens: list[int] = field(default_factory=list)


class Engine:
    """Generation with one model.

    Args:
        vocab_size: the tokenizer's; the model's rows beyond it are padding and are never drawn.
        sinks: above 0, text may go on without end: so many first tokens and the newest stay in the cache, the rest is
            forgotten. Prompts are then answered one after the other.

    Raises:
        InputError: more sinks than a context has room for.
    """

    def __init__(self, model: Transformer, vocab_size: int, sinks: int = 0) -> None:
        self.model, self.vocab_size, self.sinks = model, vocab_size, sinks
        self.window = model.config.max_position_embeddings
        if 2 * sinks > self.window:
            raise InputError(f"sinks: {sinks} must be at most half of the model's context of {self.window}")
        self.context = sys.maxsize if sinks else self.window
        self._past: _Past | None = None  # of the last `stream`

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
        if not prompts:
            return []
        room = [self._room(prompt, max_tokens) for prompt in prompts]
        seeds = seeds or range(sampling.seed, sampling.seed + len(prompts))
        if self.sinks:
            return [list(self.stream(p, sampling, max_tokens, stop, s)) for p, s in zip(prompts, seeds, strict=True)]
        draws = torch.stack([uniforms(seed, max(room)) for seed in seeds]).to(self._device)  # (B, max(room))
        return self._generate(prompts, sampling, room, frozenset(stop), draws)

    def stream(self, prompt: Sequence[int], sampling: Sampling, max_tokens: int | None = None,
               stop: Collection[int] = (), seed: int | None = None) -> Iterator[int]:  # fmt: skip
        """The tokens of one answer as they come; the same ones as `generate` with this seed (sampling.seed).

        The cache of the last stream is kept: what this prompt shares with that conversation is not computed again.
        The iterator may be left at any token; streams may overlap.

        Raises:
            InputError: as `generate`, before the first token.
        """
        room = self._room(prompt, max_tokens)
        draws = uniforms(sampling.seed if seed is None else seed, room).to(self._device)
        return self._stream(list(prompt), sampling, room, frozenset(stop), draws)

    # ── one conversation ───────────────────────────────────────────────────────────────────────────────────────
    def _stream(self, prompt: list[int], sampling: Sampling, room: int, stop: frozenset[int],
                draws: Tensor) -> Iterator[int]:  # fmt: skip
        past, self._past = self._past or self._nothing(), None  # ours alone until the end
        try:
            shared = _shared_prefix(past.tokens, prompt[:-1])
            if isinstance(past.cache, SinkCache):
                shared = past.cache.rewind(len(past.tokens), shared)
                del past.tokens[shared:]
            else:
                del past.tokens[shared:]
                self._grow(past, min(len(prompt) + room, self.context))
            seen, new = self._seen([prompt], sampling, stop), prompt[shared:]
            for step in range(room):
                logits = self._extend(past, new)
                new = self._choose(sampling, logits, draws[step : step + 1], seen)
                yield new[0]
                if new[0] in stop:
                    return
        except InputError:  # what is not finite stays in its slots, and a graph reads slots that are not in use
            past = self._nothing()
            raise
        finally:
            self._past = past

    def _nothing(self) -> _Past:
        cache = self._cache(1, 1)
        return _Past(cache, self._decoder(cache))

    @torch.inference_mode()
    def _extend(self, past: _Past, tokens: list[int]) -> Tensor:
        """Feed `tokens` after what is in `past`; logits (1, V) of the last one."""
        if isinstance(past.cache, SinkCache):
            return self._extend_endless(past, past.cache, tokens)
        start, end = len(past.tokens), len(past.tokens) + len(tokens)
        fed, positions = torch.tensor(tokens, device=self._device), torch.arange(start, end, device=self._device)
        if len(tokens) == 1:
            logits = past.decoder(fed, positions, end)
        else:
            past.cache.reserve(end)
            logits = self._logits(self.model.hidden(fed[None], positions[None], cache=past.cache)[:, -1])
        past.tokens += tokens  # last: an interruption before it leaves `past` as it was
        return logits

    def _extend_endless(self, past: _Past, cache: SinkCache, tokens: list[int]) -> Tensor:
        """The same in pieces: what fits at once, then as the cache allows."""
        while True:
            count = max(cache.max_tokens - cache.used, cache.piece)
            piece, tokens = tokens[:count], tokens[count:]
            hidden = self.model.hidden(torch.tensor([piece], device=self._device), cache=cache)
            past.tokens += piece
            if not tokens:
                return self._logits(hidden[:, -1])

    def _grow(self, past: _Past, end: int) -> None:
        """Make room for `end` tokens, at least doubling; forget the slots that `past.tokens` does not cover."""
        kept, old = len(past.tokens), past.cache
        if end > old.max_tokens:
            past.cache = self._cache(1, min(self.context, max(end, 2 * old.max_tokens)))
            past.decoder = self._decoder(past.cache)
            past.cache.keys[:, :, :, :kept] = old.keys[:, :, :, :kept]
            past.cache.values[:, :, :, :kept] = old.values[:, :, :, :kept]
        past.cache.used = kept

    # ── a batch ────────────────────────────────────────────────────────────────────────────────────────────────
    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, room: list[int], stop: frozenset[int],
                  draws: Tensor) -> list[list[int]]:  # fmt: skip
        answers: list[list[int]] = [[] for _ in prompts]
        lengths = [len(prompt) for prompt in prompts]
        cache = self._cache(len(prompts), max(length + more for length, more in zip(lengths, room, strict=True)))
        logits, seen = self._prefill(prompts, cache), self._seen(prompts, sampling, stop)
        positions = torch.tensor(lengths, device=self._device)  # (B,): the slot of each row's next token
        rows = list(range(len(prompts)))  # which prompt each row of the batch answers
        decoder = self._decoder(cache)
        for step in range(max(room)):
            chosen = self._choose(sampling, logits, draws[:, step], seen)
            alive = []
            for row, (index, token) in enumerate(zip(rows, chosen, strict=True)):
                answer = answers[index]
                if len(answer) < room[index] and (not answer or answer[-1] not in stop):
                    answer.append(token)
                    if len(answer) < room[index] and token not in stop:
                        alive.append(row)
            if not alive:
                break
            if 2 * len(alive) <= len(rows):  # drop finished rows, seldom enough that the copying is cheap
                kept = torch.tensor(alive, device=self._device)
                cache.keys, cache.values = cache.keys[:, kept], cache.values[:, kept]
                positions, draws, seen = positions[kept], draws[kept], None if seen is None else seen[kept]
                rows, chosen = [rows[row] for row in alive], [chosen[row] for row in alive]
                decoder.forget()
            tokens = torch.tensor(chosen, device=self._device)
            logits = decoder(tokens, positions, min(max(lengths) + step + 1, cache.max_tokens))
            positions = (positions + 1).clamp(max=cache.max_tokens - 1)  # a finished row overwrites its own end
        return answers

    def _prefill(self, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
        """Logits (B, V) after the last token of every prompt. Prompts are padded on the right with token 0."""
        longest = max(map(len, prompts))
        tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=self._device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        hidden = self.model.hidden(tokens, cache=cache, lengths=lengths)  # (B, T, C)
        return self._logits(hidden[torch.arange(len(prompts), device=self._device), lengths - 1])

    # ── both ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _decoder(self, cache: KVCache) -> Decoder:
        def step(tokens: Tensor, positions: Tensor) -> Tensor:
            return self._logits(self.model.hidden(tokens[:, None], positions[:, None], cache=cache)[:, 0])

        captures = self._device.type == "cuda" and self.model.rope.static and not isinstance(cache, SinkCache)
        return Decoder(step, cache, captures)

    @property
    def _device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def _cache(self, batch: int, max_tokens: int) -> KVCache:
        dtype, rotated = self.model.embed_tokens.weight.dtype, self.model.rope.static
        if self.sinks:
            return SinkCache(self.model.config, batch, self.window, self._device, dtype, self.sinks)
        return KVCache(self.model.config, batch, max_tokens, self._device, dtype, rotated)

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

    def _logits(self, hidden: Tensor) -> Tensor:
        """(B, C) → (B, vocab_size)."""
        return self.model.lm_head(hidden)[:, : self.vocab_size]

    def _seen(self, prompts: Sequence[Sequence[int]], sampling: Sampling, stop: Collection[int]) -> Tensor | None:
        """(B, V) bool: the tokens of each prompt that the penalty shuns. None where the sampling does not ask.

        Stop tokens are left out, unlike in transformers: a chat is full of them, and ending is no repetition.
        """
        if sampling.repetition_penalty == 1:
            return None
        seen = torch.zeros(len(prompts), self.vocab_size, dtype=torch.bool)
        for row, prompt in zip(seen, prompts, strict=True):
            row[torch.tensor(prompt)] = True
        seen[:, torch.tensor(sorted(stop), dtype=torch.long)] = False
        return seen.to(self._device)

    @torch.inference_mode()
    def _choose(self, sampling: Sampling, logits: Tensor, draws: Tensor, seen: Tensor | None) -> list[int]:
        """The next token of every row; `seen` learns them."""
        tokens = sampling(logits, draws, seen)
        chosen = tokens.tolist()
        if NOT_FINITE in chosen:
            raise InputError("the model's logits are not finite: its weights are damaged, or precision=fp16 is too "
                             "narrow for it; try precision=fp32 or an earlier checkpoint")  # fmt: skip
        if seen is not None:
            seen[torch.arange(len(chosen), device=seen.device), tokens] = True
        return chosen


def _shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the start."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def finish_reason(answer: Sequence[int], stop: Collection[int]) -> Literal["stop", "length"]:
    """Why an answer ended: by a stop token, or because `max_tokens` or the context was reached."""
    return "stop" if answer and answer[-1] in stop else "length"
