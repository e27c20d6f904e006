"""Ways to fine-tune, one base, equal steps: what each learns, forgets and costs, through the real train verb.

    python bench/fine_tuning.py ROOT --make                     makes ROOT's base and data first (quickstart's recipes)
    python bench/fine_tuning.py ROOT --steps 300 --plot out.png
    python bench/fine_tuning.py ROOT --study long --context 8192 --rows 4 --steps 100
    python bench/fine_tuning.py ROOT --study long --context 8192 --rows 4 --lr 2e-4 1e-3 --rank 8 64 --only full lora
    python bench/fine_tuning.py ROOT --study speed --lengths 8192 32768 --steps 20
    python bench/fine_tuning.py --summary

ROOT is a folder of `babyllama quickstart`: base/, corpus/ and, for the study `sft`, medical-chats/. Each way is a line
of fine_tuning.jsonl, in a sweep (several rates or ranks) one for each combination that makes a difference to it; one
whose line for the same base, device and settings is there is not run again. Nothing is compiled, so that step times
compare. The study `long` stretches
the base to --context, by YaRN or another --law (LongLoRA's paper: linear), and trains it on the texts, with full
attention and with S²-Attn (its comparison), against the best full training with full attention; `speed` times one row a
step of --lengths, both ways.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from record import RESULTS, append, facts, forget, lines, surviving, table

from babyllama.commands.figures import COLOURS, Line, bare, name_ends
from babyllama.commands.train import TrainRecipe
from babyllama.commands.train import main as train
from babyllama.data.shards.shards import Prepared
from babyllama.evals.answers import AnswerSums, ask, chat_questions, compared
from babyllama.evals.bits import measure
from babyllama.infer.engine import Engine
from babyllama.load import default_device, load, model_folder
from babyllama.model.adapters import weights_hash
from babyllama.model.checkpoint import load_model, read_config, save_model
from babyllama.model.laws import law_of
from babyllama.recipe import load_recipe
from babyllama.run import Run
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.validation import LossSums

EVERYTHING = "[embed_tokens, norms]"
ATTENTION = "[q_proj, k_proj, v_proj, o_proj]"  # LongLoRA's targets


class Way(NamedTuple):
    """A training: the overrides of its recipe, and what of them a sweep may vary."""

    name: str
    settings: dict[str, float | None]
    words: list[str]


class Rates(NamedTuple):
    """One combination of a sweep. `whole`: of what an adapter trains whole; None: as its factors."""

    lr: float
    adapter: float
    whole: float | None
    rank: int


def adamw(lr: float) -> str:
    return f"optimizer={{kind: adamw, lr: {lr}, weight_decay: 0.01}}"


def full(name: str, rates: Rates, *words: str) -> Way:
    """A training of whole weights."""
    return Way(name, {"lr": rates.lr}, [adamw(rates.lr), *words])


def factors(name: str, rates: Rates, *words: str, kind: str = "lora", more: str = "", train: str = "") -> Way:
    """A training of an adapter; `train`: the modules that go with it."""
    settings: dict[str, float | None] = {"lr": rates.adapter, "rank": rates.rank}
    optimizer = f"kind: adamw, lr: {rates.adapter}, weight_decay: 0.0"
    if train:
        more += f", train: {train}"
        if rates.whole is not None:
            settings["whole_lr"], optimizer = rates.whole, f"{optimizer}, whole_lr: {rates.whole}"
    return Way(name, settings, [f"adapter={{kind: {kind}, rank: {rates.rank}{more}}}", f"optimizer={{{optimizer}}}",
                                *words])  # fmt: skip


def sparse(context: int) -> str:
    """The override for S²-Attn: groups of a quarter of the context, an even number."""
    return f"attend={{kind: shifted_sparse, group_size: {context // 8 * 2}}}"


def ways(args: argparse.Namespace, rates: Rates, texts: Path) -> list[Way]:
    """Of the study `sft`. `texts` is replayed where that is asked for."""
    replay = f"replay={{path: {texts}, share: {args.replay}, weights: null}}"
    galore = f"optimizer={{kind: galore, rank: {max(rates.rank, 4)}, refresh: 100, lr: {4 * rates.lr}}}"
    return [
        full("full", rates),
        full("full+replay", rates, replay),
        full("full+neftune", rates, "objective.neftune=5"),
        factors("lora", rates),
        factors("lora+replay", rates, replay),
        factors("lora+emb+norms", rates, train=EVERYTHING),
        factors("dora", rates, kind="dora"),
        factors("qlora", rates, more=", base: nf4"),
        full("lisa", rates, "adapter={kind: lisa, layers: 2, every: 20}"),
        Way("galore", {"lr": 4 * rates.lr, "rank": max(rates.rank, 4)}, [galore]),
    ]


def long_ways(args: argparse.Namespace, rates: Rates) -> list[Way]:
    """Of the study `long`; each with S²-Attn too."""
    more = f", targets: {ATTENTION}"
    plain = [full("full", rates), factors("lora", rates, more=more),
             factors("lora+norms", rates, more=more, train="[norms]"),
             factors("lora+emb+norms", rates, more=more, train=EVERYTHING)]  # fmt: skip
    return [*plain, *(Way(f"{name} s2", settings, [*words, sparse(args.context)]) for name, settings, words in plain)]


def sweep(args: argparse.Namespace, texts: Path) -> Iterator[Way]:
    """The ways that are asked for, each once for every combination that makes a difference to it."""
    done: list[Way] = []
    for rates in map(Rates._make, product(args.lr, args.adapter_lr, args.whole_lr, args.rank)):
        for way in long_ways(args, rates) if args.study == "long" else ways(args, rates, texts):
            if way not in done and (not args.only or way.name in args.only):
                done.append(way)
                yield way


def label(line: dict[str, Any]) -> str:
    """A line's name, and what a sweep has set."""
    return " ".join([line["name"], *(f"{key}={value:g}" for key, value in line.get("settings", {}).items())])


