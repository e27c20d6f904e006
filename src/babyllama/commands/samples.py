"""What a model is asked while it trains. Not here: when (train/trainer.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import Field

from babyllama.errors import InputError
from babyllama.infer.engine import Engine as Generator
from babyllama.infer.sampling import Sampling
from babyllama.model.transformer import Transformer
from babyllama.recipe import Recipe
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer


class Samples(Recipe):
    """What the model is asked while it trains: continuations, or questions in the chat template."""

    prompts: tuple[str, ...] = ()
    chat: bool = False
    max_tokens: int = Field(default=48, ge=1)
    sampling: Sampling = Sampling(temperature=0.0)


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
