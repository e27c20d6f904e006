"""Chats → tokens and the mask that the loss covers: the one way in, and the two built-in templates.

Training, serving and evaluation all render through here, so that a prompt always ends as it did in training. A chat
template is named by a word, ``roles`` or ``bos``, or is the Jinja text that a foreign folder brings (jinja.py). Each
built-in one exists twice, as `parts` (what this project runs) and as Jinja (what other programs read from
tokenizer_config.json); the tests hold the two to identical ids. Content is never parsed for special tokens: a user
who types ``</s>`` or ``<|assistant|>`` gets ordinary text. Not here: truncation, padding, batching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

from babyllama.errors import InputError
from babyllama.tokenizer.jinja import JinjaTemplate
from babyllama.tokenizer.messages import NO_TOOLS, ChatTokens, Message, Template, Vocabulary, check_messages
from babyllama.tokenizer.special import BOS

__all__ = ["TEMPLATES", "ChatTokens", "Message", "check_messages", "name_of", "render_chat", "template_of"]


class Part(NamedTuple):
    """Either text, or one special token: ``bos``, ``eos`` or a role."""

    text: str = ""
    special: str | None = None
    learned: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """`parts(messages, add_generation_prompt)` and the Jinja text that says the same.

    `earlier` are hashes of the Jinja texts that former versions wrote into folders for the same template.
    """

    parts: Callable[[Sequence[Message], bool], Iterator[Part]]
    jinja: str
    earlier: frozenset[str]

    def jinja_for(self, opening: str) -> str:
        """The Jinja text for a vocabulary where `opening` opens an answer of the template bos."""
        return self.jinja.replace(f"'{BOS}'", f"'{opening}'")

    def render(self, vocabulary: Vocabulary, messages: Sequence[Message], add_generation_prompt: bool,
               tools: Sequence[dict[str, Any]] = ()) -> ChatTokens:  # fmt: skip
        """Texts and special tokens one after the other, each text encoded by itself."""
        if tools or any(message.get("tool_calls") for message in messages):
            raise InputError(NO_TOOLS)
        parts = list(self.parts(messages, add_generation_prompt))
        texts = iter(vocabulary.encode_batch([part.text for part in parts if part.special is None]))
        tokens: list[int] = []
        mask: list[bool] = []
        for part in parts:
            found = next(texts) if part.special is None else [vocabulary.special_id(part.special)]
            tokens += found
            mask += [part.learned] * len(found)
        return ChatTokens(tokens, mask)


def render_chat(tokenizer: Vocabulary, messages: Sequence[Message], add_generation_prompt: bool = False,
                tools: Sequence[dict[str, Any]] = ()) -> ChatTokens:  # fmt: skip
    """Messages → tokens by the tokenizer's template; `add_generation_prompt` ends where the next answer begins.

    Args:
        tools: what the answer may call, in OpenAI's form.

    Raises:
        InputError: as `check_messages`; tools that the template cannot write; an answer is asked for after an answer;
            or the folder's own template is broken or refuses them.
    """
    check_messages(messages)
    if add_generation_prompt and messages[-1]["role"] == "assistant":
        raise InputError(f"messages[{len(messages) - 1}]: the last message is an answer already; end with user or tool")
    return template_of(tokenizer.chat_template).render(tokenizer, messages, add_generation_prompt, tools)


def template_of(name: str) -> Template:
    """A built-in template by its name, else the Jinja text itself as a template. Raises InputError for neither."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if "{" not in name:
        raise InputError(f"chat template {name!r} is unknown; choose one of {', '.join(TEMPLATES)}, or give Jinja text")
    return JinjaTemplate(name)


def name_of(jinja: str) -> str:
    """The name of the built-in template with this Jinja text, of any version; the text itself for a foreign one."""
    digest = _digest(jinja)
    known = (name for name, t in TEMPLATES.items() if digest == _digest(t.jinja) or digest in t.earlier)
    return next(known, jinja)


def _digest(jinja: str) -> str:
    return xxhash.xxh3_64_hexdigest(jinja.strip().encode())


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
_REFUSALS = """\
{%- if tools -%}{{- raise_exception('This chat template knows no tools.') -}}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('This chat template knows the roles system, user, assistant and tool.') -}}
{%- endif -%}
{%- if message['content'] is not string or message['tool_calls'] -%}
{{- raise_exception('This chat template renders content that is text, nothing else.') -}}
{%- endif -%}
{%- endfor -%}
"""

_ROLES_JINJA = (
    _REFUSALS
    + """\
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
)

_BOS_JINJA = (
    _REFUSALS
    + """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<s>' -}}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}
{%- if not loop.first and loop.previtem['role'] != 'assistant' -%}{{- '\\n' -}}{%- endif -%}
{{- message['content'] -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<s>' -}}{%- endif -%}
"""
)

TEMPLATES: dict[str, ChatTemplate] = {
    # <|system|>…<|user|>…<|assistant|>answer</s>
    "roles": ChatTemplate(_role_parts, _ROLES_JINJA, frozenset({"ba6566d1bffbbbc8"})),
    # prompt<s>answer</s>, the earlier project's form: what is not an answer is joined by line breaks to one prompt.
    "bos": ChatTemplate(_bos_parts, _BOS_JINJA, frozenset({"1242a67a913c668c"})),
}
