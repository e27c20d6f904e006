"""How fast a training is: a clock that runs while it trains, tokens a second, the share of the machine's peak,
what a GPU tells of itself.

Not here: what is counted (progress.py), the peak itself (hardware.py).
"""

from __future__ import annotations

import time

import torch

from babyllama.hardware import peak_flops, power_draw, utilisation
from babyllama.model.transformer import Transformer
from babyllama.train.lisa import Lisa
from babyllama.train.progress import Progress


class Meter:
    """The clock of one process.

    Args:
        work: FLOPs a token, over all processes.
    """

    def __init__(self, work: float, device: torch.device, dtype: torch.dtype, processes: int) -> None:
        self._device, self._work = device, work
        peak = peak_flops(device, dtype)
        self._peak = None if peak is None else peak * processes

    def begin(self, progress: Progress) -> None:
        """Start the clock, and a new stretch for `speed`."""
        self._since = progress.tokens, progress.seconds
        self.go()

    def go(self) -> None:
        """Start the clock."""
        self._lap = time.perf_counter()

    def stop(self, progress: Progress) -> None:
        """Stop the clock once the device has done what it was given; `progress` gets the seconds."""
        synchronise(self._device)
        progress.seconds += time.perf_counter() - self._lap

    def speed(self, progress: Progress) -> tuple[float, float | None]:
        """(tokens a second, MFU) since the last call."""
        tokens, seconds = progress.tokens - self._since[0], progress.seconds - self._since[1]
        self._since = progress.tokens, progress.seconds
        rate = tokens / max(1e-9, seconds)
        return rate, utilisation(rate * self._work, self._peak)


def synchronise(device: torch.device) -> None:
    """Wait until a GPU, or what stands for one, has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def of_card(device: torch.device) -> dict[str, float]:
    """What a GPU tells of itself: the most memory so far (GiB), the power just now (watts)."""
    if device.type != "cuda":
        return {}
    watts = power_draw(device)
    return {"peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2),
            **({} if watts is None else {"watts": watts})}  # fmt: skip


def work_per_token(model: Transformer, context: int, lisa: Lisa | None) -> float:
    """FLOPs a token: a third of a full training's is for the gradients of weights, and some may be frozen."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if lisa is not None:
        blocks = sum(p.numel() for p in model.layers.parameters())
        trained -= blocks * (1 - lisa.layers / len(model.layers))
    share = min(1.0, trained / model.config.parameters)
    return model.config.flops_per_token(context) * (2 + share) / 3
