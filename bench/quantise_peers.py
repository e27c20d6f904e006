"""Our quantisation against GPTQModel's: the same weights, calibration rows, held-out text, reader and measure.

    python bench/quantise_peers.py BASE CORPUS
    python bench/quantise_peers.py BASE CORPUS --samples 32 --tokens 16384     less of all, for a CPU
    python bench/quantise_peers.py --summary

BASE is a run or a folder of a model, CORPUS a prepared folder. What either makes is written as a folder, read back by
babyllama and measured in float32. Seconds are of calibrating, rounding and packing, without files; ours and theirs take
turns, and the processor's seconds are noted too, which other work on the machine does not stretch. Where 128 inputs a
scale do not divide every width, 64, 32 or 16 are taken by both. Each measurement is a line of quantise.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from quantise import perplexity
from record import RESULTS, append, facts, lines, surviving, table, timed

from babyllama.commands.quantize import AnyMethod, label, write
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import Batch
from babyllama.load import default_device, model_folder, read_model, read_tokenizer
from babyllama.model.transformer import Transformer
from babyllama.quant.awq import Awq
from babyllama.quant.calibrate import Calibration, linears_of, quantise, settled
from babyllama.quant.gptq import Gptq
from babyllama.quant.grid import Grid

MISSING = ("gptqmodel is not installed: in an environment of its own, since it wants a newer torch than babyllama, "
           "pip install torch==2.14.1 transformers numpy && pip install --no-build-isolation gptqmodel==7.7.0 && "
           "pip install --no-deps -e . (and what pyproject.toml lists but torch)")  # fmt: skip


class Took(NamedTuple):
    seconds: float
    cpu_seconds: float  # of all threads


class Contender(NamedTuple):
    """`settings` are a Method of ours, or what QuantizeConfig is told beyond bits and group_size."""

    grid: Grid
    settings: AnyMethod | dict[str, Any]

    @property
    def who(self) -> str:
        return "GPTQModel" if isinstance(self.settings, dict) else "babyllama"

    @property
    def name(self) -> str:
        if not isinstance(self.settings, dict):
            return label(self.settings)
        told = {key: value for key, value in self.settings.items() if key != "method"}
        groups = "rows" if self.grid.group_size is None else f"g{self.grid.group_size}"
        flags = [f"{key}={value}" for key, value in told.items()] or ["defaults"]
        return " ".join([self.settings.get("method", "gptq"), f"{self.grid.bits} bit", groups, *flags])

    def make(self, base: Path, batches: list[Batch], device: torch.device, folder: Path) -> Took:
        """Write a folder."""
        if isinstance(self.settings, dict):
            return made_by_gptqmodel(self.grid, self.settings, base, batches, device, folder)
        return made_by_us(self.settings, base, batches, device, folder)


def contenders(bits: Sequence[int], groups: Sequence[int | None], model: Transformer) -> list[Contender]:
    """GPTQ on equal grids: theirs as it comes (symmetric, columns in order inside groups), asymmetric, act-order, with
    a clip search; ours with the search and without. AWQ where all is 4 bits and grouped, the one layout of both."""
    found = []
    outputs = math.gcd(*(module.out_features for block in model.layers for module in linears_of(block).values()))
    for bit in bits:
        for size in groups:
            grid = settled(Gptq(bits=bit, group_size=size), model).model_dump(include={"bits", "group_size"})
            ours = [Gptq(**grid), Gptq(**grid, mse=False), Gptq(**grid, act_order=True),
                    Gptq(**grid, act_order=True, mse=False), Gptq(**grid, symmetric=True)]  # fmt: skip
            if size is not None:
                ours.append(Gptq(**grid, act_order="groups"))
            # Its default order is of groups, which whole rows have not got.
            plain: dict[str, Any] = {"act_group_aware": False} if size is None else {}
            theirs: list[dict[str, Any]] = [plain, {**plain, "sym": False}, {"sym": False, "desc_act": True},
                                            {**plain, "sym": False, "mse": 2.4}]  # fmt: skip
            if bit == 3 and outputs % 32:  # its packer's fault ends the process
                print("GPTQModel's 3 bits are left out: it packs only matrices whose outputs are a multiple of 32")
                theirs = []
            if bit == 4 and size is not None:
                ours.append(Awq(**grid))  # type: ignore[arg-type]
                if outputs % 64:
                    print("GPTQModel's AWQ is left out: it takes only matrices whose outputs are a multiple of 64")
                else:
                    theirs.append({"method": "awq", "sym": False})
            turns = itertools.chain.from_iterable(itertools.zip_longest(ours, theirs))
            found += [Contender(Grid(**grid), settings) for settings in turns if settings is not None]
    return found


def measured(device: torch.device, work: Callable[[], object]) -> Took:
    started = time.process_time()
    seconds = timed(device, work)
    return Took(seconds, time.process_time() - started)


def made_by_us(method: AnyMethod, base: Path, batches: list[Batch], device: torch.device, folder: Path) -> Took:
    model = read_model(base).to(device).float().eval().requires_grad_(False)
    took = measured(device, lambda: quantise(model, batches, method))
    write(model, read_tokenizer(base), method.kind, folder)
    return took


def made_by_gptqmodel(grid: Grid, settings: dict[str, Any], base: Path, batches: list[Batch], device: torch.device,
                      folder: Path) -> Took:  # fmt: skip
    """`base` holds float32. Their AWQ computes in half precision only."""
    import gptqmodel

    awq = settings.get("method") == "awq"
    config = gptqmodel.QuantizeConfig(bits=grid.bits, group_size=grid.group_size or -1, device=str(device),
                                      offload_to_disk=False, **settings)  # fmt: skip
    model = gptqmodel.GPTQModel.load(str(base), config, dtype=torch.float16 if awq else torch.float32)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for batch in batches for row in batch.tokens.tolist()]
    backend = gptqmodel.BACKEND.AWQ_TORCH if awq else gptqmodel.BACKEND.GPTQ_TORCH
    took = measured(device, lambda: model.quantize(rows, batch_size=len(batches[0].tokens), backend=backend))
    model.save(str(folder))
    return took


def compare(args: argparse.Namespace, file: Path, device: torch.device) -> None:
    """A line for the dense model and one for each contender."""
    if importlib.util.find_spec("gptqmodel") is None:
        raise SystemExit(MISSING)
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, torch.get_num_threads())))  # it refuses to do with one
    prepared, source = Prepared.open(args.corpus.resolve()), model_folder(args.base.resolve())
    dense = read_model(source).to(device).float().eval()
    batches = Calibration(samples=args.samples).batches(prepared, dense.config.max_position_embeddings, 0)
    about = {**facts(device), "kind": "peer", "samples": args.samples, "tokens": args.tokens,
             "parameters": dense.config.parameters}  # fmt: skip
    append(file, {**about, "who": "dense", "name": "dense", **perplexity(dense, prepared, args.tokens)})
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):  # it writes logs where it is
        base = Path(place) / "base"
        base.mkdir()
        write(dense, read_tokenizer(source), "", base)
        for number, contender in enumerate(contenders(args.bits, [g or None for g in args.groups], dense)):
            folder = Path(place) / str(number)
            folder.mkdir()
            with surviving(f"{contender.who} {contender.name}"):
                took = contender.make(base, batches, device, folder)
                found = perplexity(read_model(folder).to(device).float().eval(), prepared, args.tokens)
                line = {**about, "who": contender.who, "name": contender.name, "method": told_of(contender, folder)}
                append(file, {**line, **took._asdict(), **found})
                print(f"{contender.who} {contender.name}: perplexity {found['perplexity']:.3f}, {took.seconds:.1f} s",
                      flush=True)  # fmt: skip


def told_of(contender: Contender, folder: Path) -> dict[str, Any]:
    """All settings, the defaults too."""
    if not isinstance(contender.settings, dict):
        return contender.settings.model_dump()
    return json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]


def summary(found: list[dict[str, Any]]) -> None:
    """The newest run's table, by grid."""
    peer = [line for line in found if line["kind"] == "peer"]
    starts = [i for i, line in enumerate(peer) if line["who"] == "dense"]
    if not starts:
        return
    dense, *rest = peer[starts[-1] :]
    print(f"{dense['device']}; {dense['parameters'] / 1e6:.1f} M parameters; "
          f"{dense['samples']} rows of calibration; versions {dense['versions']}")  # fmt: skip
    cells = [[line["name"], line["who"], f"{line['perplexity']:.3f}",
              f"{line['perplexity'] / dense['perplexity'] - 1:+.2%}", f"{line['bits_per_byte']:.4f}",
              f"{line['seconds']:.1f}", f"{line['cpu_seconds']:.1f}"] for line in rest]  # fmt: skip
    first = ["dense", "", f"{dense['perplexity']:.3f}", "–", f"{dense['bits_per_byte']:.4f}", "–", "–"]
    table(["method", "by", "perplexity", "± dense", "bits/byte", "seconds", "CPU s"], [first, *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--groups", type=int, nargs="+", default=[128, 0], help="0: whole rows")
    parser.add_argument("--samples", type=int, default=128, help="rows of calibration")
    parser.add_argument("--tokens", type=int, default=200_000, help="measured of each corpus")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_args()
    file = args.results.resolve() / "quantise.jsonl"
    if not args.summary:
        if args.corpus is None:
            parser.error("BASE and CORPUS are needed, or --summary")
        compare(args, file, default_device())
    summary(lines(file))


if __name__ == "__main__":
    main()
