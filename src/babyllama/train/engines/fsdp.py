"""Fully sharded training (FSDP2): each rank holds the rows of every parameter, gradient and moment that are its own.

Weights are gathered block by block where they are used, in the precision that computes; gradients are summed in float32
and scattered. Where there are several copies (HSDP), each lies on a group of ranks, and what a group summed travels
between them. Checkpoints are written by all ranks, each its own rows. Imported only when several processes train with
``engine.kind: fsdp``. Not here: the step itself (worker.py), the files (state.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from babyllama.atomic import disk_errors
from babyllama.data.streams.batches import Batch
from babyllama.model.transformer import Transformer
from babyllama.train.engines.captured import Captured
from babyllama.train.engines.precision import LossModule
from babyllama.train.engines.setting import Setting
from babyllama.train.engines.skeleton import Skeleton
from babyllama.train.engines.worker import Save, Worker, bit_sums, freeze
from babyllama.train.engines.world import World
from babyllama.train.guard import Watchman
from babyllama.train.state import on_host, read_facts, read_shards, sharded, write_facts, write_shards

SHARED = ("master.", "average.", "optimizer.")  # how the names in a checkpoint begin of which each rank holds its rows
GROUP = 8_000_000  # parameters: 16 MB in half precision, which a link carries in about a launch's time


class Sharded(Worker):
    """One of many ranks, with its rows of everything. Parameters are DTensors of the names that they had."""

    module: FSDPModule

    def __init__(self, setting: Setting, reshard_after_forward: bool, blocks: int | None = None) -> None:
        self._reshard, self._blocks = reshard_after_forward, blocks
        self._savers = setting.world.second()
        self._hosts = setting.world.states("cpu", setting.mesh)
        self._skeleton = Skeleton(setting.model)
        super().__init__(setting)

    def _prepare(self, loss: LossModule) -> nn.Module:
        precision = MixedPrecisionPolicy()
        if self.setting.dtype != torch.float32:
            precision = MixedPrecisionPolicy(param_dtype=self.setting.dtype, reduce_dtype=torch.float32)
        freeze(self.model, self.setting.dtype)
        mesh = self._hosts if self.device.type == "cpu" else self.world.states(self.device.type, self.setting.mesh)
        if self.setting.compiled:
            for block in self.model.layers:
                block.compile()
        groups = self._gathered()
        for group in groups:
            fully_shard(group, mesh=mesh, mp_policy=precision, reshard_after_forward=self._reshard)
        for (now, *_), (following, *_) in pairwise(groups):  # small blocks are over before the host asks for the next
            now.set_modules_to_forward_prefetch([following])
        if any(True for _ in self.model.rope.parameters()):  # a law that learns does so in float32
            fully_shard(self.model.rope, mesh=mesh, reshard_after_forward=False)
        # The root is the loss: it uses the head's weight, and only what is called is gathered.
        fully_shard(loss, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
        for module in loss.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return loss

    def _gathered(self) -> list[list[Any]]:
        """Neighbouring blocks that are gathered in one exchange: large enough for its cost, never all of them."""
        blocks = list(self.model.layers)
        each = sum(p.numel() for p in blocks[0].parameters())
        size = self._blocks or max(1, min(GROUP // each, -(-len(blocks) // 2)))
        return [blocks[start : start + size] for start in range(0, len(blocks), size)]

    def _synchronising(self, last: bool) -> AbstractContextManager[None]:
        self.module.set_is_last_backward(last)
        self.module.set_requires_gradient_sync(last)
        self.module.set_reshard_after_backward(last)  # in between, the weights stay for the next micro-batch
        return nullcontext()

    def _grads(self) -> list[Tensor]:
        return [_held(p.grad) for _, p in self.named if p.grad is not None]

    def _norm(self) -> Tensor:
        # torch's get_total_norm of DTensors takes ten times as long on the host (docs/log.md, 2026-11-29).
        mine = torch.stack(torch._foreach_norm(self._grads()))
        return (self.world.reduce_(mine.square().sum()) / self.setting.mesh.replicate).sqrt()

    # ── the whole model ────────────────────────────────────────────────────────────────────────────────────────
    def snapshot(self) -> Transformer:
        """As in Worker; the other ranks' copies have no weights."""
        return self._whole(self.world.first, self.mean)

    @contextmanager
    def policy(self) -> Iterator[Transformer]:
        """As in Worker: weights gathered once, in what they compute in, and dropped at the end."""
        with torch.no_grad():
            yield self._whole(True, {}).eval()

    def _whole(self, keep: bool, mean: dict[str, Tensor]) -> Transformer:
        """The model gathered by all ranks, on this one too if it is to `keep` it; of weights that have one their
        `mean`."""

        def gather(name: str) -> Tensor | None:
            mine = mean.get(name, self.model.get_parameter(name)).detach().to(self.setting.copied(name))
            assert isinstance(mine, DTensor)
            whole = mine.full_tensor()
            return whole if keep else None

        return self._skeleton.filled(gather, self.device)

    def fingerprint(self) -> dict[str, int]:
        """As in Worker; nothing where there is one copy, of which every row lies on one rank only."""
        if self.setting.mesh.replicate == 1:
            return {}
        return bit_sums({name: _held(p.detach()) for name, p in self.named})

    # ── state ──────────────────────────────────────────────────────────────────────────────────────────────────
    def writer(self, save: Save, extra: dict[str, Tensor], facts: dict[str, Any]) -> Callable[[], None]:
        """As in Worker, but all ranks write: in the folder that the first has made, which then seals it."""
        tensors = {name: self._copied(tensor) for name, tensor in {**self.tensors(), **extra}.items()}
        facts = copy.deepcopy(facts)
        return lambda: _write_together(self._savers, save, tensors, facts)

    def _copied(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return on_host({"": tensor})[""]
        return _rows(tensor.to_local().to("cpu", copy=True), self._hosts, tensor.shape)

    def _stored(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """This rank's rows only, whichever engine and number of ranks wrote them."""
        tensors = read_shards(folder, self._place) if sharded(folder) else self._slices(folder)
        return tensors, read_facts(folder)

    def _place(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """An empty tensor for a saved one: this rank's rows where they are shared out, else the whole."""
        if not (size and name.startswith(SHARED)):
            return torch.empty(size, dtype=dtype)
        start, stop = self._span(size[0])
        return _rows(torch.empty(stop - start, *size[1:], dtype=dtype), self._hosts, size)

    def _slices(self, folder: Path) -> dict[str, Tensor]:
        found = {}
        with safe_open(folder / "state.safetensors", framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                view = file.get_slice(name)
                size = torch.Size(view.get_shape())
                if size and name.startswith(SHARED):
                    start, stop = self._span(size[0])
                    found[name] = _rows(view[start:stop], self._hosts, size)
                else:
                    found[name] = file.get_tensor(name)
        return found

    def _span(self, rows: int) -> tuple[int, int]:
        each, at = -(-rows // self.setting.mesh.shard), self._hosts.get_local_rank("shard")
        return min(rows, at * each), min(rows, (at + 1) * each)

    def _placed(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        assert isinstance(whole, DTensor) and isinstance(parameter, DTensor)
        return _rows(whole.to_local().to(self.device, copy=True), parameter.device_mesh, whole.shape)


class ShardedGraph(Sharded, Captured):
    """Sharded, whose whole update is a CUDA graph, its exchanges too."""

    def _advance(self, micro: Sequence[Batch], total: float | Tensor, factor: float | Tensor, watchman: Watchman
                 ) -> Tensor:  # fmt: skip
        if self.device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            return super()._advance(micro, total, factor, watchman)
        # In a graph exchanges of two streams may begin in another order on each rank: one stream keeps theirs.
        shared = self.module._get_fsdp_state()._comm_ctx
        streams = {name: stream for name, stream in vars(shared).items() if isinstance(stream, torch.cuda.Stream)}
        vars(shared).update(dict.fromkeys(streams, torch.cuda.current_stream(self.device)))
        try:
            return super()._advance(micro, total, factor, watchman)
        finally:
            vars(shared).update(streams)


def _held(tensor: Tensor) -> Tensor:
    """The rows of a DTensor that lie on this rank."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def _rows(mine: Tensor, mesh: Any, size: torch.Size) -> DTensor:
    """The DTensor of shape `size`, split by rows over the last dimension of `mesh`, of which `mine` are this rank's."""
    stride = torch.empty(size, device="meta").stride()
    placed = [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
    return DTensor.from_local(mine, mesh, placed, run_check=False, shape=size, stride=stride)


def _write_together(savers: World, save: Save, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """All ranks call it, in their saving threads. Raises on every rank when one could not write."""
    if not savers.first:
        folder = savers.agree(None)
        if folder is not None:
            _write_shards(folder, tensors, savers)
        return
    told = False

    def fill(folder: Path) -> None:
        nonlocal told
        told = True
        savers.agree(folder)
        _write_shards(folder, tensors, savers)
        write_facts(folder, facts)

    try:
        save(fill)
    finally:
        if not told:  # the others are waiting for a folder that could not be made
            savers.agree(None)


def _write_shards(folder: Path, tensors: dict[str, Tensor], savers: World) -> None:
    """This rank's part of a checkpoint. A rank's full disk is one line; torch wraps it in a CheckpointException."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        write_shards(folder, tensors, savers.group)
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            with disk_errors(folder):
                if isinstance(cause, Exception):
                    raise cause from None
        raise
