"""Reinforcement learning from rewards: one start for each task, then each method from it, through the real verbs.

    python bench/alignment.py WORK --make DATA        texts, prompts and tokenizer (needs the extra data)
    python bench/alignment.py WORK --starts           base and SFT starts alone; with a bare --tasks the base
    python bench/alignment.py WORK                    these where they are missing, then GRPO on every task, three seeds
    python bench/alignment.py WORK --tasks sums poems --methods grpo gspo --seeds 1 --lr 1e-4 --tries 2
    python bench/alignment.py --summary [--figure docs/images/rewards.svg]

DATA is a folder of texts, pretrain/*.jsonl.zst in it, among them poetry_chinese_poetry. WORK is made. Tasks: sums (two
numbers, in words or not), idioms (成语接龙), poems (五言 or 七言绝句 to a title, with rhyme) and tools (an agent's, in
the made-up world). How long a start learns is searched for until its score lies where rewards have something to choose
from. Each training is a line of alignment.jsonl: rewards on held-out prompts, answered greedily, and bits per byte of
general texts, before, on the way and after; where its time went. With --tries 2 one that did not do (`does`) is tried
again at thrice the rate, or at a third where it forgot too much; a rate that did for another seed comes first. What has
its line is not run again, so trainings may run side by side once the starts are there. --small: a model and steps to
try it on a CPU. One file although it is long: the tasks, their starts and their trainings are one experiment.
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
from dataclasses import dataclass
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

FILE = "alignment.jsonl"
TEXTS = {
    "poetry_chinese_poetry": 40_000,
    "books_modern_pd": 130,
    "news_xwlb": 250,
    "wiki_zh_sample": 500,
    "laws_cn": 200,
}  # documents, of which --small takes a tenth
HELD_OUT = 300


@dataclass(frozen=True)
class Task:
    """`main`: the reward that it is about. `tokens`: of an answer, with tools of a turn. A start's score is to lie in
    `start`. A training does where the score rises by `gain` or to 0.8, and bits per byte by 2 % at most. `learned`:
    steps of SFT that the search begins with, of `context` tokens. `rate`, `beta`, `steps`: of RL; `answers` a step.
    `replay`: the share of general texts beside them. `settings`: more of the recipe."""

    rewards: str
    main: str
    tokens: int
    start: tuple[float, float]
    gain: float = 0.3
    learned: int = 200
    context: int = 128
    rate: float = 1e-4
    beta: float = 0.02
    replay: float = 0.0
    temperature: float = 1.0
    steps: int = 120
    answers: int = 512
    group: int = 16
    accumulate: int = 1
    label: str | None = None
    more: str = ""
    settings: tuple[str, ...] = ()


TASKS = {
    "sums": Task("[{kind: number}]", "reward_number", 12, start=(0.35, 0.72), learned=320, rate=2e-4, beta=0.0,
                 steps=600, answers=1024, temperature=0.7),
    "idioms": Task("[{kind: idiom_chain, words: WORK/idioms.txt}, {kind: ends, weight: 0.1}]", "reward_idiom_chain", 8,
                   start=(0.62, 0.78), learned=42, rate=2e-4, beta=0.05, steps=220, answers=256, replay=0.3),
    "poems": Task("[{kind: poem}, {kind: ends, weight: 0.1}, {kind: no_repetition, weight: 0.2}]", "reward_poem", 48,
                  start=(0.3, 0.68), learned=100, rate=2e-4, steps=100, answers=256, replay=0.2),
    "tools": Task("[{kind: exact}]", "reward_exact", 64, start=(0.4, 0.8), gain=0.1, learned=200, context=512,
                  rate=1e-4, beta=0.0, steps=128, answers=1024, accumulate=2, label="tool_questions",
                  more=", tools: {kind: toolworld}",
                  settings=("average={share: 0.5, tau: null}", "schedule={kind: wsd, warmup: 0.1, decay: 0.2}")),
}  # fmt: skip
METHODS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "ppo")
SHAPE = "{preset: tiny, hidden_size: 384, num_hidden_layers: 4, num_attention_heads: 6, num_key_value_heads: 2, " \
        "max_position_embeddings: 512}"  # fmt: skip
SMALL = "{preset: tiny, hidden_size: 96, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, " \
        "max_position_embeddings: 512}"  # fmt: skip
WEIGHTS = "{poetry_chinese_poetry: 0.35, books_modern_pd: 0.25, news_xwlb: 0.1, wiki_zh_sample: 0.05, laws_cn: 0.1, " \
          "words: 0.15}"  # fmt: skip


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
    own = [f"{{path: {work}/{name}.jsonl, kind: chat}}" for name in ("sums", "idioms", "poems")]
    own.append("{name: tool_questions}")
    if not (work / "tokenizer" / "tokenizer.json").is_file():
        few = [re.sub(r"_documents: (\d+)", lambda found: f"_documents: {min(int(found[1]), 2000)}", text)
                 for text in texts]  # fmt: skip
        make_tokenizer(load_recipe(TokenizerRecipe, None, [
            f"out={work}/tokenizer", "source.kind=train", f"source.vocab_size={3000 if small else 8000}",
            f"source.max_alphabet={1500 if small else 5000}", "source.digits=1",
            f"source.corpora=[{', '.join([*few, *own])}]"]))  # fmt: skip
    for name, corpora in {"texts": [*texts, f"{{path: {work}/words.jsonl}}"], "chats": own}.items():
        if not (work / name / "manifest.json").is_file():
            prepare(load_recipe(PrepareRecipe, None, [f"out={work}/{name}", f"tokenizer={work}/tokenizer",
                    f"corpora=[{', '.join(corpora)}]", "validation=0.01"]))  # fmt: skip


def base(work: Path, arguments: argparse.Namespace) -> None:
    """It knows general texts, verse and idioms."""
    small = arguments.small
    learn(work / "base", f"data.path={work}/texts", f"data.weights={WEIGHTS}",
          f"init.model={SMALL if small else SHAPE}",
          f"plan.steps={arguments.base_steps or (30 if small else 3000)}", "plan.context=512",
          f"plan.micro_batch_size={4 if small else 32}")  # fmt: skip


def start(work: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The base after SFT on a task, with general texts between, so that it answers now and then. Its figures, which
    stand beside it when it is done."""
    task, out, figures = TASKS[name], work / f"start-{name}", work / f"start-{name}.json"
    if figures.is_file():
        return json.loads(figures.read_text("utf-8"))
    base(work, arguments)
    low, high, steps, found = 0, 0, arguments.sft_steps or task.learned, {}
    for _ in range(1 if arguments.sft_steps else 7):
        shutil.rmtree(out, ignore_errors=True)
        learn(out, f"data.path={work}/chats", f"data.weights={{{task.label or name}: 1}}",
              f"replay={{path: {work}/texts, share: 0.5, weights: {WEIGHTS}}}",
              f"init={{kind: from, path: {work}/base}}", f"plan.steps={steps}", f"plan.context={task.context}",
              f"plan.micro_batch_size={8 if arguments.small else 32}", "optimizer={kind: adamw, lr: 0.001}",
              "compile=false")  # fmt: skip
        found = {"sft_steps": steps, **started(work, recipe_of(work, name, "grpo", 1, 1e-4, arguments))}
        score = found[task.main]
        print(f"{name}: {steps} steps of SFT, {task.main} {score:.3f}, bits per byte {found['bits_per_byte']:.4f}",
              flush=True)  # fmt: skip
        if task.start[0] <= score <= task.start[1]:
            break
        low, high = (steps, high) if score < task.start[0] else (low, steps)
        steps = (low + high) // 2 if high else 2 * steps
    figures.write_text(json.dumps(found), "utf-8")
    return found


