"""What a model learns more from in the same time: a text as it is or cleaned, with one vocabulary or another.

    python bench/data_choice.py OUT a.jsonl b.jsonl.zst --way 'raw: {tokenizer: TOK}' \\
        --way 'cleaned: {tokenizer: TOK, clean: zh-web, dedup: [exact, near]}' --judge '{clean: zh-web}' --seconds 30
    python bench/data_choice.py OUT a.jsonl --way 'own: {tokenizer: TOK}' --way 'chatglm2: {tokenizer: tokenizer.model}'
    python bench/data_choice.py OUT a.jsonl --way 'chatglm2: …' --way '16k: …' --surgery OUT/chatglm2/model --seconds 1
    python bench/data_choice.py OUT --summary

A way is a name and keys of `prepare`. One document in 50 is held out of the source files, by its own hash, before
anything is cleaned; prepared by --judge's keys, these are what every way is measured on, in bits per byte, which know
of no vocabulary. A way gets the same seconds of training alone (compiling apart): how many steps that are is tried
out first. OUT keeps what was prepared, the last seed's model of each way, and data_choice.jsonl, a line for each
training; what has its line is not trained again. With --surgery a model is carried over to each way's vocabulary (its
own: a control), measured, trained on for --seconds and measured.

With --prepare it stops before the first training. OUT without OUT/train is then all that a machine needs on which it
lies at the same path, given the same words; the tokenizers excepted.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import yaml
from ours import Stepper, our_stepper
from record import append, facts, lines, table
from time_to_quality import WARM, Clock, Data

from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.data.shards.shards import Prepared
from babyllama.data.sources.corpora import CorpusChoice, read_texts
from babyllama.load import default_device, model_folder, read_model, read_tokenizer
from babyllama.model.checkpoint import save_model
from babyllama.model.config import ModelChoice, ModelConfig
from babyllama.model.embeddings import change_rows
from babyllama.model.transformer import Transformer
from babyllama.recipe import load_recipe
from babyllama.tokenizer.carried import sources
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.optimizers.optim import Muon, Wsd
from babyllama.train.plan import Plan
from babyllama.train.validation import evaluate_loss

HELD_OUT = 50  # one document in so many
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # 97.5 % of t, by how many seeds


class Way:
    """One way to prepare the texts: rows to train on, and the held-out text in its vocabulary."""

    def __init__(self, name: str, keys: dict[str, Any], judge: dict[str, Any], args: argparse.Namespace) -> None:
        self.name, self.args, self.device = name, args, torch.device(args.device or default_device())
        self.tokenizer = Tokenizer.load(Path(keys["tokenizer"]))
        self.train = self._prepared("train", keys)
        self.judged = self._prepared("held", {**judge, "tokenizer": keys["tokenizer"]})
        self.vocab_size: int = self.train.manifest["vocab_size"]
        self._held_out = Data(self.judged, self.device, args.context, args.eval_tokens).held_out

    def _prepared(self, part: str, keys: dict[str, Any]) -> Prepared:
        out = self.args.out / self.name / part
        corpora = [{"path": str(self.args.out / part / name)} for name in sorted(map(stored_as, self.args.texts))]
        words = [f"{key}={json.dumps(value)}" for key, value in {**keys, "corpora": corpora, "validation": 0}.items()]
        prepare(load_recipe(PrepareRecipe, None, [f"out={out}", *words]))
        return Prepared.open(out)

    def stepper(self, config: ModelConfig, steps: int, seed: int, start: Transformer | None = None) -> Stepper:
        args = self.args
        plan = Plan(steps=steps, micro_batch_size=args.rows, context=args.context)
        stream = Data(self.train, self.device, args.context, 0).stream(seed)

        def adjust(model: Transformer) -> None:
            if start is not None:
                model.load_state_dict(start.state_dict())

        return our_stepper(config, stream, plan, args.optimizer, Wsd(decay=args.decay), self.device, seed=seed,
                           adjust=adjust, reuse=True, compiled=self.device.type == "cuda")  # fmt: skip

    def steps(self, config: ModelConfig) -> int:
        """How many fit in the seconds, tried out on a model that is thrown away."""
        stepper = self.stepper(config, 1000, seed=0)
        stepper.warm_up()
        clock = Clock(self.device, stepper.steps)
        clock.steps(WARM + (50 if self.device.type == "cuda" else 3))
        return max(1, round(self.args.seconds / clock.step_s))

    def trained(self, config: ModelConfig, steps: int, seed: int, start: Transformer | None = None
                ) -> tuple[dict[str, Any], Transformer]:  # fmt: skip
        """Figures of one training, and the model that came of it."""
        stepper = self.stepper(config, steps, seed, start)
        stepper.warm_up()
        clock = Clock(self.device, stepper.steps)
        clock.steps(steps)
        tokens = steps * self.args.rows * self.args.context
        have = sum(len(splits["train"]) for splits in self.train.corpora.values())
        model = stepper.model()
        found = {"steps": steps, "tokens": tokens, "epochs": round(tokens / have, 3), "have": have,
                 "seconds": round(clock.seconds, 2)}  # fmt: skip
        return {**found, **self.measured(model)}, model

    def measured(self, model: Transformer) -> dict[str, Any]:
        """Bits per byte of all held-out text, and of each source's."""
        bits = {label: evaluate_loss(model, batches).nll_nats / math.log(2)
                for label, (batches, _) in zip(self.judged.corpora, self._held_out, strict=True)}  # fmt: skip
        sizes = dict(zip(self.judged.corpora, (size for _, size in self._held_out), strict=True))
        by = {label: bits[label] / sizes[label] for label in bits}
        return {"bits_per_byte": sum(bits.values()) / sum(sizes.values()), "by_source": by}

    def keep(self, model: Transformer) -> None:
        """At OUT/NAME/model, for --surgery."""
        folder = self.args.out / self.name / "model"
        folder.mkdir(exist_ok=True)
        save_model(model, folder, self.tokenizer.bos_id, self.tokenizer.eos_id)
        self.tokenizer.save(folder)


