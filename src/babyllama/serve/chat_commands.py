"""The commands of a chat: lines that begin with a slash. Not here: reading and showing (terminal.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from babyllama.amounts import amount
from babyllama.atomic import parse_json, write_json
from babyllama.errors import InputError, at_home, cause
from babyllama.infer.text import Text
from babyllama.serve.conversation import Conversation, Turn
from babyllama.tokenizer.answers import answer_text
from babyllama.tokenizer.chat import Message, check_messages, render_chat

QUITS = ("/quit", "/exit")


class Stage(Protocol):
    """Where a command is given."""

    chat: Conversation

    def answer(self, question: str, begun: str = "", steps: Sequence[Message] = ()) -> None:
        """Ask the model and show what it says, or the rest of what it said."""
        ...

    def compare(self, path: str) -> None:
        """Ask the model at `path` the last question; "": the one that was compared last."""
        ...

    def edited(self, text: str) -> str:
        """What becomes of a text that the user may change; "" where there is no keyboard."""
        ...


def run_command(stage: Stage, line: str) -> str:
    """Carry out a line that starts with a slash; the remark to show, often none.

    Raises:
        InputError: an unknown command or a bad argument.
    """
    name, *rest = line.split(maxsplit=1)
    if name not in COMMANDS:
        raise InputError(f"{name}: no such command; /help lists them")
    return COMMANDS[name][0](stage, "".join(rest).strip())


def slashed(line: str) -> str:
    """A command whose slash a Chinese input method wrote as ／ or 、 with its slash; any other line as it is."""
    typed = f"/{line[1:]}"
    return typed if line[:1] in ("／", "、") and typed.split(maxsplit=1)[0] in (*COMMANDS, *QUITS) else line


def _help(stage: Stage, rest: str) -> str:
    lines = [f"{f'{name} {shape}':16} {about}" for name, (_, shape, about) in COMMANDS.items()]
    return "\n".join([*lines, "/quit            exit, as Ctrl-D does; Ctrl-C stops an answer"])


def _reset(stage: Stage, rest: str) -> str:
    stage.chat.turns.clear()
    return "the conversation is forgotten"


def _system(stage: Stage, rest: str) -> str:
    stage.chat.tell(rest)
    return "the system message is set" if rest else "there is no system message now"


def _think(stage: Stage, rest: str) -> str:
    switch = {"on": True, "off": False, "": None}
    if rest not in switch:
        raise InputError(f"/think {rest}: give on or off, or nothing for what the model likes")
    stage.chat.thinking = switch[rest]
    return {"on": "answers think first", "off": "answers do not think", "": "answers think as the model likes"}[rest]


def _seed(stage: Stage, rest: str) -> str:
    if not rest.isdecimal() or int(rest) >= 2**63:
        raise InputError(f"/seed {rest}: give a whole number from 0 to 2⁶³ − 1, such as /seed 42")
    stage.chat.seed = int(rest)
    return f"the next answer draws with seed {stage.chat.seed}"


def _edit(stage: Stage, rest: str) -> str:
    question = rest or stage.edited(_asked(stage, "/edit"))
    if question:
        stage.chat.take_back()
        stage.answer(question)
    return ""


def _regenerate(stage: Stage, rest: str) -> str:
    _asked(stage, "/regenerate")
    stage.answer(stage.chat.take_back())
    return ""


def _continue(stage: Stage, rest: str) -> str:
    try:
        turn = stage.chat.unfinished()
    except InputError as error:
        raise InputError(f"/continue: {error}") from None
    stage.answer(*turn)
    return ""


def _compare(stage: Stage, rest: str) -> str:
    _asked(stage, "/compare")
    stage.compare(rest)
    return ""


def _asked(stage: Stage, command: str) -> str:
    """The last question."""
    if not stage.chat.question:
        raise InputError(f"{command}: nothing was asked yet")
    return stage.chat.question


def _save(stage: Stage, rest: str) -> str:
    if not rest:
        raise InputError("/save needs a file name, such as /save chat.jsonl")
    path = at_home(rest)
    if path.exists():
        raise InputError(f"/save {rest}: exists; choose another name")
    if not stage.chat.turns:
        raise InputError("/save: there is nothing said yet")
    specs = {} if stage.chat.tools is None else {"tools": list(stage.chat.tools.specs)}
    write_json(path, {"messages": stage.chat.messages, **specs}, indent=None)
    return f"saved {amount(len(stage.chat.turns), 'turn')} to {path}"


def _load(stage: Stage, rest: str) -> str:
    if not rest:
        raise InputError("/load needs the name of a file that /save wrote, such as /load chat.jsonl")
    chat, messages = stage.chat, _messages(rest)
    try:
        render_chat(chat.tokenizer, messages)
    except InputError as error:
        raise InputError(f"/load {rest}: this model cannot read it: {error}") from None
    chat.tell(messages.pop(0)["content"] if messages[0]["role"] == "system" else "")
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
    chat.turns = [Turn(messages[i]["content"], answer_text(messages[end - 1]), tuple(messages[i + 1 : end - 1]))
                  for i, end in zip(starts, [*starts[1:], len(messages)], strict=True)]  # fmt: skip
    chat.question, chat.text = chat.turns[-1].question, Text(chat.tokenizer)
    return f"loaded {amount(len(chat.turns), 'turn')}; the last one: {chat.question}"


def _messages(name: str) -> list[Message]:
    """Of a chat in a file: questions and answers in turns, tools and what they said between the two."""
    path = at_home(name)
    try:
        lines = path.read_text("utf-8-sig").splitlines()
        found = parse_json(lines[0]) if lines else None
        messages = found.get("messages") if isinstance(found, dict) else None
        if messages is None:
            raise ValueError("save one with /save to see it")
        check_messages(messages)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"/load {name}: cannot be read ({cause(error)})") from None
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f'/load {name}: line 1 is no chat of the form {{"messages": […]}} ({error})') from None
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if len(lines) > 1 or roles[-1] != "assistant":
        raise InputError(
            f"/load {name}: give a file with one chat whose questions are all answered, as /save writes it"
        )
    return messages


COMMANDS: dict[str, tuple[Callable[[Stage, str], str], str, str]] = {
    "/help": (_help, "", "show this"),
    "/edit": (_edit, "", "change the last question and ask it again; /edit TEXT asks TEXT instead"),
    "/regenerate": (_regenerate, "", "another answer to the last question"),
    "/continue": (_continue, "", "go on with an answer that was cut off or stopped"),
    "/compare": (_compare, "RUN", "what another model says to the last question; without RUN, the same one again"),
    "/system": (_system, "TEXT", "set the system message; without TEXT, remove it"),
    "/think": (_think, "on|off", "whether answers think first; alone: as the model likes"),
    "/reset": (_reset, "", "forget the conversation"),
    "/save": (_save, "FILE", "write the conversation as one line of a chat corpus (.jsonl)"),
    "/load": (_load, "FILE", "go on with a saved conversation"),
    "/seed": (_seed, "N", "start the random draws anew from N"),
}
