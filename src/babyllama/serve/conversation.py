"""A conversation with one model: questions, answers, what of them the model sees. Not here: how it is shown."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

from babyllama.infer.engine import Engine
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling
from babyllama.infer.text import Text, pieces
from babyllama.tokenizer.answers import OPENING
from babyllama.tokenizer.chat import Message, render_chat
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.tools import read_answer

# Control characters but tab and line break: a model's bytes must not steer the terminal.
_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def printable(text: str) -> str:
    """The text without control characters."""
    return text.translate(_CONTROL)


class Conversation:
    """Questions and answers so far. Answer k since the last `seed` draws with seed + k, so a chat can be repeated.

    What an answer thought stays part of it, as in training.

    Args:
        memory: how many of the latest turns the model sees beside a new question; None is as many as fit.
        thinking: whether answers have to think first, or have not to; None: as the model likes.

    Attributes:
        question: the last one that was asked, also where it got no answer.
        text: the state of its answer, with the number of tokens and why it ended.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, sampling: Sampling, max_tokens: int = 512,
                 system: str = "", memory: int | None = None, thinking: bool | None = None) -> None:  # fmt: skip
        self.thinking = thinking
        self.engine, self.tokenizer, self.sampling, self.max_tokens = engine, tokenizer, sampling, max_tokens
        self.system, self.seed, self.memory = system, sampling.seed, memory
        self.turns: list[tuple[str, str]] = []
        self.question = ""
        self.text = Text(tokenizer)

    @property
    def messages(self) -> list[Message]:
        """All that was said, what was thought apart from it."""
        return [read_answer(m["content"]) if m["role"] == "assistant" else m for m in self._said(self.turns)]

    def _said(self, turns: Sequence[tuple[str, str]]) -> list[Message]:
        found: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in turns:
            found.append({"role": "user", "content": question})
            found.append({"role": "assistant", "content": answer})
        return found

    def prompt(self, question: str) -> list[int]:
        """The tokens of the turns that the model sees and of `question`, as training rendered them."""
        seen = self.turns if self.memory is None else self.turns[len(self.turns) - min(self.memory, len(self.turns)) :]
        return self._prompt(seen, question)

    def _prompt(self, turns: Sequence[tuple[str, str]], question: str) -> list[int]:
        asked: Message = {"role": "user", "content": question}
        return render_chat(self.tokenizer, [*self._said(turns), asked], True, (), self.thinking).tokens

    def make_room(self, question: str) -> int:
        """Drop the oldest turns until a quarter of the context (or max_tokens) is left to answer; how many went.

        None are dropped for a question that does not fit even alone: it will be refused.
        """
        if len(self._prompt([], question)) >= self.engine.context:
            return 0
        wanted, dropped = min(self.max_tokens, self.engine.context // 4), 0
        while self.turns and len(self.prompt(question)) + wanted > self.engine.context:
            del self.turns[0]
            dropped += 1
        return dropped

    def ask(self, question: str) -> Generator[str, None, None]:
        """The answer as it comes. Also an answer that is broken off stays in the conversation.

        Raises:
            InputError: the question does not fit the context even alone.
        """
        said = [OPENING[self.thinking]] if self.thinking is not None else []
        seed, self.seed, self.question = self.seed, self.seed + 1, question
        self.text = Text(self.tokenizer)
        request = Request(self.prompt(question), self.sampling, self.max_tokens, self.tokenizer.stop_ids, seed)
        try:
            with closing(pieces(self.engine, request, self.text)) as found:
                for piece in map(printable, found):
                    said.append(piece)
                    yield piece
        finally:
            if len(said) > (self.thinking is not None):
                self.turns.append((question, "".join(said)))

    def take_back(self) -> str:
        """Forget the last question and its answer; the question."""
        if self.turns and self.turns[-1][0] == self.question:
            del self.turns[-1]
        return self.question

    def by(self, engine: Engine, tokenizer: Tokenizer) -> Conversation:
        """This conversation before its last question, with another model, which would draw as this one did."""
        sampling = self.sampling.model_copy(update={"seed": max(self.seed - 1, 0)})
        other = Conversation(engine, tokenizer, sampling, self.max_tokens, self.system, self.memory,
                             self.thinking)  # fmt: skip
        other.turns, other.question = [*self.turns], self.question
        other.take_back()
        return other
