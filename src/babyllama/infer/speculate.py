"""Guessing the next tokens and reading them in one pass: fewer passes for text that is easy to foresee.

Each place draws its token as it would alone, from the model's distribution by its own random number, and a guess stands
where it is that very token. So guesses change no token, and every distribution stays exact. Not here: the pass
(prompts.py), when guesses are worth it (guess.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from babyllama.infer.choosing import Uses, uniforms
from babyllama.infer.native import MOST_ROWS, Native, native
from babyllama.infer.prompts import Prompts
from babyllama.infer.request import Proposer, Request
from babyllama.infer.rows import SKIPPED, Sampled
from babyllama.infer.slots import Slot, shared_prefix
from babyllama.infer.threads import wide
from babyllama.model.cache import KVCache
from babyllama.model.transformer import Transformer


class NGrams:
    """What followed the last `size` tokens, or fewer, when they last came in the text: at most `most` tokens of it."""

    def __init__(self, size: int = 3, most: int = 7) -> None:
        self.size, self.most, self.seen = size, most, 0
        self.ends: dict[tuple[int, ...], int] = {}  # n-gram → where the text went on after it

    def __call__(self, known: Sequence[int]) -> list[int]:
        for end in range(max(self.seen, 1), len(known)):  # not the end of the text, after which there is nothing
            for size in range(1, min(self.size, end) + 1):
                self.ends[tuple(known[end - size : end])] = end
        self.seen = len(known)
        for size in range(min(self.size, len(known)), 0, -1):
            at = self.ends.get(tuple(known[len(known) - size :]))
            if at is not None:
                return list(known[at : at + self.most])
        return []


class Draft:
    """A smaller model of the same vocabulary, which draws by the same random numbers."""

    def __init__(self, model: Transformer, vocab_size: int, most: int, request: Request) -> None:
        self.model, self.vocab_size, self.most, self.request = model, vocab_size, most, request
        self.window, self.read = model.config.max_position_embeddings, list[int]()
        weight, slots = model.embed_tokens.weight, min(self.window, len(request.prompt) + (request.max_tokens or 512))
        self.cache = KVCache(model.config, 1, slots, weight.device, weight.dtype, model.rope.static)

    @classmethod
    def of(cls, model: Transformer, vocab_size: int, most: int = 4) -> Callable[[Request], Proposer]:
        """For `Engine(propose=)`."""
        return lambda request: cls(model, vocab_size, most, request)

    def __call__(self, known: Sequence[int]) -> list[int]:
        count = min(self.most, self.cache.max_tokens - len(known))
        if count < 1:
            return []
        sampling, given = self.request.sampling, len(known) - len(self.request.prompt)
        draws = uniforms(self.request.draws_by, count, given).to(self.cache.keys.device)
        self.read = self.read[: min(shared_prefix(self.read, known), len(known) - 1)]
        text, made = list(known), native(self.model)
        for step in range(count):
            new = text[len(self.read) :]
            logits = self._logits(made if len(new) <= MOST_ROWS else None, new)[:, : self.vocab_size]
            self.read += new
            text.append(max(0, int(sampling(logits, draws[step : step + 1]))))
        return text[len(known) :]

    def _logits(self, made: Native | None, new: Sequence[int]) -> Tensor:
        """(1, V) after the tokens `new`, on a CPU the compiled way."""
        start, tokens = len(self.read), torch.tensor([new], device=self.cache.keys.device)
        if made is not None:
            positions = torch.arange(start, start + len(new))
            return made.step(tokens[0], positions, self.cache, torch.zeros_like(positions))[-1:]
        self.cache.used = start
        with wide():
            return self.model.lm_head(self.model.hidden(tokens, cache=self.cache)[:, -1])


def guessed(slots: Sequence[Slot]) -> list[list[int]]:
    """A guess for every row, or none at all: with many rows a pass over one token of each is as busy as it can be."""
    if len(slots) > MOST_ROWS:
        return []
    jobs = [slot.job for slot in slots if slot.job is not None]
    return [[] if job.guess is None else job.guess(job.known, job.room - job.given - 1) for job in jobs]


def verify(prompts: Prompts, slots: list[Slot], guesses: list[list[int]], first: int, uses: Uses) -> Sampled:
    """One pass over the last token of neighbouring rows from `first` on and what is guessed after it: every row's
    tokens up to the first that is another than the guess, SKIPPED after it."""
    rows, device = prompts.rows, prompts.rows.device
    pieces = [[slot.job.known[-1], *guess] for slot, guess in zip(slots, guesses, strict=True) if slot.job is not None]
    logits = prompts.logits(slots, pieces, first)
    count = len(logits)
    guess = torch.tensor([guess + [SKIPPED] * (count - len(guess)) for guess in guesses], device=device)  # (B, T)
    which, live, made = slice(first, first + len(slots)), torch.ones(len(slots), dtype=torch.bool, device=device), []
    for place in range(count):
        sampled = rows.choose(which, logits[place], uses, live)
        sampled.tokens = sampled.tokens.where(live, SKIPPED)
        made.append(sampled)
        live = live & (sampled.tokens[0] == guess[:, place])
        if device.type == "cpu" and not live.any():
            break
    parts = ([getattr(s, name) for s in made] for name in ("tokens", "logprobs", "top", "top_logprobs"))
    return Sampled(*(None if part[0] is None else torch.cat(part) for part in parts))  # type: ignore[arg-type]
