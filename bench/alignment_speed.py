"""GRPO, ours beside TRL's GRPOTrainer: the same model, prompts, reward and group, taking turns in one process.

    python bench/alignment_speed.py QUICKSTART WORK                        runs/quickstart, two threads of the CPU
    python bench/alignment_speed.py QUICKSTART WORK --device cuda --answers 512 --group 16 --steps 20 --rounds 3
    python bench/alignment_speed.py QUICKSTART WORK --make 768 --device cuda       first the little of it that is needed
    python bench/alignment_speed.py --summary

QUICKSTART is the folder of a finished `babyllama quickstart`, or what --make makes of it: sums, and a model of random
weights, whose answers are as long as they may be and teach nothing; WORK is made. Needs `trl` (1.16 was tried) and what
TRL itself needs. Answers a second and shares of time are medians over the steps of all rounds but each round's first, a
ratio the median of the rounds'. TRL samples by transformers' generate, its default; vLLM, which it can use on a GPU, is
not compared. A line a contender and round goes to results/alignment_speed.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, append, facts, forget, lines, table

from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.commands.tokenizer import TokenizerRecipe
from babyllama.commands.tokenizer import main as make_tokenizer
from babyllama.commands.train import main as train
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import DataRecipe
from babyllama.data.streams.prompts import Prompts
from babyllama.export.folder import fill
from babyllama.load import load, pick_device
from babyllama.marking import last_number
from babyllama.recipe import load_recipe
from babyllama.tokenizer.tokenizer import Tokenizer

FILE = RESULTS / "alignment_speed.jsonl"
PARTS = ("sampling", "rewarding", "scoring", "updating")
RATE = 1e-5  # small, so that lengths stay what they are


def make(quickstart: Path, width: int, device: str) -> None:
    """Sums with the quickstart's vocabulary, and a model of `width` that has learned nothing, where they are not."""
    few = "{name: microworld, max_documents: 6000}, {name: everyday}"
    if not (quickstart / "tokenizer" / "tokenizer.json").is_file():
        make_tokenizer(load_recipe(TokenizerRecipe, "quickstart/gpu/tokenizer", [
            f"out={quickstart}/tokenizer", f"source.corpora=[{few}]"]))  # fmt: skip
    if not (quickstart / "general-chats" / "manifest.json").is_file():
        prepare(load_recipe(PrepareRecipe, "quickstart/gpu/general-chats", [
            f"out={quickstart}/general-chats", f"tokenizer={quickstart}/tokenizer",
            "corpora=[{name: sums, max_documents: 4000}]"]))  # fmt: skip
    if not (quickstart / "medical" / "model").is_dir():
        train(load_recipe(TrainRecipe, "quickstart/gpu/general", [
            f"out={quickstart}/medical", f"data.path={quickstart}/general-chats", "data.weights={sums: 1.0}",
            f"init={{kind: new, model: {{preset: tiny, hidden_size: {width}, num_attention_heads: {width // 64}, "
            "num_hidden_layers: 8}}", "plan.steps=1", "plan.micro_batch_size=1", "compile=false", "samples.prompts=[]",
            "plan.validation_tokens=128", f"device={device}"]))  # fmt: skip


