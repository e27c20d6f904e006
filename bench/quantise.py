"""Quantisation measured: the kernel against bf16, every method's perplexity by bits and group, decoding speed.

    python bench/quantise.py --kernels                       products of 1–16 rows on 4096² and 8192², tuned and gated
    python bench/quantise.py BASE CORPUS --methods            RTN, GPTQ, GPTQ act-order, AWQ at 8, 4, 3, 2 bits
    python bench/quantise.py BASE CORPUS --decode             tokens a second in bf16, int8, int4
    python bench/quantise.py BASE CORPUS --time base-218m     how long a larger shape takes (random weights)
    python bench/quantise.py --summary

BASE is a run or a folder of a model, CORPUS a prepared folder. Each measurement is a line of quantise.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter
from record import RESULTS, append, facts, lines, synchronize, table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from babyllama.commands.quantize import AnyMethod, held_bytes, label, tokens_per_second
from babyllama.data.shards.shards import Prepared
from babyllama.evals.bits import measure
from babyllama.infer.engine import Engine
from babyllama.load import default_device, model_folder, read_model
from babyllama.model.bitnet import OneBitLinear
from babyllama.model.checkpoint import read_config
from babyllama.model.config import ModelChoice
from babyllama.model.transformer import Transformer, initialise
from babyllama.quant.awq import Awq
from babyllama.quant.calibrate import Calibration, Ends, quantise, settled
from babyllama.quant.gptq import Gptq
from babyllama.quant.grid import Grid
from babyllama.quant.int8 import Int8, MixedInt8Linear, mixed_product
from babyllama.quant.linear import GroupedLinear
from babyllama.quant.onebit import PackedOneBitLinear, pack_trained, start
from babyllama.quant.rtn import Rtn
from babyllama.train.validation import LossSums

ROWS = (1, 2, 4, 8, 16)


def methods(bits: list[int], groups: list[int | None]) -> list[AnyMethod]:
    """What the table compares; a last group may be short."""
    found: list[AnyMethod] = []
    for bit in bits:
        for size in groups:
            shared: dict[str, Any] = {"bits": bit, "group_size": size, "short_group": True}
            found += [Rtn(**shared), Gptq(**shared), Gptq(**shared, act_order=True), Awq(**shared)]
    return found


# ── the kernel ──────────────────────────────────────────────────────────────────────────────────────────────────────
def kernels(args: argparse.Namespace, file: Path, device: torch.device) -> None:
    """Correct first, then fast: the best setting of each shape, then against torch in turns. L2 is cold each time."""
    from babyllama.quant import kernels as ours

    pairs: list[tuple[str, Any, torch.Tensor]] = []
    for width in args.widths:
        weight = torch.randn(width, width, device=device) / width**0.5
        packed = GroupedLinear.of(Grid(bits=args.kernel_bits, group_size=128).nearest(weight)).to(device)
        dense = packed.dense_weight()
        copies = max(2, 2**28 // (width * width))  # of both matrices: together beyond any L2
        packs, halves = [deepcopy(packed) for _ in range(copies)], [dense.bfloat16() for _ in range(copies)]
        best: dict[int, tuple[float, ours.Config]] = {}
        for rows in ROWS:
            x = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
            expected = x.float() @ dense.T
            for config in ours.CONFIGS if rows in (1, 16) else [best[1][1], ours.pick(width, width)]:
                y = ours.packed_product(x, *packed._packed, config)
                error = float((y.float() - expected).norm() / expected.norm())
                if error > 5e-3:
                    raise SystemExit(f"{width} × {width}, {rows} rows, {config}: relative error {error:.1e}")
                took = launched_us(lambda: ours.packed_product(x, *packed._packed, config))  # noqa: B023
                if rows not in best or took < best[rows][0]:
                    best[rows] = took, config
        for rows in ROWS:
            x = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
            turns = [(launched_us(lambda: torch.nn.functional.linear(x, halves[0])),  # noqa: B023
                      launched_us(lambda: ours.packed_product(x, *packed._packed, best[rows][1])),  # noqa: B023
                      launched_us(lambda: packed(x))) for _ in range(5)]  # noqa: B023  # fmt: skip
            torch_us, tuned, chosen = (statistics.median(turn[i] for turn in turns) for i in range(3))
            graphs = [captured_us([partial(torch.nn.functional.linear, x, half) for half in halves]),
                      captured_us([partial(pack, x) for pack in packs])]  # fmt: skip
            append(file, {**facts(device), "kind": "kernel", "bits": args.kernel_bits, "width": width, "rows": rows,
                          "torch_bf16_us": torch_us, "best_us": tuned, "ours_us": chosen,
                          "best": best[rows][1]._asdict(), "torch_bf16_captured_us": graphs[0],
                          "ours_captured_us": graphs[1]})  # fmt: skip
            print(f"{width}² {rows:2} rows: bf16 {torch_us:.1f} µs, best {tuned:.1f} ({torch_us / tuned:.2f}×), "
                  f"as picked {chosen:.1f} ({torch_us / chosen:.2f}×) {tuple(best[rows][1])}; in a CUDA graph "
                  f"{graphs[0]:.1f}, {graphs[1]:.1f} ({graphs[0] / graphs[1]:.2f}×)", flush=True)  # fmt: skip
        pairs.append((f"W{packed.bits}A16", packed, halves[0]))
        for name, other in eight_and_one(dense):
            others = [deepcopy(other) for _ in range(copies)]
            for rows in ROWS:
                x = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
                launched = [launched_us(partial(torch.nn.functional.linear, x, halves[0])),
                            launched_us(partial(other, x))]  # fmt: skip
                graphs = [captured_us([partial(torch.nn.functional.linear, x, half) for half in halves]),
                          captured_us([partial(one, x) for one in others])]  # fmt: skip
                append(file, {**facts(device), "kind": "kernel", "name": name, "width": width, "rows": rows,
                              "torch_bf16_us": launched[0], "ours_us": launched[1], "torch_bf16_captured_us": graphs[0],
                              "ours_captured_us": graphs[1]})  # fmt: skip
                print(f"{name} {width}² {rows:2} rows: bf16 {launched[0]:.1f} µs, ours {launched[1]:.1f} "
                      f"({launched[0] / launched[1]:.2f}×); in a CUDA graph {graphs[0]:.1f}, {graphs[1]:.1f} "
                      f"({graphs[0] / graphs[1]:.2f}×)", flush=True)  # fmt: skip
            pairs.append((name, other, halves[0]))
    for name, packed, half in pairs:  # last: who has been profiled once launches more slowly ever after
        for rows in ROWS:
            x = torch.randn(rows, packed.in_features, device=device, dtype=torch.bfloat16)
            alone = [kernel_us(partial(torch.nn.functional.linear, x, half)), kernel_us(partial(packed, x))]
            append(file, {**facts(device), "kind": "kernel alone", "name": name, "width": packed.in_features,
                          "rows": rows, "torch_bf16_us": alone[0], "ours_us": alone[1]})  # fmt: skip
            print(f"{name} {packed.in_features}² {rows:2} rows, kernels alone: bf16 {alone[0]:.1f} µs, "
                  f"ours {alone[1]:.1f} ({alone[0] / alone[1]:.2f}×)", flush=True)  # fmt: skip


def eight_and_one(dense: torch.Tensor) -> list[tuple[str, MixedInt8Linear | PackedOneBitLinear]]:
    """The same matrix (N, K) in 8 bits and in 1, correct before they are timed."""
    linear = torch.nn.Linear(dense.shape[1], dense.shape[0], bias=False, device=dense.device)
    linear.weight = torch.nn.Parameter(dense, requires_grad=False)
    signs = OneBitLinear(dense.shape[1], dense.shape[0]).to(dense.device).requires_grad_(False)
    signs.weight.copy_(dense)
    eight, one = MixedInt8Linear.from_linear(linear), PackedOneBitLinear.of(signs)
    for rows in ROWS:
        x = torch.randn(rows, dense.shape[1], device=dense.device, dtype=torch.bfloat16)
        x[0, 7] = 30.0  # an outlier column
        for module, expected in ((eight, mixed_product(x.double(), eight.weight, eight.scales, eight.threshold)),
                                 (one, signs(x.float()))):  # fmt: skip
            error = float((module(x) - expected).norm() / expected.norm())
            if not error < 1e-2:
                raise SystemExit(f"{type(module).__name__}, {rows} rows: relative error {error:.1e}")
    return [("W8A8", eight), ("one bit", one)]


def kernel_us(call: Any) -> float:
    """Microseconds from kernels' starts to their ends, as the profiler has it: no launch, no event. L2 is cold."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(30):
            flush.zero_()
            call()
        torch.cuda.synchronize()
    events = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
    took = [event.time_range.elapsed_us() for event in sorted(events, key=lambda event: event.time_range.start)]
    each = len(took) // 30  # kernels of a turn, of which the first is the flush
    return statistics.median(sum(took[turn + 1 : turn + each]) for turn in range(0, len(took), each))


