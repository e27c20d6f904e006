"""The answers of a rollout, drawn in groups of one prompt each, and what they are worth.

Not here: how an answer is drawn (agents.py), how one is marked (rewards.py), what becomes of them (rollouts.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import xxhash
from pydantic import Field

from babyllama.data.streams.prompts import Prompt, Prompts
from babyllama.errors import InputError
from babyllama.model.transformer import Transformer
from babyllama.recipe import Changeable, Recipe
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.engines.world import World
from babyllama.train.rl.agents import Agents, Asked, Played, ToolUse, seen
from babyllama.train.rl.marks import BadReward, Marked, mark, names_of
from babyllama.train.rl.rewards import Reward


class Rollouts(Recipe):
    """Which answers are drawn, and how often each is learned from.

    A rollout has prompts × group answers. A step reads plan.micro_batch_size × plan.accumulate of them.
    """

    prompts: int | None = Field(
        default=None, ge=1, description="of a rollout; default: as many as make one step of all its answers"
    )
    group: int = Field(default=8, ge=1, description="answers to each prompt, which are compared with each other")
    max_tokens: int = Field(default=64, ge=1, description="of an answer; with tools of each of its turns")
    tools: ToolUse | None = Field(
        default=None, description="answers may call the tools that their prompts list, and go on with what those say"
    )
    temperature: float = Field(default=1.0, gt=0, le=10, description="of the draws, and of the policy that learns")
    passes: int = Field(default=1, ge=1, description="how often each answer is learned from before new ones are drawn")
    redraws: int = Field(default=0, ge=0, description="how often prompts whose answers are all worth the same give way "
                         "to others (DAPO's dynamic sampling)")  # fmt: skip
    on_bad_reward: Changeable[Literal["skip", "stop"]] = Field(
        default="stop",
        description="what a reward that raises or is no number leads to; skip: its answer teaches nothing",
    )
    check_every: int = Field(default=10, ge=1, description="rollouts between comparisons of the engine's "
                             "log-probabilities with the training's, logged as engine_gap")  # fmt: skip
    validation_prompts: Changeable[int] = Field(
        default=200, ge=1, description="held-out prompts of each corpus that are answered greedily at a validation"
    )
    general: Changeable[Path | None] = Field(
        default=None, description="prepared texts whose bits per byte each validation measures, against forgetting"
    )

    def count(self, rows: int) -> int:
        """Prompts of a rollout, where a step reads `rows` answers.

        Raises:
            InputError: steps and groups do not come out even.
        """
        answers = rows if self.prompts is None else self.prompts * self.group
        if answers % self.group:
            raise InputError(f"rollouts.group: {self.group} answers to each prompt do not divide the {rows} rows of a "
                             "step (plan.micro_batch_size × plan.accumulate); choose a multiple, or give "
                             "rollouts.prompts")  # fmt: skip
        if answers % rows:
            raise InputError(f"rollouts.prompts: {answers} answers (prompts × group) are no whole number of steps of "
                             f"{rows} rows (plan.micro_batch_size × plan.accumulate); choose a multiple")  # fmt: skip
        return answers // self.group


class Group(NamedTuple):
    """The answers to one prompt. `number`: the prompt's, in their endless order."""

    number: int
    prompt: Prompt
    drawn: list[Played]
    marks: list[Marked]

    @property
    def spread(self) -> bool:
        """Whether any answer is worth more than another."""
        found = {mark.total for mark in self.marks if math.isfinite(mark.total)}
        return len(found) > 1


