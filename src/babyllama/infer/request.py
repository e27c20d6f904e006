"""What is asked of the engine and what it tells: values without behaviour."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from babyllama.infer.sampling import Sampling

if TYPE_CHECKING:
    from torch import Tensor

Finish = Literal["stop", "length", "cancelled", "error"]


DEFAULT = Sampling()


class TokenMask(Protocol):
    """Which tokens may come next, by a grammar for example. Each request has its own."""

    def fill(self, words: Tensor) -> None:
        """Write which are allowed to `words` (⌈V / 32⌉,) int32 on the CPU: token v is bit v mod 32 of word v // 32."""
        ...

    def accept(self, token: int) -> None:
        """The token that came."""
        ...


class Proposer(Protocol):
    """Guesses how one request's text goes on."""

    def __call__(self, known: Sequence[int]) -> list[int]:
        """The tokens that may follow the prompt and the answer so far; none where there is no idea."""
        ...


@dataclass(frozen=True)
class Request:
    """One prompt to be answered.

    Args:
        prompt: token ids, at least one.
        max_tokens: of the answer; None: as far as the model's context goes.
        stop: ids that end an answer; the one that comes is its last token.
        seed: of the draws; sampling.seed when absent.
        logprobs: how many of the likeliest tokens to tell beside each token, with their log-probabilities by the model
            itself (before penalties, bias, temperature and cuts); 0: of the token alone, None: nothing.
        adapter: the name of the only adapter that is on; None: the model as it is.
    """

    prompt: Sequence[int]
    sampling: Sampling = DEFAULT
    max_tokens: int | None = None
    stop: Collection[int] = frozenset()
    seed: int | None = None
    logprobs: int | None = None
    adapter: str | None = None
    mask: TokenMask | None = None

    @property
    def draws_by(self) -> int:
        """The seed of its random numbers: its own, or else its sampling's."""
        return self.sampling.seed if self.seed is None else self.seed


class Event(NamedTuple):
    """Some more tokens of one answer, as many as came at once, or its end without one ("cancelled", "error").

    Attributes:
        finish: how the answer ends with the last of the tokens: "stop" (it is one of the stop ids) or "length".
        logprobs: of each token; empty where the request does not ask.
        tops: for each token (token, log-probability), the likeliest first.
    """

    id: int
    tokens: Sequence[int] = ()
    finish: Finish | None = None
    logprobs: Sequence[float] = ()
    tops: Sequence[Sequence[tuple[int, float]]] = ()
    error: str | None = None

    @staticmethod
    def joined(events: Sequence[Event]) -> Event:
        """Some events of one answer as one."""
        if len(events) == 1:
            return events[0]
        tokens, logprobs, tops = (tuple(itertools.chain.from_iterable(part)) for part in
                                  zip(*((e.tokens, e.logprobs, e.tops) for e in events), strict=True))  # fmt: skip
        return events[-1]._replace(tokens=tokens, logprobs=logprobs, tops=tops)

    def split(self) -> list[Event]:
        """The same, token by token."""
        if len(self.tokens) < 2:
            return [self]
        last = len(self.tokens) - 1
        return [Event(self.id, self.tokens[i : i + 1], self.finish if i == last else None, self.logprobs[i : i + 1],
                      self.tops[i : i + 1], self.error if i == last else None)
                for i in range(len(self.tokens))]  # fmt: skip

    def unstopped(self) -> Event:
        """Without the stop token that ends it, which is no part of the text."""
        if self.finish != "stop":
            return self
        return self._replace(tokens=self.tokens[:-1], logprobs=self.logprobs[:-1], tops=self.tops[:-1])