def learn(out: Path, *words: str) -> None:
    if not (out / "run.json").is_file() or json.loads((out / "run.json").read_text())["status"] != "finished":
        train(load_recipe(TrainRecipe, None, [f"out={out}", "plan.validate_every=1000000", "plan.save_every=1000000",
                                              "plan.log_every=50", "plan.guard.spike=null", *words]))  # fmt: skip


# ── one training ───────────────────────────────────────────────────────────────────────────────────────────────────
def beta_of(name: str, arguments: argparse.Namespace) -> float:
    return TASKS[name].beta if arguments.beta is None else arguments.beta


def recipe_of(work: Path, name: str, method: str, seed: int, rate: float, arguments: argparse.Namespace
              ) -> TrainRecipe:  # fmt: skip
    task, small = TASKS[name], arguments.small
    beta, words = beta_of(name, arguments), "".join(re.sub(r"\W+", "_", word) + "-" for word in arguments.words)
    steps, answers = arguments.steps or (4 if small else task.steps), task.answers // (8 if small else 1)
    return load_recipe(TrainRecipe, None, [
        f"out={work}/runs/{name}-{method}-{rate:g}-{beta:g}-{words}{seed}", f"data.path={work}/chats",
        f"data.weights={{{task.label or name}: 1}}",
        *([f"replay={{path: {work}/texts, share: {task.replay}, weights: {WEIGHTS}}}"] if task.replay else []),
        f"init={{kind: from, path: {work}/start-{name}}}", f"objective={{kind: {method}, beta: {beta}}}",
        f"rewards={task.rewards.replace('WORK', str(work))}",
        f"rollouts={{group: {8 if small else task.group}, max_tokens: {task.tokens}, passes: {arguments.passes}, "
        f"temperature: {task.temperature}, "
        f"redraws: {2 if method == 'dapo' else 0}, validation_prompts: {HELD_OUT}, general: {work}/texts{task.more}}}",
        f"plan={{steps: {steps}, micro_batch_size: {answers // task.accumulate}, accumulate: {task.accumulate}, "
        f"log_every: 1, validate_every: {max(1, steps // 5)}, validation_tokens: 32768, save_every: 1000000, "
        "guard: {spike: null}}",
        f"optimizer={{kind: adamw, lr: {rate}, betas: [0.95, 0.99], weight_decay: 0}}",
        "schedule={kind: cosine, warmup: 0.05, final: 0.1}", f"seed={seed}", *task.settings,
        *arguments.words])  # fmt: skip


