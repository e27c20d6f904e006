"""Decoding on a CPU, one answer at a time: every width that is offered, in turns, at two sizes (random weights).

    python bench/cpu_decode.py                          the seed model (58.5 M) and the quickstart's
    python bench/cpu_decode.py --sizes seed --rounds 7 --tokens 64 --threads 2

    python bench/cpu_decode.py --sizes seed --llama PYTHON    llama.cpp too, on the same weights

Tokens a second are the median of the rounds, ratios the median of the rounds' ratios; "PyTorch" is the way without a
compiler (--pytorch), llama.cpp's types are those of LIKE. Each size is a line of
cpu_decode.jsonl. Weights of methods that search are as fast as those of rounding: rtn stands for gptq and awq.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import RESULTS, append, facts, median_ratio, table

from babyllama.commands.quantize import held_bytes, tokens_per_second
from babyllama.infer.engine import Engine
from babyllama.infer.rows import Rows
from babyllama.infer.step import Launched, ModelForward, Step
from babyllama.model.cache import KVCache
from babyllama.model.config import ModelChoice
from babyllama.model.surgery import replace_modules
from babyllama.model.transformer import Transformer, initialise
from babyllama.quant.calibrate import settled
from babyllama.quant.int8 import to_int8
from babyllama.quant.linear import GroupedLinear, PackedEmbedding
from babyllama.quant.onebit import pack_trained, start
from babyllama.quant.rtn import Rtn

SIZES = {"seed": (64793, {"preset": "seed"}),
         "toy": (331, {"depth": 1, "num_hidden_layers": 2, "max_position_embeddings": 64}),
         "quickstart": (6000, {"depth": 4, "max_position_embeddings": 256})}  # fmt: skip

PEERS = ("F32", "F16", "Q8_0", "Q4_0")  # of llama.cpp, all matrices
LIKE = {"float32": "F32", "bfloat16": "F16", "float16": "F16", "8 bits, head too": "Q8_0", "4 bits, head too": "Q4_0"}


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
    made = {"float32": base, "bfloat16": deepcopy(base).bfloat16(), "float16": deepcopy(base).half()}
    for bits in (8, 4, 3, 2):
        made[f"{bits} bits"] = rounded(deepcopy(base), bits).bfloat16()
        made[f"{bits} bits, head too"] = rounded(deepcopy(base), bits, bits).bfloat16()
    made["LLM.int8()"] = deepcopy(base)
    to_int8(made["LLM.int8()"])
    made["1 bit (OneBit)"] = deepcopy(base)
    start(made["1 bit (OneBit)"])
    pack_trained(made["1 bit (OneBit)"])
    for name in ("LLM.int8()", "1 bit (OneBit)"):
        made[name].bfloat16()
    made["ternary (BitNet), float32"] = dense(size, weights="ternary")
    return made


def by_pytorch(model: Transformer, rows: Rows, cache: KVCache) -> Step:
    """What is done where there is no compiler."""
    return Launched(ModelForward(model, rows, cache), rows)


class Peer:
    """llama.cpp with the same weights in one of its types, in a process of its own that sleeps between its turns."""

    def __init__(self, python: str, weights: Path, kind: str, threads: int) -> None:
        script = Path(__file__).with_name("llama_cpp_peer.py")
        command = [python, str(script), str(weights), kind, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, tokens: int) -> float:
        assert self.process.stdin and self.process.stdout
        print(tokens, file=self.process.stdin, flush=True)
        speed, self.logits = json.loads(self.process.stdout.readline())
        return speed

    def close(self) -> None:
        self.process.communicate("")


def peers(base: Transformer, python: str, threads: int, folder: Path) -> dict[str, Peer]:
    """Those of llama.cpp, whose float32 logits must be ours."""
    config, file = base.config, folder / "weights.npz"
    shape = json.dumps({**config.model_dump(exclude={"rope"}), "theta": config.rope.base})
    np.savez(file, config=shape, **{name: value.numpy() for name, value in base.state_dict().items()})
    made = {f"llama.cpp {kind}": Peer(python, file, kind, threads) for kind in PEERS}
    for peer in made.values():
        peer(2)
    ours = base(torch.tensor([[2]]))[0, 0, :8]
    torch.testing.assert_close(torch.tensor(made["llama.cpp F32"].logits), ours, rtol=1e-2, atol=1e-2)
    return made


def compare(size: str, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of every contender and round."""
    made = contenders(size)
    with tempfile.TemporaryDirectory() as folder:
        others = peers(made["float32"], args.llama, args.threads, Path(folder)) if args.llama else {}
        ours = {name: Engine(model, model.config.vocab_size) for name, model in made.items()}
        plain = {name: f"{name}, PyTorch" for name in made} if args.pytorch else {}
        for name, other in plain.items():
            ours[other] = Engine(made[name], made[name].config.vocab_size, make_step=by_pytorch)
        turns = {**{name: partial(tokens_per_second, engine, 2) for name, engine in ours.items()}, **others}
        speeds: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(args.rounds):
            for name, turn in turns.items():
                speeds[name].append(turn(args.tokens))
        for peer in others.values():
            peer.close()
    found: dict[str, dict[str, float]] = {}
    for name, some in speeds.items():
        found[name] = {"tokens_per_second": round(statistics.median(some), 1),
                       "of_float32": round(median_ratio(some, speeds["float32"]), 2)}  # fmt: skip
    for name in made:
        if name in plain:
            found[name]["of_pytorch"] = round(median_ratio(speeds[name], speeds[plain[name]]), 2)
        found[name]["bytes"] = held_bytes(made[name])
        if others and name in LIKE:
            found[name]["of_llama.cpp"] = round(median_ratio(speeds[name], speeds[f"llama.cpp {LIKE[name]}"]), 2)
    return {"size": size, "threads": args.threads, "tokens": args.tokens, "rounds": args.rounds, "contenders": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["seed", "quickstart"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--llama", metavar="PYTHON", help="that has llama-cpp-python and gguf: its peers take turns too"
    )
    parser.add_argument("--pytorch", action="store_true", help="the same without the compiled step takes turns too")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="a toy, for the test of this script")
    args = parser.parse_args()
    if args.small:
        args.sizes, args.rounds, args.tokens, args.threads, args.pytorch = ["toy"], 1, 4, 1, True
    torch.set_num_threads(args.threads)
    for size in args.sizes:
        found = {**facts(torch.device("cpu")), **compare(size, args)}
        append(args.results / "cpu_decode.jsonl", found)
        print(f"\n{size}, {args.threads} threads, {args.tokens} tokens, {args.rounds} rounds")
        head = ["tokens_per_second", "of_float32", "of_pytorch", "of_llama.cpp"]
        table(["weights", *head], [[name, *map(one.get, head)] for name, one in found["contenders"].items()])


if __name__ == "__main__":
    main()
