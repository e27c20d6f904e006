"""Skills of the micro-world: what one is, which combinations it keeps from training, and the records made of it.

The idea of a world so small that small models generalise in it: TinyStories (Eldan & Li, arXiv:2305.07759) and bAbI
(Weston et al., arXiv:1502.05698). A skill draws examples; each names every combination that occurs in it, in any
wording. An example is for training if none of them is held out, and for testing if the one that is asked for is.
Not here: what the skills are about (numbers.py, people.py, sentences.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import xxhash

HELD_OUT = 0.15  # of the combinations of every skill
_TRIES = 100_000  # draws for one example, before a skill counts as wrongly made

Combination = tuple[str | int, ...]


@dataclass(frozen=True)
class Example:
    """A question with its one right answer. `passage` is what it is about; it is empty where the question says all.

    `asked` is the combination that decides the answer, `others` are those that are only mentioned.
    """

    passage: str
    question: str
    answer: str
    asked: Combination
    others: tuple[Combination, ...] = ()

    @property
    def text(self) -> str:
        """Told in one go, for pretraining."""
        return f"{self.passage}{self.question}{self.answer}"


@dataclass(frozen=True)
class Skill:
    """`chance`: the share of right answers of somebody who knows the form of an answer and guesses.

    Examples drawn from the same seed are the same on every machine.
    """

    name: str
    title: str
    chance: float
    draw: Callable[[Random], Example]

    def holds_out(self, combination: Combination) -> bool:
        """By the combination alone, so that it is held out in every wording or in none."""
        digest = xxhash.xxh3_64_intdigest(f"{self.name}:{combination}".encode())
        return digest < HELD_OUT * 2.0**64

    def examples(self, count: int, seed: int, *, held_out: bool) -> Iterator[Example]:
        """`count` examples; of the held out ones only what is asked is held out, all else is known from training."""
        rng = Random(f"{self.name} {held_out} {seed}")  # a text as seed: the same in every process
        for _ in range(count):
            yield next(e for e in (self.draw(rng) for _ in range(_TRIES)) if self._fits(e, held_out))

    def _fits(self, example: Example, held_out: bool) -> bool:
        return self.holds_out(example.asked) is held_out and not any(map(self.holds_out, example.others))


def texts(skills: tuple[Skill, ...], count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """`count` texts for pretraining, the skills in turns; nothing that is held out occurs in them."""
    made = [skill.examples(-(-count // len(skills)), seed, held_out=False) for skill in skills]
    for round_of in zip(*made, strict=True):
        yield from ({"text": example.text} for example in round_of)


def chats(skill: Skill, count: int, held_out: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    """`count` chats for training and `held_out` chats to be asked, which say so themselves."""
    for number, apart in ((count, False), (held_out, True)):
        for example in skill.examples(number, seed, held_out=apart):
            question = {"role": "user", "content": f"{example.passage}{example.question}"}
            answer = {"role": "assistant", "content": example.answer}
            yield {"messages": [question, answer], "held_out": apart}
