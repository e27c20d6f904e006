"""Bits per byte on held-out text against seconds of training: the earlier project's recipe and ours, on one data set.

    python bench/time_to_quality.py DATA --only earlier --seconds 240
    python bench/time_to_quality.py DATA --only ours --rate 0.93e6 --candidates muon-{8,12,16}s
    python bench/time_to_quality.py DATA --only ours --candidate '{name: try, optimizer: {kind: adamw}, steps: 250}'
    python bench/time_to_quality.py --summary --plot curves.png --candidates muon-{8,12,16}s

DATA is a folder of `babyllama prepare`. Seconds are of training alone: validation stops the clock, and of the first
WARM steps (compiling, first launches) only as much counts as later steps take; the rest is `compile_s`. Ours is a
whole run of its own length for each point that counts, its schedule ended; the earlier recipe's schedule is 80,000
steps long whatever happens, so one run gives its whole curve. Every point is a line of time_to_quality.jsonl.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from earlier import CONTEXT, EarlierTraining
from earlier import ROWS as EARLIER_ROWS
from ours import our_stepper
from pydantic import Field, model_validator
from record import RESULTS, append, facts, lines, surviving, synchronize, table, timed
from torch import nn

from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import Batch, DataRecipe, Stream
from babyllama.data.streams.evaluation import evaluation
from babyllama.load import default_device
from babyllama.model.config import ModelChoice
from babyllama.model.transformer import Transformer
from babyllama.recipe import Recipe, validate
from babyllama.train.averaging import TailAverage
from babyllama.train.losses.objectives import NextToken
from babyllama.train.optimizers.optim import AdamW, Muon, Optimizer, Schedule, Wsd
from babyllama.train.plan import Plan
from babyllama.train.validation import evaluate_loss

WARM = 4  # steps whose surplus over later ones is called compiling
MILESTONES = (60, 120, 180, 240)  # seconds


class Candidate(Recipe):
    """One whole training of ours. Its length is `steps`, or `seconds` at the command line's --rate."""

    name: str
    optimizer: Optimizer = Muon()
    schedule: Schedule = Wsd()
    rows: int = Field(default=128, ge=1, description="of CONTEXT tokens, in one step")
    micro_batch_size: int | None = Field(default=None, ge=1, description="rows in one forward pass; all when absent")
    steps: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    model: ModelChoice = ModelChoice(preset="seed")
    objective: NextToken = NextToken()
    fp8_blocks: bool = False
    average: TailAverage | None = None
    zero_outputs: bool = Field(default=False, description="start o_proj and down_proj at zero")
    spread: float = Field(default=1.0, gt=0, description="times the usual standard deviation of all first weights")
    seed: int = 1

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("give either steps or seconds")
        return self

    def adjust(self, model: Transformer) -> None:
        """The first weights, after the usual initialisation."""
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                zero = self.zero_outputs and name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.mul_(0.0 if zero else self.spread)


def _ours(name: str, seconds: float, **more: Any) -> Candidate:
    """What was found best for about 600 steps (docs/log.md, 2026-11-26); `more` changes Muon's settings."""
    found = {"lr": 0.022, "momentum": 0.85, "beta2": 0.9, "weight_decay": 0.1, "adam_lr": 0.010,
             "adam_betas": (0.85, 0.98)}  # fmt: skip
    return Candidate(name=f"{name}-{seconds:g}s", optimizer=Muon(**{**found, **more}), rows=48, seconds=seconds,
                     schedule=Wsd(warmup=0.01, decay=0.7), zero_outputs=True,
                     objective=NextToken(fp8_head=torch.cuda.is_available()))  # fmt: skip