# ── one way ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def total(found: Any) -> LossSums:
    """Of all corpora together."""
    return sum((sums for _, sums in found), LossSums())


def quality(path: Path, chats: Prepared | None, texts: Prepared, args: argparse.Namespace) -> dict[str, Any]:
    """Held-out figures of a run: of the answers that it was taught, and of general text."""
    loaded, context = load(path), args.context
    rows = max(1, 16384 // context)
    general = total(measure(loaded.model, texts, texts.corpora, "val", context, rows, args.eval_tokens))
    found: dict[str, Any] = {"text_loss": general.loss, "text_bits_per_byte": general.bits_per_byte}
    if chats is None:
        return found
    told = total(measure(loaded.model, chats, chats.corpora, "val", context, rows, args.eval_tokens))
    found |= {"chat_loss": told.loss, "chat_accuracy": told.accuracy}
    tokenizer = loaded.tokenizer.with_template(chats.manifest["chat_template"])
    engine, sums = Engine(loaded.model, tokenizer.vocab_size), AnswerSums()
    for _, questions in chat_questions(chats, chats.corpora, "val", args.questions, tokenizer):
        sums = sum(map(compared, ask(engine, tokenizer, questions, 64, 32)), sums)
    return {**found, "answer_f1": sums.figures["f1"] if args.questions else None}


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def run_way(recipe: TrainRecipe, device: torch.device) -> dict[str, Any]:
    """Train, and what it cost."""
    shutil.rmtree(recipe.out, ignore_errors=True)
    forget()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    train(recipe)
    run = Run.open(recipe.out)
    logged = [m for m in run.metrics() if m["kind"] == "train"]
    rates = [m["tokens_per_second"] for m in logged[1:] or logged]
    summary, tokens = run.info["summary"], logged[-1]["tokens"] / logged[-1]["step"]
    return {
        "step_s": tokens / statistics.median(rates),
        "train_loss": logged[-1]["loss"],
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        "parameters": summary["parameters"],
        "trained_parameters": summary["trained_parameters"],
        "model_mib": size(run.model) / 2**20,
        "state_mib": size(run.states()[-1][1]) / 2**20,
    }


def stretched(base: Path, out: Path, context: int, law: str) -> Path:
    """The base for `context` positions by `law`; nothing is trained yet."""
    folder = model_folder(base)
    factor = context / read_config(folder).trained_context
    model = load_model(folder, law_of({"kind": law, "factor": factor}, "--law") if factor > 1 else None)
    tokenizer = Tokenizer.load(folder)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    save_model(model, out, tokenizer.bos_id, tokenizer.eos_id)
    tokenizer.save(out)
    return out


def recipe_of(args: argparse.Namespace, out: Path, base: Path, data: Path, words: list[str]) -> TrainRecipe:
    """What all ways have in common, and `words`."""
    return load_recipe(TrainRecipe, None, [
        f"out={out}", f"data.path={data}", f"data.packing={'documents' if args.study == 'sft' else 'stream'}",
        "init.kind=from", f"init.path={base}", "schedule={kind: cosine, warmup: 0.03, final: 0.1}",
        f"plan.steps={args.steps}", f"plan.context={args.context}", f"plan.micro_batch_size={args.rows}",
        f"plan.accumulate={args.accumulate}", "plan.log_every=10", "plan.save_every=1000000",
        f"plan.validate_every={args.steps}", "plan.keep_best=false", "compile=false", "seed=1", *words,
    ])  # fmt: skip


def setting(args: argparse.Namespace, base: Path) -> dict[str, Any]:
    """What the lines that compare have in common."""
    return {"study": args.study, "base": weights_hash(model_folder(base)), "steps": args.steps,
            "context": args.context, "tokens_a_step": args.rows * args.accumulate * args.context,
            "law": None if args.study == "sft" else args.law}  # fmt: skip


def there(file: Path, key: dict[str, Any]) -> bool:
    """Whether a line has all of `key`."""
    return any(all(line.get(k) == v for k, v in key.items()) for line in lines(file))


def speed(args: argparse.Namespace, root: Path, work: Path, file: Path, device: torch.device) -> None:
    """Seconds of a step of one row, all weights trained, full attention and S²-Attn in turn."""
    out = work / "speed"
    for context in args.lengths:
        here = argparse.Namespace(**{**vars(args), "context": context, "rows": 1, "accumulate": 1})
        base, about = stretched(root / "base", work / "stretched", context, args.law), setting(here, root / "base")
        for name, words in {"full": [], "full s2": [sparse(context)]}.items():
            key = {**about, "name": name, "device": facts(device)["device"]}
            if there(file, key):
                print(f"{name}, {context}: there already", flush=True)
                continue
            words = [adamw(args.lr[0]), *words, "plan.log_every=5", "plan.validate_every=1000000"]
            with surviving(f"{name}, {context}"):
                cost = run_way(recipe_of(here, out, base, root / "corpus", words), device)
                append(file, {**facts(device), **key, "overrides": words, **cost})
                print(f"{name}, {context}: {cost['step_s']:.4f} s a step", flush=True)
    shutil.rmtree(out, ignore_errors=True)


def study(args: argparse.Namespace, root: Path, work: Path, file: Path, device: torch.device) -> None:
    """Run every way that has no line yet."""
    chats, texts, base = root / "medical-chats", root / "corpus", root / "base"
    long, about = args.study == "long", setting(args, base)
    if long:
        base = stretched(base, work / "stretched", args.context, args.law)
    prepared = None if long else Prepared.open(chats), Prepared.open(texts)
    for name, settings, words in (Way("base", {}, []), *sweep(args, texts)):
        key = {**about, "name": name, "settings": settings, "device": facts(device)["device"]}
        if there(file, key):
            print(f"{label(key)}: there already", flush=True)
            continue
        with surviving(label(key)):
            out, cost = work / f"{args.study}-{name.replace(' ', '-')}", {}
            if words:
                cost = run_way(recipe_of(args, out, base, texts if long else chats, words), device)
            found = quality(out if words else base, *prepared, args)
            append(file, {**facts(device), **key, "overrides": words or None, **cost, **found})
            print(f"{label(key)}: {json.dumps({**cost, **found})}", flush=True)
        shutil.rmtree(out, ignore_errors=True)


# ── what came out ───────────────────────────────────────────────────────────────────────────────────────────────────
def newest(found: list[dict[str, Any]], which: str) -> list[dict[str, Any]]:
    """The lines of a study that compare with its newest one; of each name and settings the newest."""
    mine = [line for line in found if line["study"] == which]
    keys = ("base", "steps", "context", "tokens_a_step", "law", "device")
    same = [line for line in mine if all(line.get(k) == mine[-1].get(k) for k in keys)]
    return list({label(line): line for line in same}.values())


def summarise(found: list[dict[str, Any]]) -> None:
    """A table of each study."""
    for which, show in (("sft", _show_sft), ("long", _show_long)):
        if rows := newest(found, which):
            law = f", {rows[-1]['law']}" if rows[-1].get("law") else ""
            size = f"{rows[-1]['steps']} steps × {rows[-1]['tokens_a_step']} tokens"
            print(f"\n{which}: {size}{law}, {rows[-1]['device']}")
            show(rows)
    steps: dict[int, dict[str, dict[str, Any]]] = {}
    for line in (line for line in found if line["study"] == "speed"):
        steps.setdefault(line["context"], {})[line["name"]] = line
    pairs = [(context, pair["full"], pair["full s2"]) for context, pair in sorted(steps.items()) if len(pair) == 2]
    if pairs:
        print(f"\nspeed: one row a step, not compiled, {pairs[-1][1]['device']}")
        table(["tokens", "full, s", "S²-Attn, s", "times faster", "full, GiB", "S²-Attn, GiB"],
              [[context, _figure(full, "step_s", 4), _figure(s2, "step_s", 4), f"{full['step_s'] / s2['step_s']:.2f}",
                _figure(full, "peak_gib", 2), _figure(s2, "peak_gib", 2)] for context, full, s2 in pairs])  # fmt: skip


def _show_sft(rows: list[dict[str, Any]]) -> None:
    before = next((r["text_bits_per_byte"] for r in rows if r["name"] == "base"), None)
    shown = []
    for r in rows:
        forgotten = None if before is None else f"{r['text_bits_per_byte'] - before:+.4f}"
        shown.append([label(r), _figure(r, "chat_loss", 4), _figure(r, "answer_f1", 3),
                      _figure(r, "text_bits_per_byte", 4), forgotten, *_cost(r)])  # fmt: skip
    table(["way", "chat loss", "answer F1", "text bits/byte", "± base", *COST], shown)


def _show_long(rows: list[dict[str, Any]]) -> None:
    """Every gap is to the best full training with full attention, of those rates that were tried."""
    best = min((r["text_loss"] for r in rows if r["name"] == "full"), default=None)
    shown = []
    for r in rows:
        gap = None if best is None else f"{math.expm1(r['text_loss'] - best):+.1%}"
        shown.append([label(r), f"{math.exp(r['text_loss']):.2f}", gap, _figure(r, "text_bits_per_byte", 4), *_cost(r)])
    table(["way", "perplexity", "± full", "bits/byte", *COST], shown)


COST = ("trained", "s a step", "peak GiB", "model MiB", "state MiB")


def _cost(line: dict[str, Any]) -> list[str | None]:
    share = None if "step_s" not in line else f"{line['trained_parameters'] / line['parameters']:.1%}"
    names = (("step_s", 4), ("peak_gib", 2), ("model_mib", 1), ("state_mib", 1))
    return [share, *(_figure(line, key, digits) for key, digits in names)]


def _figure(line: dict[str, Any], key: str, digits: int) -> str | None:
    return None if line.get(key) is None else f"{line[key]:.{digits}f}"


def draw(found: list[dict[str, Any]], file: Path) -> None:
    """Learnt against forgotten (or, of `long`, perplexity against time), a point for each way."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    named: list[tuple[Any, list[Line]]] = []
    studies = [rows for which in ("sft", "long") if (rows := [r for r in newest(found, which) if "step_s" in r])]
    figure, axes = pyplot.subplots(len(studies), 1, figsize=(9, 3.8 * len(studies)), squeeze=False)
    for axis, rows in zip(axes[:, 0], studies, strict=True):
        sft = rows[0]["study"] == "sft"
        x, y = ("text_bits_per_byte", "chat_loss") if sft else ("step_s", "text_loss")
        kinds = [next((n for n, kind in enumerate(("full", "emb", "lora")) if kind in label(r)), 3) for r in rows]
        colours = [COLOURS[kind] for kind in kinds]
        right = max(r[x] for r in rows)
        for r, colour in zip(rows, colours, strict=True):
            axis.plot([r[x], right], [r[y], r[y]], color=colour, linewidth=0.5, alpha=0.4)
            axis.scatter(r[x], r[y], color=colour, s=22, zorder=3, clip_on=False)
        bare(axis)
        axis.set_xlim(right=right)
        axis.set_xlabel("general text, bits per byte (further right: more forgotten)" if sft else "seconds a step")
        axis.set_ylabel("loss of held-out answers, nats" if sft else "loss of held-out text, nats")
        axis.set_title(f"{'answers' if sft else 'long texts'}: {rows[0]['steps']} steps, {rows[0]['device']}")
        named.append((axis, [Line(label(r), r[y], colour) for r, colour in zip(rows, colours, strict=True)]))
    figure.subplots_adjust(left=0.09, right=0.62, top=0.96, bottom=0.07, hspace=0.32)  # the names stand beside it
    for axis, ends in named:
        name_ends(axis, ends)
    figure.savefig(file, dpi=150)


def make(root: Path, overrides: list[str]) -> None:
    """The base and its data, by quickstart's stages; what is finished is not done again."""
    quickstart = import_module("babyllama.commands.quickstart")
    size = "gpu" if torch.cuda.is_available() else "cpu"
    for stage in quickstart.STAGES:
        if stage.name in ("tokenizer", "corpus", "medical-chats", "base"):
            quickstart._run(stage, quickstart.QuickstartRecipe(out=root, overrides=tuple(overrides)), size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", help="a folder of quickstart")
    parser.add_argument("--make", nargs="*", metavar="STAGE:KEY=VALUE", help="make the base first, with overrides")
    parser.add_argument("--study", choices=("sft", "long", "speed"), default="sft")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="ways by name; the base is always there")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=32, help="in one forward pass")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--rank", type=int, nargs="+", default=[16])
    parser.add_argument("--lr", type=float, nargs="+", default=[2e-4], help="of whole weights (GaLore: four times it)")
    parser.add_argument("--adapter-lr", type=float, nargs="+", default=[1e-3], help="of low-rank factors")
    parser.add_argument("--whole-lr", type=float, nargs="+", default=[None], help="of embeddings and norms beside "
                        "them; as the factors when absent")  # fmt: skip
    parser.add_argument("--replay", type=float, default=0.1, help="share of rows, in the ways with replay")
    parser.add_argument("--law", choices=("linear", "ntk", "dynamic_ntk", "by_parts", "yarn"), default="yarn")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768], help="of the study `speed`, tokens")
    parser.add_argument("--questions", type=int, default=60, help="asked of each corpus, for F1; 0 asks nothing")
    parser.add_argument("--eval-tokens", type=int, default=200_000, help="measured of each corpus")
    parser.add_argument("--small", action="store_true", help="toy sizes, to try it out")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of fine_tuning.jsonl")
    parser.add_argument("--summary", action="store_true", help="only show what is there")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    file, device = args.results / "fine_tuning.jsonl", default_device()
    if args.small:
        args.steps, args.questions, args.eval_tokens, args.rows = 4, 2, 2000, 2
        args.rank = [min(rank, 4) for rank in args.rank]
        args.context, args.lengths = min(args.context, 64), [min(length, 96) for length in args.lengths]
    if not args.summary:
        if args.root is None:
            parser.error("give ROOT, or --summary")
        if args.make is not None:
            make(args.root, args.make)
        known = {way.name for way in sweep(argparse.Namespace(**{**vars(args), "only": []}), args.root)}
        if unknown := set(args.only) - known:
            parser.error(f"--only: no way {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
        run = speed if args.study == "speed" else study
        run(args, args.root, args.root / "fine-tuning", file, device)
    summarise(lines(file))
    if args.plot:
        draw(lines(file), args.plot)


if __name__ == "__main__":
    main()
