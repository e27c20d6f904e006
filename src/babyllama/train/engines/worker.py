"""One process's part of a training: the float32 parameters, their gradients and optimisers, one step at a time.

`Worker` is a process alone and the base of the others; in one file although it is long, for it is one class. Not here:
which of them a recipe asks for (engines.py), copies and shards (replica.py, fsdp.py, deepspeed.py), the loop, which
rows a rank reads (trainer.py), what ranks tell each other (world.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from babyllama.data.streams.batches import Batch
from babyllama.errors import InputError
from babyllama.model.mlp import SwiGLU
from babyllama.model.products import usable
from babyllama.model.roles import exact
from babyllama.model.transformer import Attention, Transformer
from babyllama.train.averaging import blended
from babyllama.train.engines.precision import InHalf, Lent, LossModule
from babyllama.train.engines.setting import Setting
from babyllama.train.guard import Watchman
from babyllama.train.state import check_masters, on_host, read_state, write_state

Save = Callable[[Callable[[Path], None]], None]  # (what fills an empty folder) → the folder is in its place


class Worker:
    """One process alone; the base of the others. `model` holds the float32 parameters.

    Attributes:
        named: (name, parameter) of what is trained, in the module tree's order.
        mean: name → the mean of its last weights, once there is one; it is shown and saved in their place.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.world, self.device = setting, setting.world, setting.device
        self.model = setting.model
        self.forward: Callable[..., Tensor] | None = None
        self._lent = Lent()
        self._part, self._attend = None, setting.attend
        compiled = setting.compiled and setting.dtype == torch.bfloat16
        self._float8 = setting.float8 and compiled and usable(setting.model.config, setting.device)
        inside = setting.model.modules() if self._float8 else ()
        self._products = [module for module in inside if isinstance(module, Attention | SwiGLU)]
        if setting.mesh.context > 1:
            from babyllama.train.engines.context import Part

            self._part = Part(setting.world, setting.mesh, setting.device)
            self._attend = self._part.attend(setting.attend)
        self.module = self._prepare(LossModule(self.model, setting.objective))
        self.named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.mean: dict[str, Tensor] = {}
        self.optimizers = setting.optimizer.build(self.named, self._sharers, self.model.config.head_dim)
        self.rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    _sharers = 1  # ranks that hold the same parameters and gradients as this one
    _by_block = False  # whether a block's gradients are there before the backward pass is over

    def _prepare(self, loss: LossModule) -> nn.Module:
        """The model in its place, compiled or not, and the module around it that is called with a batch."""
        freeze(self.model, self.setting.dtype)
        self._place_whole()
        return loss if self.setting.dtype == torch.float32 else InHalf(loss, self.setting.dtype, self._by_block)

    def _place_whole(self) -> None:
        """All of the model to this process's device, compiled or not."""
        self.model.to(self.device)
        if self.setting.compiled:
            self.forward = torch.compile(self.model.hidden)

    # ── one step ───────────────────────────────────────────────────────────────────────────────────────────────
    def update(self, step: int, micro: Sequence[Batch], total: float, factor: float, watchman: Watchman) -> None:
        """One optimiser step, unless the watchman refuses it. Nothing here waits for the device.

        Args:
            micro: this rank's micro-batches, as many on every rank.
            total: targets in the whole step, over all micro-batches and ranks. None: nothing happens.
            factor: the schedule's multiplier of every learning rate.
        """
        self._wake(step)
        if total:
            watchman.report(step, self._advance(micro, total, factor, watchman))

    def _advance(self, micro: Sequence[Batch], total: float | Tensor, factor: float | Tensor,
                 watchman: Watchman) -> Tensor:  # fmt: skip
        """All that an update does on the device; returns the watchman's figures of it."""
        loss, *metrics = (self.world.reduce_(self.add_gradients(micro, watchman.scale / total)) / total).unbind()
        norm = self._norm() / watchman.scale
        ok, figures = watchman.judge(loss, norm, torch.stack(metrics) if metrics else None)
        # torch's clip_grads_with_norm_, and fp16's scale taken off in the same pass over the gradients.
        shrink = (self.setting.clip / (norm + 1e-6)).clamp(max=1.0) / watchman.scale
        torch._foreach_mul_(self._grads(), shrink)
        self._set_rates(factor)
        for optimizer in self.optimizers:
            optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]  # the device's word for "leave it out"
            optimizer.step()
        self.zero_grad()
        return figures

    def _set_rates(self, factor: float | Tensor) -> None:
        """Every learning rate: its recipe's times the schedule's factor."""
        for group, rate in self._groups():
            group["lr"] = rate * factor

    def _groups(self) -> Iterator[tuple[dict[str, Any], float]]:
        """Every optimiser's groups of parameters, each with its recipe's rate."""
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            yield from zip(optimizer.param_groups, rates, strict=True)

    def _wake(self, step: int) -> None:
        """With LISA: freeze all blocks but this step's, and forget the moments of those that fell asleep."""
        lisa = self.setting.lisa
        if lisa is None:
            return
        awake = lisa.awake(step - 1, len(self.model.layers), self.setting.seed)
        if awake == self._awake:
            return
        self._awake = awake
        asleep = lisa.freeze(self.model, awake)
        for optimizer in self.optimizers:
            for parameter in asleep:
                optimizer.state.pop(parameter, None)
        self._rewrap()

    _awake: frozenset[int] | None = None

    def _rewrap(self) -> None:
        """After other parameters than before want a gradient."""

    def add_gradients(self, micro: Sequence[Batch], share: Tensor) -> Tensor:
        """Add the gradients of `share` × each micro-batch's summed loss.

        Returns:
            (1 + M,): this rank's sums of the loss and of the objective's metrics.
        """
        by = share * self._averaged
        return self._pass(micro, lambda loss, *_: (loss * by).backward())

    metrics: tuple[str, ...] = ()  # what the objective measures besides its loss, known from the first step on

    def _pass(self, micro: Sequence[Batch], backward: Callable[[Tensor, Tensor, bool], None]) -> Tensor:
        """Each micro-batch forward, and back by `backward`: (its summed loss, the sums up to it, whether it is the
        last). Returns the sums, as `add_gradients`."""
        sums = torch.zeros(1, device=self.device)
        with self._computing():
            for number, batch in enumerate(micro, 1):
                with self._synchronising(number == len(micro)):
                    batch = batch.to(self.device)
                    loss, metrics = self.module(batch if self._part is None else self._part.batch(batch))
                    self.metrics = tuple(metrics)
                    sums = sums + torch.stack([loss.detach(), *metrics.values()])
                    backward(loss, sums, number == len(micro))
        return sums

    _averaged = 1  # by how much the engine divides the sum of the ranks' gradients

    def _synchronising(self, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch: whether its gradients go to the other ranks at once."""
        return nullcontext()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Inside, the model computes through the compiled forward and the recipe's attention and products, and of rows
        that are shared out its part; validation and samples, outside, stay eager, full and exact."""
        attentions: list[Attention] = [block.self_attn for block in self.model.layers]  # type: ignore[misc]
        before = [attention.attend for attention in attentions]
        for attention in attentions:
            attention.attend = self._attend
        for module in self._products:
            module.float8 = True
        self.model.part = self._part
        if self.forward is not None:
            self.model.hidden = self.forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            for attention, attend in zip(attentions, before, strict=True):
                attention.attend = attend
            for module in self._products:
                module.float8 = False
            self.model.part = None
            if self.forward is not None:
                del self.model.hidden

    def _norm(self) -> Tensor:
        """The global gradient's 2-norm, on every rank the same."""
        return torch.nn.utils.get_total_norm(self._grads())

    def _grads(self) -> list[Tensor]:
        """What this rank holds of the gradients."""
        return [p.grad for _, p in self.named if p.grad is not None]

    def warm_up(self, micro: Sequence[Batch]) -> None:
        """Compile, on a batch of each size, which teach nothing."""
        for batch in {len(batch.tokens): batch for batch in micro}.values():
            self.add_gradients([batch], torch.zeros((), device=self.device))
        self.zero_grad()

    def average(self, weight: float | None) -> None:
        """Let the weights as they are now count so much in their mean; None: there is none, or no longer."""
        self.mean = {} if weight is None else blended(self.mean, self.named, weight)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for _, parameter in self.named:
            parameter.grad = None

    def leave(self) -> None:
        """The training is over: let go of what holds on to the other processes, before `World.leave`."""

    # ── the whole model ────────────────────────────────────────────────────────────────────────────────────────
    def snapshot(self) -> Transformer:
        """A copy of the whole model in the precision that it computes in, for validation, samples and saving; what an
        adapter trains is in float32. Where the last weights have a mean, of that.

        Every rank calls it; it is whole on the first.
        """
        copied = copy.deepcopy(self.model)
        for name, mean in self.mean.items():
            copied.get_parameter(name).data.copy_(mean)
        return copied if self.setting.adapter else copied.to(self.setting.dtype)

    @contextmanager
    def policy(self) -> Iterator[Transformer]:
        """The model as it is now, plain and whole on every rank, to generate with: no dropout, no gradients.

        Every rank enters and leaves; in between they need not keep step. Where a rank holds all weights in what they
        compute in, they are the very ones that learn; else a copy as each forward pass makes it, in the same memory
        every time.
        """
        model = self._lent(self.model, self.setting.dtype)
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                yield model
        finally:
            model.train(training)

    def fingerprint(self) -> dict[str, int]:
        """Name → sum of the bits that this rank holds, the same on all that hold them; empty where nobody else does."""
        return bit_sums({name: p.detach() for name, p in self.named})

    # ── state ──────────────────────────────────────────────────────────────────────────────────────────────────
    def writer(self, save: Save, extra: dict[str, Tensor], facts: dict[str, Any]) -> Callable[[], None]:
        """Copy what a checkpoint holds; the function returned writes it, in whatever thread. Every rank calls both.

        Args:
            save: makes the folder on the first rank, as Run.save_state.
        """
        tensors, facts = self._captured(extra), copy.deepcopy(facts)

        def write() -> None:
            if self.world.first:
                save(lambda folder: write_state(folder, tensors, facts))

        return write

    def _captured(self, extra: dict[str, Tensor]) -> dict[str, Tensor]:
        """All tensors of a checkpoint, in the first rank's host memory."""
        return on_host({**self.tensors(), **extra}) if self.world.first else {}

    def read(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Put a checkpoint back, bit for bit; returns the extra tensors and the facts.

        Raises:
            InputError: it belongs to a model of other names or shapes.
        """
        tensors, facts = self._stored(folder)
        try:
            self.restore(tensors)
        except KeyError as error:
            raise InputError(f"{folder}: {error.args[0]}; the checkpoint is of another model") from None
        return tensors, facts

    def _stored(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds, as far as this rank needs it."""
        return read_state(folder)

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter, mean and moment, whole: ``master.NAME``, ``average.NAME``, ``optimizer.NAME.MOMENT``."""
        found = {f"master.{name}": p.detach() for name, p in self.named}
        found |= {f"average.{name}": mean for name, mean in self.mean.items()}
        for name, parameter, optimizer in self._owned():
            for moment, value in optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{name}.{moment}"] = value
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `tensors`. Raises KeyError, with words, for a model of other names or shapes."""
        check_masters(tensors, {name: p.shape for name, p in self.named})
        moments: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                name, _, moment = rest.rpartition(".")
                moments.setdefault(name, {})[moment] = tensor
        with torch.no_grad():
            for name, parameter in self.named:
                parameter.copy_(self._placed(tensors[f"master.{name}"], parameter))
        self.mean = {name: self._placed(tensors[f"average.{name}"], p) for name, p in self.named
                     if f"average.{name}" in tensors}  # fmt: skip
        for name, parameter, optimizer in self._owned():
            optimizer.state[parameter] = {
                moment: self._placed(value, parameter) if value.ndim else value.to(self.device)
                for moment, value in moments.get(name, {}).items()
            }

    def _owned(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
        """(name, parameter, the optimiser that owns it)."""
        owner = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for name, parameter in self.named:
            yield name, parameter, owner[id(parameter)]

    def _placed(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        """A whole tensor as this rank holds it beside `parameter`."""
        return whole.to(self.device, copy=True)


def bit_sums(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Name → sum of the tensor's bits."""
    bits = {2: torch.int16, 4: torch.int32}
    sums = [tensor.view(bits[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors.values()]
    return dict(zip(tensors, torch.stack(sums).tolist(), strict=True))


def freeze(model: nn.Module, dtype: torch.dtype) -> None:
    """Frozen weights need no float32, for nobody changes them; a RoPE law's stay exact."""
    for name, parameter in model.named_parameters():
        if not (parameter.requires_grad or exact(name)):
            parameter.data = parameter.data.to(dtype)
