"""Decoding on a GPU: the engine beside transformers' `generate` with its static cache, in turns, in one process.

    python bench/decode_speed.py                                  the seed model: batches 1, 8, 32, 128, 256, 512
    python bench/decode_speed.py --presets seed base-218m --batches 1 32 256 --rounds 5
    python bench/decode_speed.py --presets seed base-218m --bits 8 4 --batches 1 2 4 --peers

256 new tokens after prompts of 32, bf16, random weights, as fast as trained ones. Every round has new prompts.
A warm engine: graphs and kernels are there, as after the first answers. Medians of tokens a second; the ratio is the
median of the rounds' ratios. Each batch is a line of results/decode_speed.jsonl as soon as it is measured, and is not
measured again on the same commit with the same options. --draws: temperature 0.8, top-k 50, top-p 0.9 instead of greedy
as well (ours only).
--bits: the same model with packed weights, head and embedding too, in groups of 128, beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import RESULTS, append, facts, lines, table

from babyllama.data.streams.batches import Batch
from babyllama.infer.engine import Engine
from babyllama.infer.few import decoder_of
from babyllama.infer.request import Request
from babyllama.infer.rows import Rows
from babyllama.infer.sampling import Sampling
from babyllama.model.cache import KVCache
from babyllama.model.config import ModelChoice
from babyllama.model.transformer import Transformer, initialise
from babyllama.quant.calibrate import Ends, quantise
from babyllama.quant.rtn import Rtn

PROMPT, NEW, VOCABULARY = 32, 256, 64793
GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=0.8, top_k=50, top_p=0.9)


def dense(preset: str) -> Transformer:
    model = Transformer(ModelChoice.model_validate({"preset": preset}).build(VOCABULARY))
    initialise(model, 1)
    return model.eval().requires_grad_(False).to("cuda", torch.bfloat16)


def peer(model: Transformer) -> Callable[[torch.Tensor], object]:
    """transformers' LLaMA of the same weights, answering from its static cache, compiled as it does by itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**model.config.model_dump(exclude={"rope", "weights"}))
    twin = LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
    state = {name if name.startswith("lm_head") else f"model.{name}": p for name, p in model.state_dict().items()}
    twin.load_state_dict(state, strict=True)
    end = {"eos_token_id": None, "pad_token_id": 0}

    def answer(prompts: torch.Tensor) -> object:
        return twin.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=NEW,
                             min_new_tokens=NEW, cache_implementation="static", **end)  # fmt: skip

    return answer


