"""The one chat template: messages → tokens and the mask that the loss covers.

Training, serving and evaluation all render through here, so that a prompt always ends as it did in training. Each
template exists twice, as `parts` (what this project runs) and as Jinja (what other programs read from
tokenizer_config.json); the tests hold the two to identical ids. Content is never parsed for special tokens: a user
who types ``</s>`` or ``<|assistant|>`` gets ordinary text. Not here: truncation, padding, batching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


class Message(TypedDict):
    """One turn: `role` is one of `ROLES`, `content` is plain text and is used as it is, blanks included.

    ``learned: False`` keeps an answer out of the loss; all answers are learned without it.
    """

    role: str
    content: str
    learned: NotRequired[bool]


class Vocabulary(Protocol):
    """What rendering needs of a tokenizer."""

    @property
    def chat_template(self) -> str: ...
    def special_id(self, name: str) -> int: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class ChatTokens:
    """A rendered chat. `mask` is as long as `tokens` and True on the assistant's text and its end token only."""

    tokens: list[int]
    mask: list[bool]


class Part(NamedTuple):
    """Either text, or one special token: ``bos``, ``eos`` or a role."""

    text: str = ""
    special: str | None = None
    learned: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """`parts(messages, add_generation_prompt)` and the Jinja text that says the same."""

    parts: Callable[[Sequence[Message], bool], Iterator[Part]]
    jinja: str


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
        if role not in _FOLLOWS[before]:
            place = f"after {before}" if before else "at the start"
            raise InputError(
                f"messages[{index}].role: {role} cannot stand {place}; {' or '.join(_FOLLOWS[before])} can"
            )
        before = role
    if before == "system":
        raise InputError("messages: there is only a system message; add a user message")


def render_chat(tokenizer: Vocabulary, messages: Sequence[Message], add_generation_prompt: bool = False) -> ChatTokens:
    """Messages → tokens by the tokenizer's template; `add_generation_prompt` ends where the next answer begins.

    Raises:
        InputError: as `check_messages`; or an answer is asked for after an answer.
    """
    check_messages(messages)
    if add_generation_prompt and messages[-1]["role"] == "assistant":
        raise InputError(f"messages[{len(messages) - 1}]: the last message is an answer already; end with user or tool")
    parts = list(TEMPLATES[tokenizer.chat_template].parts(messages, add_generation_prompt))
    texts = iter(tokenizer.encode_batch([part.text for part in parts if part.special is None]))
    tokens: list[int] = []
    mask: list[bool] = []
    for part in parts:
        found = next(texts) if part.special is None else [tokenizer.special_id(part.special)]
        tokens += found
        mask += [part.learned] * len(found)
    return ChatTokens(tokens, mask)


def _role_parts(messages: Sequence[Message], add_generation_prompt: bool) -> Iterator[Part]:
    for message in messages:
        answer = message["role"] == "assistant"
        learned = answer and message.get("learned", True)
        yield Part(special=message["role"])
        yield Part(message["content"], learned=learned)
        if answer:
            yield Part(special="eos", learned=learned)
    if add_generation_prompt:
        yield Part(special="assistant")


def _bos_parts(messages: Sequence[Message], add_generation_prompt: bool) -> Iterator[Part]:
    prompt: list[str] = []
    for message in messages:
        if message["role"] != "assistant":
            prompt.append(message["content"])
            continue
        yield from (Part("\n".join(prompt)), Part(special="bos"))
        learned = message.get("learned", True)
        yield from (Part(message["content"], learned=learned), Part(special="eos", learned=learned))
        prompt = []
    if prompt:
        yield Part("\n".join(prompt))
    if add_generation_prompt:
        yield Part(special="bos")


# "-" on every tag strips the template's own line breaks; what an expression prints is never stripped. The tag
# `generation` marks for transformers what `ChatTokens.mask` marks here.
_ROLES_JINJA = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

_BOS_JINJA = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- bos_token -}}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}
{%- if not loop.first and loop.previtem['role'] != 'assistant' -%}{{- '\\n' -}}{%- endif -%}
{{- message['content'] -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- bos_token -}}{%- endif -%}
"""

TEMPLATES: dict[str, ChatTemplate] = {
    # <|system|>…<|user|>…<|assistant|>answer</s>
    "roles": ChatTemplate(_role_parts, _ROLES_JINJA),
    # prompt<s>answer</s>, the earlier project's form: what is not an answer is joined by line breaks to one prompt.
    "bos": ChatTemplate(_bos_parts, _BOS_JINJA),
}
