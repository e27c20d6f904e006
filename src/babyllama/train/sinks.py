"""Where the curves go beside metrics.jsonl, which is the truth: to TensorBoard where it is installed, and to Weights &
Biases, SwanLab or trackio when a recipe asks for them.

None of them is needed to train: one that fails is left out from then on, with one warning. Not here: what the figures
are (trainer.py), who writes them (journal.py).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import xxhash
from pydantic import Field

from babyllama.errors import InputError
from babyllama.recipe import Recipe
from babyllama.run import Run


class Service(Recipe):
    """A package with `init(project, …) → run`, `run.log(numbers, step)` and `run.finish()`, as all three have them."""

    package: ClassVar[str]
    project: str = Field(default="babyllama", description="the project there")
    name: str | None = Field(default=None, description="of the run there; default: the folder's name")

    def check(self) -> None:
        """Raises InputError when the package is not installed."""
        if find_spec(self.package) is None:
            raise InputError(f"sinks: {self.package} is not installed; pip install {self.package}, or train without it")

    def open(self, run: Run) -> Any:
        """The package's own run. A training that is continued goes on with the one it had."""
        key = xxhash.xxh3_64_hexdigest(f"{run.path.resolve().name} {run.info.get('created')}".encode())
        name = self.name or run.path.resolve().name
        asked = {
            "project": self.project,
            "config": run.plain_recipe,
            "resume": "allow",
            **self.options(run.path, name, key),
        }
        return import_module(self.package).init(**asked)

    def options(self, folder: Path, name: str, key: str) -> dict[str, Any]:
        """What only this package takes. `key` is the same whenever a run is continued, and no other run's."""
        raise NotImplementedError


class Uploaded(Service):
    """A service that also keeps what it is told on this machine."""

    offline: bool = Field(default=False, description="keep everything on this machine; upload it later with the "
                                                     "service's own sync command")  # fmt: skip

    @property
    def mode(self) -> dict[str, str]:
        return {"mode": "offline"} if self.offline else {}  # else as WANDB_MODE or SWANLAB_MODE says


class Wandb(Uploaded):
    """Weights & Biases; what it keeps here lies in ``RUN/wandb``."""

    package = "wandb"
    kind: Literal["wandb"] = "wandb"

    def options(self, folder: Path, name: str, key: str) -> dict[str, Any]:
        return {"name": name, "id": key, "dir": str(folder), "settings": {"console": "off"}, **self.mode}


class Swanlab(Uploaded):
    """SwanLab; what it keeps here lies in ``RUN/swanlab``."""

    package = "swanlab"
    kind: Literal["swanlab"] = "swanlab"

    def options(self, folder: Path, name: str, key: str) -> dict[str, Any]:
        return {"name": name, "id": key, "log_dir": str(folder / "swanlab"), **self.mode}


class Trackio(Service):
    """trackio: on this machine (``trackio show``), or in a Space of the Hugging Face hub."""

    package = "trackio"
    kind: Literal["trackio"] = "trackio"
    space: str | None = Field(default=None, description="USER/SPACE on the Hugging Face hub; default: on this machine")

    def options(self, folder: Path, name: str, key: str) -> dict[str, Any]:
        """Its runs are known by their names."""
        return {"name": f"{name}-{key[:6]}", "space_id": self.space}


Sink = Annotated[Wandb | Swanlab | Trackio, Field(discriminator="kind")]


class Writer(Protocol):
    """What takes the values of a step; it may raise anything."""

    def add(self, step: int, kind: str, values: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``RUN/tensorboard``: ``tensorboard --logdir runs``.

    Args:
        first: the first step that will be written; later ones, of a killed process, are dropped by TensorBoard.
    """

    def __init__(self, run: Run, first: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=first)

    def add(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Numbers become curves named ``kind/key``; a sample becomes text."""
        if kind == "sample":
            self._writer.add_text(f"sample/{values['prompt']}", values["text"], step)
        for key, value in numbers(values, f"{kind}/").items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class Curves:
    """Numbers as curves named ``kind/key``, to one of the services."""

    def __init__(self, service: Service, run: Run) -> None:
        self._run = service.open(run)

    def add(self, step: int, kind: str, values: dict[str, Any]) -> None:
        if found := numbers(values, f"{kind}/"):
            self._run.log(found, step=step)

    def close(self) -> None:
        self._run.finish()


class Guarded:
    """A writer that ends no training: the first fault is said, and nothing is written after it.

    Args:
        name: for people.
        make: the writer; ImportError stands for a package that is not there, and is nothing to speak of.
        say: where the fault is said.
    """

    def __init__(self, name: str, make: Callable[[], Writer], say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._writer: Writer | None = None
        try:
            self._writer = make()
        except ImportError:
            pass
        except Exception as error:  # no network, no key, a broken protobuf: it may raise anything
            self._give_up(error)

    def add(self, step: int, kind: str, values: dict[str, Any]) -> None:
        try:
            if self._writer is not None:
                self._writer.add(step, kind, values)
        except Exception as error:  # a full disk, a lost connection
            self._give_up(error)

    def close(self) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        why = str(error).partition("\n")[0][:200]
        self._say(f"{self._name} gets no more curves ({type(error).__name__}: {why}); metrics.jsonl has them all")


def opened(run: Run, sinks: tuple[Service, ...], first: int, say: Callable[[str], None]) -> list[Guarded]:
    """TensorBoard, and what a recipe asks for, ready to write from step `first` on."""
    wanted: list[tuple[str, Callable[[], Writer]]] = [("TensorBoard", lambda: TensorBoard(run, first))]
    wanted += [(sink.package, lambda sink=sink: Curves(sink, run)) for sink in sinks]
    return [Guarded(name, make, say) for name, make in wanted]


def numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Those among the values, one name for each, with the names of what they lie in before it."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            found[prefix + key] = float(value)
    return found
