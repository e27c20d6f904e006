"""What clients send and get: OpenAI's requests and answers as types.

Unknown fields are ignored, as OpenAI ignores them; a known field of a wrong type or outside its range is refused; null
is the same as absent. `top_k`, `min_p` and `repetition_penalty` are ours. Not here: what is done with a request.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from babyllama.errors import is_utf8
from babyllama.serve.faults import Refused

Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1)]
Ids = list[Annotated[int, Field(ge=0)]]


class Given(BaseModel):
    """A request's JSON."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class StreamOptions(Given):
    include_usage: bool | None = None


class ResponseFormat(Given):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class Sampled(Given):
    """What a chat and a text completion have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    response_format: ResponseFormat | None = None


class ContentPart(Given):
    type: str
    text: str | None = None


class Function(Given):
    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Given):
    type: Literal["function"]
    function: Function


class NamedFunction(Given):
    name: str


class NamedTool(Given):
    """The one tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class Called(Given):
    name: str
    arguments: str


class ToolCall(Given):
    id: str
    type: Literal["function"] = "function"
    function: Called


class ChatMessage(Given):
    role: str
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class TemplateChoices(Given):
    """What a chat template is told, as other servers name it."""

    enable_thinking: bool | None = None


class ChatRequest(Sampled):
    """POST /v1/chat/completions. `chat_template_kwargs`: whether the answer has to think first, or has not to.
    `continue_final_message`: whether the answer goes on with the last message; absent: where that is an assistant's."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateChoices | None = None
    continue_final_message: bool | None = None


class CompletionRequest(Sampled):
    """POST /v1/completions. `prompt`: a text, its token ids, or a list of either."""

    prompt: str | list[str] | Ids | list[Ids]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class ScoreRequest(Given):
    """POST /v1/score: one conversation or several, each up to the answer that is scored; or questions and answers, as
    many of each."""

    model: str
    messages: Annotated[list[ChatMessage] | list[list[ChatMessage]], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    prompt: str | list[str] | None = None
    completion: str | list[str] | None = None


class TokenizeRequest(Given):
    """POST /v1/tokenize: a text as it is, or a chat as the model's template writes it."""

    model: str
    prompt: str | None = None
    messages: list[ChatMessage] | None = None


class DetokenizeRequest(Given):
    """POST /v1/detokenize."""

    model: str
    tokens: Ids


# ── Look inside ────────────────────────────────────────────────────────────────────────────────────────────────────
class Look(Given):
    """POST /api/inside/…: a text as it is, or a chat as the model's template writes it."""

    model: str
    text: str | None = None
    messages: list[ChatMessage] | None = None
    top: Annotated[int, Field(ge=1, le=50)] = 8


class AttentionLook(Look):
    layer: Annotated[int, Field(ge=0)] = 0


class SamplingLook(Look):
    temperature: Annotated[float, Field(ge=0, le=5)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0


class RopeLook(Given):
    model: str
    factor: Annotated[float, Field(ge=1, le=64)] = 4.0


class NeighboursLook(Given):
    """`token`: an id, or a text whose first token is meant."""

    model: str
    token: int | str
    count: Annotated[int, Field(ge=1, le=100)] = 24


LOOKS: dict[str, type[Given]] = {"text": Look, "attention": AttentionLook, "lens": Look, "sampling": SamplingLook,
                                 "rope": RopeLook, "neighbours": NeighboursLook}  # fmt: skip
R = TypeVar("R", bound=Given)
MEMBERS = {"str", "int", "float", "NamedTool"}
REQUESTS = (ChatRequest, CompletionRequest, ScoreRequest, TokenizeRequest, DetokenizeRequest)


async def read(request: Request, kind: type[R]) -> R:
    """A request's JSON. Another content type is refused: any web page may send that to a server on this machine."""
    sort = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sort != "application/json":
        raise Refused(415, f"the content type is {sort!r:.60}; send JSON with Content-Type: application/json")
    return parse(kind, await request.body())


def parse(kind: type[R], body: bytes) -> R:
    """The JSON of a request. Raises Refused (400) with the field that is wrong."""
    try:
        return kind.model_validate_json(body.removeprefix(BOM_UTF8))  # of a file that Windows' editor saved
    except ValidationError as error:
        first = min(error.errors(include_url=False, include_context=False), key=_weight)
    if first["type"] == "json_invalid":
        what = first["msg"].partition(": ")[2] if is_utf8(body) else "it is not UTF-8, as JSON has to be; send it so"
        raise Refused(400, f"the body is not valid JSON: {what}")
    # A union's member is part of the place: str, list[str].
    names = [part for part in first["loc"] if isinstance(part, int) or (part.isidentifier() and part not in MEMBERS)]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names).lstrip(".") or None
    message = first["msg"][:1].lower() + first["msg"][1:]
    raise Refused(400, f"{param}: {message}" if param else message, param)


def _weight(fault: Any) -> tuple[int, bool]:
    """Of a union the member that was meant: the one that went furthest in, or had the right type."""
    return -len(fault["loc"]), fault["type"].endswith("_type")