def started(work: Path, recipe: TrainRecipe) -> dict[str, Any]:
    """The start's figures, as the training's own validation finds them."""
    ready = load(recipe.init.path, pick_device("auto"))
    validate = reward_validator(recipe, Prepared.open(recipe.data.path), ready.tokenizer,
                                ready.model.config.max_position_embeddings)  # fmt: skip
    return validate(ready.model)["answers"].figures


def measured(recipe: TrainRecipe, task: Task, before: dict[str, Any]) -> dict[str, Any]:
    shutil.rmtree(recipe.out, ignore_errors=True)
    train(recipe)
    found = [json.loads(line) for line in (recipe.out / "metrics.jsonl").read_text("utf-8").split("\n")[:-1]]
    steps = [line for line in found if line["kind"] == "train"]
    looks = [{"step": 0, **before}, *(line for line in found if line["kind"] == "validation")]
    passes = recipe.rollouts.passes
    rollouts = steps[::passes]  # one step a pass
    spent = {name: sum(line[f"seconds_{name}"] for line in rollouts) for name in ("sampling", "rewarding", "scoring")}
    total = json.loads((recipe.out / "run.json").read_text("utf-8"))["summary"]["seconds"]
    answers = recipe.plan.rows * len(rollouts)
    drawn = [json.loads(line) for line in (recipe.out / "rollouts.jsonl").read_text("utf-8").split("\n")[:-1]]
    return {
        "steps": len(steps), "answers": answers, "start": before,
        "end": {k: v for k, v in looks[-1].items() if k not in ("step", "kind", "corpora")},
        "looks": [[look["step"], *(round(look[key], 4) for key in (task.main, "bits_per_byte"))] for look in looks],
        "drawn": [round(line["reward"], 4) for line in steps], "seconds": total,
        "share": {**{name: round(took / total, 4) for name, took in spent.items()},
                  "rest": round(1 - sum(spent.values()) / total, 4)},
        "answers_per_second": round(answers / total, 1),
        "answer_tokens_per_second_of_sampling": round(
            sum(line["answer_tokens"] for line in rollouts) * recipe.plan.rows / max(1e-9, spent["sampling"]), 1),
        "engine_gap": max(line["engine_gap"] for line in steps), "kl": steps[-1].get("kl"),
        "entropy": [round(steps[i]["entropy"], 4) for i in (0, -1)],
        "said": [line["answer"] for line in drawn[:: recipe.rollouts.group][-4:]],
    }  # fmt: skip


def forgets(line: dict[str, Any]) -> bool:
    return line["end"]["bits_per_byte"] > 1.02 * line["start"]["bits_per_byte"]


def does(line: dict[str, Any]) -> bool:
    """Whether a training did what it is for."""
    task = TASKS[line["task"]]
    before, after = (line[when][task.main] for when in ("start", "end"))
    return (after - before >= task.gain or after >= 0.8) and not forgets(line)


def by_rates(work: Path, name: str, method: str, seed: int, arguments: argparse.Namespace) -> None:
    """One training by one rate after the other, until one does."""
    file = arguments.results / FILE
    task = TASKS[name]
    own = {"task": name, "method": method, "beta": beta_of(name, arguments), "passes": arguments.passes,
           "small": arguments.small, "words": arguments.words, "model": SMALL if arguments.small else SHAPE,
           "replay": task.replay, "temperature": task.temperature, "rows": task.answers}  # fmt: skip
    told = [line for line in lines(file) if own.items() <= line.items()]
    rate = next((line["lr"] for line in told if does(line)), arguments.lr or TASKS[name].rate)
    for _ in range(arguments.tries):
        line = next((line for line in told if line["seed"] == seed and line["lr"] == rate), None)
        if line is None:
            before, key = start(work, name, arguments), TASKS[name].main
            found = measured(recipe_of(work, name, method, seed, rate, arguments), TASKS[name], before)
            line = {**own, "seed": seed, "lr": rate, **found}
            print(f"{name} {method} seed {seed} rate {rate:g} beta {own['beta']:g}: {key} {before[key]:.3f} → "
                  f"{found['end'][key]:.3f}, bits per byte {before['bits_per_byte']:.4f} → "
                  f"{found['end']['bits_per_byte']:.4f}, {found['seconds']} s, {found['share']}",
                  flush=True)  # fmt: skip
            append(file, {**line, **facts(torch.device(pick_device("auto")))})
        if does(line):
            return
        rate = float(f"{rate / 3 if forgets(line) else rate * 3:.2g}")


