"""Training speed over several GPUs of one host, as a share of what each reaches by itself at the same rows.

    torchrun --standalone --nproc-per-node 4 bench/scale.py                                  # weak: 256 rows a GPU
    torchrun --standalone --nproc-per-node 4 bench/scale.py --rows 64                        # strong
    torchrun --standalone --nproc-per-node 4 bench/scale.py --rows 64 --engines ddp ddp-bf16 fsdp fsdp-1 fsdp-kept
    torchrun --standalone --nproc-per-node 4 bench/scale.py --moe --rows 64 --engines ddp fsdp

`alone` is every process by itself on its own GPU at the same time. Engines and it take turns; a share is the median of
those of each round. Appends a line an engine to bench/results/scale.jsonl.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from ours import Stepper, our_stepper
from record import RESULTS, append, facts, table, timed
from train_speed import CONTEXT, RandomRows

from babyllama.load import default_device
from babyllama.model.config import ModelChoice, ModelConfig, Moe
from babyllama.train.engines.engines import Ddp, Engine, Fsdp, Single
from babyllama.train.engines.world import World
from babyllama.train.optimizers.optim import AdamW, Cosine, Muon
from babyllama.train.plan import Plan

ENGINES: dict[str, Engine] = {
    "alone": Single(), "ddp": Ddp(), "ddp-bf16": Ddp(exchange="bf16"), "fsdp": Fsdp(), "fsdp-1": Fsdp(blocks=1),
    "fsdp-kept": Fsdp(reshard_after_forward=False),
}  # fmt: skip


def contender(name: str, config: ModelConfig, args: argparse.Namespace, world: World, device: torch.device) -> Stepper:
    """An engine's training of `args.rows` rows a process."""
    mine = World() if name == "alone" else world
    rows = args.rows * mine.size
    plan = Plan(steps=10**6, micro_batch_size=args.rows, accumulate=mine.size, context=config.max_position_embeddings)
    stream = RandomRows(config.vocab_size, config.max_position_embeddings, rows)
    optimizer = Muon() if args.optimizer == "muon" else AdamW()
    return our_stepper(config, stream, plan, optimizer, Cosine(warmup=0.0), device, compiled=not args.eager,
                       engine=ENGINES[name], world=mine)  # fmt: skip


def rate(stepper: Stepper, steps: int, tokens: int, world: World, device: torch.device) -> float:
    """Tokens a second over all processes, the slowest one's clock."""
    world.wait()
    seconds = timed(device, lambda: stepper.steps(steps))
    return tokens * steps * world.size / max(world.gather(seconds))


def main() -> None:
    args = parsed()
    world = World.from_environment()
    device = world.device(default_device().type)
    world.join(device)
    context = 32 if args.small else CONTEXT[args.preset]
    choice = ModelChoice(preset=args.preset, max_position_embeddings=context,
                         moe=Moe(experts=8, active=2, shared=1) if args.moe else None)  # fmt: skip
    config = choice.build(320 if args.small else 64_793)
    tokens = args.rows * context
    steppers = {name: contender(name, config, args, world, device) for name in ("alone", *args.engines)}
    for stepper in steppers.values():
        stepper.warm_up()
        stepper.steps(5)
    once = rate(steppers["alone"], 3, tokens, world, device)
    count = max(2, round(args.segment_s * once / tokens / world.size))
    found = {name: list[float]() for name in steppers}
    for _ in range(args.rounds):
        for name, stepper in steppers.items():
            found[name].append(rate(stepper, count, tokens, world, device))
    if world.first:
        lines = []
        for name, rates in found.items():
            share = statistics.median(mine / own for mine, own in zip(rates, found["alone"], strict=True))
            append(args.results / "scale.jsonl", {
                **facts(device), "engine": name, "processes": world.size, "preset": args.preset, "moe": args.moe,
                "rows": args.rows, "optimizer": args.optimizer, "rounds": args.rounds,
                "tokens_per_second": round(statistics.median(rates)), "share": round(share, 4)})  # fmt: skip
            lines.append([name, f"{statistics.median(rates):,.0f}", f"{share:.3f}"])
        table([f"{world.size} × {args.rows} rows", "tokens/s", "of alone"], lines)
    world.leave()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("tiny", "seed", "base-218m"), default="seed")
    parser.add_argument("--rows", type=int, default=256, help="of each process")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES)[1:], default=["ddp", "fsdp"])
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--moe", action="store_true", help="with eight experts, two of them active, and a shared one")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--segment_s", type=float, default=2.0, help="seconds of each turn")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="a toy, to see it run")
    args = parser.parse_args()
    if args.small:
        args.preset, args.rows, args.rounds, args.segment_s, args.eager = "tiny", 2, 2, 0.05, True
    return args


if __name__ == "__main__":
    main()
