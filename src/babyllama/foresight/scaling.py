"""What a training will bring: bits per byte by a scaling law of parameters and tokens. Pure arithmetic.

tests/foresight/test_scaling.py holds the measured points. Not here: memory and time (forecast.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from babyllama.foresight.forecast import COSTS, block_parameters, outside
from babyllama.model.config import ModelConfig

# L(N, D) = E + A / N^α + B / D^β nats a token: Hoffmann et al. (2203.15556), refitted by Besiroglu et al. (2404.10102).
E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
ANCHOR = (25_305_088, 40e6)  # parameters in the blocks, tokens
BYTES_PER_TOKEN = 4.0  # of ChatGLM2's ids on that text
REPEATS = 15.39  # R* of Muennighoff et al. (2305.16264, eq. 5): how fast repeated tokens lose their worth


def worth_of_parameters(config: ModelConfig) -> float:
    """The N that the scaling law is asked for: those in the blocks; with experts the geometric mean of all and of those
    that a token meets, a rule of thumb that no run here has tried."""
    return math.sqrt(block_parameters(config) * (config.active_parameters - outside(config)))


def worth(tokens: float, unique: float | None) -> float:
    """How many new tokens `tokens` are worth when only `unique` are different; None: all are.

    Four epochs are worth nearly four; beyond about sixteen nothing is added (2305.16264, eq. 5).
    """
    if unique is None or tokens <= unique:
        return tokens
    repeats = tokens / unique - 1
    return unique * (1 + REPEATS * (1 - math.exp(-repeats / REPEATS)))


@dataclass(frozen=True)
class LossForecast:
    """Expected bits per byte on held-out text of the same kind. A rough forecast: `spread` is its ± share."""

    bits_per_byte: float
    spread: float
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", self.bits_per_byte * (1 - self.spread))
        object.__setattr__(self, "high", self.bits_per_byte * (1 + self.spread))


def expected_loss(config: ModelConfig, tokens: float, unique: float | None = None,
                  bytes_per_token: float = BYTES_PER_TOKEN, optimizer: str = "muon") -> LossForecast:  # fmt: skip
    """The scaling law at N block parameters and the worth of the tokens, as bits per byte.

    Tokens enter by their bytes, so that vocabularies can be compared. The spread is 8 % at the anchor and 4 % more for
    each tenfold of N or D away from it. Another kind of text is easily further off than that, and below some ten
    million tokens no power law holds: the CPU quickstart (1.3 M in the blocks, 1.2 M tokens of easy text) is forecast
    at about 4 and reaches 2.1.
    """
    inside = worth_of_parameters(config)
    seen = worth(tokens, unique) * bytes_per_token / BYTES_PER_TOKEN
    nats = E + COSTS[optimizer].reducible * (A / inside**ALPHA + B / seen**BETA)
    away = abs(math.log10(inside / ANCHOR[0])) + abs(math.log10(seen / ANCHOR[1]))
    return LossForecast(nats / math.log(2) / BYTES_PER_TOKEN, 0.08 + 0.04 * away)
