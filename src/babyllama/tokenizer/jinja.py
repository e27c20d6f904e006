"""A folder's own chat template, as transformers renders it, with one difference: contents never become markers.

A template is a program that writes text, and its text and the contents reach the tokenizer as one string. So the chat
is rendered twice, with its contents and with a stand-in for each; comparing the two tells which characters are
content. In those no token such as ``<|im_start|>`` is looked for. Not here: the two built-in templates (chat.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from babyllama.errors import InputError
from babyllama.tokenizer.markers import free_character, written_markers
from babyllama.tokenizer.messages import Asked, ChatTokens, Message, Vocabulary, texts_in

if TYPE_CHECKING:
    from jinja2 import Template as Compiled

# What a template sees of a message.
GIVEN = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
_PROBE: list[Message] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
# What stands for the marks of a generation block while rendering; the lead character is added in front.
_OPEN, _CLOSE = "\u3400", "\u3401"


class _Rendered(NamedTuple):
    """The text and the spans of its generation blocks."""

    text: str
    generated: list[tuple[int, int]]


class _Refused(Exception):
    """The template called raise_exception."""


@dataclass(frozen=True)
class JinjaTemplate:
    """The template whose text is `jinja`."""

    jinja: str

    def jinja_for(self, opening: str) -> str:
        """The text itself."""
        return self.jinja

    def render(self, vocabulary: Vocabulary, messages: Sequence[Message], asked: Asked) -> ChatTokens:
        """Messages → transformers' ids of them, where no content holds a marker; there it stays text.

        An answer is learned with the token that ends it, or what the template's generation blocks say.

        Raises:
            InputError: the template is broken or refuses the messages; or it rewrites contents and one of them holds
                a marker, or it is not a prompt (where the answers lie cannot be told then); or a tool, a call or a
                thought holds a marker.
        """
        others = [asked.tools, *([m.get("reasoning_content", ""), m.get("tool_calls", [])] for m in messages)]
        lead = free_character("".join([self.jinja, *texts_in(others), *(m["content"] for m in messages)]))
        rendered = self._text(vocabulary, messages, asked, lead)
        found = self._contents(vocabulary, messages, asked, lead, rendered.text)
        _check_harmless(vocabulary, [("tools", text) for text in texts_in(others)], self.jinja)
        if asked.goes_on:
            rendered = rendered._replace(text=_until_last(rendered.text, found, messages))
        if found is None:
            contents = [(f"messages[{i}].content", message["content"]) for i, message in enumerate(messages)]
            _check_harmless(vocabulary, contents, self.jinja)
            told = rendered.generated and all(message.get("learned", True) for message in messages)
            if not asked.prompt and not told:
                raise InputError("the chat template rewrites what the messages say, so which tokens are the answers "
                                 "cannot be told; choose a built-in one: template=bos")  # fmt: skip
        spans = [(start, stop) for start, stop, _ in found or ()]
        tokens, offsets = vocabulary.encode_rendered(rendered.text, spans, self.jinja)
        wholes = {} if asked.prompt or asked.goes_on else self._wholes(vocabulary, messages, asked, rendered)
        places = {i: (a, _end(vocabulary, rendered.text, b, self.jinja)) for a, b, i in found or ()
                  if _is_answer(messages[i])} | wholes  # fmt: skip
        left_out = [place for i, place in places.items() if not messages[i].get("learned", True)]
        learned = [(a, b) for a, b in rendered.generated or places.values()
                   if not any(a < d and c < b for c, d in left_out)]  # fmt: skip
        return ChatTokens(tokens, [any(a <= start < stop <= b for a, b in learned) for start, stop in offsets])

    def _wholes(self, vocabulary: Vocabulary, messages: Sequence[Message], asked: Asked, rendered: _Rendered
                ) -> dict[int, tuple[int, int]]:  # fmt: skip
        """Message → where an answer with a thought or calls lies, its end included; where blocks tell what is learned,
        of those that are not.

        Raises:
            InputError: the template writes the chat up to there otherwise than as the beginning of the whole.
        """
        spans: dict[int, tuple[int, int]] = {}
        for i, message in enumerate(messages):
            plain = not (message.get("tool_calls") or message.get("reasoning_content"))
            if plain or (rendered.generated and message.get("learned", True)):
                continue
            before = self.text(vocabulary, messages[:i], asked._replace(prompt=True))
            after = self.text(vocabulary, messages[: i + 1], asked._replace(prompt=False)).rstrip()
            if not (after.startswith(before) and rendered.text.startswith(after)):
                raise InputError("the chat template rewrites earlier answers, so which tokens are the answers cannot "
                                 "be told; choose a built-in one: template=roles")  # fmt: skip
            spans[i] = len(before), len(after)
        return spans

    def text(self, vocabulary: Vocabulary, messages: Sequence[Message], asked: Asked) -> str:
        """What the template writes. Raises InputError as `render`."""
        return self._text(vocabulary, messages, asked, free_character(self.jinja)).text

    def ends(self, vocabulary: Vocabulary) -> str | None:
        """The marker that this template writes after an answer; None where there is none or it cannot be told."""
        try:
            lead = free_character(self.jinja)
            text = self._text(vocabulary, _PROBE, Asked(), lead).text
            found = self._contents(vocabulary, _PROBE, Asked(), lead, text) or []
        except InputError:  # said in full when a chat is rendered
            return None
        stop = next((stop for _, stop, index in found if index == 1), len(text))
        return text[stop : _end(vocabulary, text, stop, self.jinja)].strip() or None

    def _text(self, vocabulary: Vocabulary, messages: Sequence[Message], asked: Asked, lead: str) -> _Rendered:
        given = {"tools": list(asked.tools) or None, "documents": None, "add_generation_prompt": asked.prompt,
                 "lead": lead}  # fmt: skip
        if asked.thinking is not None:
            given |= {"enable_thinking": asked.thinking, "thinking": asked.thinking}  # names that templates use
        seen = [{key: value for key, value in message.items() if key in GIVEN} for message in messages]
        try:
            written = _compiled(self.jinja).render(messages=seen, **given, **vocabulary.names)
        except InputError:
            raise
        except _Refused as error:
            raise InputError(f"the chat template refuses these messages: {error}") from None
        except Exception as error:  # a template is a program: it may fail in any way
            raise InputError(f"the chat template fails: {type(error).__name__}: {error}; mend it in "
                             "tokenizer_config.json or chat_template.jinja") from None  # fmt: skip
        text, generated, start = "", list[tuple[int, int]](), 0
        for piece in re.split(f"({lead}[{_OPEN}{_CLOSE}])", written):
            if piece == lead + _OPEN:
                start = len(text)
            elif piece == lead + _CLOSE:
                generated.append((start, len(text)))
            else:
                text += piece
        return _Rendered(text, generated)

    def _contents(self, vocabulary: Vocabulary, messages: Sequence[Message], asked: Asked, lead: str, text: str
                  ) -> list[tuple[int, int, int]] | None:  # fmt: skip
        """(start, stop, message) of every content in `text`, stripped or not; None where it is not there as it is."""
        stand_ins = [{**message, "content": f"{lead}{chr(0x4E00 + i)}"}
                     if message["content"] or "tool_calls" not in message else message
                     for i, message in enumerate(messages)]  # fmt: skip
        try:
            frame = self._text(vocabulary, stand_ins, asked, lead).text  # type: ignore[arg-type]
        except InputError:  # it looks into the contents
            return None
        pattern, order = "", list[int]()
        for piece in re.split(f"({lead}.)", frame, flags=re.DOTALL):
            if lead in piece:
                order.append(ord(piece[-1]) - 0x4E00)
                if not 0 <= order[-1] < len(messages):  # it took the stand-in apart
                    return None
                content = messages[order[-1]]["content"]
                forms = dict.fromkeys([content, content.strip(), content.rstrip(), content.lstrip()])
                pattern += f"({'|'.join(map(re.escape, forms))})"
            else:
                pattern += re.escape(piece)
        match = re.fullmatch(pattern, text)
        return match and [(*match.span(k), index) for k, index in enumerate(order, 1)]


def _until_last(text: str, contents: Sequence[tuple[int, int, int]] | None, messages: Sequence[Message]) -> str:
    """A rendered chat up to the end of its last content, with blanks there that the template strips. Raises InputError
    where it is not told what is content."""
    stop = max((stop for _, stop, index in contents or () if index == len(messages) - 1), default=None)
    if stop is None:
        raise InputError("the chat template rewrites what the messages say, so where the last answer goes on cannot be "
                         "told; end with a user message")  # fmt: skip
    content = messages[-1]["content"]
    return text[:stop] + ("" if text[:stop].endswith(content) else content[len(content.rstrip()) :])


def _is_answer(message: Message) -> bool:
    return message["role"] == "assistant"


def _end(vocabulary: Vocabulary, text: str, stop: int, written: str) -> int:
    """Where the marker that follows an answer ends; `stop` itself where none does."""
    names = sorted(written_markers(vocabulary, written), key=len, reverse=True)
    match = re.compile(rf"\s*(?:{'|'.join(map(re.escape, names))})").match(text, stop) if names else None
    return match.end() if match else stop


def _check_harmless(vocabulary: Vocabulary, texts: Sequence[tuple[str, str]], written: str) -> None:
    """Raise InputError where a text, (where, what), holds a marker, or an end of one that the text beside it could
    complete."""
    for name in written_markers(vocabulary, written) if texts else ():
        for where, content in texts:
            cut = any(content.endswith(name[:k]) or content.startswith(name[k:]) for k in range(2, len(name)))
            if name in content or cut:
                raise InputError(f"{where}: holds {name} or a part of it, which this model's chat "
                                 "template would turn into a marker; take it out of the text")  # fmt: skip


@lru_cache(maxsize=8)
def _compiled(text: str) -> Compiled:
    """As transformers compiles it: sandboxed, blocks trimmed, with loop controls and the generation block."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (jinja2's own way to name them)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_marked", [nodes.Name("lead", "load")])
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _marked(self, lead: str, caller: Any) -> str:
            return f"{lead}{_OPEN}{caller()}{lead}{_CLOSE}"

    def refuse(message: str) -> None:
        raise _Refused(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(text)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise InputError(f"the chat template is not valid Jinja{f' (line {line})' if line else ''}: {error}; mend it "
                         "in tokenizer_config.json or chat_template.jinja") from None  # fmt: skip
