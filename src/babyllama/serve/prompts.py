"""A client's request → requests for the engine: prompts as training rendered them, sampling, seeds, limits."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from babyllama.atomic import parse_json
from babyllama.errors import InputError
from babyllama.infer.forms import CallsForm, Form, JsonForm, arguments_schema
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling, Unsaid
from babyllama.serve.faults import Refused
from babyllama.serve.link import Model
from babyllama.serve.protocol import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Function,
    Sampled,
    TokenizeRequest,
    ToolCall,
)
from babyllama.tokenizer.answers import in_thought, opens_thought
from babyllama.tokenizer.chat import Message, render_chat
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.tools import ToolForm, tool_form

LEAST = 1e-6  # top_p=0 means the likeliest token alone
MOST_CALLS = 8  # of one answer, where calls are demanded: a model that knows nothing would go on for ever


@dataclass(frozen=True)
class Prompt:
    """Token ids; `after` are those of a text that the answer continues, and `text` is that text. `thinks`: the answer
    begins inside a thought; None: it thinks no more, or is no answer of a chat."""

    tokens: list[int]
    after: tuple[int, ...] = ()
    text: str = ""
    thinks: bool | None = None


def prompts_of(model: Model, asked: Sampled) -> list[Prompt]:
    """The prompts of a request. This takes time where texts are long.

    Raises:
        Refused: messages that the template cannot render, a prompt that leaves no room in the context, unknown ids.
    """
    found = _chat(model, asked) if isinstance(asked, ChatRequest) else _texts(model, asked)
    param, have = ("messages", "have") if isinstance(asked, ChatRequest) else ("prompt", "has")
    if not found or not all(prompt.tokens for prompt in found):
        raise Refused(400, "prompt: is empty; give at least one token", param)
    for prompt in found:
        if len(prompt.tokens) >= model.context:
            raise Refused(400, f"{param}: this model's maximum context length is {model.context} tokens, and the "
                          f"{param} {have} {len(prompt.tokens)}; shorten to at most {model.context - 1}",
                          param, "context_length_exceeded")  # fmt: skip
    return found


def _chat(model: Model, asked: ChatRequest) -> list[Prompt]:
    tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()] if calls_tools(asked) else []
    thinking = None if asked.chat_template_kwargs is None else asked.chat_template_kwargs.enable_thinking
    rest = goes_on(asked)
    tokens = rendered(model.tokenizer, asked.messages, tools, thinking, answering=not rest, goes_on=rest)
    begun = _content(asked.messages[-1], len(asked.messages) - 1) if rest else ""
    thinks = (in_thought(begun) or None) if begun else opens_thought(model.tokenizer, tokens)
    return [Prompt(tokens, tuple(model.tokenizer.encode(begun)), thinks=thinks)]


def goes_on(asked: Sampled) -> bool:
    """Whether the answer is the rest of the last message: where a client says so, or that is an assistant's."""
    if not isinstance(asked, ChatRequest):
        return False
    said = asked.continue_final_message
    return asked.messages[-1].role == "assistant" if said is None else said


def calls_tools(asked: Sampled) -> bool:
    """Whether the answer may call tools."""
    return isinstance(asked, ChatRequest) and bool(asked.tools) and asked.tool_choice != "none"


def tool_form_of(model: Model, asked: Sampled) -> ToolForm | None:
    """How the answers call tools. Raises Refused (400) where the model's chat template cannot write them."""
    if not calls_tools(asked):
        return None
    try:
        return tool_form(model.tokenizer)
    except InputError as error:
        raise Refused(400, f"tools: {error}", "tools") from None


def rendered(tokenizer: Tokenizer, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]] = (),
             thinking: bool | None = None, *, answering: bool = False, goes_on: bool = False) -> list[int]:  # fmt: skip
    """A chat as training rendered it. Raises Refused as `render_chat` raises InputError."""
    plain, places = _joined([_message(message, i) for i, message in enumerate(messages)])
    try:
        return render_chat(tokenizer, plain, answering, tools, thinking, goes_on).tokens
    except InputError as error:
        told = re.sub(r"^messages\[(\d+)\]", lambda found: f"messages[{places[int(found[1])]}]", str(error))
        raise Refused(400, told, "messages") from None


