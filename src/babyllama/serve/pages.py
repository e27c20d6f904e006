"""The web app: its files, and the routes beside OpenAI's that it asks: runs, their data, looks inside a model.

The files come with the package and are read when the server starts, so no path of a request reaches the disk. Pages may
load nothing from elsewhere and run no script but ours. Runs are also shown without any model (`watching`), for which
nothing here imports PyTorch. Not here: what a run or a view is (runs.py, inside.py).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import FastAPI, Request
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response

from babyllama import __version__
from babyllama.serve.data import documents, figures
from babyllama.serve.faults import Refused, json_bytes
from babyllama.serve.protocol import LOOKS, read
from babyllama.serve.runs import Runs

if TYPE_CHECKING:
    from babyllama.infer.sampling import Unsaid
    from babyllama.serve.link import Link

WEB = Path(__file__).with_name("web")
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml",
         ".txt": "text/plain"}  # fmt: skip
POLICY = "; ".join(("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:",
                    "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
                    ))  # fmt: skip
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cross-Origin-Opener-Policy": "same-origin", "Cache-Control": "no-cache"}  # fmt: skip


class Hints(NamedTuple):
    """Of a model, for the chat page: how many earlier turns it is shown beside a question (None: all), what to ask."""

    memory: int | None = None
    questions: tuple[str, ...] = ()


def add_pages(app: FastAPI, link: Link, folder: Path | None, defaults: Mapping[str, Unsaid],
              hints: Mapping[str, Hints]) -> None:  # fmt: skip
    """Add everything to the application. `folder`: of the runs, or None."""
    _files(app)
    _runs(app, None if folder is None else Runs(folder))
    _looks(app, link)

    @app.get("/api/app", tags=["web app"])
    async def about() -> Response:
        """What the page wants to know first."""
        loaded = (await link.call("state"))["loaded"]
        sampling = {name: one.all.model_dump(exclude={"logit_bias", "seed"}) for name, one in defaults.items()}
        return _about(link.names, loaded, sampling, folder is not None, hints)


def watching(folder: Path) -> FastAPI:
    """The pages without any model, for who looks at the runs below a folder from this machine."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])  # no other site's name for it
    _files(app)
    _runs(app, Runs(folder))

    @app.get("/api/app")
    async def about() -> Response:
        return _about((), {}, {}, True, {})

    @app.exception_handler(Refused)
    async def refused(_: Request, fault: Refused) -> Response:
        return fault.response()

    return app


def _about(models: Collection[str], context: dict[str, Any], sampling: dict[str, Any], runs: bool,
           hints: Mapping[str, Hints]) -> Response:  # fmt: skip
    memory = {name: hint.memory for name, hint in hints.items() if hint.memory is not None}
    return _json({"version": __version__, "models": list(models), "context": context, "sampling": sampling,
                  "runs": runs, "memory": memory,
                  "questions": {name: hint.questions for name, hint in hints.items()}})  # fmt: skip


def _files(app: FastAPI) -> None:
    paths = [path for path in WEB.rglob("*") if path.suffix in KINDS]
    files = {path.relative_to(WEB).as_posix(): _file(path) for path in paths}

    def answer(request: Request, name: str) -> Response:
        if name not in files:
            raise Refused(404, f"there is no file {name!r:.100}")
        body, headers = files[name]
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return answer(request, "index.html")

    @app.get("/web/{name:path}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        return answer(request, name)


def _file(path: Path) -> tuple[bytes, dict[str, str]]:
    body = path.read_bytes()
    kind = f"{KINDS[path.suffix]}; charset=utf-8"
    return body, {**HEADERS, "Content-Type": kind, "ETag": f'"{hashlib.sha256(body).hexdigest()[:16]}"'}


def _runs(app: FastAPI, runs: Runs | None) -> None:
    def known() -> Runs:
        if runs is None:
            raise Refused(404, "no runs are shown: there was no folder runs/ where the server started; give runs=…")
        return runs

    @app.get("/api/runs", tags=["web app"])
    async def all_runs() -> Response:
        """A card of every run."""
        return _json({"runs": [] if runs is None else await asyncio.to_thread(runs.all)})

    @app.get("/api/run", tags=["web app"])
    async def one_run(id: str) -> Response:
        """Everything about one but its curves."""
        return _json(await asyncio.to_thread(known().one, id))

    @app.get("/api/metrics", tags=["web app"])
    async def metrics(id: str, cursor: str = "") -> Response:
        """What it logged after the cursor of the last answer."""
        return _json(await asyncio.to_thread(known().metrics, id, cursor))

    @app.get("/api/rollouts", tags=["web app"])
    async def rollouts(id: str, step: int | None = None, at: int | None = None) -> Response:
        """Answers that it drew for a step and learned from, a page at a time."""
        return _json(await asyncio.to_thread(known().rollouts, id, step, at))

    @app.get("/api/data", tags=["web app"])
    async def data_figures(id: str) -> Response:
        """What is in the data of a run."""
        return _json(await asyncio.to_thread(figures, known(), id))

    @app.get("/api/documents", tags=["web app"])
    async def some_documents(id: str, corpus: str = "", split: str = "", least: int = 0, most: int = 0, count: int = 5,
                             seed: int = 0) -> Response:  # fmt: skip
        """Some of its documents at random, with what the loss covers."""
        chosen = (corpus, split, least, most, count, seed)
        return _json({"documents": await asyncio.to_thread(documents, known(), id, *chosen)})


def _looks(app: FastAPI, link: Link) -> None:
    @app.get("/api/source", tags=["web app"])
    async def source(view: str) -> Response:
        """The code that computes a view."""
        return _json(await link.call("source", view))

    @app.post("/api/inside/{view}", tags=["web app"])
    async def look(view: str, request: Request) -> Response:
        """The figures of one view."""
        if view not in LOOKS:
            raise Refused(404, f"there is no view {view!r:.40}; there are: {', '.join(LOOKS)}")
        asked: Any = await read(request, LOOKS[view])
        request.state.record.model = link.check(asked.model)
        return _json(await link.call("look", view, asked))


def _json(value: Any) -> Response:
    """`value`: JSON already where it is bytes."""
    body = value if isinstance(value, bytes) else json_bytes(value)
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
