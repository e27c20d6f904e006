"""The processes that train together: who this one is, and what they tell each other.

torchrun, accelerate launch and deepspeed all set RANK, WORLD_SIZE and LOCAL_RANK, and how many processes there are on
a machine; nothing else of them is needed. Not here: what is spread over the processes and how (engines.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from babyllama.errors import InputError
from babyllama.train.engines.mesh import Mesh

PATIENCE = timedelta(hours=1)  # of the others, while the first rank validates, samples and exports


def backend(device: torch.device) -> str:
    """What processes on devices of this kind talk over: NCCL what is on GPUs, gloo what is on the hosts."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


@dataclass(frozen=True)
class World:
    """Rank `rank` of `size`; `local_rank` is its number on this machine, and its GPU's. `group`: whom it talks over.
    `local_size`: how many there are on this machine; 0 where the launcher does not say."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None
    local_size: int = 0

    @classmethod
    def from_environment(cls) -> World:
        """What the launcher says; alone when there is none. Raises InputError for values that are no ranks."""
        usual = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "0"}  # the last is deepspeed's
        found = {name: os.environ.get(name, value) for name, value in usual.items()}
        found["LOCAL_SIZE"] = os.environ.get("LOCAL_WORLD_SIZE", found["LOCAL_SIZE"])  # torchrun's, and accelerate's
        try:
            rank, size, local_rank, local_size = (int(value) for value in found.values())
        except ValueError:
            raise InputError(
                f"{found}: a launcher's variables must be whole numbers; unset them or use torchrun"
            ) from None
        if not 0 <= rank < size:
            raise InputError(f"RANK={rank} is outside WORLD_SIZE={size}; unset them or use torchrun")
        return cls(rank, size, local_rank, local_size=local_size)

    @property
    def one_machine(self) -> bool:
        """Whether all processes are known to be on this one; every rank says the same."""
        return self.local_size == self.size

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, logs and shows."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """This process's own device of that kind."""
        if kind != "cuda":
            return torch.device(kind)
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"rank {self.rank}: this machine has {torch.cuda.device_count()} GPUs; start one process for each"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def join(self, device: torch.device, environment: Mapping[str, str] | None = None) -> None:
        """Meet the others: gloo for what the hosts say to each other, NCCL for what the GPUs do. `environment`: what an
        engine wants set before, unless it is."""
        if self.size > 1 and not dist.is_initialized():
            for name, value in (environment or {}).items():
                os.environ.setdefault(name, value)
            dist.init_process_group(backend(device), timeout=PATIENCE)

    def states(self, kind: str, mesh: Mesh) -> DeviceMesh:
        """The ranks by the states that they hold, on devices of this kind: ("replicate", "shard"), or ("shard",) where
        there is one copy."""
        if mesh.replicate == 1:
            return init_device_mesh(kind, (mesh.shard,), mesh_dim_names=("shard",))
        return init_device_mesh(kind, (mesh.replicate, mesh.shard), mesh_dim_names=("replicate", "shard"))

    def readers(self, kind: str, mesh: Mesh) -> DeviceMesh:
        """The ranks by the rows that they read and by their parts of these: ("rows", "context")."""
        return init_device_mesh(kind, (mesh.readers, mesh.context), mesh_dim_names=("rows", "context"))

    def second(self) -> World:
        """The same ranks over a gloo group of their own, for a thread that talks while training does."""
        return replace(self, group=dist.new_group(backend="gloo", timeout=PATIENCE)) if self.size > 1 else self

    def leave(self) -> None:
        """Inverse of `join`."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the ranks, in float64, host to host: no GPU waits."""
        if self.size == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(together, group=self.group)
        return together.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order of rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return self.gather(value if self.first else None)[0]

    def reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the ranks, in place, on its device."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def wait(self) -> None:
        """Until all ranks are here; host to host."""
        self.sum(0.0)