def _joined(messages: Sequence[Message]) -> tuple[list[Message], list[int]]:
    """Neighbours of one role as one message, a line each, and where each began; answers before the first question are
    left out.

    Clients send two system messages, a question again, a greeting, or the last so many messages of a chat; chats to
    train on have none of these. What was thought, called or answered by a tool stays apart.
    """
    found, places = list[Message](), list[int]()
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    for place, message in enumerate(messages):
        if place < first and message["role"] == "assistant":
            continue
        last = found[-1] if found else None
        if (
            last is not None
            and last["role"] == message["role"] != "tool"
            and not any(one.get("tool_calls") or one.get("reasoning_content") for one in (last, message))
        ):
            found[-1] = {**last, "content": f"{last['content']}\n{message['content']}"}
        else:
            found.append(message)
            places.append(place)
    return found, places


def _message(given: ChatMessage, index: int) -> Message:
    found: Message = {"role": "system" if given.role == "developer" else given.role, "content": _content(given, index)}
    if given.tool_call_id is not None:
        found["tool_call_id"] = given.tool_call_id
    if given.name is not None:
        found["name"] = given.name
    if given.reasoning_content is not None:
        found["reasoning_content"] = given.reasoning_content
    if given.tool_calls:
        found["tool_calls"] = [_call(call, index) for call in given.tool_calls]
    return found


def _call(call: ToolCall, index: int) -> dict[str, Any]:
    """As templates take it: the arguments are no JSON, but what it says."""
    try:
        found = parse_json(call.function.arguments)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(400, f"messages[{index}].tool_calls: the arguments must be a JSON object", "messages")
    return {"id": call.id, "type": call.type, "function": {"name": call.function.name, "arguments": found}}


def _content(message: ChatMessage, index: int) -> str:
    if isinstance(message.content, str):
        return message.content
    for part in message.content or ():
        if part.type != "text" or part.text is None:
            raise Refused(400, f"messages[{index}].content: a part of type {part.type!r:.40}; the models here read "
                          "text alone", "messages")  # fmt: skip
    if message.content is None and (message.tool_calls or message.reasoning_content):
        return ""
    if message.content is None:
        raise Refused(400, f"messages[{index}].content: must be text", "messages")
    return "".join(part.text or "" for part in message.content)


def _texts(model: Model, asked: Sampled) -> list[Prompt]:
    assert isinstance(asked, CompletionRequest)
    given = asked.prompt
    one = isinstance(given, str) or (given and isinstance(given[0], int))
    return [_text(model, prompt) for prompt in ([given] if one else given)]  # type: ignore[list-item]


def _text(model: Model, prompt: str | list[int]) -> Prompt:
    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        text = tuple(tokenizer.encode(prompt))
        return Prompt([*tokenizer.start_ids, *text], text, prompt)
    check_ids(tokenizer, prompt, "prompt")
    return Prompt(prompt, tuple(prompt), tokenizer.decode(prompt))


def check_ids(tokenizer: Tokenizer, ids: Sequence[int], param: str) -> None:
    """Raise Refused (400) for an id outside the vocabulary."""
    unknown = next((i for i in ids if i >= tokenizer.vocab_size), None)
    if unknown is not None:
        raise Refused(400, f"{param}: {unknown} is no token: the vocabulary ends at {tokenizer.vocab_size - 1}", param)


def tokenized(model: Model, asked: TokenizeRequest) -> list[int]:
    """The ids of a text alone, or of a chat up to where the answer begins (after an answer: its end)."""
    if (asked.prompt is None) == (asked.messages is None):
        raise Refused(400, "prompt: give either prompt or messages", "prompt")
    if asked.prompt is not None:
        return model.tokenizer.encode(asked.prompt)
    messages = asked.messages or []
    return rendered(model.tokenizer, messages, answering=bool(messages) and messages[-1].role != "assistant")


def requests_of(model: Model, asked: Sampled, prompts: Sequence[Prompt], defaults: Unsaid, limit: int | None
                ) -> list[Request]:  # fmt: skip
    """Requests of all prompts, `n` of each; choice i draws with seed + i.

    Args:
        defaults: what a request leaves out.
        limit: the longest answer that the server gives.
    """
    wanted = asked.max_completion_tokens if isinstance(asked, ChatRequest) else None
    name = "max_tokens" if wanted is None else "max_completion_tokens"
    wanted = asked.max_tokens if wanted is None else wanted
    if limit is not None and wanted is not None and wanted > limit:
        raise Refused(400, f"{name}: {wanted} is above this server's limit of {limit}", name)
    _check_supported(asked)
    sampling, logprobs = _sampling(model, asked, defaults), _logprobs(asked)
    seed = secrets.randbits(62) if asked.seed is None else asked.seed
    stop = model.tokenizer.stop_ids
    return [Request(prompt.tokens, sampling, limit if wanted is None else wanted, stop, (seed + i) % 2**63, logprobs)
            for prompt in prompts for i in range(asked.n or 1)]  # fmt: skip


