"""Answers: the model is asked greedily, in the template it was trained with, and compared with the reference.

Questions come from the chats of a prepared folder or of any corpus; which of them a training saw, provenance.py says.
What is asked is the last answer of a chat, after everything before it. Sums and counts; whoever reports divides.
Not here: the engine, templates.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import xxhash

from babyllama.data.shards.shards import Prepared, TokenStore
from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.data.sources.documents import Chat
from babyllama.data.streams.prompts import last_answers, prompt_of
from babyllama.errors import InputError
from babyllama.evals.texts import NUMBERS, bleu, character_f1, matches, rouge, rouge_l
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.marking import exact
from babyllama.tokenizer.answers import answer_text
from babyllama.tokenizer.chat import render_chat
from babyllama.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """`prompt` ends where the answer begins, exactly as in training; `reference` is the answer's text.

    `document` is the chat it is from, by which `prepare` holds it out; None for one that is prepared.
    """

    prompt: list[int]
    reference: str
    document: Chat | None = None


@dataclass(frozen=True)
class Answer:
    """One question with what the model said. `question`: what was said before, message by message with ▸ between them.
    `tokens` counts the end token; `ended`: by itself, with that token."""

    question: str
    answer: str
    reference: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class AnswerSums:
    """Sums over answers; the ratios need `asked` > 0."""

    asked: int = 0
    exact: int = 0
    f1: float = 0.0
    ended: int = 0
    tokens: int = 0
    characters: int = 0
    reference_characters: int = 0
    rouge_1: float = 0.0
    rouge_2: float = 0.0
    rouge_l: float = 0.0
    matches: tuple[int, ...] = (0,) * NUMBERS

    def __add__(self, other: AnswerSums) -> AnswerSums:
        mine, theirs = asdict(self), asdict(other)
        sums = {name: mine[name] + theirs[name] for name in mine if name != "matches"}
        return AnswerSums(**sums, matches=tuple(map(sum, zip(self.matches, other.matches, strict=True))))

    @property
    def figures(self) -> dict[str, Any]:
        """Everything but `asked` as a mean, and BLEU of all answers together."""
        means = {k: v / self.asked for k, v in asdict(self).items() if k not in ("asked", "matches")}
        return {"asked": self.asked, **means, "bleu": bleu(self.matches)}


def compared(answer: Answer) -> AnswerSums:
    """One answer's contribution. Exact: equal but for white space at the ends."""
    return AnswerSums(
        asked=1,
        exact=int(exact(answer.answer, answer.reference)),
        f1=character_f1(answer.answer, answer.reference),
        ended=int(answer.ended),
        tokens=answer.tokens,
        characters=len(answer.answer),
        reference_characters=len(answer.reference),
        rouge_1=rouge(answer.answer, answer.reference, 1),
        rouge_2=rouge(answer.answer, answer.reference, 2),
        rouge_l=rouge_l(answer.answer, answer.reference),
        matches=matches(answer.answer, answer.reference),
    )


def prepared_questions(store: TokenStore, count: int, tokenizer: Tokenizer) -> list[Question]:
    """`count` chats spread evenly over a chat corpus, as the very tokens that training reads or would read."""
    places = last_answers(store)
    picked = np.linspace(0, store.documents, min(count, store.documents), endpoint=False).astype(int)
    prompts = [prompt_of(store, places[document]) for document in picked.tolist()]
    return [Question(prompt.tokens, tokenizer.decode(prompt.answer)) for prompt in prompts]


def chat_questions(prepared: Prepared, labels: Iterable[str], split: str, count: int, tokenizer: Tokenizer
                   ) -> Iterator[tuple[str, list[Question]]]:  # fmt: skip
    """(label, up to `count` questions) of every chat corpus that has documents in the split."""
    for label in labels:
        store = prepared.store(label, split)
        if store.kind == "chat" and store.documents:
            yield label, prepared_questions(store, count, tokenizer)


def corpus_questions(choice: CorpusChoice, count: int, tokenizer: Tokenizer) -> list[Question]:
    """`count` chats of a corpus: those whose text has the smallest hash; `prepare` holds out such first.

    Raises:
        InputError: the corpus holds texts, not chats, or nothing.
    """
    picked = heapq.nsmallest(count, read_documents(choice), key=lambda d: xxhash.xxh3_64_intdigest(d.text.encode()))
    questions = []
    for chat in picked:
        if not isinstance(chat, Chat):
            raise InputError(f"corpus {choice.stored_as}: holds {chat.kind}s; only chats have questions and answers")
        prompt = render_chat(tokenizer, chat.messages[: chat.last_answer], True, chat.tools).tokens
        questions.append(Question(prompt, answer_text(chat.messages[chat.last_answer]), chat))
    if not questions:
        raise InputError(f"corpus {choice.stored_as}: no chat in it")
    return questions


def _shown(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """The texts between special tokens."""
    between = [list(part) for special, part in groupby(prompt, tokenizer.special_ids.__contains__) if not special]
    return " ▸ ".join(text for part in between if (text := tokenizer.decode(part).strip()))


def ask(engine: Engine, tokenizer: Tokenizer, questions: Sequence[Question], max_tokens: int,
        rows: int) -> Iterator[Answer]:  # fmt: skip
    """Greedy answers, `rows` questions at a time, short prompts first. What leaves no room to answer is passed over."""
    fitting = sorted((q for q in questions if len(q.prompt) < engine.context), key=lambda q: len(q.prompt))
    for start in range(0, len(fitting), rows):
        batch = fitting[start : start + rows]
        found = engine.generate([q.prompt for q in batch], Sampling(temperature=0.0), max_tokens, tokenizer.stop_ids)
        for question, tokens in zip(batch, found, strict=True):
            yield Answer(
                question=_shown(tokenizer, question.prompt),
                answer=tokenizer.decode(tokens),
                reference=question.reference,
                tokens=len(tokens),
                ended=tokens[-1] in tokenizer.stop_ids,
            )
