"""serve: models over HTTP, as OpenAI's clients ask for them."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from babyllama.commands.serving import Speculation, engine_of
from babyllama.errors import InputError, cause, needs_extra
from babyllama.hardware import DeviceChoice
from babyllama.infer.sampling import AnswerSampling, Drawn, Sampling, SamplingRecipe, Unsaid
from babyllama.recipe import Recipe

if TYPE_CHECKING:
    from babyllama.infer.engine import Engine
    from babyllama.load import Loaded
    from babyllama.serve.models import Served
    from babyllama.serve.pages import Hints

LOCAL = {"127.0.0.1", "::1", "localhost"}
KEYS = "BABYLLAMA_API_KEYS"
MOST = 4  # processes that speak HTTP unless asked for more
UNREAD = 60  # seconds that a client may read nothing of what is sent to it, until the system drops its connection


class ServedRecipe(Recipe):
    """One model of a server."""

    path: Path = Field(description="a run, an adapter, a quantised model or a Hugging Face LLaMA folder")
    name: str = Field(default="", description="what requests call it; empty: the folder's name")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="of the model; auto: what suits the machine"
    )


class ServeRecipe(SamplingRecipe):
    """The verb's recipe."""

    models: tuple[Path | ServedRecipe, ...] = Field(
        min_length=1, description="runs, adapters or folders, one by one", examples=["models=[runs/sft]"])  # fmt: skip
    host: str = Field(default="127.0.0.1", description="0.0.0.0: open to the network; then give keys")
    port: int = Field(default=8000, ge=0, le=65535, description="0: any that is free")
    api_keys: Path | None = Field(default=None, description=f"a file, one key a line; also from ${KEYS}, by commas")
    sampling: Drawn = AnswerSampling()
    device: DeviceChoice = "auto"
    speculate: Speculation | None = Field(
        default=None, description="guess the next tokens and read them at once: the same answers, sooner")  # fmt: skip
    workers: int | None = Field(
        default=None, ge=1, le=64, description="processes that speak HTTP; null: by the cores, on a CPU 1")  # fmt: skip
    slots: int = Field(default=256, ge=1, description="answers written at once, of each model")
    queue: int = Field(default=256, ge=0, description="answers that may wait; beyond: 429")
    wait: float = Field(default=60, gt=0, description="seconds until the first token; beyond: 429")
    time: float = Field(default=600, gt=0, description="seconds for an answer, which ends there")
    max_tokens: int | None = Field(default=None, ge=1, description="the longest answer; null: the model's context")
    body: int = Field(default=1 << 20, ge=1024, description="bytes of a request; beyond: 413")
    share_base: bool = Field(default=False, description="adapters of one base beside it, not merged: one in memory")
    loaded: int | None = Field(default=None, ge=1, description="models in memory at once; null: all")
    idle: float | None = Field(default=None, gt=0, description="seconds after which an unused model is unloaded")
    runs: Path | None = Field(default=None, description="the folder whose runs the web app shows; null: ./runs")
    cors: tuple[str, ...] = Field(default=(), description="origins of web pages that may use the server")
    log: bool = Field(default=True, description="one line of JSON a request on stdout, without what was said")
    silence: float = Field(
        default=30, gt=0, description="seconds without a sign of life until an HTTP process is replaced")  # fmt: skip
    grace: int = Field(default=60, ge=1, description="seconds that a stopping server leaves open answers")


def main(recipe: ServeRecipe) -> None:
    """Serve until SIGTERM or Ctrl-C, then let open answers end.

    Raises:
        InputError: a model that cannot be loaded, two of one name, a file of keys that is empty, a port in use, a
            folder of runs that is not there.
    """
    try:
        from babyllama.serve.processes import Speech, serve, speakers
    except ImportError as error:
        raise needs_extra(error.name or "fastapi", "serve") from None
    from babyllama.serve.host import Host
    from babyllama.serve.models import Models
    from babyllama.serve.reply import Limits

    named, keys, runs = _named(recipe), _keys(recipe), _runs(recipe)
    openers = _openers(named, recipe)
    listeners = _listen(recipe, _workers(recipe))
    port = listeners[0].getsockname()[1]
    speech = Speech(tuple(openers), int(time.time()), Limits(recipe.max_tokens, recipe.wait, recipe.time),
                    _samplings(named, recipe.sampling), tuple(keys), recipe.body, recipe.cors, recipe.log, runs,
                    recipe.grace, _hints(named))  # fmt: skip
    with speakers(speech, listeners) as speaking:  # they begin beside the loading of the first model
        models = Models(openers, recipe.loaded, recipe.idle, recipe.wait)
        first = next(iter(openers))
        models.loaded |= {served.name: served for served in openers[first]()}  # a fault shows now, and nobody waits
        host = Host(models, recipe.queue, recipe.silence)
        code = serve(host, speaking, recipe.grace, partial(_say, recipe, port, openers, keys))
    if code:
        raise SystemExit(code)


