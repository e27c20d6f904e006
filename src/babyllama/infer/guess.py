"""Whether guesses of the next tokens are worth their pass: by what came of the last ones, and by the clock.

Neither changes a token. Not here: guesses and the pass over them (speculate.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from babyllama.infer.request import Proposer

REST = 32, 512  # steps without guesses after guesses that were not worth it, at first and at most


class Pace:
    """How long a pass over guesses takes beside a step without any; in an engine that has both.

    Attributes:
        plain: seconds of a token, of steps without guesses; 0 before the first.
        guessing: seconds of a pass over guesses, with making them.
    """

    def __init__(self) -> None:
        self.plain = self.guessing = 0.0

    def note(self, guessing: bool, seconds: float, tokens: int) -> None:
        """A step has taken so long. Faster ones count at once: slow ones compile, or share the machine."""
        name, new = ("guessing", seconds) if guessing else ("plain", seconds / tokens)
        old = getattr(self, name)
        setattr(self, name, new if not 0 < old < new else old + 0.1 * (new - old))

    @property
    def cost(self) -> float:
        """Tokens that a pass must bring so that it is not slower than steps without guesses."""
        return self.guessing / self.plain if self.guessing and self.plain else 1.3


class Guess:
    """A proposer at work, which rests while its guesses are not worth it."""

    def __init__(self, proposer: Proposer, pace: Pace) -> None:
        self.proposer, self.pace = proposer, pace
        self.worth, self.asked, self.rest, self.next_rest = 1.0, 0, 0, REST[0]

    def __call__(self, known: Sequence[int], room: int) -> list[int]:
        """At most `room` tokens that may follow."""
        if self.asked:  # what came of the last guess: tokens beside the one that every step makes
            self.worth += 0.25 * (len(known) - self.asked - 1 - self.worth)
            self.asked = 0
            if 1 + self.worth < self.pace.cost:
                self.rest, self.worth = self.next_rest, max(0.6, 1.25 * (self.pace.cost - 1))
                self.next_rest = min(2 * self.next_rest, REST[1])
            elif self.worth > 1:
                self.next_rest = REST[0]
        if self.rest or not self.pace.plain:
            self.rest = max(self.rest - 1, 0)
            return []
        found = self.proposer(known)[:room]
        self.asked = len(known) if found else 0
        return found
