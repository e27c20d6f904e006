"""Long context: every RoPE law on one base model, before and after the same few steps of fine-tuning.

    python bench/long_context.py runs/base runs/long-data --steps 300

For each law: the loss of the same targets after 1 … 16 trained contexts of text, without training, then after `--steps`
at four trained contexts through the train verb. Then text without end through a cache of one context, with four sinks
and with none; and full attention against S²-Attn at sixteen. Every line is written as it comes; what is there is
not run again. `HOOKS` takes further contenders: a name and the recipe keys that differ.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, append, facts, forget, lines, surviving, table

from babyllama.commands.figures import COLOURS, Line, bare, name_ends, plain_log
from babyllama.commands.train import TrainRecipe
from babyllama.commands.train import main as train
from babyllama.data.shards.shards import Prepared
from babyllama.errors import InputError
from babyllama.evals.longcontext import by_length, long_rows, streaming
from babyllama.load import default_device, load, model_folder
from babyllama.model.checkpoint import read_config
from babyllama.model.laws import RopeConfig, law_of
from babyllama.recipe import validate
from babyllama.run import Run

FACTOR = 4
LAWS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "linear": {"kind": "linear", "factor": FACTOR},
    "ntk": {"kind": "ntk", "factor": FACTOR},
    "dynamic_ntk": {"kind": "dynamic_ntk", "factor": FACTOR},
    "by_parts": {"kind": "by_parts", "factor": FACTOR},
    "yarn": {"kind": "yarn", "factor": FACTOR},
    "clex": {"kind": "clex", "max_t": 4 * FACTOR},
}
# The base model's own frequencies, allowed four contexts: by-parts of which every dimension counts as fast.
UNCHANGED = {"kind": "by_parts", "factor": FACTOR, "ramp": "rotations", "alpha": 1e-9, "beta": 2e-9}
# Contenders at sixteen contexts, name → recipe keys. LongLoRA's rows (LoRA, + norms, + embeddings) belong here.
HOOKS: dict[str, dict[str, Any]] = {"16× full": {}, "16× S²-Attn": {"attend": {"kind": "shifted_sparse"}}}


class Study:
    """One base model, its rows and where the results go."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, default_device()
        self.trained = read_config(model_folder(args.base)).trained_context
        self.lengths = [self.trained * times for times in args.times]
        prepared, parts = Prepared.open(args.data), []
        for label in prepared.corpora:
            store = prepared.store(label, "val")
            if store.kind == "text" and store.documents:
                with surviving(label):
                    parts.append(long_rows(store, self.lengths[-1], args.rows, args.joined))
        if not parts:
            raise InputError(
                f"{args.data}: no text of {self.lengths[-1]} tokens in val; give --joined or smaller --times"
            )
        self.tokens = torch.cat(parts)[: args.rows]
        self.file = args.results / "long_context.jsonl"
        setting = {"trained": self.trained, "rows": len(self.tokens), "steps": args.steps, "base": args.base.name}
        self.about = {**facts(self.device), **setting}
        self.done = {(line["name"], line["phase"]) for line in lines(self.file)
                     if all(line.get(key) == value for key, value in setting.items())}  # fmt: skip

    def note(self, name: str, phase: str, **values: Any) -> None:
        append(self.file, {**self.about, "name": name, "phase": phase, **values})
        shown = {n: round(math.exp(min(x, 20)), 2) for n, x in values.get("loss", {}).items()}
        print(f"{name}, {phase}: {shown}", flush=True)

    def measure(self, path: Path, law: RopeConfig | None = None) -> dict[str, Any]:
        """Loss by length, and by position in the longest rows."""
        model, scored = load(path, self.device, rope=law).model, self.trained // 2
        loss, by_position = by_length(model, self.tokens, self.lengths, scored, self.args.batch)
        return {"loss": loss, "by_position": by_position}

    def tune(self, name: str, rope: dict[str, Any], times: int, **keys: Any) -> dict[str, Any]:
        """Train, measure, remove the run."""
        out, context = self.args.out / name.replace(" ", "-"), times * self.trained
        shutil.rmtree(out, ignore_errors=True)
        plan = {"steps": self.args.steps, "context": context, "micro_batch_size": max(1, self.args.tokens // context),
                "log_every": 20, "validate_every": 10**6, "sample_every": 10**6, "save_every": 10**6,
                "keep_best": False}  # fmt: skip
        init = {"kind": "from", "path": str(self.args.base), "rope": rope}
        recipe = {"out": str(out), "data": {"path": str(self.args.data)}, "init": init, "plan": plan,
                  "optimizer": {"kind": "adamw", "lr": 1e-4, "weight_decay": 0.0},
                  "schedule": {"kind": "cosine", "warmup": 0.05, "final": 0.1}, "compile": not self.args.eager,
                  "seed": 1, **keys}  # fmt: skip
        started = time.perf_counter()
        train(validate(TrainRecipe, recipe, name))
        last = [line for line in Run(out).metrics() if line["kind"] == "train"][-1]
        figures = {"seconds": round(time.perf_counter() - started, 1), "train_seconds": last["seconds"],
                   "tokens_per_second": last["tokens_per_second"], "peak_gib": last.get("peak_gib")}  # fmt: skip
        forget()
        found = {**self.measure(out), **figures}
        shutil.rmtree(out)
        return found

    def run(self) -> None:
        for name in self.args.laws:
            with surviving(name):
                law = LAWS[name]
                if (name, "zero_shot") not in self.done:
                    self.note(name, "zero_shot", **self.measure(self.args.base, law_of(law, "law")))
                if (name, "tuned") not in self.done and self.args.steps:
                    self.note(name, "tuned", **self.tune(name, UNCHANGED if name == "none" else law, FACTOR))
        for sinks in (4, 0) if self.args.stream else ():
            name = f"{sinks} sinks"
            if (name, "streaming") not in self.done:
                with surviving(name):
                    self.stream(name, sinks)
        for name, keys in HOOKS.items() if self.args.hooks else ():
            if (name, "tuned") not in self.done:
                with surviving(name):
                    times = self.args.times[-1]
                    if "attend" in keys:
                        keys = {"attend": {**keys["attend"], "group_size": times * self.trained // 4}}
                    self.note(name, "tuned", **self.tune(name, {"kind": "yarn", "factor": times}, times, **keys))

    def stream(self, name: str, sinks: int) -> None:
        """Read one text token by token, `--stream` contexts long."""
        model = load(self.args.base, self.device).model
        flat = self.tokens.flatten()
        rows = max(1, min(8, len(flat) // (self.args.stream * self.trained + 1)))
        count = min(self.args.stream * self.trained, len(flat) // rows - 1)
        tokens = flat[: rows * (count + 1)].view(rows, count + 1)
        started = time.perf_counter()
        nats = streaming(model, tokens, self.trained, sinks)
        parts = {(i + 1) * self.trained: float(part.mean()) for i, part in enumerate(nats.split(self.trained, 1))}
        self.note(name, "streaming", loss=parts, seconds=round(time.perf_counter() - started, 1))


def summarise(file: Path) -> list[dict[str, Any]]:
    """The newest line of each contender, as a table of perplexities."""
    newest = {(line["name"], line["phase"]): line for line in lines(file)}
    for phase in ("zero_shot", "tuned", "streaming"):
        found = [line for line in newest.values() if line["phase"] == phase]
        lengths = sorted({int(n) for line in found for n in line["loss"]})
        if phase == "streaming":
            lengths = lengths[:1] + lengths[1 :: max(1, len(lengths) // 6)]
        rows = [[line["name"], *(f"{math.exp(min(line['loss'][str(n)], 20)):.2f}" if str(n) in line["loss"] else None
                                 for n in lengths), line.get("train_seconds")] for line in found]  # fmt: skip
        if rows:
            table([f"perplexity, {phase}", *map(str, lengths), "seconds"], rows)
    return list(newest.values())


def plot(found: list[dict[str, Any]], file: Path) -> None:
    """Perplexity by length before and after fine-tuning."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    titles = {"zero_shot": "without training", "tuned": "after the same steps of training"}
    found = [line for line in found if line["phase"] in titles]
    names, named = list(dict.fromkeys(line["name"] for line in found)), []
    for axes, (phase, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        ends: list[Line] = []
        for line in (line for line in found if line["phase"] == phase):
            points = sorted((int(n), math.exp(min(x, 20))) for n, x in line["loss"].items())
            colour = COLOURS[names.index(line["name"]) % len(COLOURS)]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour)
            ends.append(Line(line["name"], points[-1][1], colour))
        lengths = sorted({int(n) for line in found for n in line["loss"]})
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.set_title(f"perplexity, {title}", loc="left", fontsize=10)
        axes.set_xlabel("tokens of context", fontsize=8)
        bare(axes)
        named.append((axes, ends))
    for axes, ends in named:  # both have the same limits, which are known now
        plain_log(axes)
        name_ends(axes, ends)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?", help="a trained run")
    parser.add_argument("data", type=Path, nargs="?", help="a folder of `babyllama prepare` with long documents")
    parser.add_argument("--laws", nargs="*", default=list(LAWS), choices=LAWS)
    parser.add_argument("--steps", type=int, default=300, help="of fine-tuning; 0 for none")
    parser.add_argument("--tokens", type=int, default=65_536, help="of one step")
    parser.add_argument("--times", type=int, nargs="*", default=[1, 2, 4, 8, 16], help="lengths, in trained contexts")
    parser.add_argument("--rows", type=int, default=64, help="of the evaluation")
    parser.add_argument("--batch", type=int, default=8, help="rows at a time")
    parser.add_argument("--stream", type=int, default=20, help="contexts to read without end; 0 for none")
    parser.add_argument("--hooks", action="store_true", help="also full attention and S²-Attn at the longest length")
    parser.add_argument("--joined", action="store_true", help="rows may run over the ends of documents")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/long-context"), help="where trainings live meanwhile")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--summary", action="store_true", help="run nothing, read what is there")
    parser.add_argument("--small", action="store_true", help="few steps, to see that the script works")
    args = parser.parse_args()
    if args.small:
        args.steps, args.tokens, args.rows, args.eager, args.joined = min(args.steps, 2), 512, 2, True, True
    if not args.summary:
        if args.data is None:
            parser.error("give BASE and DATA, or --summary")
        Study(args).run()
    found = summarise(args.results / "long_context.jsonl")
    if args.plot:
        plot(found, args.plot)


if __name__ == "__main__":
    main()
