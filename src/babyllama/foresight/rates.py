"""How an optimiser is set for a model's width and a training's length, and the loss. Pure arithmetic, no torch.

What was found by trials for one short training is carried over by three rules: a mean over steps spans the same small
share of a training, up to what is usual in long ones; decay forgets over the same large share of it; Adam's rate falls
with the root of the length, since its steps add up, and of the width. Shorter and narrower ones are set as the trials
were. Not here: batch and length (budget.py).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from babyllama.model.config import ModelConfig

# The trials: a width of 512, 600 steps of 24,576 tokens of Chinese text (docs/log.md, 2026-11-26 and 2026-11-29).
STEPS, WIDTH = 600, 512
LR, ADAM_LR, MOMENTUM, BETA2, DECAY = 0.022, 0.010, 0.85, 0.90, 0.1
USUAL = 0.95  # momentum and beta2 of long trainings
WSD = {"kind": "wsd", "warmup": 0.01, "decay": 0.7}
# A loss over a part of the vocabulary, where that is large: the same quality in three quarters of the time.
LARGE = 32_768  # tokens
STAGES = ((0.75, 0.2), (0.95, 0.3))  # up to this part of the training, this share; then all of it
# DISTINCT · tokens ^ GROWTH of ChatGLM2's ids are different: 5,600 of 24,576 tokens, 9,800 of 65,536, 15,100 of 163,840
DISTINCT, GROWTH = 29.3, 0.52


def objective(config: ModelConfig) -> dict[str, Any]:
    """Keys of the recipe's `objective`."""
    found = [list(stage) for stage in stages(config)]
    return {"fp8_head": True, **({"sampled": {"stages": found}} if found else {})}


def stages(config: ModelConfig) -> tuple[tuple[float, float], ...]:
    """Those of `objective.sampled`; of a small vocabulary none."""
    return STAGES if config.vocab_size >= LARGE else ()


def vocab_share(stages: tuple[tuple[float, float], ...], tokens: int, vocab: int) -> float:
    """Of the vocabulary that the loss is over, in the mean of a whole training: never less than the targets of a
    micro-batch of so many tokens."""
    ends, least = [0.0, *(end for end, _ in stages)], DISTINCT * tokens**GROWTH / vocab
    parts = zip(ends, stages, strict=False)
    return sum((end - begin) * min(1.0, max(share, least)) for begin, (end, share) in parts) + 1 - ends[-1]


def settings(optimizer: Literal["muon", "adamw"], config: ModelConfig, steps: int) -> dict[str, Any]:
    """What a recipe says of its loss, products, optimiser and schedule, for a training of so many steps.

    AdamW keeps its defaults. Float8 is for cards that have it; on others the recipe trains as without.
    """
    found = {"objective": objective(config), "fp8_blocks": True}
    if optimizer == "muon":
        return {**found, "optimizer": muon(config, steps), "schedule": dict(WSD)}
    return {**found, "optimizer": {"kind": optimizer}}


def muon(config: ModelConfig, steps: int) -> dict[str, Any]:
    """Keys of the recipe's `optimizer` for Muon, over `steps` steps."""
    longer = max(1.0, steps / STEPS)
    return {
        "kind": "muon",
        "lr": LR,
        "momentum": _mean(MOMENTUM, longer),
        "beta2": _mean(BETA2, longer),
        "weight_decay": _short(DECAY / longer),
        "adam_lr": _short(ADAM_LR / math.sqrt(longer * max(1.0, config.hidden_size / WIDTH))),
    }


def _mean(decay: float, longer: float) -> float:
    """The decay of a mean that spans so many times as many steps."""
    return min(USUAL, round(1 - (1 - decay) / longer, 2))


def _short(value: float) -> float:
    """Two digits, as people write them."""
    return float(f"{value:.2g}")
