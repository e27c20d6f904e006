"""A small model taught by a large one, and alone: the same student, in equal seconds of a GPU and in equal steps.

    python bench/distillation.py WORK --make                     the quickstart's tokenizer, texts and chats
    python bench/distillation.py WORK --start teacher | 1 | 2 | 3     one start, each a process of its own
    python bench/distillation.py WORK --calibrate                seconds of a step of each way, on a GPU that is idle
    python bench/distillation.py WORK [--ways sft forward] [--seeds 1 2 3] [--seconds 4]
    python bench/distillation.py --summary [--figure docs/images/distillation.svg]

WORK is made. The teacher goes through pretraining and SFT of the quickstart for a GPU; what that took is in each line.
Each seed's student is pretrained as the quickstart's and then learns the questions of eleven skills for --seconds:

sft         from the data's own answers
few         the same for as many steps as `forward` has
forward, reverse, jsd    from the data's texts by the teacher's probabilities, in three divergences
gkd         half of the time sft, then from its own answers by the teacher's probabilities (reverse)
base-forward    not SFT but pretraining, from nothing, by the pretrained teacher, in the seconds of the student's own

A line of distillation.jsonl a training: exact answers to held-out questions by skill, bits per byte of held-out texts.
Steps are seconds / seconds of a step as calibrated, so trainings may share a GPU. --small: to try it on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, append, facts, lines, table

from babyllama.atomic import write_json
from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.commands.tokenizer import TokenizerRecipe
from babyllama.commands.tokenizer import main as make_tokenizer
from babyllama.commands.train import main as train
from babyllama.commands.train_recipe import TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources.known import SKILLS
from babyllama.evals.answers import AnswerSums, ask, chat_questions, compared
from babyllama.evals.bits import measure
from babyllama.infer.engine import Engine
from babyllama.load import load, pick_device
from babyllama.recipe import load_recipe
from babyllama.train.validation import LossSums

FILE = RESULTS / "distillation.jsonl"
WAYS = ("sft", "few", "forward", "reverse", "jsd", "gkd", "base-forward")
TEACHER = "{preset: tiny, hidden_size: 768, num_attention_heads: 12, num_hidden_layers: 8}"
STUDENT = "{preset: tiny, hidden_size: 256, num_attention_heads: 4, num_hidden_layers: 4}"
TRIED = "{preset: tiny, hidden_size: 64, num_attention_heads: 2, num_hidden_layers: 2}"  # with --small
TAUGHT = "objective={{kind: distil, alpha: 0, divergence: {divergence}, teacher: {teacher}}}"
RARE = ("plan.validate_every=1000000", "plan.sample_every=1000000", "plan.save_every=1000000",
        "plan.validation_tokens=2000", "samples.prompts=[]", "plan.guard.spike=null")  # fmt: skip
START_STEPS = 800  # of a student's pretraining
WARM, COUNTED = 20, 40  # steps of a calibration: left out, and measured


def make(work: Path, small: bool) -> None:
    """What the quickstart for a GPU prepares, but for what has to be downloaded."""
    fewer = 40 if small else 1
    micro = f"{{name: microworld, max_documents: {50_000 // fewer}}}"
    skills = ", ".join(f"{{name: {skill.name}, max_documents: {8400 // fewer}}}" for skill in SKILLS)
    few = "{name: microworld, max_documents: 6000}, {name: everyday}"
    if not (work / "tokenizer" / "tokenizer.json").is_file():
        make_tokenizer(load_recipe(TokenizerRecipe, "quickstart/gpu/tokenizer", [
            f"out={work}/tokenizer", f"source.corpora=[{few}]"]))  # fmt: skip
    for name, corpora in (("corpus", f"{micro}, {{name: everyday_text}}"),
                          ("general-chats", f"{skills}, {{name: everyday}}")):  # fmt: skip
        if not (work / name / "manifest.json").is_file():
            prepare(load_recipe(PrepareRecipe, f"quickstart/gpu/{name}", [
                f"out={work}/{name}", f"tokenizer={work}/tokenizer", f"corpora=[{corpora}]"]))  # fmt: skip


# ── trainings ──────────────────────────────────────────────────────────────────────────────────────────────────────
def recipe_of(work: Path, way: str, out: Path, seed: int, steps: int, small: bool) -> TrainRecipe:
    """One training of a way; `gkd` is its second half. Bases: `base`, `base-forward`; else SFT from the seed's base."""
    base, own = way.startswith("base"), way == "gkd"
    words = [f"out={out}", f"data.path={work}/{'corpus' if base else 'general-chats'}", f"seed={seed}", *RARE,
             f"plan.steps={steps}", f"plan.log_every={1 if small else 10}"]  # fmt: skip
    if base:
        words += [f"init.model={TRIED if small else STUDENT}", "data.weights={microworld: 0.75, everyday_text: 0.25}"]
    else:
        words.append(f"init.path={work}/{'runs' if own else 'starts'}/{f'half-{seed}' if own else f'base-{seed}'}")
    if way not in ("base", "sft", "few"):
        divergence = {"base-forward": "forward", "gkd": "reverse"}.get(way, way)
        words.append(TAUGHT.format(divergence=divergence, teacher=work / "teacher" / ("base" if base else "general")))
    if own:
        words += ["rollouts={group: 1, max_tokens: 48, check_every: 1000000, validation_prompts: 1}",
                  "optimizer={kind: adamw, lr: 0.0003, weight_decay: 0}", "schedule={kind: cosine}",
                  "plan.context=null", "plan.micro_batch_size=256"]  # fmt: skip
    if small:
        words.append(f"plan.micro_batch_size={8 if own else 4}")
    return load_recipe(TrainRecipe, f"quickstart/gpu/{'base' if base else 'general'}", words)


