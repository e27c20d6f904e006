"""CLEX (arXiv 2310.16450): a learned differential equation moves RoPE's frequencies as the context grows.

The same contract as `rope.Rope`. Its two matrices stay float32 whatever the model's precision, and start so that it is
NTK-aware scaling with α(t) = 2t − 1. Not here: which positions it is trained on (data/stretch.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from babyllama.model.laws import ClexRope
from babyllama.model.rope import Rope


class Clex(Rope):
    """θ(t), t = ⌈length / L⌉ of each sequence, at most max_t. At t = 1 it is plain RoPE, always.

    With z = log θ:  dz/dt = down · SiLU(up · (z + log θ^ntk(t))) + ∂_t log θ^ntk(t)  (eq. 12 to 14). Solved for
    u = z − log θ^ntk, which starts at 0: the second term then is exact and only the learned one is integrated.

    Attributes:
        up: (λD, D/2).  down: (D/2, λD), zero at the start.
    """

    config: ClexRope

    def __init__(self, config: ClexRope, head_dim: int) -> None:
        super().__init__(config, head_dim)
        half, wide = head_dim // 2, config.amplify * head_dim
        start = 0.02 * torch.randn(wide, half, generator=torch.Generator().manual_seed(0), device="cpu")
        self.up, self.down = nn.Parameter(start), nn.Parameter(torch.zeros(half, wide, device="cpu"))
        self._solved: tuple[tuple[Tensor, int, Tensor, int], Tensor] | None = None

    def at(self, lengths: Tensor) -> Tensor:
        """Lengths (…) → θ(t) (…, D/2)."""
        t = (-(-lengths // self.config.trained)).clamp(1, self.config.max_t)
        table: Tensor = self.table()  # type: ignore[assignment]
        return table[t - 1]

    @torch.compiler.disable  # a compiler would write out every step of the solver
    def table(self) -> Tensor:
        """θ(1) … θ(max_t), (max_t, D/2). Without gradients it is solved once for as long as the weights stay."""
        if torch.is_grad_enabled():
            return self._solve()
        key = self.up, self.up._version, self.down, self.down._version
        if self._solved is not None:
            old = self._solved[0]
            if old[0] is key[0] and old[2] is key[2] and old[1] == key[1] and old[3] == key[3]:
                return self._solved[1].to(self.frequencies.device)
        found = self._solve()
        self._solved = key, found
        return found

    def _solve(self) -> Tensor:
        """Classical Runge-Kutta (RK4), `steps` from one whole t to the next."""
        steps, size = self.config.steps, 1.0 / self.config.steps
        drifts = [self._log_ntk(1 + half * size / 2) for half in range(2 * steps * (self.config.max_t - 1) + 1)]
        u, rows = torch.zeros_like(self.frequencies), [self.frequencies]
        for at in range(0, len(drifts) - 1, 2):
            start, middle, end = drifts[at : at + 3]
            a = self._slope(u, start)
            b = self._slope(u + size / 2 * a, middle)
            c = self._slope(u + size / 2 * b, middle)
            d = self._slope(u + size * c, end)
            u = u + size / 6 * (a + 2 * b + 2 * c + d)
            if (at + 2) % (2 * steps) == 0:  # a whole t
                rows.append((u + end).exp())
        return torch.stack(rows)

    def _slope(self, u: Tensor, log_ntk: Tensor) -> Tensor:
        """du/dt = down · SiLU(up · (u + 2·log θ^ntk(t)))."""
        return self.down.float() @ silu(self.up.float() @ (u + 2 * log_ntk))

    def _log_ntk(self, t: float) -> Tensor:
        """log θ_i^ntk(t) = log θ_i − 2i/(D − 2) · log(2t − 1)."""
        i = torch.arange(self.head_dim // 2, device=self.frequencies.device)
        return self.frequencies.log() - 2 * i / (self.head_dim - 2) * math.log(2 * t - 1)
