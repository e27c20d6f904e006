"""The HTTP application: OpenAI's routes over a `Link` to the engines. Not here: the web app's (pages.py), processes,
sockets (processes.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TextIO

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from babyllama import __version__
from babyllama.infer.sampling import Unsaid
from babyllama.serve.faults import SERVER_FAULT, Refused
from babyllama.serve.gate import Gate
from babyllama.serve.link import Link
from babyllama.serve.pages import Hints, add_pages
from babyllama.serve.prompts import check_ids, tokenized
from babyllama.serve.protocol import (
    REQUESTS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Given,
    Sampled,
    ScoreRequest,
    TokenizeRequest,
    read,
)
from babyllama.serve.reply import Completion, Limits, WhileThere
from babyllama.serve.scoring import scored

LONG = 4096  # bytes of a request from which on its text becomes tokens beside the event loop
SCHEMA = "#/components/schemas/{model}"


def application(link: Link, limits: Limits, defaults: Mapping[str, Unsaid], keys: Collection[str] = (),
                body: int = 1 << 20, cors: Collection[str] = (), log: TextIO | None = None,
                runs: Path | None = None, hints: Mapping[str, Hints] | None = None) -> ASGIApp:  # fmt: skip
    """The whole application.

    Args:
        defaults: of models by name, the sampling that requests leave out.
        keys: see `Gate`; `body`: bytes of a request at most.
        cors: the origins whose pages may use the server from a browser.
        runs: the folder whose runs are shown; None: none are.
        hints: of models by name, for the chat page.
    """
    app = FastAPI(title="babyllama", version=__version__, redoc_url=None)
    _faults(app)
    short = _completions(app, link, limits, defaults)
    _words(app, link)
    _state(app, link)
    add_pages(app, link, runs, defaults, hints or {})
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    gate = Gate(app, keys, body, log, link.note, short)
    if not cors:
        return gate
    return CORSMiddleware(gate, allow_origins=list(cors), allow_methods=["*"], allow_headers=["*"])


def _takes(kind: type[Given]) -> dict[str, Any]:
    """What the OpenAPI page says of a route's body."""
    content = {"application/json": {"schema": {"$ref": SCHEMA.format(model=kind.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def _completions(app: FastAPI, link: Link, limits: Limits, defaults: Mapping[str, Unsaid]) -> dict[str, ASGIApp]:
    """Add both routes; the same as applications by path, for the gate: FastAPI's way to them costs as much as all the
    rest of a short answer."""

    async def answer(request: Request, kind: type[Sampled]) -> Response:
        asked = await read(request, kind)
        long = len(await request.body()) > LONG
        return WhileThere(Completion(asked, link, limits, defaults, request.state.record, long))

    @app.post("/v1/chat/completions", openapi_extra=_takes(ChatRequest), tags=["OpenAI"])
    async def chat_completion(request: Request) -> Response:
        """The answer to a conversation, whole or as server-sent events (`stream`)."""
        return await answer(request, ChatRequest)

    @app.post("/v1/completions", openapi_extra=_takes(CompletionRequest), tags=["OpenAI"])
    async def completion(request: Request) -> Response:
        """The continuation of a text."""
        return await answer(request, CompletionRequest)

    def alone(route: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
        async def asked(scope: Scope, receive: Receive, send: Send) -> None:
            response = await route(Request(scope, receive))
            await response(scope, receive, send)

        return asked

    return {"/v1/chat/completions": alone(chat_completion), "/v1/completions": alone(completion)}


def _words(app: FastAPI, link: Link) -> None:
    @app.post("/v1/score", openapi_extra=_takes(ScoreRequest), tags=["scores"])
    async def score(request: Request) -> dict[str, Any]:
        """What a reward model finds answers worth."""
        return await scored(await read(request, ScoreRequest), link, request.state.record)

    @app.post("/v1/tokenize", openapi_extra=_takes(TokenizeRequest), tags=["tokens"])
    async def tokenize(request: Request) -> dict[str, Any]:
        """The token ids of a text, or of a chat as the model reads it."""
        asked = await read(request, TokenizeRequest)
        request.state.record.model = asked.model
        model = await link.open(asked.model)
        tokens = await asyncio.to_thread(tokenized, model, asked)
        return {"tokens": tokens, "count": len(tokens), "max_model_len": model.context}

    @app.post("/v1/detokenize", openapi_extra=_takes(DetokenizeRequest), tags=["tokens"])
    async def detokenize(request: Request) -> dict[str, Any]:
        """The text of token ids, special tokens by their names."""
        asked = await read(request, DetokenizeRequest)
        request.state.record.model = asked.model
        model = await link.open(asked.model)
        check_ids(model.tokenizer, asked.tokens, "tokens")
        return {"prompt": await asyncio.to_thread(model.tokenizer.decode, asked.tokens, False)}


def _state(app: FastAPI, link: Link) -> None:
    def card(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": link.created, "owned_by": "babyllama"}

    @app.get("/v1/models", tags=["OpenAI"])
    async def all_models() -> dict[str, Any]:
        """The models that requests may name."""
        return {"object": "list", "data": [card(name) for name in link.names]}

    @app.get("/v1/models/{name:path}", tags=["OpenAI"])
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        return card(link.check(name))

    @app.get("/health", tags=["server"])
    async def health() -> Response:
        """200 while the engines work; 503 when one keeps failing."""
        ill = (await link.call("state"))["ill"]
        return JSONResponse({"status": "ill" if ill else "ok", "ill": ill}, 503 if ill else 200)

    @app.get("/metrics", tags=["server"])
    async def page() -> Response:
        """For Prometheus."""
        return Response(await link.call("metrics"), media_type="text/plain; version=0.0.4; charset=utf-8")


def _faults(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, fault: Refused) -> Response:
        return fault.response()

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, fault: HTTPException) -> Response:
        what, allow = fault.detail, (fault.headers or {}).get("Allow")
        if fault.status_code == 404:
            what = _no_route(app, request.url.path.rstrip("/"))
        if allow is not None:
            what = f"this route takes {allow}"
        return Refused(fault.status_code, f"{request.method} {request.url.path}: {what}", allow=allow).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return Refused(500, SERVER_FAULT).response()


def _no_route(app: FastAPI, path: str) -> str:
    """What to say of an address that is none: most often a client's settings lack /v1, or have it twice."""
    known = {getattr(route, "path", "") for route in app.routes}
    meant = next((one for one in (f"/v1{path}", path.removeprefix("/v1")) if one != path and one in known), None)
    near = f"did you mean {meant}? " if meant else ""
    return f"there is no such route; {near}clients' base URL ends in /v1, and /docs lists all"


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the requests that routes read by themselves."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, schemas = models_json_schema([(kind, "validation") for kind in REQUESTS], ref_template=SCHEMA)
        found.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        app.openapi_schema = found
    return app.openapi_schema