TABLE = {
    candidate.name: candidate
    for candidate in (
        *(_ours("muon", seconds) for seconds in (8, 12, 16, 24)),
        _ours("muon-rows-uneven", 16, beta2=None, lr=0.014),
        Candidate(name="adamw-24s", optimizer=AdamW(lr=1e-3), schedule=Wsd(decay=0.6), rows=64, seconds=24),
    )
}
DEFAULT = [f"muon-{seconds}s" for seconds in (8, 12, 16)]


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Data:
    """Both sides' rows, and the text that both are measured on, ready on the device."""

    prepared: Prepared
    device: torch.device
    context: int
    eval_tokens: int

    @cached_property
    def held_out(self) -> list[tuple[list[Batch], int]]:
        """(batches, UTF-8 bytes) of each corpus; together at most about `eval_tokens` tokens."""
        share = max(1, self.eval_tokens // len(self.prepared.corpora))
        found = [evaluation(self.prepared, label, "val", self.context, 64, share) for label in self.prepared.corpora]
        return [([batch.to(self.device) for batch in part.batches], part.bytes) for part in found]

    @property
    def about(self) -> dict[str, Any]:
        """What makes two points comparable."""
        return {
            "tokenizer": self.prepared.manifest["tokenizer"],
            "train_tokens": sum(len(splits["train"]) for splits in self.prepared.corpora.values()),
            "held_out_bytes": sum(size for _, size in self.held_out),
            "context": self.context,
        }

    def stream(self, seed: int) -> Stream:
        """Training rows, in an order that the seed decides."""
        return Stream(self.prepared, "train", DataRecipe(path=self.prepared.path), self.context, seed)

    def bits_per_byte(self, model: nn.Module, precision: AbstractContextManager[Any]) -> float:
        """Of all held-out text together, in the training's own precision."""
        nll = size = 0.0
        with precision:
            for batches, count in self.held_out:
                nll, size = nll + evaluate_loss(model, batches).nll_nats, size + count  # type: ignore[arg-type]
        return nll / math.log(2) / size


def read_ahead(stream: Stream, rows: int) -> Iterator[Batch]:
    """Batches made in a thread while the device works, as a loader with workers does."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(stream.batch, number * rows, rows) for number in range(4)]
        number = len(waiting)
        while True:
            yield waiting.pop(0).result()
            waiting.append(pool.submit(stream.batch, number * rows, rows))
            number += 1


# ── one training under the clock ────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Clock:
    """Seconds of training alone. The first WARM steps are timed one by one; what they take longer is compiling."""

    device: torch.device
    take: Callable[[int], None]
    done: int = 0
    first: list[float] = field(default_factory=list)
    later: float = 0.0

    def steps(self, count: int) -> None:
        """Take so many steps; stops the clock at the end."""
        alone = min(count, max(0, WARM - self.done))
        self.first += [timed(self.device, lambda: self.take(1)) for _ in range(alone)]
        if count > alone:
            self.later += timed(self.device, lambda: self.take(count - alone))
        self.done += count

    @property
    def step_s(self) -> float:
        """A step's usual time."""
        return self.later / (self.done - WARM) if self.done > WARM else min(self.first)

    @property
    def seconds(self) -> float:
        return self.later + sum(min(s, self.step_s) for s in self.first)

    @property
    def compile_s(self) -> float:
        return sum(self.first) + self.later - self.seconds


class Journal:
    """Writes the points of one training."""

    def __init__(self, file: Path, about: dict[str, Any], tokens_a_step: int) -> None:
        self.file, self.about, self.tokens_a_step = file, about, tokens_a_step

    def point(self, clock: Clock, bits: float, validation_s: float, last: bool) -> None:
        tokens = clock.done * self.tokens_a_step
        point = {
            "step": clock.done,
            "tokens": tokens,
            "seconds": round(clock.seconds, 3),
            "bits_per_byte": bits,
            "compile_s": round(clock.compile_s, 2),
            "validation_s": round(validation_s, 2),
            "last": last,
        }
        append(self.file, {**self.about, **point})
        print(f"{self.about['name']}: {clock.seconds:7.2f} s  step {clock.done:>6,}  {tokens / 1e6:6.1f} M tokens  "
              f"{bits:.4f} bits per byte  ({tokens / max(1e-9, clock.seconds) / 1e3:.0f}k tok/s, compile "
              f"{clock.compile_s:.1f} s, validation {validation_s:.2f} s)", flush=True)  # fmt: skip


def run_earlier(data: Data, choice: ModelChoice, seconds: float, every: float, note: Callable[[int], Journal]) -> None:
    """Its curve, a point each `every` seconds, until `seconds` are over."""
    config = choice.build(data.prepared.manifest["vocab_size"])
    training = EarlierTraining(config, data.device)
    batches = read_ahead(data.stream(seed=1), EARLIER_ROWS)

    def take(count: int) -> None:
        for _ in range(count):
            training.step(next(batches))

    training.model.train()
    clock, journal = Clock(data.device, take), note(EARLIER_ROWS * data.context)
    clock.steps(WARM)
    clock.steps(8)  # tells how long a step takes
    goal = every
    while True:
        left = min(goal, seconds) - clock.seconds
        clock.steps(max(1, round(left / clock.step_s)))
        if clock.seconds < min(goal, seconds) - clock.step_s:
            continue
        started = time.perf_counter()
        bits = data.bits_per_byte(training.model, training.autocast())
        last = goal >= seconds
        journal.point(clock, bits, time.perf_counter() - started, last)
        if last:
            break
        goal += every
    batches.close()  # type: ignore[attr-defined]


@contextmanager
def turn(file: Path | None) -> Iterator[None]:
    """Alone with the device, among all who name the same file; those who wait have compiled meanwhile."""
    if file is None:
        yield
        return
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run_ours(data: Data, candidate: Candidate, rate: float | None, compiled: bool, points: int, wait: Path | None,
             note: Callable[[int], Journal]) -> None:  # fmt: skip
    """One whole training, measured `points` times, the last time at its end."""
    config = candidate.model.model_copy(update={"max_position_embeddings": data.context})
    tokens_a_step = candidate.rows * data.context
    steps = candidate.steps or _steps(candidate, rate, tokens_a_step)
    size = candidate.micro_batch_size or candidate.rows
    if candidate.rows % size:
        raise ValueError(f"rows {candidate.rows} must be a multiple of micro_batch_size {size}")
    plan = Plan(steps=steps, micro_batch_size=size, accumulate=candidate.rows // size, context=data.context)
    stepper = our_stepper(config.build(data.prepared.manifest["vocab_size"]), data.stream(candidate.seed), plan,
                          candidate.optimizer, candidate.schedule, data.device, compiled=compiled, seed=candidate.seed,
                          adjust=candidate.adjust, reuse=True, objective=candidate.objective,
                          average=candidate.average, float8=candidate.fp8_blocks)  # fmt: skip
    before = timed(data.device, stepper.warm_up)
    clock, journal = Clock(data.device, stepper.steps), note(tokens_a_step)
    journal.about |= {"steps": steps, "warm_up_s": round(before, 2)}
    print(f"{candidate.name}: {steps} steps, warm in {before:.1f} s", flush=True)
    with turn(wait):
        for number in range(1, points + 1):
            clock.steps(max(1, round(steps * number / points) - clock.done) if number < points else steps - clock.done)
            started = time.perf_counter()
            bits = data.bits_per_byte(stepper.model(), nullcontext())
            synchronize(data.device)
            journal.point(clock, bits, time.perf_counter() - started, number == points)
    if stepper.lost():
        print(f"{candidate.name}: the guard left {stepper.lost()} steps out", flush=True)


def _steps(candidate: Candidate, rate: float | None, tokens_a_step: int) -> int:
    if rate is None:
        raise ValueError("its length is in seconds: give --rate, the tokens/s that train_speed.py found")
    return max(1, round((candidate.seconds or 0.0) * rate / tokens_a_step))


# ── what came out ───────────────────────────────────────────────────────────────────────────────────────────────────
COMPARABLE = ("device", "tokenizer", "train_tokens", "held_out_bytes", "context")


def comparable(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the newest point's data, text and card; of a training that ran twice, the newer run."""
    if not points:
        return []
    newest = {key: points[-1][key] for key in COMPARABLE}
    mine = [point for point in points if all(point[key] == value for key, value in newest.items())]
    latest = {point["name"]: point["run"] for point in mine}
    return [point for point in mine if point["run"] == latest[point["name"]]]


def at(curve: list[dict[str, Any]], seconds: float) -> float | None:
    """Bits per byte of a curve at a time, on the line between its points; None outside of them."""
    for a, b in pairwise(curve):
        if a["seconds"] <= seconds <= b["seconds"] * 1.005:
            share = min(1.0, (seconds - a["seconds"]) / (b["seconds"] - a["seconds"]))
            return a["bits_per_byte"] + share * (b["bits_per_byte"] - a["bits_per_byte"])
    return None


def reached(curve: list[dict[str, Any]], bits: float) -> float | None:
    """The first time at which a curve is as good as `bits`; None when it never is."""
    for a, b in zip([None, *curve], curve, strict=False):
        if b["bits_per_byte"] <= bits:
            if a is None:
                return b["seconds"]
            share = (a["bits_per_byte"] - bits) / (a["bits_per_byte"] - b["bits_per_byte"])
            return a["seconds"] + share * (b["seconds"] - a["seconds"])
    return None


def summarise(points: list[dict[str, Any]]) -> None:
    """The earlier recipe's milestones, and each of our runs' end against them."""
    earlier = [point for point in points if point["side"] == "earlier"]
    ends = sorted((p for p in points if p["side"] == "ours" and p["last"]), key=lambda p: p["seconds"])
    goal = earlier[-1] if earlier else None
    for seconds in MILESTONES:
        bits = at(earlier, seconds)
        if bits is not None:
            print(f"the earlier recipe at {seconds:3d} s: {bits:.4f} bits per byte")
    rows = []
    for end in ends:
        same = reached(earlier, end["bits_per_byte"])
        better = goal is not None and end["bits_per_byte"] <= goal["bits_per_byte"]
        needs = f"{same / end['seconds']:.1f}" if same else None
        if goal and better and same is None:
            needs = f"> {goal['seconds'] / end['seconds']:.1f}"
        rows.append([end["name"], f"{end['seconds']:.2f}", f"{end['tokens'] / 1e6:.1f}", f"{end['bits_per_byte']:.4f}",
                     "yes" if better else "no", needs])  # fmt: skip
    if rows:
        table(["ours, at its end", "seconds", "M tokens", "bits/byte", "reaches the goal", "× faster"], rows)
    first = next((end for end in ends if goal and end["bits_per_byte"] <= goal["bits_per_byte"]), None)
    if goal and first:
        print(f"the earlier recipe's {goal['bits_per_byte']:.4f} of {goal['seconds']:.0f} s: {first['name']} has "
              f"{first['bits_per_byte']:.4f} after {first['seconds']:.2f} s, "
              f"1/{goal['seconds'] / first['seconds']:.1f} of the GPU-seconds "
              f"and 1/{goal['tokens'] / first['tokens']:.1f} of the tokens")  # fmt: skip


def plot(points: list[dict[str, Any]], file: Path) -> None:
    """Bits per byte against seconds and against tokens."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    names = list(dict.fromkeys(point["name"] for point in points))
    for panel, (key, scale, label) in zip(panels, (("seconds", 1, "training on the GPU, s"),
                                                   ("tokens", 1e-6, "tokens, millions")), strict=True):  # fmt: skip
        for name in names:
            curve = [point for point in points if point["name"] == name]
            style = {"color": "black", "linewidth": 2} if curve[0]["side"] == "earlier" else {"linewidth": 1.2}
            panel.plot([p[key] * scale for p in curve], [p["bits_per_byte"] for p in curve], label=name, **style)
            if curve[-1]["last"]:
                panel.plot(curve[-1][key] * scale, curve[-1]["bits_per_byte"], "o", markersize=4,
                           color=panel.lines[-1].get_color())  # fmt: skip
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
        panel.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("bits per byte, held-out text")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


# ── the command line ────────────────────────────────────────────────────────────────────────────────────────────────
def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="a folder of `babyllama prepare`")
    parser.add_argument("--only", choices=("earlier", "ours"))
    parser.add_argument("--preset", choices=("seed", "base-218m"), default="seed", help="of the earlier recipe")
    parser.add_argument("--seconds", type=float, default=240.0, help="of the earlier recipe")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between the earlier recipe's points")
    parser.add_argument("--candidates", nargs="*", default=None, choices=TABLE, metavar="NAME", help=", ".join(TABLE))
    parser.add_argument("--candidate", action="append", default=[], metavar="YAML", help="one more, not in the table")
    parser.add_argument("--rate", type=float, help="tokens/s, for candidates whose length is in seconds")
    parser.add_argument("--points", type=int, default=6, help="of each of our runs")
    parser.add_argument("--eval-tokens", type=int, default=262_144)
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--turn", type=Path, metavar="FILE", help="several at once: compile together, train one by one")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true", help="run nothing, read what is there")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--small", action="store_true", help="a toy model and few steps, to see that the script works")
    args = parser.parse_args()
    if args.data is None and not args.summary:
        parser.error("give the prepared DATA, or --summary")
    if args.small:
        args.seconds, args.every, args.context, args.eval_tokens = min(args.seconds, 0.6), 0.2, 16, 1024
        args.eager, args.points = True, 2
    return args


def candidates(args: argparse.Namespace) -> list[Candidate]:
    """Those of the table that were named, then those written out."""
    import yaml

    named = args.candidates if args.candidates is not None else [] if args.candidate else DEFAULT
    written = [validate(Candidate, yaml.safe_load(text), "--candidate") for text in args.candidate]
    found = [*(TABLE[name] for name in named), *written]
    if not args.small:
        return found
    toy = {"model": ModelChoice(preset="tiny"), "rows": 4, "steps": 6, "seconds": None, "micro_batch_size": None}
    return [candidate.model_copy(update=toy) for candidate in found]


def run(args: argparse.Namespace, file: Path) -> None:
    """The trainings that were asked for, each point written as it comes."""
    device = default_device()
    torch._dynamo.config.automatic_dynamic_shapes = False  # another batch size is another candidate, not a hint
    data = Data(Prepared.open(args.data), device, args.context, args.eval_tokens)
    where = {**facts(device), **data.about}
    print(f"{where['device']}, {data.about}", flush=True)
    choice = ModelChoice(preset="tiny" if args.small else args.preset, max_position_embeddings=args.context)
    vocab = data.prepared.manifest["vocab_size"]

    def note(side: str, name: str, model: ModelChoice, **settings: Any) -> Callable[[int], Journal]:
        about = {**where, "side": side, "name": name, "run": f"{name} {where['date']}", **settings,
                 "parameters": model.build(vocab).parameters}  # fmt: skip
        return lambda tokens_a_step: Journal(file, about, tokens_a_step)

    for candidate in candidates(args) if args.only != "earlier" else []:
        with surviving(candidate.name):
            settings = candidate.model_dump(mode="json", exclude={"name", "steps"})
            run_ours(data, candidate, args.rate, not args.eager, args.points, args.turn,
                     note("ours", candidate.name, candidate.model, settings=settings))  # fmt: skip
    if args.only != "ours":
        with surviving("the earlier recipe"), turn(args.turn):
            run_earlier(data, choice, args.seconds, args.every, note("earlier", "earlier", choice))


def main() -> None:
    args = parse()
    file = args.results / "time_to_quality.jsonl"
    if not args.summary:
        run(args, file)
    points = comparable(lines(file))
    summarise(points)
    if args.plot:
        points = [p for p in points if p["side"] == "earlier" or not args.candidates or p["name"] in args.candidates]
        plot(points, args.plot)
        print(f"{args.plot} is ready")


if __name__ == "__main__":
    main()
