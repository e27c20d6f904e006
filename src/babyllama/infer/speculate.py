"""Guessing the next tokens and reading them in one pass: fewer passes for text that is easy to foresee.

Each place draws its token as it would alone, from the model's distribution by its own random number, and a guess stands
where it is that very token. So guesses change no token, and every distribution stays exact. Not here: the pass
(prompts.py), when guesses are worth it (request.Guess).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from babyllama.infer.prompts import Prompts
from babyllama.infer.request import Proposer, Request
from babyllama.infer.rows import SKIPPED, Sampled
from babyllama.infer.sampling import Uses, uniforms
from babyllama.infer.slots import Slot, shared_prefix
from babyllama.model.cache import KVCache
from babyllama.model.transformer import Transformer

MOST_ROWS = 8  # that guess: with more, a pass over one token of each is as busy as it can be


class NGrams:
    """What followed the last `size` tokens, or fewer, when they last came in the text: at most `most` tokens of it."""

    def __init__(self, size: int = 3, most: int = 8) -> None:
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
        if len(known) + self.most > self.cache.max_tokens:
            return []
        sampling, given = self.request.sampling, len(known) - len(self.request.prompt)
        seed = sampling.seed if self.request.seed is None else self.request.seed
        draws = uniforms(seed, self.most, given).to(self.cache.keys.device)
        self.read = self.read[: min(shared_prefix(self.read, known), len(known) - 1)]
        text = list(known)
        for step in range(self.most):
            new = text[len(self.read) :]
            self.cache.used = len(self.read)
            tokens = torch.tensor([new], device=self.cache.keys.device)
            hidden = self.model.hidden(tokens, cache=self.cache)[:, -1]
            logits = self.model.lm_head(hidden)[:, : self.vocab_size]
            self.read += new
            text.append(max(0, int(sampling(logits, draws[step : step + 1]))))
        return text[len(known) :]


def guessed(slots: Sequence[Slot]) -> list[list[int]]:
    """A guess for every row, or none at all."""
    if len(slots) > MOST_ROWS:
        return []
    jobs = [slot.job for slot in slots if slot.job is not None]
    return [[] if job.guess is None else job.guess(job.known, job.room - job.given - 1) for job in jobs]


def verify(prompts: Prompts, slots: list[Slot], guesses: list[list[int]], first: int, uses: Uses) -> Sampled:
    """One pass over the last token of neighbouring rows from `first` on and what is guessed after it: every row's
    tokens up to the first that is another than the guess, SKIPPED after it."""
    rows, device, count = prompts.rows, prompts.rows.device, max(map(len, guesses)) + 1
    pieces = [[slot.job.known[-1], *guess] for slot, guess in zip(slots, guesses, strict=True) if slot.job is not None]
    hidden = prompts.hidden(slots, pieces, first, [len(slot.tokens) + count for slot in slots])
    logits = prompts.model.lm_head(hidden)[..., : rows.vocab_size]  # (B, T, V)
    guess = torch.tensor([guess + [SKIPPED] * (count - len(guess)) for guess in guesses], device=device)  # (B, T)
    which, live, made = slice(first, first + len(slots)), torch.ones(len(slots), dtype=torch.bool, device=device), []
    for place in range(count):
        sampled = rows.choose(which, logits[:, place], uses, live)
        sampled.tokens = sampled.tokens.where(live, SKIPPED)
        made.append(sampled)
        live = live & (sampled.tokens[0] == guess[:, place])
        if device.type == "cpu" and not live.any():
            break
    parts = ([getattr(s, name) for s in made] for name in ("tokens", "logprobs", "top", "top_logprobs"))
    return Sampled(*(None if part[0] is None else torch.cat(part) for part in parts))  # type: ignore[arg-type]