def trained(recipe: TrainRecipe) -> float:
    """Seconds of training; one that is finished is left."""
    file = recipe.out / "run.json"
    if not file.is_file() or json.loads(file.read_text("utf-8"))["status"] != "finished":
        train(recipe)
    return float(json.loads(file.read_text("utf-8"))["summary"]["seconds"])


def start(work: Path, name: str, arguments: argparse.Namespace) -> None:
    """The teacher, or one seed's student after pretraining."""
    steps = 6 if arguments.small else START_STEPS
    if name != "teacher":
        trained(recipe_of(work, "base", work / "starts" / f"base-{name}", int(name), steps, arguments.small))
        return
    folder, spent = work / "teacher", 0.0
    fewer = ["plan.micro_batch_size=4"] if arguments.small else []
    for stage, words in (("base", [f"data.path={work}/corpus", f"init.model={TRIED if arguments.small else TEACHER}",
                                   "data.weights={microworld: 0.75, everyday_text: 0.25}"]),
                         ("general", [f"data.path={work}/general-chats", f"init.path={folder}/base"])):  # fmt: skip
        spent += trained(load_recipe(TrainRecipe, f"quickstart/gpu/{stage}", [
            f"out={folder}/{stage}", f"plan.steps={steps}", *words, *RARE, *fewer, "optimizer.lr=0.006",
            "optimizer.adam_lr=0.003"]))  # fmt: skip
    write_json(folder / "found.json", {**asked(work, folder / "general", arguments), "seconds": round(spent, 1)})


def calibrate(work: Path, arguments: argparse.Namespace) -> None:
    """Seconds of a step of every way, compiling left out, one after the other; what rates.json has of others stays."""
    file = work / "rates.json"
    rates: dict[str, float] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    warm, counted = (2, 2) if arguments.small else (WARM, COUNTED)
    bases = ["base"] if "base-forward" in arguments.ways else []
    for way in (*bases, *(way for way in arguments.ways if way != "few")):
        out = work / "calibration" / way
        shutil.rmtree(out, ignore_errors=True)
        if way == "gkd":  # its answers are as long as they will be
            halved(work, 1, rates, arguments)
        train(recipe_of(work, way, out, 1, warm + counted, arguments.small))
        told = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").split("\n")[:-1]]
        found = {line["step"]: line["seconds"] for line in told if line["kind"] == "train"}
        rates[way] = (found[warm + counted] - found[warm]) / counted
        print(f"{way}: {rates[way] * 1000:.2f} ms a step", flush=True)
        shutil.rmtree(out)
    write_json(file, rates)


def halved(work: Path, seed: int, rates: dict[str, float], arguments: argparse.Namespace) -> float:
    """Half of the time SFT; its seconds."""
    steps = max(2, round(arguments.seconds / 2 / rates["sft"]))
    return trained(recipe_of(work, "sft", work / "runs" / f"half-{seed}", seed, steps, arguments.small))


def measured(work: Path, way: str, seed: int, rates: dict[str, float], arguments: argparse.Namespace) -> dict[str, Any]:
    """One line."""
    seconds = arguments.seconds / 2 if way == "gkd" else arguments.seconds
    if way == "base-forward":
        seconds = START_STEPS * rates["base"]
    rate = rates["forward" if way == "few" else way]
    steps = 2 if arguments.small else max(1, round(seconds / rate))
    spent = halved(work, seed, rates, arguments) if way == "gkd" else 0.0
    recipe = recipe_of(work, way, work / "runs" / f"{way}-{seed}", seed, steps, arguments.small)
    shutil.rmtree(recipe.out, ignore_errors=True)
    spent += trained(recipe)
    found = asked(work, recipe.out, arguments)
    if way == "base-forward":
        found = {"base": asked(work, work / "starts" / f"base-{seed}", arguments)["bits"], "bits": found["bits"]}
    shutil.rmtree(recipe.out)
    return {
        "way": way, "seed": seed, "seconds": arguments.seconds, "small": arguments.small, "steps": steps,
        "rate": round(rate, 6), "equal_seconds": round(steps * (rates["sft"] if way == "few" else rate), 2),
        "took": round(spent, 1), **found, "teacher": json.loads((work / "teacher" / "found.json").read_text("utf-8")),
    }  # fmt: skip