@dataclass(eq=False)
class Groups:
    """Draws the groups of one rollout after the other.

    Args:
        count: groups of a rollout.
        room: tokens of a prompt and its answer; matters with tools alone.
        say: shows a line of text.

    Attributes:
        cursor: prompts that were asked so far, by all ranks.
        seconds: of this rank, on the newest rollout.
    """

    recipe: Rollouts
    rewards: Sequence[Reward]
    prompts: Prompts
    tokenizer: Tokenizer
    count: int
    seed: int
    room: int = 0
    say: Callable[[str], None] = lambda _: None
    cursor: int = field(init=False, default=0)
    seconds: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.agents = Agents(self.tokenizer, self.recipe.max_tokens, self.recipe.tools, self.room)

    def __call__(self, number: int, told: bool, model: Transformer, world: World,
                 meanwhile: Callable[[], None] = lambda: None) -> tuple[list[Group], dict[str, float]]:  # fmt: skip
        """Answers to all prompts of rollout `number`, by all ranks, and figures of them. `told`: with the engine's
        log-probabilities. `meanwhile`: as `Sampler` has it.

        Raises:
            BadReward: a reward raised or is no number, and that is to stop the training.
        """
        self.seconds = {"sampling": 0.0, "rewarding": 0.0}
        good, flat, drawn = list[Group](), list[Group](), list[Group]()
        for _ in range(1 + self.recipe.redraws):
            wanted = self.count - len(good)
            mine = range(self.cursor, self.cursor + wanted)[world.rank :: world.size]
            found = self._answered(number, mine, told, model, meanwhile)
            self.cursor += wanted
            found = sorted((group for part in world.gather(found) for group in part), key=lambda g: g.number)
            self._judge(found)
            drawn += found
            good += [group for group in found if group.spread]
            flat += [group for group in found if not group.spread]
            if len(good) == self.count:
                break
        groups = [*good, *flat][: self.count]
        return groups, {**self._figures(groups), "flat_groups": len(flat) / len(drawn),
                        "redrawn": float(len(drawn) - self.count)}  # fmt: skip

    def _answered(self, number: int, prompts: range, told: bool, model: Transformer,
                  meanwhile: Callable[[], None]) -> list[Group]:  # fmt: skip
        """This rank's share."""
        began, size = time.perf_counter(), self.recipe.group
        every = range(prompts.start, prompts[-1] + 1) if prompts else prompts
        asked = self.prompts.taken(every.start, len(every))[:: prompts.step]
        requests = [(prompt.tokens, self._seed(number, one, g))
                    for one, prompt in zip(prompts, asked, strict=True) for g in range(size)]  # fmt: skip
        drawn = self.agents(model, requests, self.recipe.temperature, told, meanwhile)
        self.seconds["sampling"] += time.perf_counter() - began
        began, found = time.perf_counter(), []
        read = [Asked.of(self.tokenizer, prompt) for prompt in asked]
        answers = seen(self.tokenizer, drawn, [one for one in read for _ in range(size)])
        for reward in self.rewards:
            reward.ahead(answers)
        for i, (one, prompt) in enumerate(zip(prompts, asked, strict=True)):
            mine = slice(i * size, (i + 1) * size)
            found.append(Group(one, prompt, drawn[mine], [mark(self.rewards, answer) for answer in answers[mine]]))
        self.seconds["rewarding"] += time.perf_counter() - began
        return found

    def _seed(self, *numbers: int) -> int:
        return xxhash.xxh3_64_intdigest(repr((self.seed, *numbers)).encode()) >> 1

    def _judge(self, groups: list[Group]) -> None:
        """What bad rewards lead to, on every rank the same."""
        faults = [mark.fault for group in groups for mark in group.marks if mark.fault]
        if faults and self.recipe.on_bad_reward == "stop":
            raise BadReward(f"{faults[0]}; mend the reward, or give rollouts.on_bad_reward=skip")
        for fault in faults[:1]:
            more = "" if len(faults) == 1 else f" ({len(faults) - 1} more of this rollout)"
            self.say(f"{fault}{more}; left out")

    def _figures(self, groups: list[Group]) -> dict[str, float]:
        """Means over the answers of a rollout."""
        marks = [mark for group in groups for mark in group.marks if not mark.fault]
        drawn = [answer for group in groups for answer in group.drawn]
        count = max(1, len(marks))
        parts = {f"reward_{name}": sum(mark.parts[name] for mark in marks) / count for name in names_of(self.rewards)}
        tools = {"calls": sum(answer.calls for answer in drawn) / len(drawn)} if self.recipe.tools else {}
        return {"reward": sum(mark.total for mark in marks) / count, **parts, **tools,
                "answer_tokens": sum(len(answer.tokens) for answer in drawn) / len(drawn),
                "ended": sum(answer.ended for answer in drawn) / len(drawn),
                "bad_rewards": float(len(drawn) - len(marks))}  # fmt: skip
