"""Answers that use tools: the model calls, the tools answer, the model goes on. Without tools, just answers.

All that the model wrote is learned from, its calls and their end tokens too; what the tools answered, and what opens
the next turn, is not. Not here: how one turn is drawn (sampler.py), the tools (data/toolworld/), what an answer is
worth (rewards.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import xxhash
from pydantic import Field

from babyllama.data.streams.prompts import Prompt
from babyllama.data.toolworld.tools import TOOLS, call
from babyllama.model.transformer import Transformer
from babyllama.recipe import Recipe
from babyllama.tokenizer.answers import offered, without_thought
from babyllama.tokenizer.chat import results_after_answer
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.tools import read_answer
from babyllama.train.rl.rewards import Answer
from babyllama.train.rl.sampler import Drawn, Sampler


class ToolUse(Recipe):
    """The tools of the made-up world; a prompt's own list says which of them may be called."""

    kind: Literal["toolworld"] = "toolworld"
    rounds: int = Field(default=4, ge=1, description="of calls in one answer, at most")


class Played(NamedTuple):
    """One answer with all its turns. `tokens`: all after the prompt; `own`: which of them the model wrote; `logprobs`:
    the engine's, of those. `last`: the tokens of its last turn. `calls`, and how many of them were `answered`."""

    tokens: list[int]
    own: list[bool]
    last: list[int]
    ended: bool
    logprobs: list[float]
    calls: int = 0
    answered: int = 0


class Results(NamedTuple):
    """The tokens of what the calls of one turn get back, how many calls, how many answered."""

    tokens: list[int]
    calls: int
    answered: int


class Asked(NamedTuple):
    """A prompt as rewards see it: its text, what the reference answer says, its tokens."""

    text: str
    reference: str
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: Prompt) -> Asked:
        """Read once for all answers to it."""
        return cls(tokenizer.decode(prompt.tokens), without_thought(tokenizer.decode(prompt.answer)),
                   tuple(prompt.tokens))  # fmt: skip


def seen(tokenizer: Tokenizer, played: Sequence[Played], asked: Sequence[Asked]) -> list[Answer]:
    """What rewards see of each answer to each prompt."""
    texts = map(without_thought, tokenizer.decode_all([answer.last for answer in played]))
    return [Answer(one.text, text, one.reference, answer.ended, answer.calls, answer.answered,
                   (*one.tokens, *answer.tokens))
            for one, text, answer in zip(asked, texts, played, strict=True)]  # fmt: skip


class Agents:
    """Args:
    max_tokens: of one turn.  room: of prompt and answer together, all turns.
    use: None: no tools.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, use: ToolUse | None = None, room: int = 0) -> None:
        self.tokenizer, self.max_tokens, self.use, self.room = tokenizer, max_tokens, use, room
        self.sampler = Sampler(tokenizer.vocab_size, tokenizer.stop_ids, max_tokens)

    def __call__(self, model: Transformer, prompts: Sequence[tuple[list[int], int]], temperature: float,
                 told: bool = False, meanwhile: Callable[[], None] = lambda: None) -> list[Played]:  # fmt: skip
        """One answer for each (prompt, seed); as `Sampler`."""
        played = [_begun(drawn) for drawn in self.sampler(model, prompts, temperature, told, meanwhile)]
        if self.use is None:
            return played
        texts = [tuple(prompt) for prompt, _ in prompts]  # one for all answers of a group, which are often equal, too
        tools = {text: offered(self.tokenizer.decode(text, skip_special=False)) for text in dict.fromkeys(texts)}
        results = dict[tuple[tuple[int, ...], frozenset[str]], Results | None]()
        going = list(range(len(prompts)))
        for turn in range(1, self.use.rounds + 1):
            numbers = []
            for number, i in enumerate(going):
                key = tuple(played[i].last), tools[texts[i]]
                if key not in results:
                    results[key] = self._results(*key)
                found = results[key]
                if found is not None and self._fits(len(texts[i]) + len(played[i].tokens) + len(found.tokens)):
                    played[i] = _answered(played[i], *found)
                    numbers.append(number)
            going = [going[number] for number in numbers]
            if not going:
                break
            asked = [(prompts[i][0] + played[i].tokens, _seed(prompts[i][1], turn)) for i in going]
            for i, drawn in zip(going, self.sampler(model, asked, temperature, told, goes_on=numbers), strict=True):
                played[i] = _gone_on(played[i], drawn)
        return played

    def _fits(self, tokens: int) -> bool:
        """Whether another turn has room after so many."""
        return tokens + self.max_tokens <= self.room

    def _results(self, last: tuple[int, ...], tools: frozenset[str]) -> Results | None:
        """What the calls of a turn get back; None where it has none, and so is the last one."""
        if last[-1] != self.tokenizer.eos_id:
            return None
        calls = [one["function"] for one in read_answer(self.tokenizer.decode(last)).get("tool_calls", ())]
        if not calls:
            return None
        found = [call(one["name"], one["arguments"], tools & TOOLS.keys()) for one in calls]
        tokens = results_after_answer(self.tokenizer, [result.text for result in found])
        return Results(tokens, len(found), sum(result.good for result in found))


def _begun(drawn: Drawn) -> Played:
    return Played(drawn.tokens, [True] * len(drawn.tokens), drawn.tokens, drawn.ended, drawn.logprobs)


def _answered(played: Played, tokens: list[int], calls: int, answered: int) -> Played:
    return played._replace(tokens=played.tokens + tokens, own=played.own + [False] * len(tokens),
                           calls=played.calls + calls, answered=played.answered + answered)  # fmt: skip


def _gone_on(played: Played, drawn: Drawn) -> Played:
    return played._replace(tokens=played.tokens + drawn.tokens, own=played.own + [True] * len(drawn.tokens),
                           last=drawn.tokens, ended=drawn.ended, logprobs=played.logprobs + drawn.logprobs)  # fmt: skip


def _seed(seed: int, turn: int) -> int:
    return xxhash.xxh3_64_intdigest(repr((seed, turn)).encode()) >> 1