def asked(work: Path, run: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Exact answers to held-out questions by skill and in the mean; bits per byte of held-out texts and answers."""
    ready = load(run, pick_device("auto"))
    engine, exact, bits = Engine(ready.model, ready.tokenizer.vocab_size), {}, {}
    for name in ("corpus", "general-chats"):
        prepared = Prepared.open(work / name)
        sums = measure(ready.model, prepared, prepared.corpora, "val", 128, 64, 20_000, True)
        bits[name] = round(sum((one for _, one in sums), LossSums()).bits_per_byte or 0.0, 4)
    tokenizer = ready.tokenizer.with_template(prepared.manifest["chat_template"])
    for label, questions in chat_questions(prepared, prepared.corpora, "val", arguments.questions, tokenizer):
        found = sum(map(compared, ask(engine, tokenizer, questions, 64, 100)), AnswerSums())
        exact[label] = round(found.exact / max(1, found.asked), 3)
    return {"exact": exact, "mean": round(statistics.mean(exact.values()), 4), "bits": bits}


# ── results ────────────────────────────────────────────────────────────────────────────────────────────────────────
def summary() -> None:
    found = [line for line in lines(FILE) if not line["small"]]
    rows = []
    for way, given in sorted(
        {(line["way"], line["seconds"]) for line in found}, key=lambda key: (WAYS.index(key[0]), key[1])
    ):
        some = [line for line in found if (line["way"], line["seconds"]) == (way, given)]
        steps, seconds = some[-1]["steps"], some[-1]["equal_seconds"]
        if way == "base-forward":
            bits = " ".join(f"{line['base']['corpus']:.4f} → {line['bits']['corpus']:.4f}" for line in some)
            rows.append([way, len(some), steps, seconds, None, None, None, bits])
            continue
        places = statistics.mean(line["exact"]["places"] for line in some)
        bits = [statistics.mean(line["bits"][name] for line in some) for name in ("general-chats", "corpus")]
        rows.append([way, len(some), steps, seconds, " ".join(f"{line['mean']:.3f}" for line in some), f"{places:.3f}",
                     f"{bits[0]:.4f}", f"{bits[1]:.4f}"])  # fmt: skip
    table(["way", "seeds", "steps", "GPU seconds", "exact, mean of skills", "places", "bits a byte: answers",
           "of texts"], rows)  # fmt: skip
    if found:
        teacher = found[-1]["teacher"]
        print(f"teacher: exact {teacher['mean']}, bits {teacher['bits']}, {teacher['seconds']} s")


def draw(path: Path, given: float) -> None:
    """Exact answers of each skill by way in these seconds, means over seeds, every seed's mean as a point."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "babyllama"
    from matplotlib import pyplot

    found = [line for line in lines(FILE) if not line["small"] and "exact" in line and line["seconds"] == given]
    skills = list(found[0]["exact"])
    ways = [way for way in WAYS if any(line["way"] == way for line in found)]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 3.6), layout="constrained", width_ratios=(1, 3))
    for number, way in enumerate(ways):
        some = [line for line in found if line["way"] == way]
        left.plot([number] * len(some), [line["mean"] for line in some], "o", color=f"C{number}")
        height = [statistics.mean(line["exact"][skill] for line in some) for skill in skills]
        places = [place + number / (len(ways) + 1) for place in range(len(skills))]
        right.bar(places, height, 1 / (len(ways) + 1), color=f"C{number}", label=way)
    left.axhline(found[-1]["teacher"]["mean"], color="grey", lw=1, ls="--")
    left.set_xticks(range(len(ways)), ways, fontsize=8)
    left.set_title("exact, mean of skills (teacher dashed)", fontsize=10)
    right.set_xticks([place + 0.4 for place in range(len(skills))], skills, fontsize=8)
    right.set_title("exact, held-out questions, by skill", fontsize=10)
    right.legend(frameon=False, fontsize=7, ncols=len(ways), loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--start", nargs="+", metavar="NAME", help="teacher, or seeds")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--questions", type=int, default=100, help="of each skill")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    if arguments.figure:
        draw(arguments.figure, arguments.seconds)
    if arguments.summary or arguments.work is None:
        return summary()
    work = arguments.work.resolve()
    if arguments.make:
        return make(work, arguments.small)
    for name in arguments.start or ():
        start(work, name, arguments)
    if arguments.calibrate:
        calibrate(work, arguments)
    if arguments.start or arguments.calibrate:
        return None
    rates = json.loads((work / "rates.json").read_text("utf-8"))
    keys = ("way", "seed", "seconds", "small")
    done = {tuple(line[key] for key in keys) for line in lines(FILE)}
    for way, seed in itertools.product(arguments.ways, arguments.seeds):
        if (way, seed, arguments.seconds, arguments.small) in done:
            continue
        found = measured(work, way, seed, rates, arguments)
        print(f"{way} seed {seed}: {found['steps']} steps, exact {found.get('mean')}, bits {found['bits']}", flush=True)
        append(FILE, {**found, **facts(torch.device(pick_device("auto")))})
    return None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
