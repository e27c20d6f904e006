"""A conversation with one model: questions, answers, the tools that these call, what of it all the model sees.

Not here: how it is shown (terminal.py), the tools themselves (data/toolworld/).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling
from babyllama.infer.text import Text, pieces
from babyllama.tokenizer.answers import OPENING
from babyllama.tokenizer.chat import Message, render_chat
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.tools import OWN, Calls, ToolForm, read_answer, tool_form

# Control characters but tab and line break: a model's bytes must not steer the terminal.
_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def printable(text: str) -> str:
    """The text without control characters."""
    return text.translate(_CONTROL)


@dataclass(frozen=True)
class Tools:
    """What answers may call.

    Args:
        specs: in OpenAI's form.
        call: (name, arguments) → what the model is told; a call that cannot be answered gets a text that says why.
        rounds: how often in a row until an answer has to come.
    """

    specs: Sequence[dict[str, Any]]
    call: Callable[[str, Any], str]
    rounds: int


class Used(NamedTuple):
    """A call, its arguments as JSON, and what it got."""

    name: str
    arguments: str
    result: str


class _Shown:
    """The text of a message as it comes → without its calls, and without the blanks around them."""

    def __init__(self, form: ToolForm) -> None:
        self._calls, self._blank = Calls(form), ""

    def feed(self, piece: str, ended: bool = False) -> str:
        """What is to be shown now."""
        text = self._blank + self._calls.feed(piece, ended)[0]
        sure = text if ended and not self._calls.count else text.rstrip()
        self._blank = text[len(sure) :]
        return sure


class Turn(NamedTuple):
    """A question and its answer, as the model wrote it; `steps`: calls before the answer, and what they got."""

    question: str
    answer: str
    steps: tuple[Message, ...] = ()


class Conversation:
    """Questions and answers so far. Answer k since the last `seed` draws with seed + k, so a chat can be repeated.

    What an answer thought stays part of it, as in training.

    Args:
        memory: how many of the latest turns the model sees beside a new question; None is as many as fit.
        thinking: whether answers have to think first, or have not to; None: as the model likes.
        tools: None: none.

    Attributes:
        question: the last one that was asked, also where it got no answer.
        text: the state of its answer, with the number of tokens and why it ended.
        tokens: of its answer, calls included.

    Raises:
        InputError: tools for a model whose chat template writes none; they or the system message fill the context.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, sampling: Sampling, max_tokens: int = 512,
                 system: str = "", memory: int | None = None, thinking: bool | None = None,
                 tools: Tools | None = None) -> None:  # fmt: skip
        self.thinking, self.tools = thinking, tools
        self.form = OWN if tools is None else tool_form(tokenizer)
        self.engine, self.tokenizer, self.sampling, self.max_tokens = engine, tokenizer, sampling, max_tokens
        self.system, self.seed, self.memory = system, sampling.seed, memory
        self.turns: list[Turn] = []
        self.question, self.tokens = "", 0
        self.text = Text(tokenizer)
        self._check_room()

    def tell(self, system: str) -> None:
        """Another system message from now on. Raises InputError, and changes nothing, where it fills the context."""
        before, self.system = self.system, system
        try:
            self._check_room()
        except InputError:
            self.system = before
            raise

    def _check_room(self) -> None:
        taken = len(self._prompt([], "")) if self.tools is not None or self.system else 0
        if taken >= self.engine.context:
            given = " and the ".join(["system message"] * bool(self.system) + ["tools"] * (self.tools is not None))
            raise InputError(f"{given}: {taken} tokens leave no room for a question in the model's context of "
                             f"{self.engine.context}; leave that out, or take a model of a longer context")  # fmt: skip

    @property
    def messages(self) -> list[Message]:
        """All that was said, what was thought and called apart from it."""
        return [read_answer(m["content"], self.form) if m["role"] == "assistant" and "tool_calls" not in m else m
                for m in self._said(self.turns)]  # fmt: skip

    def _said(self, turns: Sequence[Turn]) -> list[Message]:
        found: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer, steps in turns:
            found += [{"role": "user", "content": question}, *steps, {"role": "assistant", "content": answer}]
        return found

    def prompt(self, question: str, begun: str = "", steps: Sequence[Message] = ()) -> list[int]:
        """The tokens of the turns that the model sees, of `question`, of the steps to its answer so far and of how that
        has `begun`, as training rendered them."""
        seen = self.turns if self.memory is None else self.turns[len(self.turns) - min(self.memory, len(self.turns)) :]
        return self._prompt(seen, question, begun, steps)

    def _prompt(self, turns: Sequence[Turn], question: str, begun: str = "", steps: Sequence[Message] = ()
                ) -> list[int]:  # fmt: skip
        messages = [*self._said(turns), Message(role="user", content=question), *steps]
        specs = () if self.tools is None else self.tools.specs
        if not begun:
            return render_chat(self.tokenizer, messages, True, specs, self.thinking).tokens
        messages.append(Message(role="assistant", content=begun))
        return render_chat(self.tokenizer, messages, False, specs, continue_final_message=True).tokens

    def make_room(self, question: str, begun: str = "", steps: Sequence[Message] = ()) -> int:
        """Drop the oldest turns until a quarter of the context (or max_tokens) is left to answer; how many went.

        None are dropped for a question that does not fit even alone: it will be refused.
        """
        if len(self._prompt([], question, begun, steps)) >= self.engine.context:
            return 0
        wanted, dropped = min(self.max_tokens, self.engine.context // 4), 0
        while self.turns and len(self.prompt(question, begun, steps)) + wanted > self.engine.context:
            del self.turns[0]
            dropped += 1
        return dropped

    def ask(self, question: str, begun: str = "", steps: Sequence[Message] = ()) -> Generator[str | Used, None, None]:
        """The answer as it comes, with the tools that it uses. Also an answer that is broken off stays in the
        conversation.

        Args:
            begun, steps: of an answer that goes on (`unfinished`): only its rest comes.

        Raises:
            InputError: the question, what the tools said to it or what is to go on does not fit the context even alone.
        """
        seed, self.seed, self.question, self.tokens = self.seed, self.seed + 1, question, 0
        said, taken = list[str](), list(steps)
        opening = "" if self.thinking is None else OPENING[self.thinking]
        try:
            for left in range(0 if self.tools is None else self.tools.rounds, -1, -1):
                prompt = self.prompt(question, begun, taken)
                if (taken or begun) and len(prompt) >= self.engine.context:
                    after = " after what the tools said" if taken and not begun else ""
                    raise InputError(f"the context of {self.engine.context} tokens is full: there is no room to go on"
                                     f"{after}")  # fmt: skip
                yield from self._written(prompt, seed, said, begun, left > 0)
                message = read_answer((begun or opening) + "".join(said), self.form)
                if not left or self.text.finish != "stop" or "tool_calls" not in message:
                    return
                taken.append(message)
                said.clear()
                begun = ""
                yield from self._use(message, taken)
        finally:
            if said or taken or begun:
                answer = (begun or opening) + "".join(said) if said or begun else ""
                self.turns.append(Turn(question, answer, tuple(taken)))

    def unfinished(self) -> Turn:
        """The last turn, taken out, whose answer can go on (`ask`).

        Raises:
            InputError: there is none: the last question got no answer, or that has ended.
        """
        if not self.turns or self.turns[-1].question != self.question:
            raise InputError("there is no answer that could go on")
        if self.text.finish == "stop":
            raise InputError("the last answer has ended; /regenerate asks for another one")
        return self.turns.pop()

    def _written(self, prompt: list[int], seed: int, said: list[str], begun: str, answered: bool
                 ) -> Generator[str, None, None]:  # fmt: skip
        """What the model writes, all of it also to `said`; without calls where these are to be `answered`."""
        self.text, before = Text(self.tokenizer, after=self.tokenizer.encode(begun)), self.tokens
        request = Request(prompt, self.sampling, self.max_tokens, self.tokenizer.stop_ids, seed)
        shown = _Shown(self.form) if answered else None
        with closing(pieces(self.engine, request, self.text)) as found:
            for piece in map(printable, found):
                said.append(piece)
                self.tokens = before + self.text.tokens
                if told := shown.feed(piece) if shown else piece:
                    yield told
        self.tokens = before + self.text.tokens
        if shown and (told := shown.feed("", True)):
            yield told

    def _use(self, message: Message, steps: list[Message]) -> Generator[Used, None, None]:
        """Answer the calls of a message; what each got goes to `steps`."""
        assert self.tools is not None
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            result = self.tools.call(name, arguments)
            steps.append({"role": "tool", "content": result})
            yield Used(*map(printable, (name, json.dumps(arguments, ensure_ascii=False), result)))

    def take_back(self) -> str:
        """Forget the last question and its answer; the question."""
        if self.turns and self.turns[-1].question == self.question:
            del self.turns[-1]
        return self.question

    def by(self, engine: Engine, tokenizer: Tokenizer) -> Conversation:
        """This conversation before its last question, with another model, which would draw as this one did."""
        sampling = self.sampling.model_copy(update={"seed": max(self.seed - 1, 0)})
        other = Conversation(engine, tokenizer, sampling, self.max_tokens, self.system, self.memory,
                             self.thinking, self.tools)  # fmt: skip
        other.turns, other.question = [*self.turns], self.question
        other.take_back()
        return other
