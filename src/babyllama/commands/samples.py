"""What a model is asked while it trains: prompts, and tests in which abilities appear. Not here: when
(train/trainer.py), tests (evals/)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import Field

from babyllama.errors import InputError
from babyllama.evals.choices import marked
from babyllama.evals.statistics import LEVEL
from babyllama.evals.suites import accuracy, asked_of
from babyllama.evals.tasks import TaskChoice
from babyllama.infer.engine import Engine as Generator
from babyllama.infer.sampling import Sampling
from babyllama.model.transformer import Transformer
from babyllama.recipe import Recipe
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer

Seen = tuple[str, dict[str, Any], str]  # its kind, what is recorded, what is shown


class Samples(Recipe):
    """What the model is asked while it trains: continuations, or questions in the chat template."""

    prompts: tuple[str, ...] = Field(default=(), description="what the model goes on with, or answers")
    chat: bool = Field(default=False, description="prompts are questions of a chat, not beginnings of texts")
    max_tokens: int = Field(default=48, ge=1, description="of each, at most")
    sampling: Sampling = Field(default=Sampling(temperature=0.0), description="how tokens are drawn")


def observer(samples: Samples, tests: tuple[TaskChoice, ...], tokenizer: Tokenizer, positions: int
             ) -> Callable[[Transformer], Iterator[Seen]]:  # fmt: skip
    """Both below, one after the other."""
    sample, examine = sampler(samples, tokenizer, positions), examiner(tests, tokenizer, positions)

    def observe(model: Transformer) -> Iterator[Seen]:
        for prompt, text in sample(model):
            yield "sample", {"prompt": prompt, "text": text}, f"{prompt} ▸ {text}"
        found = examine(model)
        above = [f"{name} {score['accuracy']:.0%}" for name, score in found.items() if score["p"] < LEVEL]
        if found:
            yield "abilities", found, f"above chance in {', '.join(above) or 'no test'} (of {len(found)})"

    return observe


def sampler(
    samples: Samples, tokenizer: Tokenizer, positions: int
) -> Callable[[Transformer], Iterator[tuple[str, str]]]:
    """model → (prompt, what follows) of each prompt.

    Args:
        positions: of the model.

    Raises:
        InputError: a prompt that leaves no position for an answer.
    """
    if samples.chat:
        asked = [render_chat(tokenizer, [{"role": "user", "content": p}], True).tokens for p in samples.prompts]
    else:
        asked = [[*tokenizer.start_ids, *tokenizer.encode(p)] for p in samples.prompts]
    for number, (prompt, tokens) in enumerate(zip(samples.prompts, asked, strict=True)):
        if len(tokens) >= positions:
            raise InputError(f"samples.prompts.{number}: {prompt[:20]!r}… has {len(tokens)} tokens, the model "
                             f"{positions} positions, which leaves none for an answer; shorten it")  # fmt: skip

    def sample(model: Transformer) -> Iterator[tuple[str, str]]:
        if not samples.prompts:
            return
        answers = Generator(model, tokenizer.vocab_size).generate(
            asked, samples.sampling, samples.max_tokens, tokenizer.stop_ids
        )
        texts = map(tokenizer.decode, answers) if samples.chat else map(tokenizer.continuation, asked, answers)
        yield from zip(samples.prompts, texts, strict=True)

    return sample


def examiner(choices: tuple[TaskChoice, ...], tokenizer: Tokenizer, positions: int
             ) -> Callable[[Transformer], dict[str, dict[str, float]]]:  # fmt: skip
    """model → its score in each test.

    Args:
        positions: of the model.

    Raises:
        InputError: a test whose files are not there, or that does not fit the model's context.
    """
    labels = [choice.called for choice in choices]
    if len(set(labels)) < len(labels):
        raise InputError("abilities: a test is there twice; give one of them another label")
    free = next((label for label, choice in zip(labels, choices, strict=True) if choice.task.free), None)
    if free:
        raise InputError(f"abilities: {free} has free answers, which take long; only tests of choice can be put here")
    ready = [(choice, asked_of(tokenizer, positions, choice.form, choice.items(None), choice.task.subjects or {},
                               choice.called)) for choice in choices]  # fmt: skip

    def examine(model: Transformer) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for choice, asked in ready:
            done = [mark for mark in marked(model, asked, tokenizer.vocab_size) if mark.item.answer is not None]
            figures = accuracy(done, choice.normalise or choice.task.normalise)
            low, high = figures["interval"]
            found[choice.called] = {"accuracy": figures["accuracy"], "low": low, "high": high,
                                    "chance": figures["chance"], "p": figures["p"], "items": len(done)}  # fmt: skip
        return found

    return examine
