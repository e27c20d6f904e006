"""The web app: its files, and the routes beside OpenAI's that it asks: runs, and looks inside a model.

The files come with the package and are read when the server starts, so no path of a request reaches the disk. Pages may
load nothing from elsewhere and run no script but ours. Not here: what a run or a view is (runs.py, inside.py).
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from babyllama import __version__
from babyllama.errors import InputError
from babyllama.infer.sampling import Sampling
from babyllama.serve import inside
from babyllama.serve.faults import Refused, json_bytes
from babyllama.serve.models import Models
from babyllama.serve.protocol import Given, read
from babyllama.serve.runs import Runs

WEB = Path(__file__).with_name("web")
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml",
         ".txt": "text/plain"}  # fmt: skip
POLICY = "; ".join(("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:",
                    "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
                    ))  # fmt: skip
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cross-Origin-Opener-Policy": "same-origin", "Cache-Control": "no-cache"}  # fmt: skip
VIEWS: dict[str, tuple[type[Given], Any]] = {
    "text": (inside.Look, inside.text_view), "attention": (inside.AttentionLook, inside.attention_view),
    "lens": (inside.Look, inside.lens_view), "sampling": (inside.SamplingLook, inside.sampling_view),
    "rope": (inside.RopeLook, inside.rope_view), "neighbours": (inside.NeighboursLook, inside.neighbours_view),
}  # fmt: skip


def add_pages(app: FastAPI, models: Models, folder: Path | None, defaults: Sampling) -> None:
    """Add everything to the application. `folder`: of the runs, or None."""
    _files(app)
    _runs(app, None if folder is None else Runs(folder))
    _looks(app, models)

    @app.get("/api/app", tags=["web app"])
    async def about() -> Response:
        """What the page wants to know first."""
        loaded = {name: served.context for name, served in models.loaded.items()}
        sampling = defaults.model_dump(exclude={"logit_bias", "seed"})
        return _json({"version": __version__, "models": list(models.openers), "context": loaded, "sampling": sampling,
                      "runs": folder is not None})  # fmt: skip


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


def _looks(app: FastAPI, models: Models) -> None:
    @app.get("/api/source", tags=["web app"])
    async def source(view: str) -> Response:
        """The code that computes a view."""
        return _json(inside.source(view))

    @app.post("/api/inside/{view}", tags=["web app"])
    async def look(view: str, request: Request) -> Response:
        """The figures of one view."""
        if view not in VIEWS:
            raise Refused(404, f"there is no view {view!r:.40}; there are: {', '.join(VIEWS)}")
        kind, figures = VIEWS[view]
        asked: Any = await read(request, kind)
        request.state.record.model = asked.model
        async with models.use(asked.model) as served:
            try:
                return _json(await served.worker.call(inside.watched(served, figures, asked)))
            except InputError as error:
                raise Refused(400, str(error)) from None


def _json(value: Any) -> Response:
    return Response(json_bytes(value), media_type="application/json", headers={"Cache-Control": "no-store"})
