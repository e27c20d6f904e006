"""Training speed over several GPUs of one host, as a share of what each reaches by itself at the same rows.

    torchrun --standalone --nproc-per-node 4 bench/scale.py                                  # weak: 256 rows a GPU
    torchrun --standalone --nproc-per-node 4 bench/scale.py --rows 64                        # strong
    torchrun --standalone --nproc-per-node 4 bench/scale.py --rows 64 --engines ddp ddp-after fsdp fsdp-1 fsdp-kept
    torchrun --standalone --nproc-per-node 4 bench/scale.py --documents 400 --context 2048 --rows 32
    torchrun --standalone --nproc-per-node 4 bench/scale.py --moe --rows 64 --engines ddp fsdp
    torchrun --standalone --nproc-per-node 4 bench/scale.py --rows 1 --context 16384 --engines ddp-context fsdp-context

`alone` is every process by itself on its own GPU at the same time. Engines and it take turns; a share is the median of
those of each round. With `-context` all processes share the tokens of `--rows` rows, the very ones that each alone
reads: loss and norm of the fifth step are then the same but for rounding, the memory of activations is a part. Peak is
what a contender allocated at most up to that step, in GiB. Appends a line an engine to bench/results/scale.jsonl.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from ours import our_stepper
from record import RESULTS, append, facts, table, timed
from train_speed import CONTEXT, RandomRows

from babyllama.load import default_device
from babyllama.model.config import ModelChoice, ModelConfig, Moe
from babyllama.train.engines.engines import Ddp, Engine, Fsdp, Single
from babyllama.train.engines.world import World
from babyllama.train.optimizers.optim import AdamW, Cosine, Muon
from babyllama.train.plan import Plan

ENGINES: dict[str, Callable[[int], Engine]] = {  # of so many processes
    "alone": lambda _: Single(), "ddp": lambda _: Ddp(overlap=True),
    "ddp-bf16": lambda _: Ddp(overlap=True, exchange="bf16"),
    "ddp-after": lambda _: Ddp(overlap=False), "ddp-after-bf16": lambda _: Ddp(overlap=False, exchange="bf16"),
    "ddp-context": lambda size: Ddp(context=size), "fsdp": lambda _: Fsdp(graph=False),
    "fsdp-1": lambda _: Fsdp(blocks=1, graph=False),
    "fsdp-kept": lambda _: Fsdp(reshard_after_forward=False, graph=False), "fsdp-graph": lambda _: Fsdp(graph=True),
    "fsdp-context": lambda size: Fsdp(context=size),
    "hsdp": lambda _: Fsdp(replicate=2),
}  # fmt: skip


class Contender:
    """An engine's training of `args.rows` rows for each group of processes that reads its own; begun, five steps on."""

    def __init__(self, name: str, config: ModelConfig, args: argparse.Namespace, world: World, device: torch.device
                 ) -> None:  # fmt: skip
        mine = World() if name == "alone" else world
        engine = ENGINES[name](mine.size)
        readers, context = engine.mesh(mine.size).readers, config.max_position_embeddings
        plan = Plan(steps=10**6, micro_batch_size=args.rows, accumulate=readers, context=context)
        stream = RandomRows(config.vocab_size, context, args.rows * readers, device, args.documents)
        optimizer = Muon() if args.optimizer == "muon" else AdamW()
        cuda = device.type == "cuda"
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        self._stepper = our_stepper(config, stream, plan, optimizer, Cosine(warmup=0.0), device,
                                    compiled=not args.eager, engine=engine, world=mine)  # fmt: skip
        self.leave = self._stepper.leave
        self._stepper.warm_up()
        self._stepper.steps(5)
        self.fifth = self._stepper.newest()
        self.peak_gib = (torch.cuda.max_memory_allocated() - before) / 2**30 if cuda else 0.0
        self._world, self._device = world, device
        self.tokens = args.rows * context * (world.size if name == "alone" else readers)  # of a step, all processes

    def rate(self, steps: int) -> float:
        """Tokens a second over all processes, the slowest one's clock."""
        self._world.wait()
        seconds = timed(self._device, lambda: self._stepper.steps(steps))
        return self.tokens * steps / max(self._world.gather(seconds))


def main() -> None:
    args = parsed()
    world = World.from_environment()
    device = world.device(default_device().type)
    world.join(device, {k: v for name in args.engines for k, v in ENGINES[name](world.size).environment.items()})
    context = args.context or CONTEXT[args.preset]
    choice = ModelChoice(preset=args.preset, max_position_embeddings=context,
                         moe=Moe(experts=8, active=2, shared=1) if args.moe else None)  # fmt: skip
    config = choice.build(320 if args.small else 64_793)
    contenders = {name: Contender(name, config, args, world, device) for name in ("alone", *args.engines)}
    alone = contenders["alone"]
    seconds = args.segment_s * alone.rate(3) / alone.tokens  # in steps
    found = {name: list[float]() for name in contenders}
    for _ in range(args.rounds):
        for name, one in contenders.items():
            found[name].append(one.rate(max(2, round(seconds))))
    if world.first:
        lines = []
        for name, rates in found.items():
            loss, norm, peak = contenders[name].fifth.loss, contenders[name].fifth.norm, contenders[name].peak_gib
            share = statistics.median(mine / own for mine, own in zip(rates, found["alone"], strict=True))
            append(args.results / "scale.jsonl", {
                **facts(device), "engine": name, "processes": world.size, "preset": args.preset, "moe": args.moe,
                "documents": args.documents, "rows": args.rows, "context": context,
                "optimizer": args.optimizer, "rounds": args.rounds,
                "tokens_per_second": round(statistics.median(rates)), "share": round(share, 4),
                "peak_gib": round(peak, 2), "loss": loss, "norm": norm})  # fmt: skip
            lines.append([name, f"{statistics.median(rates):,.0f}", f"{share:.3f}", f"{peak:.2f}", f"{loss:.5f}",
                          f"{norm:.5f}"])  # fmt: skip
        table([f"{world.size} × {args.rows} rows of {context}", "tokens/s", "of alone", "peak", "loss", "norm"], lines)
    for one in contenders.values():
        one.leave()
    world.leave()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("tiny", "seed", "base-218m"), default="seed")
    parser.add_argument("--rows", type=int, default=256, help="of each process, or of all that share their tokens")
    parser.add_argument("--context", type=int, help="tokens in a row; default: the preset's usual ones")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES)[1:], default=["ddp-after", "fsdp", "fsdp-graph"])
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--documents", type=int, help="rows of documents of so many tokens on average, kept apart")
    parser.add_argument("--moe", action="store_true", help="with eight experts, two of them active, and a shared one")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--segment_s", type=float, default=2.0, help="seconds of each turn")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="a toy, to see it run")
    args = parser.parse_args()
    if args.small:
        args.preset, args.rows, args.rounds, args.segment_s, args.eager = "tiny", 2, 2, 0.05, True
        args.context = args.context or 32
    return args


if __name__ == "__main__":
    main()
