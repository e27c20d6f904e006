"""Messages: what a chat is, which orders of roles make sense, and what a rendered one looks like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict

from babyllama.errors import InputError
from babyllama.tokenizer.special import ROLES

# Which roles may follow which; "" is the start.
_FOLLOWS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
NO_TOOLS = "this model's chat template knows no tools; leave them out, or use a model whose template does"


class Message(TypedDict):
    """One turn: `role` is one of `ROLES`, `content` is plain text and is used as it is, blanks included.

    ``learned: False`` keeps an answer out of the loss; all answers are learned without it. An answer may have thought
    before, ``reasoning_content``, and call tools: ``{type: function, function: {name, arguments}}`` each.
    """

    role: str
    content: str
    learned: NotRequired[bool]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


@dataclass(frozen=True)
class ChatTokens:
    """A rendered chat. `mask` is as long as `tokens` and True on the assistant's text and what ends it only: on what it
    thought and called, too, and never on what a tool answered."""

    tokens: list[int]
    mask: list[bool]


class Asked(NamedTuple):
    """How a chat is rendered.

    prompt: end where the next answer begins.  tools: what it may call, in OpenAI's form.
    thinking: whether the next answer has to think first, or has not to; None: as the model likes.
    goes_on: end where the last message, an answer, goes on: without what ends it.
    """

    prompt: bool = False
    tools: Sequence[dict[str, Any]] = ()
    thinking: bool | None = None
    goes_on: bool = False


class Vocabulary(Protocol):
    """What rendering needs of a tokenizer."""

    @property
    def chat_template(self) -> str: ...
    @property
    def names(self) -> dict[str, str]: ...
    @property
    def markers(self) -> frozenset[str]: ...
    @property
    def added(self) -> frozenset[str]: ...
    def special_id(self, name: str) -> int: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str: ...
    def encode_rendered(
        self, text: str, contents: Sequence[tuple[int, int]], written: str
    ) -> tuple[list[int], list[tuple[int, int]]]: ...


class Template(Protocol):
    """How messages become tokens; `jinja_for` says the same to other programs."""

    def jinja_for(self, opening: str) -> str: ...
    def render(self, vocabulary: Vocabulary, messages: Sequence[Message], asked: Asked) -> ChatTokens: ...


def texts_in(value: Any) -> Iterator[str]:
    """Every text in nested data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts_in(key)
            yield from texts_in(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from texts_in(inner)


def check_messages(messages: Any) -> None:
    """Refuse what no template can render sensibly.

    The order is [system] user assistant (user | tool… ) assistant …; a chat may end after any of them but system.

    Raises:
        InputError: not a list of messages, empty, unknown role, content that is not text, roles out of order.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError(f"messages: must be a list with at least one message, got {messages!r:.80}")
    before = ""
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise InputError(f"messages[{index}]: must have the keys role and content, got {message!r:.80}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise InputError(f"messages[{index}].role: {role!r:.80} is unknown; choose one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise InputError(f"messages[{index}].content: must be text, got {content!r:.80}")
        if role != "assistant" and (message.get("tool_calls") or message.get("reasoning_content")):
            raise InputError(f"messages[{index}]: a {role} message has tool_calls or reasoning_content; only an "
                             "assistant's can")  # fmt: skip
        for call in message.get("tool_calls") or ():
            function = call.get("function") if isinstance(call, dict) else None
            if not (isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" in function):
                raise InputError(f"messages[{index}].tool_calls: a call must have a function with name and arguments, "
                                 f"got {call!r:.80}")  # fmt: skip
        if role not in _FOLLOWS[before]:
            place = f"after {before}" if before else "at the start"
            raise InputError(
                f"messages[{index}].role: {role} cannot stand {place}; {' or '.join(_FOLLOWS[before])} can"
            )
        before = role
    if before == "system":
        raise InputError("messages: there is only a system message; add a user message")
