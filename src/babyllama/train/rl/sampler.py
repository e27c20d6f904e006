"""Answers drawn by the model that learns, with the engine that people chat with.

Not here: which prompts, what answers are worth (rollouts.py, rewards.py), the engine (infer/).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch

from babyllama.errors import InputError
from babyllama.infer import together
from babyllama.infer.engine import Engine
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling
from babyllama.infer.step import power
from babyllama.model.cache import KVCache
from babyllama.model.transformer import Transformer

SLOTS, MOST = 256, 1024  # answers at work at the same time, and at most on a GPU
MEMORY = 0.3  # of what a GPU has free when the first are drawn, for their keys and values


class Drawn(NamedTuple):
    """One answer. `ended`: its last token is one that ends answers. `logprobs`: the engine's own, of each token, before
    the temperature; empty unless they were asked for."""

    tokens: list[int]
    ended: bool
    logprobs: list[float]


class Sampler:
    """One engine for all of a training: its memory, and a GPU's graphs, outlive each change of the weights.

    Args:
        stop: tokens that end an answer.  max_tokens: of an answer.

    Attributes:
        in_step: whether all answers grow by one token at a time (infer/together.py); by default on a GPU, where the
            host is what takes the time: a CPU is faster with as few rows as there are left.
    """

    in_step: bool | None = None

    def __init__(self, vocab_size: int, stop: Collection[int], max_tokens: int) -> None:
        self.vocab_size, self.stop, self.max_tokens = vocab_size, frozenset(stop), max_tokens
        self._engine: Engine | None = None
        self._held: together.Held | None = None

    def __call__(self, model: Transformer, prompts: Sequence[tuple[list[int], int]], temperature: float,
                 told: bool = False, meanwhile: Callable[[], None] = lambda: None,
                 goes_on: Sequence[int] | None = None) -> list[Drawn]:  # fmt: skip
        """One answer for each (prompt, seed), the same in any company and by any rank.

        Args:
            told: whether the engine's log-probabilities are wanted, which takes longer.
            meanwhile: called once, when a GPU has the most to do, or at the end.
            goes_on: the weights are those of the call before, and each prompt goes on from its answer of this number:
                what that conversation held need not be read again.

        Raises:
            InputError: the model's logits are not finite.
        """
        if self._engine is None or self._engine.model is not model:  # shards are gathered into a new model each time
            self._engine, self._held = Engine(model, self.vocab_size, slots=self._slots(model, prompts)), None
        engine, sampling = self._engine, Sampling(temperature=temperature)
        texts = [prompt for prompt, _ in prompts]
        wanted = model.embed_tokens.weight.is_cuda if self.in_step is None else self.in_step
        if wanted and not told and together.suits(engine, texts, self.max_tokens):
            seeds, held = [seed for _, seed in prompts], None
            if goes_on is not None and self._held is not None and model.rope.static:
                held = self._held.of(goes_on)
            found, self._held = together.answers(engine, texts, sampling, self.max_tokens, self.stop, seeds, meanwhile,
                                                 held)  # fmt: skip
            return [Drawn(tokens, ended, []) for tokens, ended in found]
        self._held = None
        if goes_on is None:
            engine.forget()
        numbers = {engine.add(Request(prompt, sampling, self.max_tokens, self.stop, seed, 0 if told else None)): number
                   for number, (prompt, seed) in enumerate(prompts)}  # fmt: skip
        tokens, logprobs = [list[int]() for _ in prompts], [list[float]() for _ in prompts]
        ended = [False] * len(prompts)
        steps = 0
        while engine.busy:
            events, steps = engine.step(), steps + 1
            if steps == 2:  # the prompts are read, many tokens are on their way
                meanwhile()
            for event in events:
                if event.error is not None:
                    raise InputError(event.error)
                number = numbers[event.id]
                tokens[number] += event.tokens
                logprobs[number] += event.logprobs
                ended[number] = event.finish == "stop"
        if steps < 2:
            meanwhile()
        return list(map(Drawn, tokens, ended, logprobs))

    def _slots(self, model: Transformer, prompts: Sequence[tuple[list[int], int]]) -> int:
        """All answers at once, on a GPU as far as their keys and values take no more than a part of its memory."""
        config, weight = model.config, model.embed_tokens.weight
        if not weight.is_cuda:
            return SLOTS
        tokens = power(min(config.max_position_embeddings, max(len(prompt) for prompt, _ in prompts) + self.max_tokens))
        row = KVCache(config, 1, 1, "cpu", weight.dtype).row_bytes(tokens)
        held = int(MEMORY * torch.cuda.mem_get_info(weight.device)[0]) // row
        return max(1, min(held, MOST, max(SLOTS, len(prompts))))
