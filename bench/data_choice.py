"""What a model learns more from in the same time: a text as it is or cleaned, with one vocabulary or another.

    python bench/data_choice.py OUT a.jsonl b.jsonl.zst --way 'raw: {tokenizer: TOK}' \\
        --way 'cleaned: {tokenizer: TOK, clean: zh-web, dedup: [exact, near]}' --judge '{clean: zh-web}' --seconds 30
    python bench/data_choice.py OUT a.jsonl --way 'own: {tokenizer: TOK}' --way 'chatglm2: {tokenizer: tokenizer.model}'
    python bench/data_choice.py OUT --surgery RUN --way '16k: {tokenizer: TOK}' a.jsonl --seconds 3
    python bench/data_choice.py OUT --summary

A way is a name and keys of `prepare`. One document in 50 is held out of the source files, by its own hash, before
anything is cleaned; prepared by --judge's keys, these are what every way is measured on, in bits per byte, which know
of no vocabulary. A way gets the same seconds of training alone (compiling apart): how many steps that are is tried
out first. With --surgery the model of RUN is carried over to each way's vocabulary (its own: a control), measured,
trained on for --seconds and measured. OUT keeps what was prepared and data_choice.jsonl, a line for each training.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from contextlib import nullcontext
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
from babyllama.model.config import ModelChoice, ModelConfig
from babyllama.model.embeddings import change_rows
from babyllama.model.transformer import Transformer
from babyllama.recipe import load_recipe
from babyllama.tokenizer.carried import sources
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.optimizers.optim import Muon, Wsd
from babyllama.train.plan import Plan

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
        self._ready = Data(self.judged, self.device, args.context, args.eval_tokens)

    def _prepared(self, part: str, keys: dict[str, Any]) -> Prepared:
        out = self.args.out / self.name / part
        corpora = [{"path": str(file)} for file in sorted((self.args.out / part).glob("*.jsonl"))]
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

    def trained(self, config: ModelConfig, steps: int, seed: int, start: Transformer | None = None) -> dict[str, Any]:
        """Figures of one training."""
        stepper = self.stepper(config, steps, seed, start)
        stepper.warm_up()
        clock = Clock(self.device, stepper.steps)
        clock.steps(steps)
        tokens = steps * self.args.rows * self.args.context
        have = sum(len(splits["train"]) for splits in self.train.corpora.values())
        return {"steps": steps, "tokens": tokens, "epochs": round(tokens / have, 3), "have": have,
                "seconds": round(clock.seconds, 2), "bits_per_byte": self.bits(stepper.model())}  # fmt: skip

    def bits(self, model: Transformer) -> float:
        """Per byte of the held-out text."""
        return self._ready.bits_per_byte(model, nullcontext())


def split(args: argparse.Namespace) -> None:
    """OUT/train and OUT/held, a file for each source."""
    for place in (args.out / "train", args.out / "held"):
        place.mkdir(parents=True, exist_ok=True)
    for source in args.texts:
        name = f"{source.name.split('.')[0]}.jsonl"
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
    steps = {size: way.steps(configs[way.name]) for size, way in of_size.items()}
    for seed in args.seeds:
        for way in ways:
            tell(args, way, {"seed": seed, **way.trained(configs[way.name], steps[way.vocab_size], seed)})


def surgery(args: argparse.Namespace, ways: list[Way]) -> None:
    """The model before, right after each change of its vocabulary, and after some training on."""
    folder = model_folder(args.surgery)
    old = read_tokenizer(folder)
    for way in ways:
        model = read_model(folder).float()
        change_rows(model, sources(old, way.tokenizer))
        model = model.to(way.device)
        right_after = way.bits(model)
        steps = way.steps(model.config)
        tell(args, way, {"right_after": right_after, **way.trained(model.config, steps, 1, model)})


def tell(args: argparse.Namespace, way: Way, found: dict[str, Any]) -> None:
    line = {"way": way.name, "surgery": str(args.surgery or ""), "budget": args.seconds, **found}
    append(args.out / "data_choice.jsonl", {**facts(way.device), **line})
    print(json.dumps(line), flush=True)


def summary(found: list[dict[str, Any]]) -> None:
    """Each way's mean, and its difference to the first way's by seed with a 95 % interval."""
    trained = [line for line in found if not line["surgery"]]
    names = list(dict.fromkeys(line["way"] for line in trained))
    by = {name: {line["seed"]: line["bits_per_byte"] for line in trained if line["way"] == name} for name in names}
    rows = []
    for name in names:
        last = [line for line in trained if line["way"] == name][-1]
        pairs = [bits - by[names[0]][seed] for seed, bits in by[name].items() if seed in by[names[0]]]
        spread = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
        rows.append([name, len(by[name]), last["steps"], f"{last['tokens'] / 1e6:.1f}", last["epochs"],
                     f"{statistics.mean(by[name].values()):.4f}", f"{statistics.mean(pairs):+.4f}",
                     None if spread is None else f"± {STUDENT.get(len(pairs), 1.96) * spread:.4f}"])  # fmt: skip
    if rows:
        table(["way", "seeds", "steps", "M tokens", "epochs", "bits/byte", "to the first", "95 %"], rows)
    changed = [[line["way"], f"{line['right_after']:.4f}", line["steps"], f"{line['bits_per_byte']:.4f}"]
               for line in found if line["surgery"]]  # fmt: skip
    if changed:
        table(["vocabulary", "right after", "steps", "then"], changed)


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
    parser.add_argument("--surgery", type=Path)
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_intermixed_args()
    if not args.summary:
        named = {name: keys for text in args.way for name, keys in yaml.safe_load(text).items()}
        args.optimizer, args.model = Muon(lr=args.lr), ModelChoice.model_validate(args.model)
        split(args)
        ways = [Way(name, keys, args.judge, args) for name, keys in named.items()]
        (surgery if args.surgery else compare)(args, ways)
    summary(lines(args.out / "data_choice.jsonl"))


if __name__ == "__main__":
    main()
