"""Tests put to models that have learned nothing: how often is one called above chance? Five of a hundred may be.

    python bench/chance.py --tokenizer runs/quickstart/tokenizer --seeds 100 --first 9000
    python bench/chance.py --tokenizer runs/quickstart/tokenizer --tasks ceval,cmmlu --task_data exams

Each seed draws a model and, of tests that are made here, another set of items. Published tests need their files.
Appends one line to bench/results/chance.jsonl.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from record import RESULTS, append, facts

from babyllama.evals.choices import marked
from babyllama.evals.statistics import LEVEL
from babyllama.evals.suites import asked_of, result
from babyllama.evals.tasks import TASKS, TaskChoice
from babyllama.model.config import ModelConfig
from babyllama.model.transformer import Transformer, initialise
from babyllama.tokenizer.tokenizer import Tokenizer

SHAPE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
         "num_key_value_heads": 6, "max_position_embeddings": 512}  # fmt: skip


def choices(names: list[str], seed: int, scorings: list[str], most: int | None) -> list[TaskChoice]:
    """A task of each name; a published exam in all scorings."""
    settings = {"seed": seed, "max_items": most}
    return [TaskChoice.model_validate({"name": name, "scoring": scoring, **settings}) for name in names
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
    parser.add_argument("--untied", action="store_true", help="the head has weights of its own")
    asked = parser.parse_args()
    tokenizer = Tokenizer.load(asked.tokenizer)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, tie_word_embeddings=not asked.untied, **SHAPE)
    names = asked.tasks.split(",") if asked.tasks else [name for name, task in TASKS.items() if task.read is None]
    called, scores = defaultdict(int), defaultdict(list)
    for seed in range(asked.first, asked.first + asked.seeds):
        model = Transformer(config)
        initialise(model, seed)
        model.eval().requires_grad_(False)
        for choice in choices(names, seed, asked.scorings.split(","), asked.max_items):
            items = choice.items(asked.task_data)
            context, subjects = config.max_position_embeddings, choice.task.subjects or {}
            ready = asked_of(tokenizer, context, choice.form, items, subjects, choice.called)
            found = result(list(marked(model, ready, tokenizer.vocab_size)), choice.task.normalise, 0)
            for normalise, figures in found["by_normalisation"].items():
                called[f"{choice.called}/{normalise}"] += figures["p"] < LEVEL
                scores[f"{choice.called}/{normalise}"].append(figures["accuracy"] - figures["chance"])
        print(seed, dict(called), flush=True)
    means = {name: sum(held) / len(held) for name, held in scores.items()}
    for name, count in called.items():
        print(f"{name:40} {count:3} of {asked.seeds}   {means[name]:+.2%} beside chance")
    append(RESULTS / "chance.jsonl", {**facts(torch.device("cpu")), "vocab_size": tokenizer.vocab_size,
                                      "tied": not asked.untied, "seeds": asked.seeds, "above_chance": dict(called),
                                      "beside_chance": {name: round(mean, 4) for name, mean in means.items()}
                                      })  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