def seconds(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def packed(preset: str, bits: int) -> Transformer:
    model = dense(preset).float()
    tokens = torch.randint(VOCABULARY, (1, 33), device="cuda")
    ends = Ends(head="rtn", embedding="rtn", bits=bits)  # type: ignore[arg-type]
    method = Rtn(bits=bits, group_size=128, short_group=True)  # type: ignore[arg-type]
    quantise(model, [Batch(tokens[:, :-1], tokens[:, 1:])], method, ends)
    return model.bfloat16()


def measure(model: Transformer, other: Callable[[torch.Tensor], object] | None, batch: int, rounds: int, draws: bool,
            few: dict[int, Transformer]) -> dict[str, float]:  # fmt: skip
    engine = Engine(model, VOCABULARY, slots=512)
    engines = {f"int{bits}": Engine(model, VOCABULARY, slots=512) for bits, model in few.items()}
    times: dict[str, list[float]] = {"ours": []} | ({"drawn": []} if draws else {}) | ({"peer": []} if other else {})
    times |= {name: [] for name in engines}
    for number in range(-6, rounds):  # the first ones still grow the cache, for which all is recorded anew
        prompts = {name: torch.randint(VOCABULARY, (batch, PROMPT), device="cuda") for name in times}
        lists = {name: own.tolist() for name, own in prompts.items()}  # new ones: nothing of them is read already
        calls: dict[str, Callable[[], object]] = {
            name: lambda one=one, lists=lists[name]: one.generate(lists, GREEDY, NEW) for name, one in engines.items()
        }
        calls["ours"] = lambda lists=lists["ours"]: engine.generate(lists, GREEDY, NEW)
        if draws:
            calls["drawn"] = lambda lists=lists["drawn"]: engine.generate(lists, DRAWN, NEW)
        if other is not None:
            calls["peer"] = lambda prompts=prompts["peer"]: other(prompts)
        for name, call in calls.items():
            if name == "peer" and number < -2:
                continue
            taken = seconds(call)
            if number >= 0:
                times[name].append(taken)
    found = {name: batch * NEW / statistics.median(values) for name, values in times.items()}
    if other is not None:
        found["ratio"] = statistics.median(b / a for a, b in zip(times["ours"], times["peer"], strict=True))
    return found


@torch.inference_mode()
def alone(model: Transformer, batch: int, sampling: Sampling, rounds: int, steps: int = 16) -> float:
    """Tokens a second of the fused decoder by itself, whose tokens the host reads after every 16: no engine."""
    cache = KVCache(model.config, batch, PROMPT + NEW + steps, "cuda", torch.bfloat16)
    rows, prompts = Rows(VOCABULARY, batch, torch.device("cuda")), torch.randint(VOCABULARY, (batch, PROMPT)).cuda()
    for first in range(0, batch, 64):
        part = prompts[first : first + 64]
        where = torch.arange(PROMPT, device="cuda")[None].expand(len(part), -1)
        model.hidden(part, where, cache=cache.part(slice(first, first + 64), PROMPT))
    for row, prompt in enumerate(prompts.tolist()):
        rows.place([row], [(Request(prompt, sampling, seed=row), [])])
    rows.live.fill_(batch)
    decoder, taken = decoder_of(model, rows, cache, batch), []
    for _ in range(rounds + 2):
        rows.token.copy_(prompts[:, -1])
        rows.position.fill_(PROMPT - 1)
        rows.counter.zero_()
        taken.append(seconds(lambda: [decoder(steps, sampling.temperature > 0).tolist() for _ in range(NEW // steps)]))
    return batch * NEW / statistics.median(taken[2:])


def first_token_ms(model: Transformer, length: int = 400) -> float:
    """From a prompt to its answer's first token, on a warm engine."""
    engine, taken = Engine(model, VOCABULARY), []
    for _ in range(24):  # the first ones still grow the cache, for which all is recorded anew
        prompt = torch.randint(VOCABULARY, (length,)).tolist()
        taken.append(seconds(lambda prompt=prompt: next(iter(engine.stream(prompt, GREEDY, 4)))) * 1e3)
    return statistics.median(taken[12:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["seed"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 128, 256, 512])
    parser.add_argument("--peers", nargs="*", type=int, default=None, help="batches at which the peer runs; all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draws", action="store_true")
    parser.add_argument("--bits", nargs="*", type=int, default=[])
    parser.add_argument("--alone", action="store_true", help="the decoder without the engine, too")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    device, names = torch.device("cuda"), ("ours", "drawn", *(f"int{bits}" for bits in args.bits), "peer", "ratio")
    file, options = args.results / "decode_speed.jsonl", [args.rounds, args.draws, args.bits, args.alone]
    commit = facts(device)["commit"]
    for preset in args.presets:
        cells = {batch: [*options, args.peers is None or batch in args.peers] for batch in args.batches}
        there = {line["batch"]: line["tokens_per_s"] for line in lines(file) if line.get("batch") in cells
                 and line["commit"] == commit and line["preset"] == preset
                 and line["options"] == cells[line["batch"]]}  # fmt: skip
        left = [batch for batch in args.batches if batch not in there]
        model = dense(preset) if left else None
        other = peer(model) if model is not None and any(cells[batch][-1] for batch in left) else None
        few = {bits: packed(preset, bits) for bits in args.bits} if left else {}
        for batch in left:
            assert model is not None
            found = measure(model, other if cells[batch][-1] else None, batch, args.rounds, args.draws, few)
            if args.alone:
                found["alone"] = alone(model, batch, GREEDY, args.rounds)
                found["alone_drawn"] = alone(model, batch, DRAWN, args.rounds)
            if batch == 1:
                found["first_token_ms"] = first_token_ms(model)
            there[batch] = {name: round(value, 2) for name, value in found.items()}
            append(file, {**facts(device), "preset": preset, "batch": batch, "options": cells[batch],
                          "tokens_per_s": there[batch]})  # fmt: skip
            print(preset, batch, there[batch], flush=True)
        rows = [[batch, *(f"{there[batch][name]:,.1f}" if name in there[batch] else "" for name in names)]
                for batch in args.batches]  # fmt: skip
        table(["batch", *names], rows)


if __name__ == "__main__":
    main()
