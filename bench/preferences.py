"""Preference pairs: every method from one SFT start, through the real verbs, and what of it is only length.

    python bench/preferences.py WORK --make DATA         tokenizer, texts, chats and pairs (needs the extra data)
    python bench/preferences.py WORK --start             the base and the SFT that every method begins from
    python bench/preferences.py WORK [--methods dpo ipo] [--seeds 1 2 3]
    python bench/preferences.py --summary [--figure docs/images/preferences.svg]

DATA is a folder with pretrain/, sft/ and preference/dpo_zh.jsonl.zst; WORK is made. A quarter of the pairs is held out
by the hash of their prompts. Each training is a line of preferences.jsonl; one whose line is there is not run again,
so several processes with other methods or seeds may share a GPU. --small: a model and steps to try it on a CPU.

A line holds accuracies on held-out pairs by four measures, each of all pairs, of those of near-equal length (tokens
within 4 : 5) and of those whose better answer is the shorter one: `gain` Σ log π − log π_ref, DPO's own; `gain_mean`
the same a token; `mean` log π a token, SimPO's own; `score`, a reward model's. Beside them what "the longer one" gets.
One file although it is long: data, start, trainings and their table are one experiment.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import RESULTS, append, facts, lines, table

from babyllama.commands.preferring import batches, held_out
from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.commands.tokenizer import TokenizerRecipe
from babyllama.commands.tokenizer import main as make_tokenizer
from babyllama.commands.train import main as train
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.answers import Room
from babyllama.evals.answers import AnswerSums, ask, chat_questions, compared
from babyllama.evals.bits import measure
from babyllama.infer.engine import Engine
from babyllama.load import Loaded, load, pick_device
from babyllama.recipe import load_recipe
from babyllama.train.losses.answers import pairs
from babyllama.train.losses.reward import pair_scores
from babyllama.train.validation import LossSums

FILE = RESULTS / "preferences.jsonl"
TEXTS = {"tech_articles_lctt": 2000, "wiki_zh_sample": 854, "books_modern_pd": 40}  # documents; --small: a tenth
CHATS = {"alpaca_zh": 29_987, "multiturn_general": 1500, "law_qa": 2500}
METHODS = {  # name → objective, by which measure it orders pairs
    "dpo": ("{kind: dpo, beta: 0.1}", "gain"),
    "dpo-nll": ("{kind: dpo, beta: 0.1, nll: 0.2}", "gain"),
    "dpo-normalised": ("{kind: dpo, beta: 5, length_normalised: true}", "gain_mean"),
    "ipo": ("{kind: ipo, tau: 1.0}", "gain_mean"),
    "simpo": ("{kind: simpo, beta: 2.0, gamma: 1.0}", "mean"),
    "orpo": ("{kind: orpo, odds: 0.5}", "mean"),
    "kto": ("{kind: kto, beta: 0.1}", "gain"),
    "reward": ("{kind: reward}", "score"),
}
SHAPE = "{preset: tiny, hidden_size: 512, num_hidden_layers: 8, num_attention_heads: 8, num_key_value_heads: 4, " \
        "max_position_embeddings: 1024}"  # fmt: skip
SMALL = "{preset: tiny, hidden_size: 128, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, " \
        "max_position_embeddings: 512}"  # fmt: skip
NEAR = 1.25  # tokens of the longer answer over those of the shorter one
SHOWN = ("accuracy", "margin", "chosen", "rejected", "kl")  # by step, where a method logs it


# ── data and start ─────────────────────────────────────────────────────────────────────────────────────────────────
def make(work: Path, data: Path, arguments: argparse.Namespace) -> None:
    """Tokenizer and prepared folders; what is there already is left."""
    fewer = 10 if arguments.small else 1

    def some(kind: str, chosen: dict[str, int], by: int = fewer) -> list[str]:
        return [f"{{path: {data}/{kind}/{name}.jsonl.zst, max_documents: {most // by}}}" for name, most in
                chosen.items()]  # fmt: skip

    preferred = f"{{path: {data}/preference/dpo_zh.jsonl.zst, kind: preference, label: pairs}}"
    if not (work / "tokenizer" / "tokenizer.json").is_file():
        learned = ", ".join([*some("pretrain", TEXTS, 10), *some("sft", CHATS, 10)])
        source = f"source={{kind: train, vocab_size: 8000, corpora: [{learned}]}}"
        make_tokenizer(load_recipe(TokenizerRecipe, None, [f"out={work}/tokenizer", source]))
    for name, corpora, share in (("texts", some("pretrain", TEXTS), 0.01), ("chats", some("sft", CHATS), 0.01),
                                 ("pairs", [preferred], 0.25)):  # fmt: skip
        if not (work / name / "manifest.json").is_file():
            prepare(load_recipe(PrepareRecipe, None, [f"out={work}/{name}", f"tokenizer={work}/tokenizer",
                    f"corpora=[{', '.join(corpora)}]", f"validation={share}"]))  # fmt: skip


def start(work: Path, arguments: argparse.Namespace) -> None:
    """The base, on texts, and the SFT on chats; one that is finished is left."""
    small = arguments.small
    rare = [
        "plan.validate_every=1000000",
        "plan.validation_tokens=20000",
        "plan.save_every=1000000",
        "plan.log_every=50",
    ]
    steps, sft_steps = learned(arguments)
    _once(work / "base", f"data.path={work}/texts", f"init.model={SMALL if small else SHAPE}", *rare,
          f"plan={{steps: {steps}, context: {128 if small else 512}, micro_batch_size: {8 if small else 64}}}",
          "optimizer={kind: muon, lr: 0.01, adam_lr: 0.005}")  # fmt: skip
    _once(work / "sft", f"data={{path: {work}/chats, packing: documents}}", f"init={{kind: from, path: {work}/base}}",
          f"plan={{steps: {sft_steps}, context: {512 if small else 1024}, micro_batch_size: {4 if small else 24}}}",
          *rare, "optimizer={kind: muon, lr: 0.005, adam_lr: 0.0025}")  # fmt: skip


def learned(arguments: argparse.Namespace) -> list[int]:
    """Steps of the base and of the SFT: which start a training begins from."""
    base, sft = (20, 20) if arguments.small else (700, 500)
    return [arguments.base_steps or base, arguments.sft_steps or sft]


def _once(out: Path, *words: str) -> None:
    if not (out / "run.json").is_file() or json.loads((out / "run.json").read_text("utf-8"))["status"] != "finished":
        train(load_recipe(TrainRecipe, None, [f"out={out}", *words]))


# ── what a model says of pairs ─────────────────────────────────────────────────────────────────────────────────────
@torch.inference_mode()
def looked(ready: Loaded, prepared: Prepared, split: str) -> dict[str, np.ndarray]:
    """(P, 2) each, by number of the pair, the better answer first: `log_p` or `score`, and `tokens`; NaN where it has
    no room."""
    model, found, which = ready.model, list[tuple[torch.Tensor, torch.Tensor]](), list[np.ndarray]()
    positions, scored = model.config.max_position_embeddings, model.config.reward
    rows = held_out(prepared, "pairs", split, Room(2 * positions, positions), None, None, scored)
    for number in range(rows.rows):
        which.append(rows.documents(number)[::2] // 2)
    for batch in batches(rows, 8):
        batch = batch.to(model.embed_tokens.weight.device)
        if scored:
            told = pair_scores(model, batch)
            found.append((told, torch.zeros_like(told)))
        else:
            seen = pairs(model, batch)
            found.append((seen.log_p, seen.tokens))
    whole = np.full((2, rows.store.documents // 2, 2), np.nan)
    for kind, part in enumerate(zip(*found, strict=True)):
        whole[kind, np.concatenate(which)] = torch.cat(part).double().cpu().numpy()
    return {"score": whole[0]} if scored else {"log_p": whole[0], "tokens": whole[1]}


def in_order(values: np.ndarray) -> float:
    """The share of pairs (P, 2) whose better answer has the larger value; equals count half."""
    return round(float(np.mean((values[:, 0] > values[:, 1]) + 0.5 * (values[:, 0] == values[:, 1]))), 4)


def accuracies(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Measure → part of the pairs → accuracy; `longer` is what the longer answer gets."""
    tokens, there = before["tokens"], known(before, after)
    near = tokens.max(1) <= NEAR * tokens.min(1)
    parts = {"all": there, "near": there & near, "shorter": there & (tokens[:, 0] < tokens[:, 1])}
    if "score" in after:
        measures = {"score": after["score"]}
    else:
        gain = after["log_p"] - before["log_p"]
        measures = {"gain": gain, "gain_mean": gain / tokens, "mean": after["log_p"] / tokens}
    measures["start_mean"], measures["longer"] = before["log_p"] / tokens, tokens
    return {name: {part: in_order(values[which]) for part, which in parts.items()}
            for name, values in measures.items()}  # fmt: skip


