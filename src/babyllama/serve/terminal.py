"""The terminal chat: a conversation with one model, its commands, and the loop that reads and answers.

On a terminal questions are edited with readline and Ctrl-C stops an answer; piped questions, one a line, are answered
plainly on stdout with every remark on stderr. Not here: which model (commands/chat.py), how tokens are chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from babyllama.amounts import amount
from babyllama.atomic import write_json
from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.tokenizer.chat import Message, render_chat
from babyllama.tokenizer.tokenizer import Tokenizer

# Control characters but tab and line break: a model's bytes must not steer the terminal.
_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])

HELP = """\
/reset          forget the conversation
/system TEXT    set the system message; without TEXT, remove it
/seed N         start the random draws anew from N
/save FILE      write the conversation as one line of a chat corpus (.jsonl)
/quit           exit, as Ctrl-D does; Ctrl-C stops an answer"""


def stream_text(engine: Engine, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling, max_tokens: int | None,
                seed: int | None = None, after: Sequence[int] = ()) -> Iterator[str]:  # fmt: skip
    """The answer's text in pieces of whole characters, without control characters and without the stop token.

    `after` are the tokens of a text that the answer continues, so that a blank between the two is kept.
    """
    text, stop = tokenizer.stream(after), tokenizer.stop_ids
    for token in engine.stream(prompt, sampling, max_tokens, stop, seed):
        if token not in stop and (piece := text.push(token).translate(_CONTROL)):
            yield piece
    if piece := text.flush().translate(_CONTROL):
        yield piece


class Conversation:
    """Questions and answers so far. Answer k since the last `seed` draws with seed + k, so a chat can be repeated.

    `memory`: how many of the latest turns the model sees beside a new question; None is as many as fit.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, sampling: Sampling, max_tokens: int = 512,
                 system: str = "", memory: int | None = None) -> None:  # fmt: skip
        self.engine, self.tokenizer, self.sampling, self.max_tokens = engine, tokenizer, sampling, max_tokens
        self.system, self.seed, self.memory = system, sampling.seed, memory
        self.turns: list[tuple[str, str]] = []

    @property
    def messages(self) -> list[Message]:
        """All that was said."""
        return self._said(self.turns)

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
        return render_chat(self.tokenizer, [*self._said(turns), asked], add_generation_prompt=True).tokens

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

    def ask(self, question: str) -> Iterator[str]:
        """The answer as it comes. Also an answer that is broken off stays in the conversation.

        Raises:
            InputError: the question does not fit the context even alone.
        """
        said: list[str] = []
        seed, self.seed = self.seed, self.seed + 1
        try:
            for piece in stream_text(self.engine, self.tokenizer, self.prompt(question), self.sampling,
                                     self.max_tokens, seed):  # fmt: skip
                said.append(piece)
                yield piece
        finally:
            if said:
                self.turns.append((question, "".join(said)))


# ── commands: each takes the rest of its line and gives the remark that is shown ───────────────────────────────────
def _help(chat: Conversation, rest: str) -> str:
    return HELP


def _reset(chat: Conversation, rest: str) -> str:
    chat.turns.clear()
    return "the conversation is forgotten"


def _system(chat: Conversation, rest: str) -> str:
    chat.system = rest
    return "the system message is set" if rest else "there is no system message now"


def _seed(chat: Conversation, rest: str) -> str:
    if not rest.isdecimal() or int(rest) >= 2**63:
        raise InputError(f"/seed {rest}: give a whole number from 0 to 2⁶³ − 1, such as /seed 42")
    chat.seed = int(rest)
    return f"the next answer draws with seed {chat.seed}"


def _save(chat: Conversation, rest: str) -> str:
    path = Path(rest).expanduser()
    if not rest:
        raise InputError("/save needs a file name, such as /save chat.jsonl")
    if path.exists():
        raise InputError(f"/save {rest}: exists; choose another name")
    if not chat.turns:
        raise InputError("/save: there is nothing said yet")
    write_json(path, {"messages": chat.messages}, indent=None)
    return f"saved {amount(len(chat.turns), 'turn')} to {path}"


COMMANDS: dict[str, Callable[[Conversation, str], str]] = {
    "/help": _help, "/reset": _reset, "/system": _system, "/seed": _seed, "/save": _save,
}  # fmt: skip


def run_command(chat: Conversation, line: str) -> str:
    """Carry out a line that starts with a slash. Raises InputError for an unknown command or a bad argument."""
    name, _, rest = line.partition(" ")
    if name not in COMMANDS:
        raise InputError(f"{name}: no such command; /help lists them")
    return COMMANDS[name](chat, rest.strip())


# ── the loop ───────────────────────────────────────────────────────────────────────────────────────────────────────
def talk(chat: Conversation, remarks: tuple[str, ...] = ()) -> None:
    """Read, answer, repeat, until the input ends or ``/quit``. `remarks` are shown first."""
    interactive = sys.stdin.isatty()
    answers, notes = Console(highlight=False), Console(stderr=not interactive, highlight=False, style="dim")
    for remark in (*remarks, *(("/help lists the commands; Ctrl-D exits",) if interactive else ())):
        notes.print(remark, markup=False, soft_wrap=True)
    for line in _typed(notes) if interactive else sys.stdin:
        line = line.strip()
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                notes.print(run_command(chat, line), markup=False, soft_wrap=True)
            elif line:
                _answer(chat, line, answers, notes)
        except InputError as error:
            notes.print(str(error), markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            if not interactive:
                raise
            answers.file.write("\n")
            notes.print("(stopped)", markup=False)


def _typed(notes: Console) -> Iterator[str]:
    """Lines from the keyboard, with editing and history where readline exists; Ctrl-C drops the line."""
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  (input() uses it once it is imported)
    while True:
        try:
            yield input("> ")
        except EOFError:
            notes.print()
            return
        except KeyboardInterrupt:
            notes.print("\n(Ctrl-D exits)")


def _answer(chat: Conversation, question: str, answers: Console, notes: Console) -> None:
    if dropped := chat.make_room(question):
        notes.print(
            f"(the context of {chat.engine.context} tokens is full; its first {amount(dropped, 'turn')} dropped)"
        )
    empty = True
    for piece in chat.ask(question):
        answers.file.write(piece)
        answers.file.flush()
        empty = False
    answers.file.write("\n")
    answers.file.flush()
    if empty:
        notes.print("(an empty answer)")