def launched_us(call: Any) -> float:
    """Microseconds between events before and after; the GPU waits, so that the host is never late. L2 is cold."""
    flush, spans = torch.empty(2**28, dtype=torch.uint8, device="cuda"), []
    for _ in range(60):
        flush.zero_()
        torch.cuda._sleep(400_000)
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        call()
        ended.record()
        spans.append((started, ended))
    torch.cuda.synchronize()
    return statistics.median(started.elapsed_time(ended) for started, ended in spans) * 1e3


def captured_us(calls: list[Any]) -> float:
    """Microseconds of a call when all of them, each of its own weights, are one CUDA graph: as in decoding."""
    for call in calls[:2]:
        call()
    graph, started, ended = torch.cuda.CUDAGraph(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    found = []
    for _ in range(20):
        started.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        found.append(started.elapsed_time(ended) * 1e3 / len(calls))
    return statistics.median(found)


# ── methods ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def perplexity(model: Transformer, prepared: Prepared, tokens: int) -> dict[str, Any]:
    context = model.config.max_position_embeddings
    found = measure(model, prepared, tuple(prepared.corpora), "val", context, 32, tokens)
    return sum((sums for _, sums in found), LossSums()).figures


def one(model: Transformer, method: AnyMethod, prepared: Prepared, samples: int) -> dict[str, Any]:
    """Quantise `model` in place; seconds of the whole, calibration included, its reading from disk not."""
    batches = Calibration(samples=samples).batches(prepared, model.config.max_position_embeddings, 0)
    device = model.norm.weight.device
    synchronize(device)
    started = time.perf_counter()
    report = quantise(model, batches, method)
    synchronize(device)
    return {"name": label(method), "method": method.model_dump(), "bits_per_weight": report.bits_per_weight,
            "error": report.error, "seconds": time.perf_counter() - started}  # fmt: skip


def compare(args: argparse.Namespace, file: Path, device: torch.device) -> None:
    """A line for each method, all from the same weights and rows."""
    folder, prepared = model_folder(args.base), Prepared.open(args.corpus)
    about = {**facts(device), "kind": "method", "samples": args.samples, "tokens": args.tokens}
    model = read_model(folder).to(device).float().eval()
    dense = perplexity(model, prepared, args.tokens)
    append(file, {**about, "name": "dense", "parameters": model.config.parameters, **dense})
    print(f"dense: perplexity {dense['perplexity']:.3f}", flush=True)
    whole: list[AnyMethod] = [Int8(), Int8(threshold=None)] if 8 in args.bits else []
    only = TypeAdapter(list[AnyMethod]).validate_python(yaml.safe_load(args.only))
    for method in only or [*whole, *methods(args.bits, [None if g == 0 else g for g in args.groups])]:
        model = read_model(folder).to(device).float().eval().requires_grad_(False)
        found = {**one(model, method, prepared, args.samples), **perplexity(model, prepared, args.tokens)}
        append(file, {**about, **found})
        change = found["perplexity"] / dense["perplexity"] - 1
        print(
            f"{found['name']}: perplexity {found['perplexity']:.3f} ({change:+.2%}), {found['seconds']:.1f} s",
            flush=True,
        )


def larger(args: argparse.Namespace, file: Path, device: torch.device) -> None:
    """How long a shape takes with GPTQ and AWQ, whatever its weights are."""
    prepared = Prepared.open(args.corpus)
    vocabulary = read_config(model_folder(args.base)).vocab_size
    config = ModelChoice(preset=args.time, max_position_embeddings=512).build(vocabulary)
    for method in (Gptq(short_group=True), Awq(short_group=True)):
        with device:
            model = Transformer(config)
        initialise(model, 0)
        found = one(model.eval().requires_grad_(False), method, prepared, args.samples)
        append(file, {**facts(device), "kind": "time", "preset": args.time, "samples": args.samples,
                      "parameters": config.parameters, **found})  # fmt: skip
        print(f"{args.time} {found['name']}: {found['seconds']:.1f} s", flush=True)


def decode(args: argparse.Namespace, file: Path, device: torch.device) -> None:
    """One answer at a time, the precisions in turns."""
    folder, prepared = model_folder(args.base), Prepared.open(args.corpus)
    made: dict[str, Transformer] = {}
    for name, method in (("bf16", None), ("int8", Int8()), ("int4", Gptq()),
                         ("int4, head too", Gptq())):  # fmt: skip
        model = read_model(folder).to(device).float().eval().requires_grad_(False)
        batches = Calibration(samples=16).batches(prepared, model.config.max_position_embeddings, 0)
        if method:
            quantise(model, batches, settled(method, model), Ends(head="rtn", bits=4) if "head" in name else Ends())
        made[name] = model.bfloat16()
    model = read_model(folder).to(device).float().eval().requires_grad_(False)
    start(model)
    pack_trained(model)
    made["one bit"] = model.bfloat16()  # its answers are nonsense, its speed is not: that takes no training
    speeds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(3):
        for name, model in made.items():
            speeds[name].append(tokens_per_second(Engine(model, model.config.vocab_size), 2, 64))
    for name, model in made.items():
        held = held_bytes(model)
        speed = statistics.median(speeds[name])
        append(file, {**facts(device), "kind": "decode", "name": name, "tokens_per_second": speed, "bytes": held,
                      "threads": torch.get_num_threads()})  # fmt: skip
        print(f"{name}: {speed:.0f} tokens/s, {held / 1e6:.1f} MB", flush=True)


def summary(found: list[dict[str, Any]]) -> None:
    """Print the methods' table, newest lines; perplexity over the dense model's."""
    rows = {line["name"]: line for line in found if line["kind"] == "method"}
    dense = rows.pop("dense", None)
    if dense is None:
        return
    cells = [[name, f"{line['bits_per_weight']:.2f}", f"{line['perplexity']:.3f}",
              f"{line['perplexity'] / dense['perplexity'] - 1:+.2%}", f"{line['error']:.2%}", f"{line['seconds']:.1f}"]
             for name, line in rows.items()]  # fmt: skip
    head = ["method", "bits/weight", "perplexity", "± dense", "layer error", "seconds"]
    table(head, [["dense", "–", f"{dense['perplexity']:.3f}", "–", "–", "–"], *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--methods", action="store_true")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--time", help="a preset")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3, 2])
    parser.add_argument("--groups", type=int, nargs="+", default=[0, 128, 64], help="0: whole rows")
    parser.add_argument("--only", default="[]", help="methods as YAML, such as '[{kind: gptq, mse: true}]', instead")
    parser.add_argument("--samples", type=int, default=128, help="rows of calibration")
    parser.add_argument("--tokens", type=int, default=200_000, help="measured of each corpus")
    parser.add_argument("--widths", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--kernel-bits", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true")
    args, device = parser.parse_args(), default_device()
    file = args.results / "quantise.jsonl"
    for wanted, call in ((args.kernels, kernels), (args.methods, compare), (args.time, larger), (args.decode, decode)):
        if wanted:
            call(args, file, device)
    if args.summary or args.methods:
        summary(lines(file))


if __name__ == "__main__":
    main()
