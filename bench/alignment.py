"""Reinforcement learning from rewards: one start for each task, then each method from it, through the real verbs.

    python bench/alignment.py WORK --make DATA       texts, prompts and tokenizer (needs the extra data)
    python bench/alignment.py WORK                   base and SFT starts, then every method on every task, three seeds
    python bench/alignment.py WORK --tasks sums poems --methods grpo gspo --seeds 1 --steps 50
    python bench/alignment.py --summary

DATA is a folder of texts, pretrain/*.jsonl.zst in it, among them poetry_chinese_poetry. WORK is made. Tasks: sums (two
numbers, in words or not), idioms (成语接龙) and poems (五言 or 七言绝句 to a title, with rhyme). Each training is a
line of alignment.jsonl: rewards on held-out prompts, answered greedily, and bits per byte of general texts, before and
after; where its time went. One whose line is there is not run again. --small: a model and steps to try it on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, append, facts, lines, table

from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.commands.reinforcing import reward_validator
from babyllama.commands.tokenizer import TokenizerRecipe
from babyllama.commands.tokenizer import main as make_tokenizer
from babyllama.commands.train import main as train
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources.corpora import CorpusChoice, read_documents
from babyllama.load import load, pick_device
from babyllama.recipe import load_recipe
from babyllama.train.rl.rewards import known_idioms

FILE = RESULTS / "alignment.jsonl"
TEXTS = {
    "poetry_chinese_poetry": 80_000,
    "books_modern_pd": 300,
    "news_xwlb": 500,
    "wiki_zh_sample": 1000,
    "laws_cn": 500,
}  # documents, of which --small takes a tenth
HELD_OUT = 300
REWARDS = {
    "sums": "[{kind: number}, {kind: ends, weight: 0.1}]",
    "idioms": "[{kind: idiom_chain, words: WORK/idioms.txt}, {kind: ends, weight: 0.1}]",
    "poems": "[{kind: poem}, {kind: ends, weight: 0.1}, {kind: no_repetition, weight: 0.2}]",
}
MAIN = {"sums": "reward_number", "idioms": "reward_idiom_chain", "poems": "reward_poem"}  # what a task is about
ANSWER = {"sums": 12, "idioms": 8, "poems": 48}  # tokens
METHODS = {
    "grpo": "{kind: grpo, beta: 0.02}", "dr_grpo": "{kind: dr_grpo, beta: 0.02}", "dapo": "{kind: dapo, beta: 0.02}",
    "gspo": "{kind: gspo, beta: 0.02}", "cispo": "{kind: cispo, beta: 0.02}", "rloo": "{kind: rloo, beta: 0.02}",
}  # fmt: skip
SHAPE = "{preset: tiny, hidden_size: 384, num_hidden_layers: 8, num_attention_heads: 6, num_key_value_heads: 2, " \
        "max_position_embeddings: 256}"  # fmt: skip
SMALL = "{preset: tiny, hidden_size: 96, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, " \
        "max_position_embeddings: 128}"  # fmt: skip


# ── prompts ────────────────────────────────────────────────────────────────────────────────────────────────────────
def chat(question: str, answer: str, held_out: bool) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "held_out": held_out}


def sums() -> Iterator[dict[str, Any]]:
    """Every pair of numbers below 100 in one wording; which pairs are held out, chance says once."""
    draw = random.Random(1)
    pairs = [(a, b) for a in range(1, 100) for b in range(1, 100)]
    draw.shuffle(pairs)
    for number, (a, b) in enumerate(pairs):
        words = (f"{a}+{b}等于多少？", f"{a}加{b}是多少？", f"小明有{a}个苹果，又得到{b}个，现在有多少个？")
        yield chat(draw.choice(words), f"{a + b}。", number < HELD_OUT)


def idioms(known: list[str]) -> Iterator[dict[str, Any]]:
    """To each idiom one that goes on; held out are idioms that are asked, not those that answer."""
    draw = random.Random(2)
    after = defaultdict(list)
    for word in known:
        after[word[0]].append(word)
    asked = [word for word in known if set(after[word[-1]]) - {word}]
    draw.shuffle(asked)
    for number, word in enumerate(asked):
        answer = draw.choice(sorted(set(after[word[-1]]) - {word}))
        yield chat(f"成语接龙：{word}", answer, number < HELD_OUT)


def poems(data: Path) -> Iterator[dict[str, Any]]:
    """Quatrains of five or seven characters a line, by their titles."""
    draw, found = random.Random(3), {}
    for document in read_documents(CorpusChoice(path=str(data / "pretrain" / "poetry_chinese_poetry.jsonl.zst"))):
        title, _, rest = document.text.partition("\n")
        body = rest.partition("\n")[2].replace("\n", "")
        halves = [half for half in re.split("[，。？！]", body) if half]
        if len(halves) == 4 and re.fullmatch(r"[\u4e00-\u9fff]{2,8}", title) and len(set(map(len, halves))) == 1 \
                and len(halves[0]) in (5, 7) and re.fullmatch(r"[\u4e00-\u9fff，。？！]+", body):  # fmt: skip
            found[title] = chat(
                f"写一首{'五' if len(halves[0]) == 5 else '七'}言绝句，题目是《{title}》。", body, False
            )
    made = list(found.values())
    draw.shuffle(made)
    for number, one in enumerate(made):
        yield {**one, "held_out": number < HELD_OUT}


def write(path: Path, records: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    print(path, sum(1 for _ in path.open(encoding="utf-8")), "records")


# ── starts ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def make(work: Path, data: Path, arguments: argparse.Namespace) -> None:
    """Texts and prompts, prepared; what is there already is left."""
    small = arguments.small
    work.mkdir(parents=True, exist_ok=True)
    known = sorted(known_idioms(None))
    (work / "idioms.txt").write_text("\n".join(known), "utf-8")
    random.Random(4).shuffle(known)
    write(work / "sums.jsonl", sums())
    write(work / "idioms.jsonl", idioms(known))
    write(work / "poems.jsonl", poems(data))
    write(work / "words.jsonl", ({"text": "，".join(known[i : i + 8]) + "。"} for i in range(0, len(known), 8)))
    texts = [f"{{path: {data}/pretrain/{name}.jsonl.zst, max_documents: {most // 10 if small else most}}}"
             for name, most in TEXTS.items()]  # fmt: skip
    own = [f"{{path: {work}/{name}.jsonl, kind: chat}}" for name in REWARDS]
    if not (work / "tokenizer" / "tokenizer.json").is_file():
        few = [re.sub(r"_documents: (\d+)", lambda found: f"_documents: {min(int(found[1]), 2000)}", text)
               for text in texts]  # fmt: skip
        make_tokenizer(load_recipe(TokenizerRecipe, None, [
            f"out={work}/tokenizer", "source.kind=train", f"source.vocab_size={3000 if small else 8000}",
            "source.digits=1", f"source.corpora=[{', '.join([*few, *own])}]"]))  # fmt: skip
    for name, corpora in {"texts": [*texts, f"{{path: {work}/words.jsonl}}"], "chats": own}.items():
        if not (work / name / "manifest.json").is_file():
            prepare(load_recipe(PrepareRecipe, None, [f"out={work}/{name}", f"tokenizer={work}/tokenizer",
                    f"corpora=[{', '.join(corpora)}]", "validation=0.01"]))  # fmt: skip


def start(work: Path, task: str, arguments: argparse.Namespace) -> None:
    """The base, which knows general texts, verse and idioms, and a start that answers a task now and then."""
    small = arguments.small
    weights = "{poetry_chinese_poetry: 0.35, books_modern_pd: 0.25, news_xwlb: 0.1, wiki_zh_sample: 0.05, " \
        "laws_cn: 0.1, words: 0.15}"  # fmt: skip
    learn(work / "base", f"data.path={work}/texts", f"data.weights={weights}",
          f"init.model={SMALL if small else SHAPE}",
          f"plan.steps={arguments.base_steps or (30 if small else 3000)}", "plan.context=128",
          f"plan.micro_batch_size={8 if small else 128}")  # fmt: skip
    learn(work / f"start-{task}", f"data.path={work}/chats", f"data.weights={{{task}: 1}}",
          f"init={{kind: from, path: {work}/base}}", f"plan.steps={arguments.sft_steps or (30 if small else 300)}",
          "plan.context=128", f"plan.micro_batch_size={8 if small else 32}", "optimizer={kind: adamw, lr: 0.001}"
          )  # fmt: skip


def learn(out: Path, *words: str) -> None:
    if not (out / "run.json").is_file() or json.loads((out / "run.json").read_text())["status"] != "finished":
        train(load_recipe(TrainRecipe, None, [f"out={out}", "plan.validate_every=1000000", "plan.save_every=1000000",
                                              "plan.log_every=50", "plan.guard.spike=null", *words]))  # fmt: skip


# ── one training ───────────────────────────────────────────────────────────────────────────────────────────────────
def recipe_of(work: Path, task: str, method: str, seed: int, arguments: argparse.Namespace) -> TrainRecipe:
    answers, steps = (32, 4) if arguments.small else (512, arguments.steps)
    return load_recipe(TrainRecipe, None, [
        f"out={work}/runs/{task}-{method}-{seed}", f"data.path={work}/chats", f"data.weights={{{task}: 1}}",
        f"init={{kind: from, path: {work}/start-{task}}}", f"objective={METHODS[method]}",
        f"rewards={REWARDS[task].replace('WORK', str(work))}",
        f"rollouts={{group: {4 if arguments.small else 16}, max_tokens: {ANSWER[task]}, passes: {arguments.passes}, "
        f"redraws: {2 if method == 'dapo' else 0}, validation_prompts: {HELD_OUT}, general: {work}/texts}}",
        f"plan={{steps: {steps}, micro_batch_size: {answers}, log_every: 1, validate_every: 1000000, "
        "save_every: 1000000, guard: {spike: null}}", f"optimizer={{kind: adamw, lr: {arguments.lr}, weight_decay: 0}}",
        "schedule={kind: cosine, warmup: 0.05, final: 0.1}", f"seed={seed}"])  # fmt: skip


def started(work: Path, recipe: TrainRecipe) -> dict[str, Any]:
    """The start's figures, as the training's own validation finds them."""
    ready = load(work / f"start-{next(iter(recipe.data.weights or {}))}", pick_device("auto"))
    validate = reward_validator(recipe, Prepared.open(recipe.data.path), ready.tokenizer,
                                ready.model.config.max_position_embeddings)  # fmt: skip
    return validate(ready.model)["answers"].figures


def measured(work: Path, task: str, method: str, seed: int, arguments: argparse.Namespace,
             before: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    recipe = recipe_of(work, task, method, seed, arguments)
    shutil.rmtree(recipe.out, ignore_errors=True)
    train(recipe)
    found = [json.loads(line) for line in (recipe.out / "metrics.jsonl").read_text("utf-8").split("\n")[:-1]]
    steps = [line for line in found if line["kind"] == "train"]
    after = next(line for line in reversed(found) if line["kind"] == "validation")
    rollouts = steps[:: arguments.passes]  # one step a pass
    spent = {name: sum(line[f"seconds_{name}"] for line in rollouts) for name in ("sampling", "rewarding", "scoring")}
    total = json.loads((recipe.out / "run.json").read_text("utf-8"))["summary"]["seconds"]
    answers = recipe.plan.rows * len(rollouts)
    return {
        "task": task, "method": method, "seed": seed, "steps": len(steps), "answers": answers, "lr": arguments.lr,
        "passes": arguments.passes, "small": arguments.small,
        "start": before, "end": {k: v for k, v in after.items() if k not in ("step", "kind", "corpora")},
        "curve": [round(line["reward"], 4) for line in steps], "seconds": total,
        "share": {**{name: round(took / total, 4) for name, took in spent.items()},
                  "updating": round(1 - sum(spent.values()) / total, 4)},
        "answers_per_second": round(answers / total, 1),
        "answer_tokens_per_second_of_sampling": round(
            sum(line["answer_tokens"] for line in rollouts) * recipe.plan.rows / max(1e-9, spent["sampling"]), 1),
        "engine_gap": max(line["engine_gap"] for line in steps), "kl": steps[-1].get("kl"),
        "entropy": [round(steps[i]["entropy"], 4) for i in (0, -1)],
    }  # fmt: skip


def summary() -> None:
    found = [line for line in lines(FILE) if not line["small"]]
    rows = [["task", "method", "seeds", "start", "end", "bits before", "bits after", "answers/s"]]
    for (task, method), group in itertools.groupby(sorted(found, key=lambda x: (x["task"], x["method"])),
                                                   lambda x: (x["task"], x["method"])):  # fmt: skip
        each, key = list(group), MAIN[task]
        ends = " ".join(f"{line['end'][key]:.3f}" for line in each)
        bits = [f"{sum(line[when]['bits_per_byte'] for line in each) / len(each):.4f}" for when in ("start", "end")]
        rate = sum(line["answers_per_second"] for line in each) / len(each)
        rows.append([task, method, str(len(each)), f"{each[0]['start'][key]:.3f}", ends, *bits, f"{rate:,.0f}"])
    table(rows[0], rows[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--make", type=Path, metavar="DATA")
    parser.add_argument("--tasks", nargs="+", choices=REWARDS, default=[*REWARDS])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--base-steps", type=int)
    parser.add_argument("--sft-steps", type=int)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if arguments.summary or arguments.work is None:
        return summary()
    work = arguments.work.resolve()
    if arguments.make:
        return make(work, arguments.make.resolve(), arguments)
    keys = ("task", "method", "seed", "lr", "passes", "small")
    done = {tuple(line[key] for key in keys) for line in lines(FILE)}
    befores: dict[str, dict[str, Any]] = {}
    for task, method, seed in itertools.product(arguments.tasks, arguments.methods, arguments.seeds):
        if (task, method, seed, arguments.lr, arguments.passes, arguments.small) in done:
            continue
        if task not in befores:
            start(work, task, arguments)
            befores[task] = started(work, recipe_of(work, task, method, seed, arguments))
        found = measured(work, task, method, seed, arguments, befores[task])
        key = MAIN[task]
        print(f"{task} {method} seed {seed}: {key} {found['start'][key]:.3f} → {found['end'][key]:.3f}, bits per byte "
              f"{found['start']['bits_per_byte']:.4f} → {found['end']['bits_per_byte']:.4f}, {found['seconds']} s, "
              f"{found['share']}", flush=True)  # fmt: skip
        append(FILE, {**found, **facts(torch.device(pick_device("auto")))})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
