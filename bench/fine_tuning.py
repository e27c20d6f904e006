"""Ways to fine-tune, one base, equal steps: what each learns, forgets and costs, through the real train verb.

    python bench/fine_tuning.py ROOT --make                     makes ROOT's base and data first (quickstart's recipes)
    python bench/fine_tuning.py ROOT --steps 300 --plot out.png
    python bench/fine_tuning.py ROOT --study long --context 8192 --steps 100
    python bench/fine_tuning.py --summary

ROOT is a folder of `babyllama quickstart`: base/, medical-chats/, corpus/. Each way is a line of fine_tuning.jsonl; one
whose line for the same base, device and settings is there is not run again. Nothing is compiled, so that step times
compare. The study `long` stretches the base to --context by position interpolation, as LongLoRA does, and trains it on
the texts, with full attention and with S²-Attn (its comparison).
"""

from __future__ import annotations

import argparse
import json
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
from babyllama.evals.answers import AnswerSums, ask, prepared_questions, score
from babyllama.evals.bits import measure
from babyllama.infer.engine import Engine
from babyllama.load import default_device, load, model_folder
from babyllama.model.adapters import weights_hash
from babyllama.model.checkpoint import load_model, read_config, save_model
from babyllama.model.laws import LinearRope
from babyllama.recipe import load_recipe
from babyllama.run import Run
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.validation import LossSums

ADAMW = "optimizer={kind: adamw, lr: 2.0e-4, weight_decay: 0.01}"
EVERYTHING = "[embed_tokens, norms]"


def ways(rank: int, texts: Path) -> dict[str, list[str]]:
    """Name → overrides of the study `sft`. {texts} is replayed where that is asked for."""
    replay = [f"replay={{path: {texts}, share: 0.1, weights: null}}"]
    return {
        "full": [ADAMW],
        "full+replay": [ADAMW, *replay],
        "full+neftune": [ADAMW, "objective.neftune=5"],
        "lora": [f"adapter={{kind: lora, rank: {rank}}}"],
        "lora+replay": [f"adapter={{kind: lora, rank: {rank}}}", *replay],
        "lora+emb+norms": [f"adapter={{kind: lora, rank: {rank}, train: {EVERYTHING}}}"],
        "dora": [f"adapter={{kind: dora, rank: {rank}}}"],
        "qlora": [f"adapter={{kind: lora, rank: {rank}, base: nf4}}"],
        "lisa": ["adapter={kind: lisa, layers: 2, every: 20}", ADAMW],
        "galore": [f"optimizer={{kind: galore, rank: {max(rank, 4)}, refresh: 100, lr: 8.0e-4}}"],
    }


def long_ways(rank: int, group: int) -> dict[str, list[str]]:
    """Name → overrides of the study `long`; each with S²-Attn too."""
    plain = {
        "full": [ADAMW],
        "lora": [f"adapter={{kind: lora, rank: {rank}}}"],
        "lora+norms": [f"adapter={{kind: lora, rank: {rank}, train: [norms]}}"],
        "lora+emb+norms": [f"adapter={{kind: lora, rank: {rank}, train: {EVERYTHING}}}"],
    }
    sparse = [f"attend={{kind: shifted_sparse, group_size: {group}}}"]
    return {**plain, **{f"{name} s2": [*words, *sparse] for name, words in plain.items()}}


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
    for splits in chats.corpora.values():
        store = splits["val"]
        if store.kind == "chat" and store.documents and args.questions:
            questions = prepared_questions(store, args.questions, tokenizer)
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


def stretched(base: Path, out: Path, context: int) -> Path:
    """The base for `context` positions by interpolation; nothing is trained yet."""
    folder = model_folder(base)
    factor = context / read_config(folder).trained_context
    model = load_model(folder, LinearRope(factor=factor) if factor > 1 else None)
    tokenizer = Tokenizer.load(folder)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    save_model(model, out, tokenizer.bos_id, tokenizer.eos_id)
    tokenizer.save(out)
    return out