def ours(quickstart: Path, work: Path, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Of each step, or of each `every` steps in the mean: seconds, and seconds of its newest rollout's parts."""
    out = work / "ours"
    shutil.rmtree(out, ignore_errors=True)
    recipe = load_recipe(TrainRecipe, None, [
        f"out={out}", f"data.path={quickstart}/general-chats", "data.weights={sums: 1.0}",
        f"init={{kind: from, path: {quickstart}/medical}}", "objective={kind: grpo}", "rewards=[{kind: number}]",
        f"rollouts={{group: {arguments.group}, max_tokens: {arguments.tokens}, validation_prompts: 1, "
        "check_every: 1000000}", f"plan={{steps: {arguments.steps}, micro_batch_size: {arguments.answers}, "
        f"log_every: {arguments.every}, validate_every: 1000000, save_every: 1000000, keep_best: false}}",
        f"optimizer={{kind: adamw, lr: {RATE}, weight_decay: 0}}", f"device={arguments.device}",
        f"precision={precision(arguments)}"])  # fmt: skip
    train(recipe)
    told = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").split("\n")[:-1]]
    steps = [line for line in told if line["kind"] == "train"]
    found = []
    for before, line in itertools.pairwise(steps):
        spent = {name: line[f"seconds_{name}"] for name in PARTS[:3]}
        whole = (line["seconds"] - before["seconds"]) / (line["step"] - before["step"])
        found.append({"seconds": whole, **spent, "updating": whole - sum(spent.values()),
                      "tokens": line["answer_tokens"], "reward": line["reward"]})  # fmt: skip
    return found


class Watch:
    """Seconds in methods of a trainer, since the last step."""

    def __init__(self, trainer: Any) -> None:
        self.spent: dict[str, float] = {}
        for method, name in (("_generate", "sampling"), ("_calculate_rewards", "rewarding"),
                             ("_generate_and_score_completions", "rollout")):  # fmt: skip
            setattr(trainer, method, self._timed(getattr(trainer, method), name))

    def _timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - began

        return call


def theirs(quickstart: Path, work: Path, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """As `ours`."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    found: list[dict[str, float]] = []
    lengths, marks = [], []

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            spent = watch.spent
            parts = {"sampling": spent["sampling"], "rewarding": spent["rewarding"]}
            parts["scoring"] = spent["rollout"] - sum(parts.values())
            whole = now - self.began
            found.append({"seconds": whole, **parts, "updating": whole - sum(parts.values()),
                          "tokens": statistics.mean(lengths), "reward": statistics.mean(marks)})  # fmt: skip
            watch.spent = {}
            lengths.clear()
            marks.clear()
            self.began = now

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

    def number(completions: list[str], reference: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        told = [float(last_number(text) == last_number(wanted))
                for text, wanted in zip(completions, reference, strict=True)]  # fmt: skip
        lengths.extend(map(len, completion_ids))
        marks.extend(told)
        return told

    config = GRPOConfig(
        output_dir=str(work / "trl"), per_device_train_batch_size=arguments.answers, num_generations=arguments.group,
        max_completion_length=arguments.tokens, max_steps=arguments.their_steps or arguments.steps, beta=0.0,
        learning_rate=RATE, weight_decay=0,
        loss_type="grpo", temperature=1.0, top_k=0, report_to=[], save_strategy="no", logging_strategy="no",
        use_cpu=arguments.device == "cpu", bf16=precision(arguments) == "bf16", gradient_checkpointing=False,
        disable_tqdm=True, model_init_kwargs={"dtype": torch.float32})  # fmt: skip
    folder, rows = work / "folder", [{"prompt": prompt, "reference": answer} for prompt, answer, _ in asked(quickstart)]
    trainer = GRPOTrainer(str(folder), reward_funcs=number, args=config, train_dataset=Dataset.from_list(rows),
                          processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[Steps()])  # fmt: skip
    watch = Watch(trainer)
    trainer.train()
    return found[1:]


def precision(arguments: argparse.Namespace) -> str:
    return "bf16" if arguments.device == "cuda" else "fp32"


def asked(quickstart: Path) -> list[tuple[str, str, list[int]]]:
    """Prompts as text with their markers, reference answers, the prompts' tokens: those that ours draws from."""
    prepared, tokenizer = Prepared.open(quickstart / "general-chats"), Tokenizer.load(quickstart / "medical" / "model")
    tokenizer = tokenizer.with_template(prepared.manifest["chat_template"])
    prompts = Prompts(prepared, "train", DataRecipe(path=quickstart / "general-chats", weights={"sums": 1.0}), 80, 1)
    found = prompts.taken(0, prompts.count)
    return [(tokenizer.decode(p.tokens, skip_special=False), tokenizer.decode(p.answer), list(p.tokens)) for p in found]


def export(quickstart: Path, work: Path) -> None:
    """The model as TRL loads it; the prompts must be the same tokens there."""
    from transformers import AutoTokenizer

    ready, folder = load(quickstart / "medical", pick_device("cpu")), work / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fill(folder, ready.model.float(), ready.tokenizer, quickstart / "medical", "a", None, "", None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, _, tokens in asked(quickstart)[:50]:
        assert tokenizer(text)["input_ids"] == tokens, text


def summary() -> None:
    found, rows = lines(FILE), []
    same = ("device", "answers", "group", "clock", "precision", "threads")  # as the newest line
    found = [line for line in found if all(line.get(key) == found[-1].get(key) for key in same)]
    for name in ("ours", "trl"):
        mine = [line for line in found if line["contender"] == name]
        if not mine:
            continue
        shares = [f"{statistics.median(line['share'][part] for line in mine):.0%}" for part in PARTS]
        rate = statistics.median(line["answers_per_second"] for line in mine)
        rows.append([name, str(len(mine)), f"{rate:,.1f}", *shares, f"{mine[-1]['tokens']:.1f}"])
    table(["contender", "rounds", "answers/s", *PARTS, "tokens an answer"], rows)
    rounds = list(zip(*([line["answers_per_second"] for line in found if line["contender"] == name]
                   for name in ("ours", "trl")), strict=False))  # fmt: skip
    if rounds:
        print(f"ours × {statistics.median(a / b for a, b in rounds):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quickstart", type=Path, nargs="?")
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of a CPU")
    parser.add_argument("--answers", type=int, default=64, help="of a step")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, at most")
    parser.add_argument("--steps", type=int, default=6, help="of a round; the first is not counted")
    parser.add_argument("--their-steps", type=int, help="of a round of TRL's, which takes longer; default: as many")
    parser.add_argument("--every", type=int, default=1, help="steps between two lines of ours, each of which waits for "
                        "the device; TRL writes none")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: seconds of all threads of this process, for a machine that others use too",
    )
    parser.add_argument("--make", type=int, metavar="WIDTH", help="make what QUICKSTART lacks, and measure nothing")
    parser.add_argument("--only", choices=("ours", "trl"), help="one of the two, without a ratio")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if arguments.summary or arguments.work is None:
        return summary()
    torch.set_num_threads(arguments.threads)
    if arguments.make:
        return make(arguments.quickstart.resolve(), arguments.make, arguments.device)
    if arguments.clock == "processor":
        time.perf_counter = time.process_time  # what both, and our trainer, measure with
    quickstart, work = arguments.quickstart.resolve(), arguments.work.resolve()
    if arguments.only != "ours":
        export(quickstart, work)
    for turn in range(arguments.rounds):
        for name, contender in (("ours", ours), ("trl", theirs)):
            if arguments.only not in (None, name):
                continue
            steps = contender(quickstart, work, arguments)
            forget()
            middle = {key: statistics.median(step[key] for step in steps) for key in steps[0]}
            whole = sum(step["seconds"] for step in steps)
            line = {
                "contender": name, "round": turn, "answers": arguments.answers, "group": arguments.group,
                "threads": arguments.threads, "clock": arguments.clock,
                "precision": precision(arguments),
                "answers_per_second": round(arguments.answers / middle["seconds"], 2),
                "share": {part: round(sum(step[part] for step in steps) / whole, 4) for part in PARTS},
                "tokens": round(statistics.mean(step["tokens"] for step in steps), 1),
                "reward": round(statistics.mean(step["reward"] for step in steps), 3),
            }  # fmt: skip
            print(json.dumps(line), flush=True)
            append(FILE, {**line, **facts(torch.device(arguments.device))})
    summary()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
