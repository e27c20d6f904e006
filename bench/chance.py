"""Tests put to models that have learned nothing: how often is one called above chance? Five of a hundred may be.

    python bench/chance.py --tokenizer runs/quickstart/tokenizer --seeds 100 --first 9000
    python bench/chance.py --tokenizer runs/quickstart/tokenizer --tasks ceval,cmmlu:dev --task_data exams

Each seed draws a model and, of tests that are made here, another set of items. Published tests need their files; a
split other than their own stands behind a colon. On a CPU as many threads as OMP_NUM_THREADS says read rows.
Appends one line to bench/results/chance.jsonl.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from record import RESULTS, append, facts

from babyllama.evals.choices import Asked, marked
from babyllama.evals.statistics import LEVEL
from babyllama.evals.suites import asked_of, result
from babyllama.evals.tasks import TASKS, TaskChoice
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.tokenizer.tokenizer import Tokenizer

SHAPE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
         "num_key_value_heads": 6}  # fmt: skip


def choices(names: list[str], seed: int, scorings: list[str], most: int | None) -> list[TaskChoice]:
    """A task of each name; a published exam in all scorings."""
    settings = {"seed": seed, "max_items": most}
    split = [name.partition(":")[::2] for name in names]
    return [TaskChoice.model_validate({"name": name, "split": of or None, "scoring": scoring, **settings})
            for name, of in split
            for scoring in (scorings if TASKS[name].form.scoring == "letter" else [None])]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--tasks", help="default: all that are made here")
    parser.add_argument("--task_data", type=Path)
    parser.add_argument("--scorings", default="letter,text,cloze")
    parser.add_argument("--max_items", type=int, help="of a test, always the same; default: all")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--untied", action="store_true", help="the head has weights of its own")
    asked = parser.parse_args()
    tokenizer = Tokenizer.load(asked.tokenizer)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, tie_word_embeddings=not asked.untied,
                         max_position_embeddings=asked.context, **SHAPE)  # fmt: skip
    drawn = [name for name, task in TASKS.items() if task.read is None and not task.free]
    names = asked.tasks.split(",") if asked.tasks else drawn
    called, scores, published = defaultdict(int), defaultdict(list), dict[str, list[Asked]]()

    def ready(choice: TaskChoice) -> list[Asked]:
        """In tokens; published items are the same for every seed."""
        if choice.called in published:
            return published[choice.called]
        items, subjects = choice.items(asked.task_data), choice.task.subjects or {}
        found = asked_of(tokenizer, asked.context, choice.form, items, subjects, choice.called)
        return published.setdefault(choice.called, found) if choice.task.read else found

    for seed in range(asked.first, asked.first + asked.seeds):
        model = Transformer(config)
        initialise(model, seed)
        model.to(asked.device).eval().requires_grad_(False)
        for choice in choices(names, seed, asked.scorings.split(","), asked.max_items):
            done = list(marked(model, ready(choice), tokenizer.vocab_size))
            found = result(done, choice.task.normalise, 0)
            for normalise, figures in found["by_normalisation"].items():
                called[f"{choice.called}/{normalise}"] += figures["p"] < LEVEL
                scores[f"{choice.called}/{normalise}"].append(figures["accuracy"] - figures["chance"])
        print(seed, dict(called), flush=True)
    means = {name: sum(held) / len(held) for name, held in scores.items()}
    for name, count in called.items():
        print(f"{name:40} {count:3} of {asked.seeds}   {means[name]:+.2%} beside chance")
    append(RESULTS / "chance.jsonl", {**facts(torch.device(asked.device)), "vocab_size": tokenizer.vocab_size,
                                      "tied": not asked.untied, "seeds": asked.seeds, "above_chance": dict(called),
                                      "beside_chance": {name: round(mean, 4) for name, mean in means.items()}
                                      })  # fmt: skip


if __name__ == "__main__":
    main()