def study(args: argparse.Namespace, root: Path, work: Path, file: Path, device: torch.device) -> None:
    """Run every way that has no line yet."""
    chats, texts, base = root / "medical-chats", root / "corpus", root / "base"
    long = args.study == "long"
    if long:
        base = stretched(base, work / "stretched", args.context)
    common = [f"data.path={texts if long else chats}", f"data.packing={'stream' if long else 'documents'}",
              "init.kind=from", f"init.path={base}", "schedule={kind: cosine, warmup: 0.03, final: 0.1}",
              f"plan.steps={args.steps}", f"plan.context={args.context}", f"plan.micro_batch_size={args.rows}",
              f"plan.accumulate={args.accumulate}", "plan.log_every=10", "plan.save_every=1000000",
              f"plan.validate_every={args.steps}", "plan.keep_best=false", "compile=false", "seed=1"]  # fmt: skip
    choices = long_ways(args.rank, args.context // 4) if long else ways(args.rank, texts)
    about = {"study": args.study, "base": weights_hash(model_folder(base)), "steps": args.steps, "rank": args.rank,
             "context": args.context, "tokens_a_step": args.rows * args.accumulate * args.context}  # fmt: skip
    prepared = None if long else Prepared.open(chats), Prepared.open(texts)
    for name, words in {"base": None, **choices}.items():
        key = {**about, "name": name, "device": facts(device)["device"]}
        if any(all(line.get(k) == v for k, v in key.items()) for line in lines(file)):
            print(f"{name}: there already", flush=True)
            continue
        if args.only and name not in (*args.only, "base"):
            continue
        with surviving(name):
            out = work / f"{args.study}-{name.replace(' ', '-')}"
            cost = {}
            if words is not None:
                recipe = load_recipe(TrainRecipe, None, [f"out={out}", *common, *words])
                cost = run_way(recipe, device)
            found = quality(base if words is None else out, *prepared, args)
            append(file, {**facts(device), **key, "overrides": words, **cost, **found})
            print(f"{name}: {json.dumps({**cost, **found})}", flush=True)
        shutil.rmtree(work / f"{args.study}-{name.replace(' ', '-')}", ignore_errors=True)


# ── what came out ───────────────────────────────────────────────────────────────────────────────────────────────────
def newest(found: list[dict[str, Any]], which: str) -> list[dict[str, Any]]:
    """The lines of a study that compare with its newest one; of each name the newest."""
    mine = [line for line in found if line["study"] == which]
    keys = ("base", "steps", "rank", "context", "tokens_a_step", "device")
    same = [line for line in mine if all(line[k] == mine[-1][k] for k in keys)]
    return list({line["name"]: line for line in same}.values())


def summarise(found: list[dict[str, Any]]) -> None:
    """A table of each study."""
    for which in ("sft", "long"):
        rows = newest(found, which)
        if not rows:
            continue
        before = next((r["text_bits_per_byte"] for r in rows if r["name"] == "base"), None)
        print(f"\n{which}: {rows[-1]['steps']} steps × {rows[-1]['tokens_a_step']} tokens, {rows[-1]['device']}")
        shown = []
        for r in rows:
            forgotten = None if before is None else f"{r['text_bits_per_byte'] - before:+.4f}"
            share = None if "step_s" not in r else f"{r['trained_parameters'] / r['parameters']:.1%}"
            shown.append([r["name"], _figure(r, "chat_loss", 4), _figure(r, "answer_f1", 3),
                          _figure(r, "text_bits_per_byte", 4), forgotten, share, _figure(r, "step_s", 4),
                          _figure(r, "peak_gib", 2), _figure(r, "model_mib", 1), _figure(r, "state_mib", 1),
                          ])  # fmt: skip
        table(["way", "chat loss", "answer F1", "text bits/byte", "± base", "trained", "s a step", "peak GiB",
               "model MiB", "state MiB"], shown)  # fmt: skip


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
    parser.add_argument("--study", choices=("sft", "long"), default="sft")
    parser.add_argument("--only", nargs="*", help="names of ways")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=32, help="in one forward pass")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
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
        args.context = min(args.context, 64)
    if not args.summary:
        if args.root is None:
            parser.error("give ROOT, or --summary")
        if args.make is not None:
            make(args.root, args.make)
        study(args, args.root, args.root / "fine-tuning", file, device)
    summarise(lines(file))
    if args.plot:
        draw(lines(file), args.plot)


if __name__ == "__main__":
    main()
