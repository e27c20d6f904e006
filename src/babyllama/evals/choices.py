"""Multiple choice by log-likelihood: items → prompts and completions → which option a model takes.

    letter   the options stand in the prompt, A B C D follow it
    text     the options stand in the prompt, their whole texts follow it
    cloze    no option stands in the prompt, their texts follow it

Text is encoded as a whole, prompt and option together, and cut where the options part from the prompt: so tokens are
those that the model was trained on. Not here: the scores themselves (scoring.py), what they are worth (statistics.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from babyllama.errors import InputError
from babyllama.evals.items import LETTERS, Item, Items
from babyllama.evals.statistics import Pick
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from babyllama.evals.scoring import Pair  # PyTorch comes when something is scored: prepare's recipe names tests too
    from babyllama.model.transformer import Transformer

Scoring = Literal["letter", "text", "cloze"]
Normalise = Literal["none", "token", "character"]
NORMALISATIONS: tuple[Normalise, ...] = ("none", "token", "character")


@dataclass(frozen=True)
class Form:
    """How items are put to a model.

    Attributes:
        scoring: see above.
        shots: worked examples before each item, of its group.
        chat: as a user's message in the model's chat template; else as plain text.
        intro: what stands before everything; ``{subject}`` is the item's group as `subjects` names it.
        ask: what stands between a question and its answer.
    """

    scoring: Scoring = "cloze"
    shots: int = 0
    chat: bool = False
    intro: str = ""
    ask: str = ""

    def prompt(self, item: Item, examples: Sequence[Item], subject: str) -> str:
        """All that stands before the answer."""
        shown = [self.body(one) + self.completions(one)[one.answer or 0] + "\n\n" for one in examples[: self.shots]]
        return self.intro.replace("{subject}", subject) + "".join(shown) + self.body(item)

    def body(self, item: Item) -> str:
        if self.scoring == "cloze":
            return f"{item.question}{self.ask}"
        listed = "".join(f"\n{LETTERS[i]}. {option}" for i, option in enumerate(item.options))
        return item.question + listed + (self.ask or "\n")

    def completions(self, item: Item) -> tuple[str, ...]:
        return tuple(LETTERS[: len(item.options)]) if self.scoring == "letter" else item.options


class Asked(NamedTuple):
    """One item in tokens: a pair for each option, all with one prompt, and the characters of what is compared.
    `cut`: the prompt's beginning is missing."""

    item: Item
    pairs: tuple[Pair, ...]
    characters: tuple[int, ...]
    cut: bool


class Marked(NamedTuple):
    """One item as a model answered it: log-likelihood (nats), tokens and characters of each option."""

    item: Item
    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    characters: tuple[int, ...]
    cut: bool

    def taken(self, normalise: Normalise) -> int:
        """The option with the highest log-likelihood, as it is or by its length; the first of equal ones."""
        size = {"none": (1,) * len(self.nats), "token": self.tokens, "character": self.characters}[normalise]
        values = [value / count for value, count in zip(self.nats, size, strict=True)]
        return values.index(max(values))

    def pick(self, normalise: Normalise) -> Pick:
        assert self.item.answer is not None
        rates = tuple(tokens / count for tokens, count in zip(self.tokens, self.characters, strict=True))
        return Pick(self.tokens, self.taken(normalise), self.item.answer, self.item.block, rates)


def encoded(form: Form, tokenizer: Tokenizer, item: Item, examples: Sequence[Item], subject: str, context: int
            ) -> Asked | None:  # fmt: skip
    """An item in tokens; a prompt that is too long loses its beginning. None: an option alone fills the context."""
    from babyllama.evals.scoring import Pair

    text, completions = form.prompt(item, examples, subject), form.completions(item)
    if form.chat:
        start = render_chat(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True).tokens
        prompt, ends = start, tokenizer.encode_batch(completions)
    else:
        before, *whole = tokenizer.encode_batch([text, *(text + completion for completion in completions)])
        parted = min(_common(before, tokens) for tokens in whole)
        prompt, ends = [*tokenizer.start_ids, *before[:parted]], [tokens[parted:] for tokens in whole]
    room = context + 1 - max(map(len, ends))
    if room < 1 + len(tokenizer.start_ids) or not all(ends):
        return None
    cut = len(prompt) > room
    if cut:  # what a text begins with stays in front of what is left of it
        prompt = [*tokenizer.start_ids, *prompt[len(prompt) - room + len(tokenizer.start_ids) :]]
    return Asked(item, tuple(Pair(prompt, end) for end in ends), tuple(map(len, completions)), cut)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with, at least one of `other` left."""
    most = min(len(one), len(other) - 1)
    return next((i for i in range(most) if one[i] != other[i]), most)


def check_shots(form: Form, tokenizer: Tokenizer, items: Items, names: dict[str, str], context: int, task: str) -> None:
    """Raise InputError when the worked examples of a group alone fill the context, or there are too few of them."""
    for group in dict.fromkeys(item.group for item in items.asked) if form.shots else ():
        examples = items.examples.get(group, ())
        if len(examples) < form.shots:
            raise InputError(f"{task}: shots={form.shots}, but {group or 'the task'} has {len(examples)} examples; "
                             f"give shots={len(examples)}")  # fmt: skip
        sizes = [len(tokenizer.encode(form.body(one) + form.completions(one)[one.answer or 0])) + 2 for one in examples]
        taken = sum(sizes[: form.shots])
        if taken >= context:
            fitting = next(n for n in range(form.shots, -1, -1) if sum(sizes[:n]) < context)
            raise InputError(f"{task}: the {form.shots} examples of {names.get(group, group) or 'the task'} take "
                             f"{taken} tokens, the context has {context}; give shots={fitting}")  # fmt: skip


def marked(model: Transformer, asked: Sequence[Asked], vocab_size: int) -> Iterator[Marked]:
    """The answers, in order; all options of all items are scored together."""
    from babyllama.evals.scoring import score

    scores = iter(score(model, [pair for one in asked for pair in one.pairs], vocab_size=vocab_size))
    for one in asked:
        found = [next(scores) for _ in one.pairs]
        yield Marked(
            one.item,
            tuple(s.loglikelihood for s in found),
            tuple(s.tokens for s in found),
            one.characters,
            one.cut,
        )
