"""Decoding on a CPU, one answer at a time: every width that is offered, in turns, at two sizes (random weights).

    python bench/cpu_decode.py                          the seed model (58.5 M) and the quickstart's
    python bench/cpu_decode.py --sizes seed --rounds 7 --tokens 64 --threads 2

Tokens a second are the median of the rounds; what is said of float32 is the median of the rounds' ratios.
Each size is a line of cpu_decode.jsonl. Weights of methods that search are as fast as those of rounding: rtn stands for
gptq and awq.
"""

from __future__ import annotations

import argparse
import statistics
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, append, facts, median_ratio, table

from babyllama.commands.quantize import held_bytes, tokens_per_second
from babyllama.infer.engine import Engine
from babyllama.model.config import ModelChoice
from babyllama.model.surgery import replace_modules
from babyllama.model.transformer import Transformer, initialise
from babyllama.quant.calibrate import settled
from babyllama.quant.int8 import to_int8
from babyllama.quant.linear import GroupedLinear, PackedEmbedding
from babyllama.quant.onebit import pack, start
from babyllama.quant.rtn import Rtn

SIZES = {"seed": (64793, {"preset": "seed"}),
         "quickstart": (6000, {"depth": 4, "max_position_embeddings": 256})}  # fmt: skip


def dense(size: str, **more: Any) -> Transformer:
    """A model with its first weights, which are as fast as trained ones."""
    vocabulary, shape = SIZES[size]
    model = Transformer(ModelChoice.model_validate({**shape, **more}).build(vocabulary))
    initialise(model, 0)
    return model.eval().requires_grad_(False)


def rounded(model: Transformer, bits: int, head: int | None = None) -> Transformer:
    """All matrices of the blocks by `quant.rtn`, and the ends in `head` bits."""
    method = settled(Rtn(bits=bits), model)  # type: ignore[arg-type]

    def packed(_: str, module: Any) -> GroupedLinear:
        return GroupedLinear.of(method.nearest(module.weight))

    replace_modules(model, lambda name, module: name.startswith("layers.") and hasattr(module, "in_features"), packed)
    if head:
        table = GroupedLinear.of(method.model_copy(update={"bits": head}).nearest(model.lm_head.weight))
        model.lm_head, model.embed_tokens = table, PackedEmbedding(table, torch.bfloat16)  # type: ignore[assignment]
    return model


def contenders(size: str) -> dict[str, Transformer]:
    """As `load` makes each: packed ones in bfloat16."""
    base = dense(size)
    made = {"float32": base, "bfloat16": deepcopy(base).bfloat16()}
    for bits in (8, 4, 3, 2):
        made[f"{bits} bits"] = rounded(deepcopy(base), bits).bfloat16()
        made[f"{bits} bits, head too"] = rounded(deepcopy(base), bits, bits).bfloat16()
    made["LLM.int8()"] = deepcopy(base)
    to_int8(made["LLM.int8()"])
    made["1 bit (OneBit)"] = deepcopy(base)
    start(made["1 bit (OneBit)"])
    pack(made["1 bit (OneBit)"])
    for name in ("LLM.int8()", "1 bit (OneBit)"):
        made[name].bfloat16()
    made["ternary (BitNet), float32"] = dense(size, weights="ternary")
    return made


def compare(size: str, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of every contender and round."""
    made = contenders(size)
    speeds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(args.rounds):
        for name, model in made.items():
            speeds[name].append(tokens_per_second(Engine(model, model.config.vocab_size), 2, args.tokens))
    return {"size": size, "threads": args.threads, "tokens": args.tokens, "rounds": args.rounds,
            "contenders": {name: {"tokens_per_second": round(statistics.median(found), 1),
                                  "of_float32": round(median_ratio(found, speeds["float32"]), 2),
                                  "bytes": held_bytes(made[name])} for name, found in speeds.items()}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for size in args.sizes:
        found = {**facts(torch.device("cpu")), **compare(size, args)}
        append(args.results / "cpu_decode.jsonl", found)
        print(f"\n{size}, {args.threads} threads, {args.tokens} tokens, {args.rounds} rounds")
        table(["weights", "tokens/s", "× float32", "MB"],
              [[name, one["tokens_per_second"], one["of_float32"], f"{one['bytes'] / 1e6:.1f}"]
               for name, one in found["contenders"].items()])  # fmt: skip


if __name__ == "__main__":
    main()