def demanded(asked: Sampled) -> list[Function]:
    """The tools one of which has to be called; none where that is left to the model. Raises Refused (400)."""
    choice = asked.tool_choice if isinstance(asked, ChatRequest) else None
    if not isinstance(asked, ChatRequest) or choice in (None, "auto", "none"):
        return []
    tools = [tool.function for tool in asked.tools or ()]
    found = [tool for tool in tools if choice == "required" or tool.name == choice.function.name]
    if not found:
        there = ", ".join(tool.name for tool in tools) or "none"
        what = "required" if choice == "required" else repr(choice.function.name)
        raise Refused(400, f"tool_choice: {what:.100} needs a tool; the request's tools are: {there}", "tool_choice")
    return found


def form_of(asked: Sampled, tools: ToolForm | None, prompts: Sequence[Prompt]) -> Form | None:
    """What the answers keep to: calls that are demanded, else JSON. Raises Refused (400)."""
    if tools is not None and isinstance(asked, ChatRequest) and (functions := demanded(asked)):
        if goes_on(asked):
            raise Refused(400, "tool_choice: an answer that goes on is not made to call; end with a user message",
                          "tool_choice")  # fmt: skip
        several = asked.tool_choice == "required" and asked.parallel_tool_calls is not False
        try:
            schemas = {tool.name: arguments_schema(tool.name, tool.parameters) for tool in functions}
        except InputError as error:
            raise Refused(400, f"tools: {error}", "tools") from None
        return CallsForm(tools, schemas, MOST_CALLS if several else 1, bool(prompts[0].thinks))
    form = asked.response_format
    if form is None or form.type == "text":
        return None
    schema = {"type": "object"} if form.type == "json_object" else (form.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise Refused(400, "response_format.json_schema.schema: must be a JSON Schema", "response_format")
    return JsonForm(schema, prompts[0].after if goes_on(asked) else ())


def _check_supported(asked: Sampled) -> None:
    """Refuse what would change the answer and is not there."""
    if isinstance(asked, ChatRequest):
        demanded(asked)
        if asked.top_logprobs is not None and not asked.logprobs:
            raise Refused(400, "top_logprobs: needs logprobs=true", "top_logprobs")
    if isinstance(asked, CompletionRequest):
        if asked.suffix:
            raise Refused(400, "suffix: the models here write onwards only; leave it out", "suffix")
        if asked.best_of is not None and asked.best_of != (asked.n or 1):
            raise Refused(400, "best_of: must be n, or be left out", "best_of")
        if asked.echo and asked.logprobs is not None:
            raise Refused(400, "echo: the prompt's own logprobs are not given; leave out one of the two", "echo")


def _logprobs(asked: Sampled) -> int | None:
    if isinstance(asked, ChatRequest):
        return (asked.top_logprobs or 0) if asked.logprobs else None
    return asked.logprobs if isinstance(asked, CompletionRequest) else None


def _sampling(model: Model, asked: Sampled, defaults: Unsaid) -> Sampling:
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty")
    given = {name: value for name in names if (value := getattr(asked, name)) is not None}
    if "top_p" in given:
        given["top_p"] = max(given["top_p"], LEAST)
    if "top_k" in given:
        given["top_k"] = max(given["top_k"], 0)
    if asked.logit_bias:
        keys = [key for key in asked.logit_bias if not (key.isascii() and key.isdecimal() and len(key) < 10)]
        if keys:
            raise Refused(400, f"logit_bias: {keys[0]!r:.40} is no token id", "logit_bias")
        check_ids(model.tokenizer, [int(key) for key in asked.logit_bias], "logit_bias")
        given["logit_bias"] = {int(key): float(bias) for key, bias in asked.logit_bias.items()}
    return defaults.of(given).model_copy(update=given)


def stops_of(asked: Sampled) -> list[str]:
    """The stop strings."""
    return [asked.stop] if isinstance(asked.stop, str) else list(asked.stop or ())
