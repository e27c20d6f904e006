"""Resume state on disk: what a worker and the guard need to go on ↔ a folder.

    state.safetensors   float32 masters, optimiser moments, guard      state.json   step, tokens seen, …
    *.distcp .metadata  in place of state.safetensors: the same tensors in the parts that the ranks held (torch DCP)

Written in the background: `Saver` copies nothing itself and holds one write at a time. Not here: the folder's
checksums and how many are kept (run.py).
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor

from babyllama.atomic import write_json


def on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory, which training goes on without touching."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed this process's generators for one step: what is drawn in it is a function of the three."""
    torch.manual_seed(xxhash.xxh3_64_intdigest(repr((seed, step, rank)).encode()) % 2**63)


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """The half of `write_state` that is no tensor."""
    write_json(folder / "state.json", facts)


def write_state(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Fill an empty state folder. `facts` are plain JSON."""
    save_file(tensors, folder / "state.safetensors")
    write_facts(folder, facts)


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, facts) of a state folder that `Run.latest_state` found whole."""
    tensors = read_shards(folder) if sharded(folder) else load_file(folder / "state.safetensors")
    return tensors, read_facts(folder)


def read_facts(folder: Path) -> dict[str, Any]:
    """The second half of `read_state`."""
    return json.loads((folder / "state.json").read_text("utf-8"))


def sharded(folder: Path) -> bool:
    """Whether the state folder holds the parts of many ranks."""
    return (folder / ".metadata").exists()


def write_shards(folder: Path, tensors: dict[str, Tensor], group: Any) -> None:
    """Every rank writes the parts that it holds of the DTensors in `tensors`, and together the rest, once."""
    from torch.distributed import checkpoint

    checkpoint.save(tensors, storage_writer=checkpoint.FileSystemWriter(folder), process_group=group)


def whole(name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """A place for all of a saved tensor, in the host's memory."""
    return torch.empty(size, dtype=dtype)


def read_shards(folder: Path, place: Callable[[str, torch.Size, torch.dtype], Tensor] = whole) -> dict[str, Tensor]:
    """The tensors of a folder of parts, in any number of processes, each for itself.

    Args:
        place: (name, whole shape, dtype) → the tensor to fill; a DTensor gets its local part only.
    """
    from torch.distributed import checkpoint

    reader = checkpoint.FileSystemReader(folder)
    found = {
        name: place(name, about.size, about.properties.dtype)
        for name, about in reader.read_metadata().state_dict_metadata.items()
        if isinstance(about, checkpoint.TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # it is not: each reads for itself
        checkpoint.load(found, storage_reader=reader, no_dist=True)
    return found


def check_masters(tensors: Mapping[str, Tensor], sizes: Mapping[str, torch.Size]) -> None:
    """Raise KeyError, with words, unless there is a ``master.NAME`` of the right shape for every name."""
    for name, size in sizes.items():
        saved = tensors.get(f"master.{name}")
        if saved is None or saved.shape != size:
            found = "is missing" if saved is None else f"has shape {list(saved.shape)}"
            raise KeyError(f"{name} {found}, the model needs {list(size)}")


class Saver:
    """Writes in a thread, one after the other; what a write raised comes out of the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Begin a write, after the one before it has ended."""
        self.wait()

        def work() -> None:
            try:
                write()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="saver")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written. Raises what the last write raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