def stored_as(source: Path) -> str:
    return f"{source.name.split('.')[0]}.jsonl"


def split(args: argparse.Namespace) -> None:
    """OUT/train and OUT/held, a file for each source."""
    for place in (args.out / "train", args.out / "held"):
        place.mkdir(parents=True, exist_ok=True)
    for source in args.texts:
        name = stored_as(source)
        if (args.out / "held" / name).is_file():
            continue
        with (args.out / "train" / name).open("w") as train, (args.out / "held" / f"{name}.new").open("w") as held:
            for text in read_texts([CorpusChoice(path=str(source), max_documents=args.documents)]):
                chosen = int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) % HELD_OUT == 0
                (held if chosen else train).write(
                    json.dumps({"text": text, "held_out": chosen}, ensure_ascii=False) + "\n"
                )
        (args.out / "held" / f"{name}.new").replace(args.out / "held" / name)


def compare(args: argparse.Namespace, ways: list[Way]) -> None:
    """The ways in turns, seed by seed."""
    configs = {way.name: args.model.model_copy(update={"max_position_embeddings": args.context}).build(way.vocab_size)
               for way in ways}  # fmt: skip
    of_size = {way.vocab_size: way for way in ways}  # one vocabulary, one number of steps
    todo = [(seed, way) for seed in args.seeds for way in ways if not told(args, way, seed)]
    steps = {size: way.steps(configs[way.name]) for size, way in of_size.items() if todo}
    for seed, way in todo:
        found, model = way.trained(configs[way.name], steps[way.vocab_size], seed)
        tell(args, way, seed, found)
        way.keep(model)


def surgery(args: argparse.Namespace, ways: list[Way]) -> None:
    """The model before, right after each change of its vocabulary, and after some training on."""
    folder = model_folder(args.surgery)
    old = read_tokenizer(folder)
    for seed, way in [(seed, way) for seed in args.seeds for way in ways if not told(args, way, seed)]:
        model = read_model(folder).float()
        change_rows(model, sources(old, way.tokenizer))
        model = model.to(way.device)
        right_after = way.measured(model)["bits_per_byte"]
        found, _ = way.trained(model.config, way.steps(model.config), seed, model)
        tell(args, way, seed, {"right_after": right_after, **found})


def key(args: argparse.Namespace, way: Way, seed: int) -> dict[str, Any]:
    """What one training is known by."""
    return {"way": way.name, "surgery": str(args.surgery or ""), "budget": args.seconds, "lr": args.lr, "seed": seed}


