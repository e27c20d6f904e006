"""Is the quickstart's split honest, and does each stage earn its time? Trains what the quickstart trains, four ways.

    python bench/quickstart_controls.py OUT [--size cpu] [--seeds 0 1 2] [--only whole shuffled] [--steps N]

whole       the quickstart as it is
shuffled    the answers of each skill dealt out to other questions of it: must end at chance
no-base     without pretraining, its steps given to SFT
no-sft      without SFT, asked right after pretraining

One line of JSON for each (way, seed): exact answers by skill, trained and unseen. OUT/data holds the tokenizer and the
prepared corpora; taken to another machine, it is used as it is. `--steps`: of each training, to try things out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from babyllama.commands.evaluate import EvaluateRecipe
from babyllama.commands.evaluate import main as evaluate
from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.commands.tokenizer import TokenizerRecipe
from babyllama.commands.tokenizer import main as learn_tokenizer
from babyllama.commands.train import TrainRecipe
from babyllama.commands.train import main as train
from babyllama.data.sources.known import SKILLS
from babyllama.recipe import load_recipe
from babyllama.train.plan import Plan

WAYS = ("whole", "shuffled", "no-base", "no-sft")


def main() -> None:
    """Run what is asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    data = _data(options.out, options.size)
    if "shuffled" in options.only:
        _shuffled(data)
    for way in options.only:
        for seed in options.seeds:
            found = _way(way, seed, options.out / f"{way}-{seed}", data, options.size, options.steps)
            print(json.dumps({"way": way, "seed": seed, **found}), flush=True)


def _data(out: Path, size: str) -> Path:
    """Tokenizer, corpus and chats."""
    data = out / "data"
    tokenizer = f"tokenizer={data / 'tokenizer'}"
    learn_tokenizer(load_recipe(TokenizerRecipe, f"quickstart/{size}/tokenizer", [f"out={data / 'tokenizer'}"]))
    for name in ("corpus", "general-chats", "medical-chats"):
        prepare(load_recipe(PrepareRecipe, f"quickstart/{size}/{name}", [f"out={data / name}", tokenizer]))
    return data


def _shuffled(data: Path) -> None:
    """Chats in which the answers of each skill are dealt out anew."""
    files = data / "shuffled"
    files.mkdir(exist_ok=True)
    for skill in SKILLS:
        examples = list(skill.examples(3000, 1, held_out=False))
        answers = [example.answer for example in examples]
        Random(0).shuffle(answers)
        lines = [{"question": e.passage + e.question, "answer": a} for e, a in zip(examples, answers, strict=True)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (files / f"{skill.name}.jsonl").write_text(text, "utf-8")
    corpora = ",".join(f"{{path: {files / skill.name}.jsonl}}" for skill in SKILLS)
    prepare(load_recipe(PrepareRecipe, None, [f"out={data / 'shuffled-chats'}", f"tokenizer={data / 'tokenizer'}",
                                              f"corpora=[{corpora},{{name: everyday}}]"]))  # fmt: skip


def _way(way: str, seed: int, out: Path, data: Path, size: str, steps: int | None) -> dict[str, dict[str, float]]:
    def recipe_of(name: str, *words: str) -> TrainRecipe:
        return load_recipe(TrainRecipe, f"quickstart/{size}/{name}", words)

    def run(name: str, chats: str, *words: str) -> None:
        fewer = [f"plan.steps={steps}"] if steps else []
        train(recipe_of(name, f"out={out / name}", f"data.path={data / chats}", f"seed={seed}", *words, *fewer))

    chats = "shuffled-chats" if way == "shuffled" else "general-chats"
    last = "general"
    if way != "no-base":
        run("base", "corpus")
    if way == "no-base":
        new, taught = recipe_of("base"), recipe_of("general")
        start = json.dumps(new.init.model_dump(mode="json", exclude_none=True))
        as_many = (new.plan.steps or 0) * _tokens(new.plan) // _tokens(taught.plan)
        run("general", chats, f"init={start}", f"plan.steps={(taught.plan.steps or 0) + as_many}")
    elif way == "no-sft":
        last = "base"
    else:
        run("general", chats, f"init.path={out / 'base'}")
    if way == "whole":
        run("medical", "medical-chats", f"init.path={out / 'general'}")
        last = "medical"
    found = {}
    for name in ("trained", "unseen"):
        recipe = load_recipe(EvaluateRecipe, f"quickstart/{size}/evaluate-{name}",
                             [f"model={out / last}", f"data={data / 'medical-chats'}"])  # fmt: skip
        evaluate(recipe)
        answers = json.loads(recipe.file.read_text("utf-8"))["answers"]
        found[name] = {label: round(figures["exact"], 3) for label, figures in answers.items() if figures["asked"]}
    return found


def _tokens(plan: Plan) -> int:
    """Of one step."""
    return (plan.context or 0) * plan.micro_batch_size * plan.accumulate


if __name__ == "__main__":
    main()
