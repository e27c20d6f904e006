"""The head's product and its cross-entropy, forward and backward: ours, all logits at once, Liger, cut-cross-entropy.

    python bench/linear_ce.py                       # 32k tokens, V 64,793, d 512 and d 1,024, bf16
    python bench/linear_ce.py --widths 512 --contenders ours liger --rounds 15

First the gate: loss and both gradients against float64, ‖out − ref‖/‖ref‖ at most 1e-2 in bf16 (and ours at most 1e-5
in float32, on fewer rows). Then all in turn on the same tensors, several sets of them in rotation; the logits have a
standard deviation of --logit-std, as a model's in training, because near-uniform ones would flatter whoever leaves out
small gradients. Milliseconds are medians, ratios medians of the per-round ratios. One table, a line a contender in
linear_ce.jsonl.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from record import RESULTS, Peak, append, facts, forget, median_ratio, surviving, synchronize, table
from torch import Tensor
from torch.nn.functional import cross_entropy

from babyllama.data.streams.batches import IGNORE
from babyllama.hardware import peak_flops
from babyllama.load import default_device
from babyllama.train.losses.objectives import linear_cross_entropy

GATE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
IGNORED = 0.01  # share of the targets
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Inputs(NamedTuple):
    """hidden (N, C), weight (V, C), both with gradients to come; targets (N,)."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor


def draw(seed: int, rows: int, width: int, vocab: int, std: float, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Fresh random tensors; the logits' standard deviation is `std`."""
    generator = torch.Generator(device).manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator, device=device)
    weight = torch.randn(vocab, width, generator=generator, device=device) * (std / math.sqrt(width))
    targets = torch.randint(0, vocab, (rows,), generator=generator, device=device)
    targets[torch.rand(rows, generator=generator, device=device) < IGNORED] = IGNORE
    return Inputs(hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets)


# ── contenders: (hidden, weight, targets) → the summed loss ─────────────────────────────────────────────────────────
def eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As transformers does it: all logits, then float32."""
    return cross_entropy((hidden @ weight.T).float(), targets, ignore_index=IGNORE, reduction="sum")


@cache
def _compiled() -> Loss:
    return torch.compile(eager, dynamic=False)


@cache
def _liger(accumulate_in_float32: bool) -> Any:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    accumulator = torch.float32 if accumulate_in_float32 else None
    return LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE, reduction="sum", accum_dtype=accumulator)


def cut(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """cut-cross-entropy with its own default, which leaves small gradients out."""
    from cut_cross_entropy import linear_cross_entropy as cut_linear_cross_entropy

    return cut_linear_cross_entropy(hidden, weight, targets, ignore_index=IGNORE, reduction="sum")


def cut_exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same with every gradient."""
    from cut_cross_entropy import linear_cross_entropy as cut_linear_cross_entropy

    return cut_linear_cross_entropy(hidden, weight, targets, ignore_index=IGNORE, reduction="sum", filter_eps=None)


CONTENDERS: dict[str, Loss] = {
    "ours": linear_cross_entropy,
    "eager": eager,
    "compiled": lambda hidden, weight, targets: _compiled()(hidden, weight, targets),
    "liger": lambda hidden, weight, targets: _liger(False)(weight, hidden, targets),
    "liger-fp32-dw": lambda hidden, weight, targets: _liger(True)(weight, hidden, targets),
    "cut": cut,
    "cut-exact": cut_exact,
}


def once(loss: Loss, inputs: Inputs) -> Tensor:
    """Forward and backward; the gradients are left in the inputs."""
    inputs.hidden.grad = inputs.weight.grad = None
    value = loss(*inputs)
    value.backward()
    return value.detach()


