"""DeepSpeed ZeRO: moments, gradients and parameters shared out by DeepSpeed, everything else ours.

DeepSpeed reduces gradients, clips, keeps float32 masters and runs our AdamW on its part of them. The schedule, the
data, the loss scale, the guard and the checkpoints are those of the other engines. Imported only for ``engine.kind:
deepspeed``; the extra `deepspeed` brings it. Not here: which recipe leads here (engines.py).
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from babyllama.data.streams.batches import Batch
from babyllama.errors import InputError
from babyllama.model.transformer import Transformer
from babyllama.train.engines.precision import LossModule
from babyllama.train.engines.setting import Setting
from babyllama.train.engines.skeleton import Skeleton
from babyllama.train.engines.worker import Worker
from babyllama.train.engines.world import backend
from babyllama.train.guard import Watchman
from babyllama.train.state import check_masters, on_host

MOMENTS = ("exp_avg", "exp_avg_sq")


def _package(device: torch.device) -> Any:
    """The package, for this device."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # read when it is imported
    import deepspeed

    return deepspeed


def computes_fp16(device: torch.device) -> bool:
    """DeepSpeed's own word for it: of CPUs, those with instructions for it (AVX512-FP16, AMX-FP16)."""
    return bool(_package(device).accelerator.get_accelerator().is_fp16_supported())


