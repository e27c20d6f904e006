"""What rewards do to a small model: each method on the quickstart's sums, and a reward that is fooled, with its remedy.

    python bench/pitfalls.py QUICKSTART WORK                    every training, one process, on the CPU
    python bench/pitfalls.py QUICKSTART WORK --only hacked remedied --lr 2e-4 --steps 25
    python bench/pitfalls.py --summary [--figure docs/images/reward-hacking.svg]

QUICKSTART is the folder of a finished `babyllama quickstart` (runs/quickstart). Every training begins at its last model
and answers held-out sums greedily before, on the way and at the end: exact answers, length, share that ends by itself,
bits per byte of general texts. Each is a line of pitfalls.jsonl. `hacked` is rewarded for long answers, as a proxy for
thorough ones, `leashed` the same with a divergence that costs, `remedied` for the right number, length a little and
within a band.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, append, facts, lines, table

from babyllama.commands.reinforcing import reward_validator
from babyllama.commands.train import main as train
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.load import load, pick_device
from babyllama.recipe import load_recipe

FILE = RESULTS / "pitfalls.jsonl"
RIGHT = "[{kind: number}, {kind: ends, weight: 0.1}]"
LONG = "[{kind: length, low: 60, high: 200}]"
BAND = "[{kind: number}, {kind: length, low: 8, high: 40, weight: 0.1}, {kind: ends, weight: 0.1}]"
METHODS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "ppo")
TRAININGS: dict[str, tuple[str, str]] = {  # name → objective, rewards
    **{name: (f"{{kind: {name}, beta: 0.02}}", RIGHT) for name in METHODS},
    "hacked": ("{kind: grpo}", LONG),
    "leashed": ("{kind: grpo, beta: 0.3}", LONG),
    "remedied": ("{kind: grpo, beta: 0.02}", BAND),
}
SHOWN = ("reward", "exact", "answer_tokens", "ended", "bits_per_byte")


def recipe_of(quickstart: Path, work: Path, name: str, arguments: argparse.Namespace) -> TrainRecipe:
    objective, rewards = TRAININGS[name]
    return load_recipe(TrainRecipe, None, [
        f"out={work}/{name}", f"data.path={quickstart}/general-chats", "data.weights={sums: 1.0}",
        f"init={{kind: from, path: {quickstart}/medical}}", f"objective={objective}", f"rewards={rewards}",
        f"rollouts={{group: 8, max_tokens: 48, validation_prompts: {arguments.prompts}, general: {quickstart}/corpus}}",
        f"plan={{steps: {arguments.steps}, micro_batch_size: {arguments.answers}, log_every: 1, save_every: 1000000, "
        f"validate_every: {max(1, arguments.steps // 5)}, validation_tokens: 4000, guard: {{spike: null}}}}",
        f"optimizer={{kind: adamw, lr: {arguments.lr}, weight_decay: 0}}", "schedule={kind: cosine}", "device=cpu",
        f"seed={arguments.seed}"])  # fmt: skip


def started(recipe: TrainRecipe, quickstart: Path) -> dict[str, Any]:
    """The start's figures, as the training's own validation finds them."""
    ready = load(quickstart / "medical", pick_device("cpu"))
    validate = reward_validator(recipe, Prepared.open(recipe.data.path), ready.tokenizer,
                                ready.model.config.max_position_embeddings)  # fmt: skip
    return validate(ready.model.float())["answers"].figures


def measured(quickstart: Path, work: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    recipe = recipe_of(quickstart, work, name, arguments)
    before = started(recipe, quickstart)
    shutil.rmtree(recipe.out, ignore_errors=True)
    train(recipe)
    told = [json.loads(line) for line in (recipe.out / "metrics.jsonl").read_text("utf-8").split("\n")[:-1]]
    looks = [{"step": 0, **before}, *(line for line in told if line["kind"] == "validation")]
    return {
        "name": name, "steps": arguments.steps, "answers": arguments.answers, "lr": arguments.lr,
        "seed": arguments.seed,
        "looks": [{key: look[key] for key in ("step", *SHOWN)} for look in looks],
        "drawn": [round(line["reward"], 4) for line in told if line["kind"] == "train"],
        "seconds": json.loads((recipe.out / "run.json").read_text("utf-8"))["summary"]["seconds"],
    }  # fmt: skip


def summary() -> None:
    rows = []
    for line in lines(FILE):
        first, last = line["looks"][0], line["looks"][-1]
        rows.append(
            [
                line["name"],
                f"{line['lr']:g}",
                str(line["steps"]),
                *(f"{first[key]:.3f} → {last[key]:.3f}" for key in SHOWN),
                f"{line['seconds']:.0f}",
            ]
        )
    table(["training", "lr", "steps", *SHOWN, "seconds"], rows)


def draw(path: Path) -> None:
    """By step: its own reward, exact answers, length; the higher rate dashed."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "babyllama"
    from matplotlib import pyplot

    colours = {"hacked": "#b04a1e", "leashed": "#8d6b14", "remedied": "#1f6c66"}
    found = [line for line in lines(FILE) if line["name"] in colours]
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    titles = {"reward": "its own reward, held out", "exact": "exact answers, held out",
              "answer_tokens": "tokens of an answer"}  # fmt: skip
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for line in found:
            steps, values = zip(*((look["step"], look[key]) for look in line["looks"]), strict=True)
            panel.plot(steps, values, "--" if line["lr"] > 1e-4 else "-", color=colours[line["name"]],
                       label=f"{line['name']}, rate {line['lr']:g}")  # fmt: skip
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quickstart", type=Path, nargs="?")
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+", choices=TRAININGS, default=[*TRAININGS])
    parser.add_argument("--steps", type=int, default=36)
    parser.add_argument("--answers", type=int, default=64, help="of a step")
    parser.add_argument("--prompts", type=int, default=100, help="held out, answered at a validation")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    if arguments.figure:
        draw(arguments.figure)
    if arguments.summary or arguments.work is None:
        return summary()
    for name in arguments.only:
        found = measured(arguments.quickstart.resolve(), arguments.work.resolve(), name, arguments)
        append(FILE, {**found, **facts(torch.device("cpu"))})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
