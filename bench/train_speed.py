"""Training speed of the real loop on random tokens: tokens/s, MFU, peak memory, compile time apart.

    python bench/train_speed.py --preset seed --vocab 64793 --rows 64 --context 512 --steps 40

Prints one table and appends a JSON line to bench/results/train_speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from babyllama.data.batches import Batch
from babyllama.load import DTYPES, default_device, default_precision
from babyllama.model.config import ModelChoice
from babyllama.model.transformer import Transformer, initialise
from babyllama.recipe import Recipe
from babyllama.run import Run
from babyllama.train.hardware import device_name, peak_flops
from babyllama.train.objectives import NextToken
from babyllama.train.optim import AdamW, Cosine, Muon
from babyllama.train.trainer import Plan, Trainer


class Nothing(Recipe):
    """The run's recipe says nothing; the command line above says it all."""


class RandomRows:
    """Fresh random tokens for every row number, drawn once and reused in turn."""

    def __init__(self, vocab: int, context: int, rows: int) -> None:
        self.tokens = torch.randint(0, vocab, (8, rows, context + 1), generator=torch.Generator().manual_seed(0))

    def batch(self, first_row: int, count: int) -> Batch:
        rows = self.tokens[first_row // count % len(self.tokens)]
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())


class Clock:
    """Remembers when each step was shown."""

    def __init__(self) -> None:
        self.at: list[float] = [time.perf_counter()]

    def step(self, step: int, steps: int, values: dict[str, Any]) -> None:
        self.at.append(time.perf_counter())

    def line(self, text: str) -> None:
        pass


def measure(args: argparse.Namespace, compiled: bool) -> dict[str, Any]:
    device = default_device()
    precision = args.precision or default_precision(device)
    config = ModelChoice(preset=args.preset, max_position_embeddings=args.context).build(args.vocab)
    model = Transformer(config).to(device)
    initialise(model, 0)
    plan = Plan(steps=args.steps, micro_batch_size=args.rows, log_every=1, save_every=10**9, validate_every=10**9)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        clock, run = Clock(), Run.create(Path(folder) / "run", "train", Nothing())
        Trainer(run, model, RandomRows(args.vocab, args.context, args.rows),
                NextToken(), Muon() if args.optimizer == "muon" else AdamW(), Cosine(), plan, args.steps, args.context,
                device, DTYPES[precision], clock, lambda _: {}, lambda _: [], compiled).train()  # fmt: skip
    times = [b - a for a, b in zip(clock.at[:-1], clock.at[1:], strict=True)]
    seconds = statistics.median(times[len(times) // 2 :])
    rate = args.rows * args.context / seconds
    gib = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {"compiled": compiled, "precision": precision, "tokens_per_second": round(rate),
            "mfu": round(rate * config.flops_per_token(args.context) / peak_flops(device, DTYPES[precision]), 4),
            "first_step_seconds": round(times[0], 1), "peak_gib": None if gib is None else round(gib, 2),
            "parameters": config.parameters}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="seed")
    parser.add_argument("--vocab", type=int, default=64793)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    args = parser.parse_args()
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    results = Path(__file__).parent / "results" / "train_speed.jsonl"
    results.parent.mkdir(exist_ok=True)
    where = device_name(default_device())
    print(f"{args.preset}, V {args.vocab}, {args.rows} × {args.context}, {args.optimizer}, {where}")
    for mode in args.modes:
        found = measure(args, mode == "compiled")
        print(f"{mode:9} {found['tokens_per_second']:>10,} tok/s  MFU {found['mfu']:.1%}  {found['precision']}"
              f"  {found['peak_gib']} GiB  first step {found['first_step_seconds']} s")  # fmt: skip
        facts = {"commit": git.stdout.strip(), "device": where, "torch": torch.__version__}
        with results.open("a") as handle:
            handle.write(json.dumps({**facts, **vars(args), **found}) + "\n")


if __name__ == "__main__":
    main()
