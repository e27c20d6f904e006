"""Ways to fine-tune, one base, equal steps: what each learns, forgets and costs, through the real train verb.

    python bench/fine_tuning.py ROOT --make                     makes ROOT's base and data first (quickstart's recipes)
    python bench/fine_tuning.py ROOT --steps 300 --plot out.png
    python bench/fine_tuning.py ROOT --study long --context 8192 --rows 4 --steps 100
    python bench/fine_tuning.py ROOT --study speed --lengths 8192 32768 --steps 20
    python bench/fine_tuning.py --summary

ROOT is a folder of `babyllama quickstart`: base/, medical-chats/, corpus/. Each way is a line of fine_tuning.jsonl; one
whose line for the same base, device and settings is there is not run again. Nothing is compiled, so that step times
compare. The study `long` stretches the base to --context, by position interpolation as LongLoRA does or by another
--law, and trains it on the texts, with full attention and with S²-Attn (its comparison); `speed` times one row a step
of --lengths, both ways.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from record import RESULTS, append, facts, forget, lines, surviving, table

from babyllama.commands.train import TrainRecipe
from babyllama.commands.train import main as train
from babyllama.data.shards import Prepared
from babyllama.evals.answers import AnswerSums, ask, chat_questions, score
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


def adamw(lr: float) -> str:
    return f"optimizer={{kind: adamw, lr: {lr}, weight_decay: 0.01}}"


def factors(rank: int, lr: float, kind: str = "lora", more: str = "") -> list[str]:
    """Overrides of an adapter."""
    return [f"adapter={{kind: {kind}, rank: {rank}{more}}}", f"optimizer={{kind: adamw, lr: {lr}, weight_decay: 0.0}}"]


def sparse(context: int) -> str:
    """The override for S²-Attn: groups of a quarter of the context, an even number."""
    return f"attend={{kind: shifted_sparse, group_size: {context // 8 * 2}}}"


def ways(args: argparse.Namespace, texts: Path) -> dict[str, list[str]]:
    """Name → overrides of the study `sft`. `texts` is replayed where that is asked for."""
    rank, lr, slow = args.rank, args.adapter_lr, adamw(args.lr)
    replay = f"replay={{path: {texts}, share: {args.replay}, weights: null}}"
    return {
        "full": [slow],
        "full+replay": [slow, replay],
        "full+neftune": [slow, "objective.neftune=5"],
        "lora": factors(rank, lr),
        "lora+replay": [*factors(rank, lr), replay],
        "lora+emb+norms": factors(rank, lr, more=f", train: {EVERYTHING}"),
        "dora": factors(rank, lr, "dora"),
        "qlora": factors(rank, lr, more=", base: nf4"),
        "lisa": ["adapter={kind: lisa, layers: 2, every: 20}", slow],
        "galore": [f"optimizer={{kind: galore, rank: {max(rank, 4)}, refresh: 100, lr: {4 * args.lr}}}"],
    }


def long_ways(args: argparse.Namespace) -> dict[str, list[str]]:
    """Name → overrides of the study `long`; each with S²-Attn too."""
    train = {"lora": "", "lora+norms": ", train: [norms]", "lora+emb+norms": f", train: {EVERYTHING}"}
    plain = {"full": [adamw(args.lr)]}
    for name, more in train.items():
        plain[name] = factors(args.rank, args.adapter_lr, more=f", targets: {ATTENTION}{more}")
    return {**plain, **{f"{name} s2": [*words, sparse(args.context)] for name, words in plain.items()}}


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
        sums = sum(map(score, ask(engine, tokenizer, questions, 64, 32)), sums)
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
    return {"study": args.study, "base": weights_hash(model_folder(base)), "steps": args.steps, "rank": args.rank,
            "context": args.context, "tokens_a_step": args.rows * args.accumulate * args.context,
            "rates": [args.lr, args.adapter_lr], "law": None if args.study == "sft" else args.law}  # fmt: skip


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
            words = [adamw(args.lr), *words, "plan.log_every=5", "plan.validate_every=1000000"]
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
    choices = long_ways(args) if long else ways(args, texts)
    prepared = None if long else Prepared.open(chats), Prepared.open(texts)
    for name, words in {"base": None, **choices}.items():
        key = {**about, "name": name, "device": facts(device)["device"]}
        if there(file, key):
            print(f"{name}: there already", flush=True)
            continue
        if args.only and name not in (*args.only, "base"):
            continue
        with surviving(name):
            out = work / f"{args.study}-{name.replace(' ', '-')}"
            cost = {}
            if words is not None:
                cost = run_way(recipe_of(args, out, base, texts if long else chats, words), device)
            found = quality(base if words is None else out, *prepared, args)
            append(file, {**facts(device), **key, "overrides": words, **cost, **found})
            print(f"{name}: {json.dumps({**cost, **found})}", flush=True)
        shutil.rmtree(work / f"{args.study}-{name.replace(' ', '-')}", ignore_errors=True)


# ── what came out ───────────────────────────────────────────────────────────────────────────────────────────────────
def newest(found: list[dict[str, Any]], which: str) -> list[dict[str, Any]]:
    """The lines of a study that compare with its newest one; of each name the newest."""
    mine = [line for line in found if line["study"] == which]
    keys = ("base", "steps", "rank", "context", "tokens_a_step", "rates", "law", "device")
    same = [line for line in mine if all(line.get(k) == mine[-1].get(k) for k in keys)]
    return list({line["name"]: line for line in same}.values())


def summarise(found: list[dict[str, Any]]) -> None:
    """A table of each study."""
    for which, show in (("sft", _show_sft), ("long", _show_long)):
        if rows := newest(found, which):
            law = f", {rows[-1]['law']}" if rows[-1].get("law") else ""
            size = f"{rows[-1]['steps']} steps × {rows[-1]['tokens_a_step']} tokens"
            print(f"\n{which}: {size}{law}, {rows[-1]['device']}")
            show({row["name"]: row for row in rows})
    steps: dict[int, dict[str, dict[str, Any]]] = {}
    for line in (line for line in found if line["study"] == "speed"):
        steps.setdefault(line["context"], {})[line["name"]] = line
    pairs = [(context, pair["full"], pair["full s2"]) for context, pair in sorted(steps.items()) if len(pair) == 2]
    if pairs:
        print(f"\nspeed: one row a step, not compiled, {pairs[-1][1]['device']}")
        table(["tokens", "full, s", "S²-Attn, s", "times faster", "full, GiB", "S²-Attn, GiB"],
              [[context, _figure(full, "step_s", 4), _figure(s2, "step_s", 4), f"{full['step_s'] / s2['step_s']:.2f}",
                _figure(full, "peak_gib", 2), _figure(s2, "peak_gib", 2)] for context, full, s2 in pairs])  # fmt: skip


def _show_sft(rows: dict[str, dict[str, Any]]) -> None:
    before = rows.get("base", {}).get("text_bits_per_byte")
    shown = []
    for name, r in rows.items():
        forgotten = None if before is None else f"{r['text_bits_per_byte'] - before:+.4f}"
        shown.append([name, _figure(r, "chat_loss", 4), _figure(r, "answer_f1", 3), _figure(r, "text_bits_per_byte", 4),
                      forgotten, *_cost(r)])  # fmt: skip
    table(["way", "chat loss", "answer F1", "text bits/byte", "± base", *COST], shown)


def _show_long(rows: dict[str, dict[str, Any]]) -> None:
    shown = []
    for name, r in rows.items():
        gap = None if "full" not in rows else f"{math.expm1(r['text_loss'] - rows['full']['text_loss']):+.1%}"
        shown.append([name, f"{math.exp(r['text_loss']):.2f}", gap, _figure(r, "text_bits_per_byte", 4), *_cost(r)])
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

    studies = [rows for which in ("sft", "long") if (rows := [r for r in newest(found, which) if "step_s" in r])]
    figure, axes = pyplot.subplots(1, len(studies), figsize=(7 * len(studies), 5), squeeze=False)
    for axis, rows in zip(axes[0], studies, strict=True):
        sft = rows[0]["study"] == "sft"
        x, y = ("text_bits_per_byte", "chat_loss") if sft else ("step_s", "text_loss")
        for r in rows:
            axis.scatter(r[x], r[y])
            axis.annotate(r["name"], (r[x], r[y]), xytext=(5, 3), textcoords="offset points")
        axis.set_xlabel("general text, bits per byte (right: forgotten)" if sft else "seconds a step")
        axis.set_ylabel("loss of held-out answers, nats" if sft else "loss of held-out text, nats")
        axis.set_title(f"{rows[0]['study']}: {rows[0]['steps']} steps, {rows[0]['device']}")
    figure.tight_layout()
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
    parser.add_argument("--only", nargs="*", help="names of ways")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=32, help="in one forward pass")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4, help="of whole weights (GaLore: four times it)")
    parser.add_argument("--adapter-lr", type=float, default=1e-3, help="of low-rank factors and what goes with them")
    parser.add_argument("--replay", type=float, default=0.1, help="share of rows, in the ways with replay")
    parser.add_argument("--law", choices=("linear", "ntk", "dynamic_ntk", "by_parts", "yarn"), default="linear")
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
        args.steps, args.rank, args.questions, args.eval_tokens, args.rows = 4, 4, 2, 2000, 2
        args.context, args.lengths = min(args.context, 64), [min(length, 96) for length in args.lengths]
    if not args.summary:
        if args.root is None:
            parser.error("give ROOT, or --summary")
        if args.make is not None:
            make(args.root, args.make)
        run = speed if args.study == "speed" else study
        run(args, args.root, args.root / "fine-tuning", file, device)
    summarise(lines(file))
    if args.plot:
        draw(lines(file), args.plot)


if __name__ == "__main__":
    main()
