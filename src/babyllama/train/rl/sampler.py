"""Answers drawn by the model that learns, with the engine that people chat with.

Not here: which prompts, what answers are worth (rollouts.py, rewards.py), the engine (infer/).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.request import Event, Request
from babyllama.infer.sampling import Sampling
from babyllama.model.transformer import Transformer


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
    """

    def __init__(self, vocab_size: int, stop: Collection[int], max_tokens: int, slots: int = 256) -> None:
        self.vocab_size, self.stop, self.max_tokens, self.slots = vocab_size, frozenset(stop), max_tokens, slots
        self._engine: Engine | None = None

    def __call__(self, model: Transformer, prompts: Sequence[tuple[list[int], int]], temperature: float,
                 told: bool = False) -> list[Drawn]:  # fmt: skip
        """One answer for each (prompt, seed), the same in any company and by any rank.

        Args:
            told: whether the engine's log-probabilities are wanted, which takes longer.

        Raises:
            InputError: the model's logits are not finite.
        """
        if self._engine is None or self._engine.model is not model:  # shards are gathered into a new model each time
            self._engine = Engine(model, self.vocab_size, slots=self.slots)
        engine, sampling = self._engine, Sampling(temperature=temperature)
        engine.forget()
        numbers = {engine.add(Request(prompt, sampling, self.max_tokens, self.stop, seed, 0 if told else None)): number
                   for number, (prompt, seed) in enumerate(prompts)}  # fmt: skip
        events: list[list[Event]] = [[] for _ in prompts]
        while engine.busy:
            for event in engine.step():
                if event.error is not None:
                    raise InputError(event.error)
                events[numbers[event.id]].append(event)
        return [_drawn(found) for found in events]


def _drawn(events: list[Event]) -> Drawn:
    whole = Event.joined(events)
    return Drawn(list(map(int, whole.tokens)), whole.finish == "stop", list(whole.logprobs))