def groups_of(file: Path) -> list[list[dict[str, Any]]]:
    """Trainings that differ in their seeds alone, in order."""
    keys = ("task", "method", "lr", "beta", "steps", "replay", "temperature", "rows", "model", "words")

    def setting(line: dict[str, Any]) -> tuple[Any, ...]:
        return *(line[key] for key in keys), line["start"]["sft_steps"]

    found = sorted((line for line in lines(file) if not line["small"]), key=lambda line: (setting(line), line["seed"]))
    return [list(group) for _, group in itertools.groupby(found, setting)]


def summary(file: Path) -> None:
    rows = []
    for each in groups_of(file):
        line, key = each[0], TASKS[each[0]["task"]].main
        bits = [f"{sum(one[when]['bits_per_byte'] for one in each) / len(each):.4f}" for when in ("start", "end")]
        rows.append([line["task"], line["method"], f"{line['lr']:g}", line["steps"], f"{line['beta']:g}",
                     f"{line['replay']:g}", line["start"]["sft_steps"], f"{line['start'][key]:.3f}",
                     " ".join(f"{one['end'][key]:.3f}" for one in each), *bits, sum(map(does, each)),
                     f"{sum(one['answers_per_second'] for one in each) / len(each):,.0f}"])  # fmt: skip
    table(["task", "method", "lr", "steps", "beta", "replay", "sft", "start", "ends", "bits before", "bits after", "do",
           "answers/s"], rows)  # fmt: skip


def draw(path: Path, file: Path) -> None:
    """Of each task's best setting with three seeds: what it is about by step on held-out prompts, a line a seed; bits
    per byte beside the start's, dashed."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "babyllama"
    from matplotlib import pyplot

    best: dict[str, list[dict[str, Any]]] = {}
    for each in groups_of(file):
        name, key = each[0]["task"], TASKS[each[0]["task"]].main

        def worth(group: list[dict[str, Any]], key: str = key) -> tuple[float, float]:
            return sum(map(does, group)), sum(line["end"][key] - line["start"][key] for line in group)

        if len(each) >= 3 and (name not in best or worth(each) > worth(best[name])):
            best[name] = each
    figure, panels = pyplot.subplots(1, len(best), figsize=(2.8 * len(best), 3), layout="constrained", sharey=True,
                                     squeeze=False)  # fmt: skip
    for (name, each), panel in zip(best.items(), panels[0], strict=True):
        for line in each:
            steps, scores, bits = zip(*line["looks"], strict=True)
            panel.plot(steps, scores, color="#1f6c66", label="score" if line is each[0] else None)
            panel.plot(steps, [one / bits[0] for one in bits], "--", color="#b04a1e",
                       label="bits per byte / start's" if line is each[0] else None)  # fmt: skip
        panel.set_title(f"{name}, rate {each[0]['lr']:g}, β {each[0]['beta']:g}", fontsize=10)
        panel.set_xlabel("step")
        panel.set_ylim(0, 1.1)
        panel.grid(alpha=0.3)
    panels[0, -1].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--make", type=Path, metavar="DATA")
    parser.add_argument("--starts", action="store_true")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=[*TASKS])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["grpo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help="default: the task's")
    parser.add_argument("--lr", type=float, help="default: the task's")
    parser.add_argument("--beta", type=float, help="default: the task's")
    parser.add_argument("--tries", type=int, default=1)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--words", nargs="*", default=[], help="more of a training's recipe: rollouts.group=32")
    parser.add_argument("--base-steps", type=int)
    parser.add_argument("--sft-steps", type=int, help="default: as many as are found")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    if arguments.figure:
        draw(arguments.figure, arguments.results / FILE)
    if arguments.summary or arguments.work is None:
        return summary(arguments.results / FILE)
    work = arguments.work.resolve()
    if arguments.make:
        return make(work, arguments.make.resolve(), arguments)
    if arguments.starts:
        base(work, arguments)
        for name in arguments.tasks:
            start(work, name, arguments)
        return None
    for name, method, seed in itertools.product(arguments.tasks, arguments.methods, arguments.seeds):
        by_rates(work, name, method, seed, arguments)
    return None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