def known(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> np.ndarray:
    """(P,): the pairs that both looks had room for."""
    seen = after["score"] if "score" in after else after["log_p"]
    return np.asarray(np.isfinite(before["tokens"] + seen).all(1))


def pull(before: dict[str, np.ndarray], after: dict[str, np.ndarray], by: str) -> float:
    """The correlation of a method's margin with how many tokens longer the better answer is."""
    there, tokens = known(before, after), before["tokens"]
    values = after["score"] if by == "score" else after["log_p"] - (before["log_p"] if by.startswith("gain") else 0)
    margin = (values / tokens if by in ("mean", "gain_mean") else values)[there]
    tokens = tokens[there]
    return round(float(np.corrcoef(margin[:, 0] - margin[:, 1], tokens[:, 0] - tokens[:, 1])[0, 1]), 3)


def beside(ready: Loaded, chats: Prepared, arguments: argparse.Namespace) -> dict[str, float]:
    """Bits per byte of held-out chats' answers; length and ends of answers to their questions, drawn greedily."""
    positions = ready.model.config.max_position_embeddings
    sums = measure(ready.model, chats, chats.corpora, "val", positions, 8, 30_000)
    found = {"bits_per_byte": round(sum((one for _, one in sums), LossSums()).bits_per_byte or 0.0, 4)}
    tokenizer = ready.tokenizer.with_template(chats.manifest["chat_template"])
    asked = [question for _, some in chat_questions(chats, ["alpaca_zh"], "val", arguments.questions, tokenizer)
             for question in some]  # fmt: skip
    if asked:
        given = ask(Engine(ready.model, tokenizer.vocab_size), tokenizer, asked, 200, 64)
        figures = sum(map(compared, given), AnswerSums()).figures
        found |= {key: round(figures[key], 4) for key in ("tokens", "ended", "f1")}
    return found


# ── one training ───────────────────────────────────────────────────────────────────────────────────────────────────
def name_of(method: str, arguments: argparse.Namespace) -> str:
    words = (re.sub(r"\W+", "_", word) for word in arguments.words)
    return "-".join([method, f"{arguments.lr:g}", f"{arguments.epochs:g}", *words])


def recipe_of(work: Path, method: str, seed: int, arguments: argparse.Namespace) -> TrainRecipe:
    rows = 4 if arguments.small else 10  # of two contexts, some 35 pairs
    length = f"steps: {arguments.steps}" if arguments.steps else f"epochs: {arguments.epochs}"
    return load_recipe(TrainRecipe, None, [
        f"out={work}/runs/{name_of(method, arguments)}-{seed}", f"data.path={work}/pairs",
        f"init={{kind: from, path: {work}/sft}}", f"objective={METHODS[method][0]}",
        f"plan={{{length}, micro_batch_size: {rows}, log_every: 1, validate_every: {arguments.look}, "
        "validation_tokens: 1000000, save_every: 1000000, keep_best: false, guard: {spike: null}}",
        f"optimizer={{kind: adamw, lr: {arguments.lr}, weight_decay: 0}}", "compile=false",
        "schedule={kind: cosine, warmup: 0.1, final: 0.1}", f"seed={seed}", *arguments.words])  # fmt: skip


def measured(work: Path, method: str, seed: int, arguments: argparse.Namespace, at_start: dict[str, Any]
             ) -> dict[str, Any]:  # fmt: skip
    recipe = recipe_of(work, method, seed, arguments)
    shutil.rmtree(recipe.out, ignore_errors=True)
    train(recipe)
    told = [json.loads(line) for line in (recipe.out / "metrics.jsonl").read_text("utf-8").split("\n")[:-1]]
    prepared, own = Prepared.open(work / "pairs"), METHODS[method][1]
    ready = load(recipe.out, pick_device("auto"), scores=True)
    after = {split: looked(ready, prepared, split) for split in ("val", "train")}
    before, now = at_start["val"], after["val"]
    by = accuracies(before, now)
    found = {
        "method": method, "seed": seed, "lr": arguments.lr, "epochs": arguments.epochs, "words": arguments.words,
        "small": arguments.small, "start": learned(arguments), "own": own,
        "steps": sum(line["kind"] == "train" for line in told), "pairs": int(known(before, now).sum()),
        "accuracy": by[own]["all"], "train_accuracy": accuracies(at_start["train"], after["train"])[own]["all"],
        "by": by, "pull_of_length": pull(before, now, own),
        "curve": [{"step": line["step"], **{key: line[key] for key in SHOWN if key in line}}
                  for line in told if line["kind"] == "validation"],
        "seconds": json.loads((recipe.out / "run.json").read_text("utf-8"))["summary"]["seconds"],
    }  # fmt: skip
    if own != "score":  # of an answer in the mean, nats; of a token
        tokens = before["tokens"]
        for side, name in enumerate(("chosen", "rejected")):
            found[name] = [round(float(np.nanmean(x["log_p"][:, side])), 2) for x in (before, now)]
            found[f"{name}_mean"] = [round(float(np.nanmean((x["log_p"] / tokens)[:, side])), 4) for x in (before, now)]
        found["beside"] = [at_start["beside"], beside(ready, Prepared.open(work / "chats"), arguments)]
    shutil.rmtree(recipe.out, ignore_errors=True)
    return found


def started(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the start says of all pairs, and its figures beside."""
    ready, prepared = load(work / "sft", pick_device("auto")), Prepared.open(work / "pairs")
    found: dict[str, Any] = {split: looked(ready, prepared, split) for split in ("val", "train")}
    return {**found, "beside": beside(ready, Prepared.open(work / "chats"), arguments)}


# ── results ────────────────────────────────────────────────────────────────────────────────────────────────────────
def groups() -> list[tuple[str, list[dict[str, Any]]]]:
    """(method, rate × epochs and what else was said, its lines), by start and in the order of METHODS."""
    found = defaultdict[tuple[str, str, float, float, str], list[dict[str, Any]]](list)
    for line in lines(FILE):
        if not line["small"]:
            start = "after {} + {}:".format(*line["start"])
            found[start, line["method"], line["lr"], line["epochs"], " ".join(line["words"])].append(line)
    order = sorted(found, key=lambda key: (key[0], [*METHODS].index(key[1]), *key[2:]))
    return [(f"{key[0]} {key[1]} {key[2]:g} × {key[3]:g} {key[4]}".rstrip(), found[key]) for key in order]


def summary() -> None:
    rows = []
    for name, some in groups():
        own = some[0]["own"]

        def mean(*path: Any, some: list[dict[str, Any]] = some) -> float:
            found = []
            for line in some:
                for key in path:
                    line = line[key]  # type: ignore[assignment]
                found.append(line)
            return statistics.mean(found)

        shown = [name, len(some), " ".join(f"{line['accuracy']:.3f}" for line in some), f"{mean('train_accuracy'):.3f}"]
        shown += [f"{mean('by', own, part):.3f}" for part in ("near", "shorter")]
        shown += [f"{mean('by', 'gain_mean', part):.3f}" if own != "score" else None for part in ("all", "near")]
        shown.append(f"{mean('pull_of_length'):+.2f}")
        if own == "score":
            shown += [None] * 4
        else:
            shown += [f"{mean(key, 0):.0f} → {mean(key, 1):.0f}" for key in ("chosen", "rejected")]
            shown += [f"{mean('beside', 0, key):.3f} → {mean('beside', 1, key):.3f}" if key in some[0]["beside"][0]
                      else None for key in ("bits_per_byte", "tokens")]  # fmt: skip
        rows.append(shown)
    table(["start, method, rate × epochs", "seeds", "held out", "trained on", "near", "shorter", "a token: all", "near",
           "pull", "log p chosen", "rejected", "bits a byte", "tokens"], rows)  # fmt: skip
    starts = {tuple(line["start"]): line for line in lines(FILE)}
    for (base, sft), line in starts.items():
        by = line["by"]
        print(f"after {base} + {sft} steps: by log p a token {by['start_mean']}; the longer answer: {by['longer']}; "
              f"pairs: {line['pairs']}")  # fmt: skip


def draw(path: Path) -> None:
    """By step: held-out accuracy by a method's own measure, and how far the better answer has moved."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "babyllama"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    bars, names = [], []
    for number, (name, some) in enumerate(groups()):
        colour = f"C{number % 10}"
        for line in some:
            steps = [look["step"] for look in line["curve"]]
            label = name if line is some[0] else None
            panels[0].plot(steps, [look["accuracy"] for look in line["curve"]], color=colour, lw=1.2, label=label)
            if "chosen" in line["curve"][0]:
                moved = [look["chosen"] - line["chosen"][0] for look in line["curve"]]
                panels[1].plot([0, *steps], [0, *moved], color=colour, lw=1.2)
        names.append(name)
        bars.append([statistics.mean(line["by"][line["own"]][part] for line in some) for part in
                     ("all", "near", "shorter")])  # fmt: skip
    for place, (part, shade) in enumerate(zip(("all", "near", "shorter"), (1.0, 0.6, 0.3), strict=True)):
        panels[2].barh(np.arange(len(names)) + 0.27 * place, [bar[place] for bar in bars], 0.25, color="#1f6c66",
                       alpha=shade, label={"all": "all", "near": "of near-equal length",
                                           "shorter": "the better one is shorter"}[part])  # fmt: skip
    panels[2].set_yticks(np.arange(len(names)) + 0.27, names, fontsize=8)
    panels[2].invert_yaxis()
    panels[2].axvline(0.5, color="grey", lw=0.8)
    for panel, title in zip(panels, ("accuracy, held out, by step", "better answer: change of log p, nats",
                                     "accuracy at the end, by kind of pair"), strict=True):  # fmt: skip
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=7)
    panels[2].legend(frameon=False, fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--make", type=Path, metavar="DATA")
    parser.add_argument("--start", action="store_true", help="base and SFT, nothing else")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--steps", type=int, help="instead of epochs")
    parser.add_argument("--words", nargs="*", default=[], help="more of a training's recipe: objective.beta=0.3")
    parser.add_argument("--look", type=int, default=10, help="steps between looks at the held-out pairs")
    parser.add_argument("--questions", type=int, default=64, help="held out, answered before and after; 0: none")
    parser.add_argument("--base-steps", type=int)
    parser.add_argument("--sft-steps", type=int)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    if arguments.figure:
        draw(arguments.figure)
    if arguments.summary or arguments.work is None:
        return summary()
    work = arguments.work.resolve()
    if arguments.make:
        return make(work, arguments.make.resolve(), arguments)
    start(work, arguments)
    if arguments.start:
        started(work, arguments)  # what the engine compiles for this model, it compiles once
        return None
    at_start: dict[str, Any] | None = None
    setting = {"lr": arguments.lr, "epochs": arguments.epochs, "words": arguments.words, "small": arguments.small,
               "start": learned(arguments)}  # fmt: skip
    done = {(line["method"], line["seed"]) for line in lines(FILE) if setting.items() <= line.items()}
    for method, seed in itertools.product(arguments.methods, arguments.seeds):
        if (method, seed) in done:
            continue
        at_start = at_start or started(work, arguments)
        found = measured(work, method, seed, arguments, at_start)
        print(f"{method} seed {seed}: held out {found['accuracy']:.3f}, trained on {found['train_accuracy']:.3f}, "
              f"by {found['by']}, log p of the better {found.get('chosen')}, {found['seconds']} s",
              flush=True)  # fmt: skip
        append(FILE, {**found, **facts(torch.device(pick_device("auto")))})
    return None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