def _library(setting: Setting) -> Any:
    """The package with its talk turned off, and its processes met. Raises InputError on Windows."""
    if sys.platform == "win32":
        raise InputError("engine.kind: deepspeed is not for Windows; use ddp or fsdp")
    os.environ.setdefault("LOCAL_RANK", str(setting.world.local_rank))  # it insists, also without a launcher
    deepspeed = _package(setting.device)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # on a CPU it would compile C++ now; gloo will do
    if not dist.is_initialized():  # one process, no launcher
        dist.init_process_group(backend(setting.device), store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(dist.destroy_process_group)  # not earlier: DeepSpeed keeps its groups from training to training
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    return deepspeed


class Zero(Worker):
    """One rank of DeepSpeed. `module` is its engine; parameters keep their names, and hold the computing precision."""

    module: Any

    def __init__(self, setting: Setting, stage: int, offload: bool) -> None:
        self.stage = stage
        library = _library(setting)
        self._skeleton = Skeleton(setting.model)
        masters = {name: p.detach().float().cpu() for name, p in setting.model.named_parameters()}
        super().__init__(setting)
        if stage == 3:  # the loss itself uses the head's weight
            library.zero.register_external_parameter(self.module, self.model.lm_head.weight)
        with redirect_stdout(io.StringIO()):  # it prints tables of memory
            self.module, *_ = library.initialize(model=self.module, optimizer=self.optimizers[0],
                                                 dist_init_required=False,
                                                 config=_config(setting, stage, offload))  # fmt: skip
        self._gathered = library.zero.GatheredParameters if stage == 3 else lambda *_, **__: nullcontext()
        self._begin_moments(torch.zeros(()))
        if setting.dtype != torch.float32:  # DeepSpeed's masters come from the halved weights
            self._put(masters)

    def _prepare(self, loss: LossModule) -> nn.Module:
        if self.stage < 3:  # else DeepSpeed places each part of it
            self._place_whole()
        return loss

    # ── one step ───────────────────────────────────────────────────────────────────────────────────────────────
    def _advance(self, micro: Sequence[Batch], total: float | Tensor, factor: float | Tensor,
                 watchman: Watchman) -> Tensor:  # fmt: skip
        """As in Worker, but DeepSpeed decides on the host, so each step waits for the device.

        A loss that the guard does not bear is made NaN before its last backward pass: DeepSpeed leaves out steps whose
        gradients are not finite.
        """
        if watchman.scaled:
            self.module.optimizer.override_loss_scale(watchman.scale.item())
        self._set_rates(factor)
        means, bears = torch.zeros(1, device=self.device), True

        def backward(loss: Tensor, sums: Tensor, last: bool) -> None:
            nonlocal means, bears
            if last:
                means = self.world.reduce_(sums.clone()) / total
                bears = bool(watchman.bears(means[0]))
            # DeepSpeed averages over the ranks, and must not divide by the micro-batches.
            scale = self.world.size / total if bears else float("nan")
            self.module.backward(loss * scale, scale_wrt_gas=False)
            self.module.step()

        self._pass(micro, backward)
        norm = float(self.module.get_global_grad_norm()) if self.module.was_step_applied() else float("nan")
        _, figures = watchman.judge(means[0], torch.tensor(norm if bears else 0.0, device=self.device), means[1:])
        return figures

    def warm_up(self, micro: Sequence[Batch]) -> None:
        """Nothing: DeepSpeed counts every backward pass, so the first step compiles."""

    # ── the whole model ────────────────────────────────────────────────────────────────────────────────────────
    def snapshot(self) -> Transformer:
        """As in Worker; the other ranks' copies have no weights."""
        return self._whole(self.world.first)

    @contextmanager
    def policy(self) -> Iterator[Transformer]:
        """As in Worker; at stage 3 gathered once, and dropped at the end."""
        if self.stage < 3:
            with super().policy() as model:
                yield model
        else:
            with torch.no_grad():
                yield self._whole(keep=True).eval()

    def _whole(self, keep: bool) -> Transformer:
        """The model gathered by all ranks, on this one too if it is to `keep` it."""
        from deepspeed.utils import safe_get_full_fp32_param

        def gather(name: str) -> Tensor | None:
            parameter = self.model.get_parameter(name)
            if name in self.setting.adapter:
                exact = safe_get_full_fp32_param(parameter)
                return exact.to(self.device, copy=True) if exact is not None and keep else None
            with self._gathered([parameter]):
                return parameter.detach().to(self.setting.dtype, copy=True) if keep else None

        return self._skeleton.filled(gather, self.device)

    def fingerprint(self) -> dict[str, int]:
        """As in Worker; nothing at stage 3, where every weight lies on one rank only."""
        return super().fingerprint() if self.stage < 3 else {}

    # ── state ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _captured(self, extra: dict[str, Tensor]) -> dict[str, Tensor]:
        """As in Worker, gathered by all ranks, weight by weight."""
        return {**self.tensors(), **on_host(extra)}

    def tensors(self) -> dict[str, Tensor]:
        """As in Worker, in the first rank's host memory; every rank calls it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        found: dict[str, Tensor] = {}
        steps = self.optimizers[0].state[self._parts()[0]]["step"]
        for name, parameter in self.named:
            whole = {f"master.{name}": safe_get_full_fp32_param(parameter), f"optimizer.{name}.step": steps}
            for moment in MOMENTS:
                whole[f"optimizer.{name}.{moment}"] = safe_get_full_optimizer_state(parameter, moment)
            if self.world.first:
                found |= on_host(whole)
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        check_masters(tensors, {name: self._skeleton.bare.get_parameter(name).shape for name, _ in self.named})
        self._put({name: tensors[f"master.{name}"] for name, _ in self.named})
        self._begin_moments(tensors[f"optimizer.{self.named[0][0]}.step"])
        for moment in MOMENTS:
            for name, parameter in self.named:
                self._put_part(parameter, tensors[f"optimizer.{name}.{moment}"], moment)

    def _parts(self) -> list[Tensor]:
        """The flat float32 tensors of this rank that the optimiser owns."""
        zero = self.module.optimizer
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
            if hasattr(zero, name):
                return list(getattr(zero, name))
        raise RuntimeError(f"{type(zero).__name__} keeps its float32 parameters where this engine does not look")

    def _begin_moments(self, steps: Tensor) -> None:
        """Zero moments after `steps` steps, as AdamW's own first step makes them: DeepSpeed links only the first
        group's when it makes them itself."""
        for flat in self._parts():
            state = self.optimizers[0].state[flat]
            state["step"] = steps.to(flat.device, torch.float32, copy=True)
            for moment in MOMENTS:  # in place where they are: DeepSpeed holds on to them
                state[moment] = state[moment].zero_() if moment in state else torch.zeros_like(flat)
        if self.stage < 3:
            self.module.optimizer._lazy_init_hp_params_optimizer_state()

    @torch.no_grad()
    def _put(self, masters: dict[str, Tensor]) -> None:
        """Set the float32 masters and the weights that compute."""
        for name, parameter in self.named:
            self._put_part(parameter, masters[name])
            with self._gathered([parameter], modifier_rank=0):
                if self.stage < 3 or self.world.first:
                    parameter.copy_(masters[name])

    def _put_part(self, parameter: nn.Parameter, whole: Tensor, moment: str | None = None) -> None:
        """This rank's part of a master, or of its `moment`."""
        from deepspeed import utils as parts

        if self.stage < 3:
            value = whole.to(self.device, torch.float32)
            if moment is None:
                parts.safe_set_full_fp32_param(parameter, value)
            else:
                parts.safe_set_full_optimizer_state(parameter, value, moment)
            return
        each = parts.safe_get_local_fp32_param(parameter).numel()  # the last rank's is padded
        flat = pad(whole.flatten(), (0, each * self.world.size - whole.numel()))
        mine = flat[each * self.world.rank :][:each].to(self.device, torch.float32)
        if moment is None:
            parts.safe_set_local_fp32_param(parameter, mine)
        else:
            parts.safe_set_local_optimizer_state(parameter, mine, moment)


def _config(setting: Setting, stage: int, offload: bool) -> dict[str, Any]:
    """DeepSpeed's own recipe. It has no scheduler and no optimizer section: both are ours."""
    zero: dict[str, Any] = {"stage": stage}
    if offload:
        place = {"device": "cpu", "pin_memory": setting.device.type == "cuda"}
        zero["offload_optimizer"] = place
        if stage == 3:
            zero["offload_param"] = place
    return {
        "train_micro_batch_size_per_gpu": 1,  # of no effect: the trainer cuts the batches
        "gradient_accumulation_steps": setting.micro_batches,
        "gradient_clipping": setting.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "fp16": {"enabled": setting.dtype == torch.float16},
        "bf16": {"enabled": setting.dtype == torch.bfloat16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
    }