# ── the gate ────────────────────────────────────────────────────────────────────────────────────────────────────────
@torch.no_grad()
def reference(inputs: Inputs, chunk_rows: int = 2048) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, ∂hidden, ∂weight) by the formula, in float64."""
    weight = inputs.weight.double()
    loss = torch.zeros((), dtype=torch.float64, device=weight.device)
    grad_hidden, grad_weight = torch.empty_like(inputs.hidden, dtype=torch.float64), torch.zeros_like(weight)
    for hidden, targets, out in zip(inputs.hidden.split(chunk_rows), inputs.targets.split(chunk_rows),
                                    grad_hidden.split(chunk_rows), strict=True):  # fmt: skip
        kept = targets != IGNORE
        safe = targets.where(kept, 0)[:, None]
        logits = hidden.double() @ weight.T
        logprobs = logits - logits.logsumexp(-1, keepdim=True)
        loss -= (logprobs.gather(1, safe)[:, 0] * kept).sum()
        slope = logprobs.exp_()
        slope.scatter_add_(1, safe, slope.new_full(safe.shape, -1.0)).mul_(kept[:, None])
        out.copy_(slope @ weight)
        grad_weight += slope.T @ hidden.double()
    return loss, grad_hidden, grad_weight


def errors(loss: Loss, inputs: Inputs, truth: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """‖out − ref‖/‖ref‖ of the loss and of both gradients."""
    value = once(loss, inputs)
    found = (value, inputs.hidden.grad, inputs.weight.grad)
    return {
        name: float((out.double() - ref).norm() / ref.norm()) if out is not None else math.nan
        for name, out, ref in zip(("loss", "hidden", "weight"), found, truth, strict=True)
    }


# ── measuring ───────────────────────────────────────────────────────────────────────────────────────────────────────
def milliseconds(loss: Loss, inputs: list[Inputs], repeats: int, device: torch.device) -> float:
    """Of one forward and backward, over `repeats` of them on different tensors."""
    synchronize(device)
    if device.type != "cuda":
        started = time.perf_counter()
        for number in range(repeats):
            once(loss, inputs[number % len(inputs)])
        return (time.perf_counter() - started) * 1e3 / repeats
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for number in range(repeats):
        once(loss, inputs[number % len(inputs)])
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


def contest(args: argparse.Namespace, width: int, device: torch.device) -> list[dict[str, Any]]:
    """Gate, warm-up, peak memory, then rounds; one dictionary of figures a contender."""
    inputs = [draw(seed, args.rows, width, args.vocab, args.logit_std, torch.bfloat16, device) for seed in range(3)]
    truth = reference(inputs[0])
    ready: dict[str, dict[str, Any]] = {}
    for name in args.contenders:
        with surviving(f"{name}, d {width}"):
            started = time.perf_counter()
            once(CONTENDERS[name], inputs[1])
            synchronize(device)
            first = time.perf_counter() - started
            wrong = errors(CONTENDERS[name], inputs[0], truth)
            for part in inputs:
                part.hidden.grad = part.weight.grad = None
            peak = Peak(device)
            once(CONTENDERS[name], inputs[1])
            synchronize(device)
            passed = all(error <= GATE[torch.bfloat16] for error in wrong.values())
            ready[name] = {"errors": wrong, "passed": passed, "first_call_s": round(first, 2), "peak_gib": peak.gib}
            print(f"{name}, d {width}: {'right' if passed else 'NOT WITHIN THE GATE'}, "
                  + ", ".join(f"{key} {error:.1e}" for key, error in wrong.items()), flush=True)  # fmt: skip
    del truth
    forget()
    times: dict[str, list[float]] = {name: [] for name in ready}
    for name in ready:  # warm again: the gates of the others came between
        milliseconds(CONTENDERS[name], inputs, 3, device)
    for _ in range(args.rounds):
        for name in ready:
            times[name].append(milliseconds(CONTENDERS[name], inputs, args.repeats, device))
    peak = peak_flops(device, torch.bfloat16)
    ideal = None if peak is None else round(6 * args.rows * width * args.vocab / peak * 1e3, 3)
    return [
        {"contender": name, "width": width, "rows": args.rows, "vocab": args.vocab, "logit_std": args.logit_std,
         "milliseconds": round(statistics.median(times[name]), 3), "fastest": round(min(times[name]), 3),
         "slowest": round(max(times[name]), 3), "ideal_milliseconds": ideal, "rounds": args.rounds,
         "times_faster": round(median_ratio(times[name], times["ours"]), 3) if "ours" in times else None, **figures}
        for name, figures in ready.items()
    ]  # fmt: skip


def float32_gate(args: argparse.Namespace, width: int, device: torch.device) -> dict[str, float]:
    """Ours in float32 on fewer rows; the products in true float32."""
    inputs = draw(9, args.gate_rows, width, args.vocab, args.logit_std, torch.float32, device)
    wrong = errors(linear_cross_entropy, inputs, reference(inputs))
    passed = all(error <= GATE[torch.float32] for error in wrong.values())
    print(f"ours, d {width}, float32: {'right' if passed else 'NOT WITHIN THE GATE'}, "
          + ", ".join(f"{key} {error:.1e}" for key, error in wrong.items()), flush=True)  # fmt: skip
    return wrong


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--rows", type=int, default=32768, help="tokens")
    parser.add_argument("--vocab", type=int, default=64793)
    parser.add_argument("--logit-std", type=float, default=2.5)
    parser.add_argument("--gate-rows", type=int, default=2048, help="tokens, for the float32 gate")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=6, help="calls a round")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="toy sizes, to see that the script works")
    args = parser.parse_args()
    if args.small:
        args.widths, args.rows, args.vocab, args.gate_rows, args.rounds, args.repeats = [32], 96, 331, 64, 2, 2
        args.contenders = [name for name in args.contenders if name != "compiled"]
    return args


def main() -> None:
    args, device = parse(), default_device()
    torch.backends.cuda.matmul.allow_tf32 = False
    where, file = facts(device), args.results / "linear_ce.jsonl"
    print(f"{args.rows} tokens, V {args.vocab}, bf16, {where['device']}, {where['versions']}", flush=True)
    rows = []
    for width in args.widths:
        exact: dict[str, float] = {}
        ideal: float | None = None
        with surviving(f"the float32 gate, d {width}"):
            exact = float32_gate(args, width, device)
        for figures in contest(args, width, device):
            if figures["contender"] == "ours":
                figures["errors_float32"] = exact
            append(file, {**where, **figures})
            label, right = f"{figures['contender']}, d {width}", "yes" if figures["passed"] else "NO"
            rows.append([label, f"{figures['milliseconds']:.2f}", figures["times_faster"], figures["peak_gib"],
                         figures["first_call_s"], right])  # fmt: skip
            ideal = figures["ideal_milliseconds"]
        if ideal is not None:
            print(f"d {width}: three products at the card's peak take {ideal:.2f} ms", flush=True)
        forget()
    table(["contender", "ms", "ours is × faster", "peak GiB", "1st call s", "right"], rows)


if __name__ == "__main__":
    main()
