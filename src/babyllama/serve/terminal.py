"""The chat in a terminal: read, answer, repeat.

On a terminal questions are edited (keyboard.py) and Ctrl-C stops an answer and not the program; piped questions, one a
line, are answered plainly on stdout with every remark on stderr. Not here: which model (commands/chat.py), what is
said (conversation.py), commands (chat_commands.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from io import BufferedReader
from pathlib import Path

from rich.console import Console

from babyllama.amounts import amount
from babyllama.data.sources.encodings import marked
from babyllama.errors import InputError, at_home
from babyllama.infer.engine import Engine
from babyllama.interrupts import Stopper, came_of
from babyllama.serve.chat_commands import COMMANDS, QUITS, run_command, slashed
from babyllama.serve.conversation import Conversation, Used
from babyllama.serve.keyboard import Read, keyboard
from babyllama.tokenizer.chat import Message
from babyllama.tokenizer.tokenizer import Tokenizer

Opened = tuple[Engine, Tokenizer]


def talk(chat: Conversation, open_model: Callable[[Path], Opened], remarks: tuple[str, ...] = (), turns: bool = False,
         history: Path | None = None) -> None:  # fmt: skip
    """Read and answer until the input ends or ``/quit``.

    Args:
        open_model: opens another model for ``/compare``.
        remarks: what is shown first.
        turns: whether piped lines are turns of one conversation; else each is a question of its own.
        history: see `keyboard`.

    Raises:
        SystemExit: 2, after all others, where a piped line got no answer.
    """
    if sys.stdin.isatty():
        with Stopper() as stopper:
            read, how = keyboard([*COMMANDS, "/quit"], history, stopper)
            Talk(chat, open_model, read, True, stopper).run((*remarks, how))
    elif Talk(chat, open_model, None, turns).run(remarks):
        raise SystemExit(2)


class Talk:
    """One chat. `read`: reads from a keyboard; None: lines come through a pipe. `stopper`: stops answers, not the chat,
    at Ctrl-C; None: that ends the program."""

    def __init__(self, chat: Conversation, open_model: Callable[[Path], Opened], read: Read | None, turns: bool,
                 stopper: Stopper | None = None) -> None:  # fmt: skip
        self.chat, self.open_model, self.read, self.turns = chat, open_model, read, turns
        self.stopper = stopper
        self.others: dict[str, Opened] = {}  # models that were compared, the last one last
        self.answers = Console(highlight=False)
        self.notes = Console(stderr=read is None, highlight=False, style="dim")

    def run(self, remarks: tuple[str, ...]) -> int:
        """How many lines got no answer."""
        refused = 0
        for remark in remarks:
            self.note(remark)
        for line in map(slashed, map(str.strip, self._typed() if self.read else _piped())):
            if line in QUITS:
                break
            try:
                self.stopper(partial(self._take, line)) if self.stopper else self._take(line)
            except InputError as error:
                self.note(str(error))
                refused += 1
            except (KeyboardInterrupt, Exception) as error:
                if self.stopper is None or not came_of(error):
                    raise
                self._write("\n")
                self.note("(stopped)")
        return refused

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            self.note(run_command(self, line))
        elif "\0" in line:
            raise InputError("not asked, for it holds bytes of zero, as text in UTF-16 does: save it as UTF-8")
        elif any("\ud800" <= character <= "\udfff" for character in line):
            raise InputError(f"not asked, for {_wrong_encoding(line, sys.stdin.encoding or 'utf-8')}")
        elif line:
            if not self.turns:
                self.chat.turns.clear()
            self.answer(line)

    def note(self, remark: str) -> None:
        """Show a remark, if there is any."""
        if remark:
            self.notes.print(remark, markup=False, soft_wrap=True)

    def _typed(self) -> Iterator[str]:
        """What is typed; Ctrl-C drops it."""
        while self.read is not None:
            try:
                yield self.read("")
            except EOFError:
                self.note("\n")
                return
            except (KeyboardInterrupt, Exception) as error:
                if not came_of(error):
                    raise
                self.note("(Ctrl-D exits)")

    # ── what commands do ───────────────────────────────────────────────────────────────────────────────────────
    def answer(self, question: str, begun: str = "", steps: Sequence[Message] = ()) -> None:
        """Ask the model and show what it says, or the rest of what it said."""
        if dropped := self.chat.make_room(question, begun, steps):
            gone = f"its first {amount(dropped, 'turn')} dropped"
            self.note(f"(the context of {self.chat.engine.context} tokens is full; {gone})")
        self._show(self.chat, question, begun, steps)

    def compare(self, path: str) -> None:
        """Ask the model at `path` the last question; "": the one that was compared last."""
        if not path and not self.others:
            raise InputError("/compare needs a model, such as /compare runs/other")
        path = path or next(reversed(self.others))
        opened = self.others.pop(path, None) or self.open_model(at_home(path))
        self.others[path] = opened
        other = self.chat.by(*opened)
        other.make_room(self.chat.question)
        self.note(f"── {path}")
        self._show(other, self.chat.question)

    def edited(self, text: str) -> str:
        """What becomes of a text that the user may change; "" where there is no keyboard, or for Ctrl-C."""
        try:
            return self.read(text).strip() if self.read else ""
        except (EOFError, KeyboardInterrupt):
            return ""

    def _show(self, chat: Conversation, question: str, begun: str = "", steps: Sequence[Message] = ()) -> None:
        began, empty = time.perf_counter(), True
        first, open_ = began, False  # a line that is not at its end
        with closing(chat.ask(question, begun, steps)) as pieces:
            for piece in pieces:
                if empty:
                    first, empty = time.perf_counter(), False
                if isinstance(piece, Used):
                    self._write("\n" if open_ else "")
                    self.note(f"→ {piece.name} {piece.arguments}\n← {piece.result}")
                else:
                    self._write(piece)
                open_ = not isinstance(piece, Used) and not piece.endswith("\n")
        seconds = time.perf_counter() - began
        self._write("\n")
        if empty:
            self.note("(nothing follows)" if begun else "(an empty answer)")
        elif self.read is not None:
            most, context = chat.max_tokens, chat.engine.context
            cut = "" if chat.text.finish != "length" else (
                f"; cut off at max_tokens={most}, /continue goes on" if chat.text.tokens == most else
                f"; cut off, for the context of {context} tokens is full")  # fmt: skip
            self.note(f"({amount(chat.tokens, 'token')}, {chat.tokens / seconds:,.0f} a second, the first "
                      f"after {1000 * (first - began):.0f} ms{cut})")  # fmt: skip

    def _write(self, text: str) -> None:
        self.answers.file.write(text)
        self.answers.file.flush()


def _piped() -> Iterator[str]:
    """The lines of stdin, in the encoding that a byte order mark before them says."""
    buffer = getattr(sys.stdin, "buffer", None)
    if isinstance(buffer, BufferedReader) and (codec := marked(buffer.peek(4))) is not None:
        codec = "utf-8-sig" if codec == "utf-8" else codec
        sys.stdin.reconfigure(encoding=codec, errors=sys.stdin.errors)  # type: ignore[union-attr]
    yield from sys.stdin


def _wrong_encoding(line: str, encoding: str) -> str:
    """What is wrong with a line whose bytes are not `encoding`, and what to do."""
    wrong = f"it is not valid {encoding}"
    raw = line.encode(encoding, "surrogateescape")
    for name, called in (("utf-8", "UTF-8"), ("gb18030", "GBK (GB18030)")):
        try:
            text = raw.decode(name)
        except UnicodeDecodeError:
            continue
        return (
            f"{wrong}; as {called} it reads {text[:20]!r}: set PYTHONIOENCODING={name} before the command if it is that"
        )
    return f"{wrong}: {ascii(line)[1:-1][:40]}"
