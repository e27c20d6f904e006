"""The doctor: evidence of a training → findings, one for each fault that ruins runs and says nothing.

Each check is a pure function of the evidence, and they stand in one table, CHECKS. Limits lie far from what healthy
runs show: a doctor who cries wolf is not asked again. Not here: how the evidence is come by (evidence.py names where).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from babyllama.foresight.checks import data, training, weights
from babyllama.foresight.checks.finding import Finding
from babyllama.foresight.evidence import Evidence

CHECKS: dict[str, Callable[[Evidence], Finding]] = {
    "learning rate": training.learning_rate,
    "progress": training.progress,
    "warm-up": training.warm_up,
    "weight decay": training.weight_decay,
    "frozen": training.frozen,
    "overfitting": training.overfitting,
    "accumulation": training.accumulation,
    "ranks": training.ranks,
    "fp16 overflow": training.overflow,
    "labels": data.labels,
    "end token": data.end_token,
    "mask": data.mask,
    "chat template": data.chat_template,
    "long chats": data.long_chats,
    "text": data.text,
    "tokenizer": data.vocabulary,
    "repetition": data.repetition,
    "held out": data.held_out,
    "validation": data.same_kind,
    "whole weights": weights.whole,
    "saved model": weights.saved,
    "checkpoint": weights.checkpoint,
    "RoPE": weights.rope,
    "half-precision resume": weights.half_resume,
}


def diagnose(evidence: Evidence) -> list[Finding]:
    """One finding for each check, in the table's order."""
    return [replace(check(evidence), check=name) for name, check in CHECKS.items()]
