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
from babyllama.tokenizer.answers import OPENING, answer_text, system_text
from babyllama.tokenizer.jinja import JinjaTemplate
from babyllama.tokenizer.messages import NO_TOOLS, Asked, ChatTokens, Message, Template, Vocabulary, check_messages
from babyllama.tokenizer.special import BOS

__all__ = ["TEMPLATES", "ChatTokens", "Message", "check_messages", "name_of", "render_chat", "template_of"]


class Part(NamedTuple):
    """Either text, or one special token: ``bos``, ``eos`` or a role."""

    text: str = ""
    special: str | None = None
    learned: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """`parts(messages, asked)` and the Jinja text that says the same.

    `earlier` are hashes of the Jinja texts that former versions wrote into folders for the same template; what those
    could render, this renders alike. `tools`: whether it can list them.
    """

    parts: Callable[[Sequence[Message], Asked], Iterator[Part]]
    jinja: str
    earlier: frozenset[str]
    tools: bool

    def jinja_for(self, opening: str) -> str:
        """The Jinja text for a vocabulary where `opening` opens an answer of the template bos."""
        return self.jinja.replace(f"'{BOS}'", f"'{opening}'")

    def render(self, vocabulary: Vocabulary, messages: Sequence[Message], asked: Asked) -> ChatTokens:
        """Texts and special tokens one after the other, each text encoded by itself."""
        if asked.tools and not self.tools:
            raise InputError(NO_TOOLS)
        parts = list(self.parts(messages, asked))
        if asked.goes_on:
            del parts[-1]  # the end token
        texts = iter(vocabulary.encode_batch([part.text for part in parts if part.special is None]))
        tokens: list[int] = []
        mask: list[bool] = []
        for part in parts:
            found = next(texts) if part.special is None else [vocabulary.special_id(part.special)]
            tokens += found
            mask += [part.learned] * len(found)
        return ChatTokens(tokens, mask)


def render_chat(tokenizer: Vocabulary, messages: Sequence[Message], add_generation_prompt: bool = False,
                tools: Sequence[dict[str, Any]] = (), thinking: bool | None = None,
                continue_final_message: bool = False) -> ChatTokens:  # fmt: skip
    """Messages → tokens by the tokenizer's template; `add_generation_prompt` ends where the next answer begins,
    `continue_final_message` where the last message, an answer, goes on.

    Args:
        tools: what the answer may call, in OpenAI's form.
        thinking: whether the next answer has to think first, or has not to; None: as the model likes.

    Raises:
        InputError: as `check_messages`; tools that the template cannot write; an answer is asked for after an answer,
            or is to go on where there is none; or the folder's own template is broken or refuses them.
    """
    check_messages(messages)
    last, place = messages[-1], f"messages[{len(messages) - 1}]"
    if add_generation_prompt and last["role"] == "assistant":
        raise InputError(f"{place}: the last message is an answer already; end with user or tool")
    if continue_final_message and last["role"] != "assistant":
        raise InputError(f"{place}: is no answer that could go on; end with an assistant message")
    if continue_final_message and last.get("tool_calls"):
        raise InputError(f"{place}: calls tools and ends with that; end with what they answer")
    asked = Asked(add_generation_prompt, tools, thinking, continue_final_message)
    return template_of(tokenizer.chat_template).render(tokenizer, messages, asked)


def results_after_answer(tokenizer: Vocabulary, results: Sequence[str]) -> list[int]:
    """What stands between an answer that has ended with calls and the answer that goes on: the tools' results.

    Raises:
        InputError: the chat template is a folder's own, which writes whole chats only.
    """
    template = template_of(tokenizer.chat_template)
    if not isinstance(template, ChatTemplate) or not template.tools:
        raise InputError("tools: only a model with the built-in chat template roles can go on from their results")
    messages: list[Message] = [{"role": "tool", "content": result} for result in results]
    return template.render(tokenizer, messages, Asked(prompt=True)).tokens


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


def _role_parts(messages: Sequence[Message], asked: Asked) -> Iterator[Part]:
    if asked.tools:
        given = messages[0]["content"] if messages[0]["role"] == "system" else ""
        yield from (Part(special="system"), Part(system_text(given, asked.tools)))
        messages = messages[1:] if messages[0]["role"] == "system" else messages
    for message in messages:
        answer = message["role"] == "assistant"
        learned = answer and message.get("learned", True)
        yield Part(special=message["role"])
        yield Part(answer_text(message) if answer else message["content"], learned=learned)
        if answer:
            yield Part(special="eos", learned=learned)
    if asked.prompt:
        yield Part(special="assistant")
        yield from _opened(asked)


