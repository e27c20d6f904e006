"""Questions as they are typed on a terminal.

With prompt-toolkit (extra `chat`) a question has several lines, pasted text stays whole, ↑ brings back what was typed
before, also in earlier chats, and Tab completes commands and file names. Without it there is one line, edited by
readline where that exists. Not here: what becomes of a question.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from babyllama.interrupts import Stopper

PROMPT = "> "
Read = Callable[[str], str]
"""A text that is there already → what the user makes of it. Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""


def keyboard(commands: Sequence[str], history: Path | None, stopper: Stopper) -> tuple[Read, str]:
    """The best that is there, and a remark on how it is used.

    Args:
        history: a file for what is typed; None: it is forgotten.
        stopper: hears Ctrl-C. Prompt-toolkit reads it as a key, and its beginning and end are no place to stop at: they
            change the terminal.
    """
    if sys.stdout.isatty() and (sys.platform == "win32" or os.environ.get("TERM", "dumb") != "dumb"):
        with suppress(ImportError):
            full, how = _full(commands, history), "Alt-Enter begins a new line; /help lists the commands; Ctrl-D exits"
            return lambda text: stopper(lambda: full(text), False), how
    return lambda text: stopper(lambda: _line(text)), "/help lists the commands; Ctrl-D exits"


def history_file() -> Path:
    """Of the user: in XDG_STATE_HOME or ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "babyllama" / "questions"


def _line(text: str) -> str:
    """One line by Python's own input()."""
    if sys.platform == "win32":
        return input(PROMPT)
    import readline

    readline.set_startup_hook(lambda: readline.insert_text(text))
    try:
        return input(PROMPT)
    finally:
        readline.set_startup_hook(None)


def _full(commands: Sequence[str], history: Path | None) -> Read:
    """By prompt-toolkit. Enter sends, also one that was typed while an answer came; Alt-Enter begins a new line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import NestedCompleter, PathCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys, files = KeyBindings(), PathCompleter(expanduser=True)
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    words = {name: files if name in ("/save", "/load", "/compare") else None for name in commands}
    session: Any = PromptSession(
        PROMPT, multiline=True, prompt_continuation="  ", key_bindings=keys, complete_while_typing=False,
        completer=NestedCompleter.from_nested_dict(words),
        history=FileHistory(str(history)) if history and _ready(history) else InMemoryHistory())  # fmt: skip
    return lambda text: session.prompt(default=text)


def _ready(history: Path) -> bool:
    """Whether there is such a file now, which only its owner reads."""
    with suppress(OSError):
        history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        history.touch(mode=0o600)
        return os.access(history, os.R_OK | os.W_OK)
    return False