def told(args: argparse.Namespace, way: Way, seed: int) -> bool:
    known = key(args, way, seed)
    return any(known.items() <= line.items() for line in lines(args.out / "data_choice.jsonl"))


def tell(args: argparse.Namespace, way: Way, seed: int, found: dict[str, Any]) -> None:
    line = {**key(args, way, seed), **found}
    append(args.out / "data_choice.jsonl", {**facts(way.device), **line})
    print(json.dumps(line), flush=True)


def summary(found: list[dict[str, Any]]) -> None:
    """Each way's mean, and its difference to the first way's by seed with a 95 % interval; then by source."""
    trained = [line for line in found if not line["surgery"]]
    ways = {name: {line["seed"]: line for line in trained if line["way"] == name}
            for name in dict.fromkeys(line["way"] for line in trained)}  # fmt: skip
    rows = []
    for by_seed in ways.values():
        last = list(by_seed.values())[-1]
        mean = statistics.mean(line["bits_per_byte"] for line in by_seed.values())
        rows.append([last["way"], len(by_seed), last["steps"], f"{last['tokens'] / 1e6:.1f}", last["epochs"],
                     f"{mean:.4f}", *to_first(ways, by_seed, lambda line: line["bits_per_byte"])])  # fmt: skip
    if rows:
        table(["way", "seeds", "steps", "M tokens", "epochs", "bits/byte", "to the first", "95 %"], rows)
        print()
        sources = trained[0]["by_source"]
        table(["source", *(part for name in ways for part in (name, "to the first", "95 %"))], [
            [source, *(part for by_seed in ways.values() for part in (
                f"{statistics.mean(line['by_source'][source] for line in by_seed.values()):.4f}",
                *to_first(ways, by_seed, lambda line, source=source: line["by_source"][source])))]
            for source in sources])  # fmt: skip
    changed = [[line["way"], line["seed"], line.get("lr"), f"{line['right_after']:.4f}", line["steps"],
                f"{line['bits_per_byte']:.4f}"] for line in found if line["surgery"]]  # fmt: skip
    if changed:
        print()
        table(["vocabulary", "seed", "rate", "right after", "steps", "then"], changed)


def to_first(ways: dict[str, dict[int, dict[str, Any]]], by_seed: dict[int, dict[str, Any]],
             figure: Callable[[dict[str, Any]], float]) -> tuple[str, str | None]:  # fmt: skip
    """The mean difference between one way's figures and the first way's of the same seeds, and half its interval."""
    first = next(iter(ways.values()))
    pairs = [figure(line) - figure(first[seed]) for seed, line in by_seed.items() if seed in first]
    if len(pairs) < 2 or by_seed is first:
        return (f"{statistics.mean(pairs):+.4f}", None) if pairs else ("–", None)
    half = STUDENT.get(len(pairs), 1.96) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{statistics.mean(pairs):+.4f}", f"± {half:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--way", action="append", default=[], help="NAME: {keys of prepare}")
    parser.add_argument("--judge", type=yaml.safe_load, default={}, help="keys of prepare for the held-out text")
    parser.add_argument("--documents", type=int, help="of each file at most")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--model", type=yaml.safe_load, default={"preset": "seed"}, help="its keys, as in init.model")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--lr", type=float, default=0.022)
    parser.add_argument("--decay", type=float, default=0.7)
    parser.add_argument("--eval_tokens", type=int, default=1_000_000)
    parser.add_argument("--device")
    parser.add_argument("--surgery", type=Path, metavar="MODEL", help="a run or a folder with a model")
    parser.add_argument("--prepare", action="store_true", help="train nothing")
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_intermixed_args()
    if not args.summary:
        named = {name: keys for text in args.way for name, keys in yaml.safe_load(text).items()}
        args.optimizer, args.model = Muon(lr=args.lr), ModelChoice.model_validate(args.model)
        split(args)
        ways = [Way(name, keys, args.judge, args) for name, keys in named.items()]
        if args.prepare:
            return
        (surgery if args.surgery else compare)(args, ways)
    summary(lines(args.out / "data_choice.jsonl"))


if __name__ == "__main__":
    main()