def _workers(recipe: ServeRecipe) -> int:
    """How many processes speak HTTP. Beside an engine on the CPU they would take cores from it."""
    from babyllama.data.shards.workers import cores
    from babyllama.load import pick_device

    if recipe.workers is not None:
        return recipe.workers
    alone = sys.platform == "win32" or pick_device(recipe.device).type == "cpu"
    return 1 if alone else max(1, min(MOST, cores() // 4))


def _named(recipe: ServeRecipe) -> dict[str, ServedRecipe]:
    """Name → what is served by it. Paths are looked at now."""
    from babyllama.load import model_folder

    models: dict[str, ServedRecipe] = {}
    for given in recipe.models:
        served = ServedRecipe(path=given) if isinstance(given, Path) else given
        model_folder(served.path)
        path = served.path.resolve()
        name = served.name or (path.parent.name if path.name == "model" else path.name)
        if name in models:
            raise InputError(
                f"models: two are called {name!r}; give one another name: models=[{{path: …, name: …}}, …]"
            )
        models[name] = served
    return models


def _hints(models: Mapping[str, ServedRecipe]) -> dict[str, Hints]:
    """As many earlier turns as its training's chats had, and the questions that its recipe asked it meanwhile."""
    from babyllama.commands.chat import questions_of, turns_of
    from babyllama.serve.pages import Hints

    turns = {name: turns_of(served.path) for name, served in models.items()}
    return {name: Hints((turns[name] or 0) - 1 if turns[name] else None, questions_of(served.path))
            for name, served in models.items()}  # fmt: skip


def _samplings(models: Mapping[str, ServedRecipe], said: AnswerSampling) -> dict[str, Unsaid]:
    """Name → how its answers are drawn where requests do not say."""
    from babyllama.load import own_sampling

    owns = {name: own_sampling(served.path) for name, served in models.items()}
    return {name: Unsaid(said.over(own), said.over(own, Sampling())) for name, own in owns.items()}


def _openers(models: Mapping[str, ServedRecipe], recipe: ServeRecipe) -> dict[str, Callable[[], list[Served]]]:
    """Name → how it is loaded, with those that share its base."""
    found: dict[str, Callable[[], list[Served]]] = {}
    for group in _groups(models, recipe.share_base):
        opener = partial(_open, {name: models[name] for name in group}, recipe)
        found |= dict.fromkeys(group, opener)
    return {name: found[name] for name in models}


def _groups(models: Mapping[str, ServedRecipe], share: bool) -> list[list[str]]:
    """Names of those that are loaded together: adapters of the same base, and that base, where they share it."""
    from babyllama.load import model_folder
    from babyllama.model.adapters import base_link, is_adapter

    found: dict[tuple[str, ...], list[str]] = {}
    for name, served in models.items():
        folder = model_folder(served.path)
        link = base_link(folder) if is_adapter(folder) else None
        base = folder if link is None else model_folder(link.folder)
        kind = ("dense", "None") if link is None else (link.packed, str(link.rope))
        key = (str(base.resolve()), *kind, served.precision)
        found.setdefault(key if share else (name,), []).append(name)
    return list(found.values())


def _open(models: Mapping[str, ServedRecipe], recipe: ServeRecipe) -> list[Served]:
    """Load models that share a base, or one alone."""
    from babyllama.load import load, load_adapters, model_folder, pick_device, pick_precision, read_tokenizer
    from babyllama.model.adapters import is_adapter
    from babyllama.serve.models import Served
    from babyllama.serve.worker import Worker

    device, (first, *_) = pick_device(recipe.device), models.values()
    precision = None if first.precision == "auto" else pick_precision(first.precision, device)
    folders = {name: model_folder(served.path) for name, served in models.items()}
    adapters = {name: folder for name, folder in folders.items() if is_adapter(folder)} if recipe.share_base else {}
    if adapters:
        loaded = load_adapters(adapters, device, precision)
    else:
        loaded = load(first.path, device, precision, scores=True)
    scores = loaded.model.config.reward
    engine = engine_of(loaded, None if scores else recipe.speculate, slots=recipe.slots)
    if not scores:
        _warm(engine, loaded, {name: name if name in adapters else None for name in models}, recipe)
    worker = Worker(engine, next(iter(models)))
    return [Served(name, worker, read_tokenizer(folder), name if name in adapters else None, scores)
            for name, folder in folders.items()]  # fmt: skip


def _warm(engine: Engine, loaded: Loaded, models: Mapping[str, str | None], recipe: ServeRecipe) -> None:
    """Take the memory, and write two tokens by each model, given with its adapter, so that what is compiled is."""
    from babyllama.infer.request import Request

    if loaded.model.norm.weight.device.type == "cuda":
        print("note: getting the GPU ready; the first time this takes a minute, since its kernels are compiled",
              file=sys.stderr, flush=True)  # fmt: skip
    if (room := engine.warm()) < recipe.slots:
        print(f"note: the GPU's memory holds {room} answers of {', '.join(models)} at once, not slots={recipe.slots}",
              file=sys.stderr, flush=True)  # fmt: skip
    greedy, start = Sampling(temperature=0), loaded.tokenizer.start_ids
    for adapter in models.values():
        list(engine.events(Request(start, greedy, 2, adapter=adapter)))


def _runs(recipe: ServeRecipe) -> Path | None:
    folder = recipe.runs or Path("runs")
    if recipe.runs is not None and not folder.is_dir():
        raise InputError(f"runs: {folder} is not a folder; give the one that holds your runs, or leave runs out")
    return folder if folder.is_dir() else None


def _keys(recipe: ServeRecipe) -> list[str]:
    given = os.environ.get(KEYS, "")
    found = [key.strip() for key in given.split(",") if key.strip()]
    if given and not found:
        raise InputError(f"{KEYS} holds no key; write some, with commas between them, or unset it")
    if recipe.api_keys is None:
        return found
    try:
        lines = recipe.api_keys.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"api_keys: {recipe.api_keys} cannot be read ({cause(error)}); give a file with one key a line"
        ) from None
    own = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not own:
        raise InputError(f"api_keys: {recipe.api_keys} holds no key; write one a line, or leave api_keys out")
    return [*found, *own]


def _listen(recipe: ServeRecipe, count: int) -> list[socket.socket]:
    """So many sockets of one port, before anything is loaded: a port in use shows at once. The system gives each
    connection to one of them."""
    try:
        if count > 1 and sys.platform == "win32":
            raise InputError(f"workers={count}: Windows cannot share a port; give workers=1")
        family, *_, address = socket.getaddrinfo(recipe.host, recipe.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as alone:  # where others share the port this one is refused
            _reuse(alone)
            alone.bind(address)
            address = alone.getsockname()
        found = [socket.socket(family, socket.SOCK_STREAM) for _ in range(count)]
        for listener in found:
            _reuse(listener)
            if sys.platform == "linux":  # a connection has it from its listener
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNREAD)
            if count > 1 and sys.platform != "win32":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(2048)
    except socket.gaierror as error:
        raise InputError(f"host={recipe.host}: no such address ({error.strerror}); give this machine's, or 0.0.0.0 for "
                         "all that it has") from None  # fmt: skip
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"host={recipe.host}: this machine has no such address; give one of its own, or 0.0.0.0 "
                             "for all") from None  # fmt: skip
        raise InputError(f"host={recipe.host} port={recipe.port}: cannot listen there ({error.strerror}); "
                         "choose another port=…, or 0 for any that is free") from None  # fmt: skip
    return found


def _reuse(listener: socket.socket) -> None:
    """At once after a server has ended. On Windows that would let two servers have one port."""
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _say(recipe: ServeRecipe, port: int, names: Collection[str], keys: list[str]) -> None:
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(recipe.host, recipe.host)  # of all addresses, one to type
    host = f"[{here}]" if ":" in here else here
    others = "" if here == recipe.host else f"; other machines: by this one's name or address, port {port}"
    at = f"http://{host}:{port}"
    print(f"babyllama serves {', '.join(names)} at {at}/v1 (routes: {at}/docs; to talk in a browser: {at}{others}); "
          "Ctrl-C stops", file=sys.stderr, flush=True)  # fmt: skip
    if not keys and recipe.host not in LOCAL:
        print(
            f"babyllama: anyone who reaches {recipe.host} may use it: give api_keys=FILE", file=sys.stderr, flush=True
        )
