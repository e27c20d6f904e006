"""Where a step of our training goes on the GPU: kernel time by what it is for, and the gaps between.

    python bench/step_profile.py                                     # the seed model, 256 rows
    python bench/step_profile.py --rows 48 --contenders ours-muon-fp8
    python bench/step_profile.py --preset base-218m --rows 64 --kernels 40

Contenders are those of train_speed.py. Kernels are told apart by their names, those of the optimisers by their place:
after the gradients' norm. Prints one table and the longest kernels, appends a line a case to
bench/results/step_profile.jsonl.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from record import RESULTS, append, facts, forget, synchronize, table
from torch.profiler import ProfilerActivity, profile
from train_speed import CONTENDERS, CONTEXT, ROWS, Setup, Steps

# What a kernel is for → how such are called; the first that fits. Those of torch.compile carry their operations' names.
KINDS = {
    "attention": r"flash|fmha|sdpa|compute_dot_do_o|convert_dq|_attend|_query_gradients|_key_gradients",
    "cross-entropy": r"_softmax_gradient",
    "products": r"gemm|nvjet|cutlass|xmma|splitK|_grouped",
    "SwiGLU": r"silu|swiglu|gate",
    "norms": r"rms_norm|rsqrt|norm",
    "rotations": r"rotat|rope|cos|sin",
    "embedding": r"embedding|index|gather|scatter",
    "copies": r"memcpy|memset|copy|cat",
}
NORM = re.compile("LpNorm|foreach_norm|linalg_vector_norm")


class Kernel(NamedTuple):
    """One launch on the GPU; microseconds."""

    name: str
    start: float
    stop: float


def kernels(device: torch.device, steps: Steps) -> list[Kernel]:
    """Those of one step, in their order. On a CPU its operations, to see that the script works."""
    activities = [ProfilerActivity.CUDA] if device.type == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        steps(1)
        synchronize(device)
    events = [e for e in found.events() if (str(e.device_type).endswith("CUDA")) == (device.type == "cuda")]
    return sorted((Kernel(e.name, e.time_range.start, e.time_range.end) for e in events), key=lambda k: k.start)


def kind(kernel: Kernel) -> str:
    """What it is for."""
    return next((k for k, names in KINDS.items() if re.search(names, kernel.name, re.IGNORECASE)), "other")


def spent(step: list[Kernel]) -> dict[str, float]:
    """Milliseconds of a step by kind; `gaps`, in which nothing ran; `span`, from the first launch to the last's end."""
    last = max((i for i, k in enumerate(step) if NORM.search(k.name)), default=len(step))
    found: Counter[str] = Counter()
    until = step[0].start
    for i, k in enumerate(step):
        found[f"optimizer: {kind(k)}" if i > last else kind(k)] += k.stop - k.start  # type: ignore[assignment]
        found["gaps"] += max(0.0, k.start - until)  # type: ignore[assignment]
        until = max(until, k.stop)
    found["span"] = until - step[0].start  # type: ignore[assignment]
    return {name: round(us / 1e3, 3) for name, us in found.most_common()}


def case(setup: Setup, name: str, rows: int, args: argparse.Namespace) -> None:
    """One contender at one size, warm: its step by the clock, and one under the profiler."""
    steps = CONTENDERS[name](setup, rows)
    steps(6)
    synchronize(setup.device)
    started = time.perf_counter()
    steps(args.steps)
    synchronize(setup.device)
    step_ms = (time.perf_counter() - started) / args.steps * 1e3
    profiled = sorted((kernels(setup.device, steps) for _ in range(3)), key=lambda s: s[-1].stop - s[0].start)[1]
    parts = spent(profiled)
    append(args.results / "step_profile.jsonl", {
        **facts(setup.device), "preset": args.preset, "contender": name, "rows": rows, "context": setup.context,
        "step_ms": round(step_ms, 3), "launches": len(profiled), "ms": parts})  # fmt: skip
    tokens = rows * setup.context / step_ms * 1e3
    print(f"\n{name} {args.preset} {rows}×{setup.context}: {step_ms:.2f} ms a step, {tokens:,.0f} tokens/s, "
          f"{len(profiled)} launches", flush=True)  # fmt: skip
    span = parts["span"]
    table(["part", "ms", "of the step"], [[k, f"{ms:.2f}", f"{ms / span:.1%}"] for k, ms in parts.items()])
    times: Counter[str] = Counter()
    counts = Counter(k.name for k in profiled)
    for k in profiled:
        times[k.name] += k.stop - k.start  # type: ignore[assignment]
    table(["kernel", "ms", "launches"],
          [[n[:110], f"{us / 1e3:.3f}", counts[n]] for n, us in times.most_common(args.kernels)])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="seed", choices=CONTEXT)
    parser.add_argument("--vocab", type=int, default=64793)
    parser.add_argument("--context", type=int)
    parser.add_argument("--contenders", nargs="+", default=["ours-muon"], choices=CONTENDERS)
    parser.add_argument("--rows", nargs="+", type=int)
    parser.add_argument("--documents", type=int, default=400, help="tokens of one on average, where rows are packed")
    parser.add_argument("--steps", type=int, default=10, help="under the clock")
    parser.add_argument("--kernels", type=int, default=25, help="of the longest, shown")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="a toy size, to see that the script works")
    args = parser.parse_args()
    if args.small:
        args.preset, args.vocab, args.context, args.eager, args.rows, args.steps = "tiny", 257, 32, True, [2], 2
    setup = Setup(args)
    torch._dynamo.config.automatic_dynamic_shapes = False
    for name in args.contenders:
        for rows in args.rows or [ROWS.get(args.preset, {}).get("ours", 8)]:
            case(setup, name, rows, args)
            forget()


if __name__ == "__main__":
    main()