def _bos_parts(messages: Sequence[Message], asked: Asked) -> Iterator[Part]:
    prompt: list[str] = []
    for message in messages:
        if message["role"] != "assistant":
            prompt.append(message["content"])
            continue
        yield from (Part("\n".join(prompt)), Part(special="bos"))
        learned = message.get("learned", True)
        yield from (Part(answer_text(message), learned=learned), Part(special="eos", learned=learned))
        prompt = []
    if prompt:
        yield Part("\n".join(prompt))
    if asked.prompt:
        yield Part(special="bos")
        yield from _opened(asked)


def _opened(asked: Asked) -> Iterator[Part]:
    """The beginning of an answer of which is said whether it thinks."""
    if asked.thinking is not None:
        yield Part(OPENING[asked.thinking])


# "-" on every tag strips the template's own line breaks; what an expression prints is never stripped. The tag
# `generation` marks for transformers what `ChatTokens.mask` marks here.
_REFUSALS = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('This chat template knows the roles system, user, assistant and tool.') -}}
{%- endif -%}
{%- if message['content'] is not string and not (message['tool_calls'] and message['content'] is none) -%}
{{- raise_exception('This chat template renders content that is text, nothing else.') -}}
{%- endif -%}
{%- endfor -%}
"""

_NO_TOOLS = "{%- if tools -%}{{- raise_exception('This chat template knows no tools.') -}}{%- endif -%}\n"

# An answer: what was thought, what is said, which tools are called.
_ANSWER = """\
{%- generation -%}
{%- if message['reasoning_content'] is string -%}
{{- '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- message['content'] or '' -}}
{%- for call in message['tool_calls'] or [] -%}
{%- if message['content'] or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": ' + call['function']['name']|tojson + ', "arguments": ' -}}
{%- if call['function']['arguments'] is string -%}
{{- call['function']['arguments'] -}}
{%- else -%}
{{- call['function']['arguments']|tojson -}}
{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- eos_token -}}
{%- endgeneration -%}
"""

_OPENED = """\
{%- if enable_thinking is defined and enable_thinking is not none -%}
{{- '<think>\\n' if enable_thinking else '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
"""

_ROLES_JINJA = (
    _REFUSALS
    + """\
{%- if tools -%}
{{- '<|system|>' -}}
{%- if messages[0]['role'] == 'system' and messages[0]['content'] -%}
{{- messages[0]['content'] + '\\n\\n' -}}
{%- endif -%}
{{- '<tools>\\n' -}}
{%- for tool in tools -%}
{%- if tool['function'] is not mapping -%}{{- raise_exception('A tool must have a function.') -}}{%- endif -%}
{{- tool['function']|tojson + '\\n' -}}
{%- endfor -%}
{{- '</tools>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if not (tools and loop.first and message['role'] == 'system') -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
"""
    + _ANSWER
    + """\
{%- else -%}
{{- message['content'] -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
"""
    + _OPENED
    + "{%- endif -%}\n"
)

_BOS_JINJA = (
    _NO_TOOLS
    + _REFUSALS
    + """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<s>' -}}
"""
    + _ANSWER
    + """\
{%- else -%}
{%- if not loop.first and loop.previtem['role'] != 'assistant' -%}{{- '\\n' -}}{%- endif -%}
{{- message['content'] -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<s>' -}}
"""
    + _OPENED
    + "{%- endif -%}\n"
)

_FORMER = {"roles": frozenset({"ba6566d1bffbbbc8", "4752111e41caba28"}),
           "bos": frozenset({"1242a67a913c668c", "7fb17035a99cf7df"})}  # fmt: skip

TEMPLATES: dict[str, ChatTemplate] = {
    # <|system|>…<|user|>…<|assistant|>answer</s>
    "roles": ChatTemplate(_role_parts, _ROLES_JINJA, _FORMER["roles"], tools=True),
    # prompt<s>answer</s>, the earlier project's form: what is not an answer is joined by line breaks to one prompt.
    "bos": ChatTemplate(_bos_parts, _BOS_JINJA, _FORMER["bos"], tools=False),
}
