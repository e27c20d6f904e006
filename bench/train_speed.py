"""Training speed, ours and others', taking turns on the same random tokens in one process.

    python bench/train_speed.py                                  # the seed model: ours, the earlier project's, peers
    python bench/train_speed.py --preset base-218m --rows ours-muon=96 earlier=32
    python bench/train_speed.py --contenders ours-adamw --rows 128 256 320     # one contender, three sizes
    python bench/train_speed.py --contenders ours-adamw --memory-gib 24 --find-rows
    python bench/train_speed.py --contenders ours-muon ours-muon-packed --context 8192 --rows 8      # documents apart
    python bench/train_speed.py --contenders ours-recipe ours-recipe-shifted --context 8192 --rows 8     # S²-Attn
    python bench/train_speed.py --contenders ours-lora ours-lora-shifted --context 8192 --rows 8     # as LongLoRA

Tokens/s is the median over the rounds, a ratio the median of the per-round ratios; MFU = tokens/s · causal FLOPs /
the card's bf16 peak; compile and first step are apart. Prints one table, appends a line a contender to
bench/results/train_speed.jsonl. Without --rows a contender takes the batch that suits it (ROWS below).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from earlier import EarlierTraining
from ours import our_stepper
from record import RESULTS, Peak, append, facts, forget, median_ratio, surviving, synchronize, table, timed
from torch import nn

from babyllama.data.streams.batches import Batch
from babyllama.hardware import peak_flops, utilisation
from babyllama.load import default_device
from babyllama.model.attention import ShiftedSparse, attend_sdpa
from babyllama.model.config import ModelChoice, ModelConfig, Moe
from babyllama.model.lora import Lora
from babyllama.train.losses.objectives import NextToken
from babyllama.train.losses.sampled import Sampled
from babyllama.train.optimizers.optim import AdamW, Cosine, Muon
from babyllama.train.plan import Plan

# Rows of 512 tokens (seed) and of 1,024 (base-218m) that 80 GB hold; the earlier project's seed batch is its own 32.
ROWS = {
    "seed": {"ours": 256, "earlier": 32, "earlier-compiled": 64, "transformers": 64, "liger": 256},
    "base-218m": {"ours": 64, "earlier": 16, "earlier-compiled": 16, "transformers": 32, "liger": 64},
}
CONTEXT = {"tiny": 128, "seed": 512, "base-218m": 1024}
Steps = Callable[[int], None]


class RandomRows:
    """Eight batches of random tokens, drawn once and given in turn: the same to every contender. They lie on the
    device, as a corpus does that fits there (Resident), so that no host is measured. `documents`: tokens of one on
    average; then rows hold many, kept apart."""

    def __init__(self, vocab: int, context: int, rows: int, device: torch.device, documents: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = 8 * rows
        tokens = torch.randint(0, vocab, (self.rows, context + 1), generator=generator)
        whole = Batch(tokens[:, :-1], tokens[:, 1:])
        if documents is not None:
            begins, places = torch.rand(self.rows, context, generator=generator) < 1 / documents, torch.arange(context)
            starts = (places * begins).cummax(1).values
            whole = replace(whole, positions=places - starts, segments=begins.long().cumsum(1))
        self.whole = whole.each(lambda part: part.to(device))

    def batch(self, first_row: int, count: int) -> Batch:
        first = first_row % self.rows  # a multiple of what is asked for, as is the number of rows
        return self.whole.each(lambda part: part[first : first + count], count * self.whole.tokens.shape[1])


class Setup:
    """What all contenders share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = default_device()
        context = args.context or CONTEXT[args.preset]
        self.choice = ModelChoice(preset=args.preset, max_position_embeddings=context)
        self.config = self.choice.build(args.vocab)
        self.context, self.compiled, self.documents = context, not args.eager, args.documents
        self._streams: dict[tuple[int, bool], RandomRows] = {}

    def stream(self, rows: int, packed: bool = False) -> RandomRows:
        """Batches of so many rows."""
        if (rows, packed) not in self._streams:
            documents = self.documents if packed else None
            self._streams[rows, packed] = RandomRows(self.config.vocab_size, self.context, rows, self.device, documents)
        return self._streams[rows, packed]


# ── contenders: (setup, rows) → a function that takes so many steps ─────────────────────────────────────────────────
def ours(optimizer: AdamW | Muon, compiled: bool = True, packed: bool = False, shifted: bool = False,
         objective: NextToken | None = None, moe: Moe | None = None,
         float8: bool = False, adapter: Lora | None = None) -> Callable[[Setup, int], Steps]:  # fmt: skip
    """Our trainer's step: bf16, float32 masters, everything that it does between two logs.

    Args:
        packed: rows of documents, kept apart.  shifted: S²-Attn in groups of a quarter of the context.
    """

    def make(setup: Setup, rows: int) -> Steps:
        plan = Plan(steps=10**6, micro_batch_size=rows, context=setup.context)
        config = setup.choice.model_copy(update={"moe": moe}).build(setup.config.vocab_size)
        attend = ShiftedSparse(group_size=setup.context // 8 * 2) if shifted else attend_sdpa
        stepper = our_stepper(config, setup.stream(rows, packed), plan, optimizer, Cosine(warmup=0.0), setup.device,
                              compiled=compiled and setup.compiled, objective=objective, attend=attend,
                              float8=float8, adapter=adapter)  # fmt: skip
        return stepper.steps

    return make


def earlier(dtype: torch.dtype | None = None, compiled: bool = False) -> Callable[[Setup, int], Steps]:
    """The earlier project's step, as published or helped by bf16 and torch.compile."""

    def make(setup: Setup, rows: int) -> Steps:
        training = EarlierTraining(setup.config, setup.device, dtype=dtype, compiled=compiled and setup.compiled)
        return _over(setup, rows, training.step)

    return make


def transformers_llama(setup: Setup, rows: int, liger: bool = False, compiled: bool = True) -> Steps:
    """transformers' LlamaForCausalLM, bf16 parameters, fused AdamW, its own loss on all logits or Liger's kernels."""
    from transformers import LlamaConfig

    llama = _own_copy_of_llama() if liger else sys.modules[_llama_module().__name__]
    config: ModelConfig = setup.config
    shape = config.model_dump(exclude={"rope"})
    model = llama.LlamaForCausalLM(
        LlamaConfig(**shape, use_cache=False, attn_implementation="sdpa", dtype="bfloat16",
                    rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta}))  # fmt: skip
    if liger:
        _apply_liger(llama, model)
    return _over(setup, rows, _plain_step(model.to(setup.device, torch.bfloat16), setup, compiled and setup.compiled))


def _plain_step(model: nn.Module, setup: Setup, compiled: bool) -> Callable[[Batch], None]:
    model.train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(batch: Batch) -> None:
        tokens = batch.to(setup.device).tokens
        forward(input_ids=tokens, labels=tokens).loss.backward()  # it shifts the labels itself
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _over(setup: Setup, rows: int, step: Callable[[Batch], None]) -> Steps:
    stream, done = setup.stream(rows), 0

    def steps(count: int) -> None:
        nonlocal done
        for _ in range(count):
            step(stream.batch(done * rows, rows))
            done += 1

    return steps


def _llama_module() -> ModuleType:
    from transformers.models.llama import modeling_llama

    return modeling_llama


def _own_copy_of_llama() -> ModuleType:
    """A second copy of transformers' module: Liger patches its functions, and the plain contender must keep them."""
    plain = _llama_module()
    spec = importlib.util.spec_from_file_location(f"{plain.__name__}_liger", plain.__file__)
    if spec is None or spec.loader is None:
        raise ImportError(f"{plain.__file__}: cannot be loaded a second time")
    own = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = own
    spec.loader.exec_module(own)
    return own


def _apply_liger(llama: ModuleType, model: nn.Module) -> None:
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    package, plain = sys.modules["transformers.models.llama"], _llama_module()
    package.modeling_llama = llama  # type: ignore[attr-defined]
    sys.modules[plain.__name__] = llama
    try:
        apply_liger_kernel_to_llama(model=model)
    finally:
        package.modeling_llama = plain  # type: ignore[attr-defined]
        sys.modules[plain.__name__] = plain


QUARTER = NextToken(sampled=Sampled(stages=((1.0, 0.25),)))  # a loss over a quarter of the vocabulary all the time

RECIPE = NextToken(fp8_head=True, sampled=Sampled(stages=((1.0, 0.2),)))  # of seed/pretrain up to 0.75

LONGLORA = Lora(targets=("q_proj", "k_proj", "v_proj", "o_proj"), train=("embed_tokens", "norms"))  # extend/longlora's

CONTENDERS: dict[str, Callable[[Setup, int], Steps]] = {
    "ours-adamw": ours(AdamW()),
    "ours-muon": ours(Muon()),
    "ours-adamw-eager": ours(AdamW(), compiled=False),
    "ours-muon-eager": ours(Muon(), compiled=False),
    "ours-muon-packed": ours(Muon(), packed=True),
    "ours-muon-shifted": ours(Muon(), shifted=True),
    "ours-muon-shifted-packed": ours(Muon(), packed=True, shifted=True),
    "ours-muon-sampled": ours(Muon(), objective=QUARTER),
    "ours-muon-sampled-shifted": ours(Muon(), objective=QUARTER, shifted=True),
    "ours-muon-fp8": ours(Muon(), objective=NextToken(fp8_head=True)),
    "ours-muon-fp8-shifted": ours(Muon(), objective=NextToken(fp8_head=True), shifted=True),
    "ours-lora": ours(AdamW(), adapter=LONGLORA),
    "ours-lora-shifted": ours(AdamW(), adapter=LONGLORA, shifted=True),
    "ours-muon-fp8-blocks": ours(Muon(), objective=NextToken(fp8_head=True), float8=True),
    "ours-recipe": ours(Muon(), objective=RECIPE, float8=True),
    "ours-recipe-shifted": ours(Muon(), objective=RECIPE, float8=True, shifted=True),
    "ours-muon-moe": ours(Muon(), moe=Moe(experts=8, active=2, shared=1)),
    "earlier": earlier(),
    "earlier-compiled": earlier(torch.bfloat16, compiled=True),
    "transformers": transformers_llama,
    "transformers-eager": lambda setup, rows: transformers_llama(setup, rows, compiled=False),
    "liger": lambda setup, rows: transformers_llama(setup, rows, liger=True),
    "liger-eager": lambda setup, rows: transformers_llama(setup, rows, liger=True, compiled=False),
}
DEFAULT = ["ours-adamw", "ours-muon", "earlier", "transformers", "liger", "liger-eager"]


# ── measuring ───────────────────────────────────────────────────────────────────────────────────────────────────────
class Contest:
    """One contender at one batch size, warm and ready to take turns."""

    def __init__(self, setup: Setup, name: str, rows: int, segment_s: float) -> None:
        self.setup, self.name, self.rows = setup, name, rows
        peak = Peak(setup.device)
        self.steps = CONTENDERS[name](setup, rows)
        self.first_step_s = timed(setup.device, lambda: self.steps(1))
        self.second_step_s = timed(setup.device, lambda: self.steps(1))
        self.steps(2)
        step_s = timed(setup.device, lambda: self.steps(3)) / 3
        self.peak_gib = peak.gib
        self.count = max(2, round(segment_s / step_s))
        self.rates: list[float] = []

    @property
    def label(self) -> str:
        return f"{self.name} {self.rows}×{self.setup.context}"

    def round(self) -> None:
        """One turn: a step to warm up again, then the timed ones."""
        self.steps(1)
        seconds = timed(self.setup.device, lambda: self.steps(self.count))
        self.rates.append(self.count * self.rows * self.setup.context / seconds)

    def figures(self, reference: list[Contest]) -> dict[str, Any]:
        """What is written down; `reference` are our own contenders."""
        setup, rate = self.setup, statistics.median(self.rates)
        peak = peak_flops(setup.device, torch.bfloat16)
        return {
            "contender": self.name,
            "rows": self.rows,
            "context": setup.context,
            "tokens_per_second": round(rate),
            "lowest": round(min(self.rates)),
            "highest": round(max(self.rates)),
            "mfu": utilisation(rate * setup.config.flops_per_token(setup.context), peak),
            "peak_gib": self.peak_gib,
            "first_step_s": round(self.first_step_s, 2),
            "second_step_s": round(self.second_step_s, 2),
            "rounds": len(self.rates),
            "steps_a_round": self.count,
            "times_faster": {r.label: round(median_ratio(r.rates, self.rates), 3) for r in reference if r is not self},
        }


def contest(setup: Setup, chosen: list[tuple[str, int]], rounds: int, segment_s: float) -> list[Contest]:
    """Every contender built and warmed up one after the other, then all in turn, round by round."""
    ready: list[Contest] = []
    for name, rows in chosen:
        with surviving(f"{name} {rows}×{setup.context}"):
            ready.append(Contest(setup, name, rows, segment_s))
            print(f"{ready[-1].label}: first step {ready[-1].first_step_s:.1f} s", flush=True)
    for _ in range(rounds):
        for entry in list(ready):
            try:
                entry.round()
                print(f"{entry.label}: {entry.rates[-1]:,.0f} tokens/s", flush=True)  # a run cut short says something
            except torch.cuda.OutOfMemoryError:  # beside the others; its own measurement went well
                print(f"{entry.label}: no memory left beside the others, left out; measure it alone", flush=True)
                ready.remove(entry)
                del entry.steps
                forget()
    return [entry for entry in ready if entry.rates]


def largest_rows(setup: Setup, name: str, start: int, granularity: int) -> tuple[int, dict[int, float | None]]:
    """The most rows, in steps of `granularity`, whose three steps fit. Memory grows linearly, so the guess is close."""
    peaks: dict[int, float | None] = {}

    def fits(rows: int) -> bool:
        forget()
        peaks[rows] = _peak_of(setup, name, rows)
        print(f"{name} {rows}×{setup.context}: {'out of memory' if peaks[rows] is None else f'{peaks[rows]} GiB'}",
              flush=True)  # fmt: skip
        return peaks[rows] is not None

    good, bad = 0, 10**9
    guess = max(granularity, start // granularity * granularity)
    while bad - good > granularity:
        if fits(guess):
            good = guess
        else:
            bad = guess
        guess = _next_guess(peaks, good, bad, granularity)
    return good, peaks


def _next_guess(peaks: dict[int, float | None], good: int, bad: int, granularity: int) -> int:
    """Where the line through the two largest that fit meets the limit; else twice or half as many."""
    limit = torch.cuda.get_per_process_memory_fraction() * torch.cuda.get_device_properties(0).total_memory / 2**30
    known = sorted((rows, peak) for rows, peak in peaks.items() if peak is not None)
    if len(known) < 2:
        guess = 2 * good if bad == 10**9 else (good + bad) // 2
    else:
        (a, low), (b, high) = known[-2:]
        guess = int(b + (limit - high) / max(1e-6, (high - low) / (b - a)))
    return min(max(guess // granularity * granularity, good + granularity), bad - granularity)


def _peak_of(setup: Setup, name: str, rows: int) -> float | None:
    torch._dynamo.reset()
    torch.cuda.reset_peak_memory_stats()
    try:
        steps = CONTENDERS[name](setup, rows)
        steps(3)
        synchronize(setup.device)
    except torch.cuda.OutOfMemoryError as error:
        error.__traceback__ = None
        return None
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


# ── the command line ────────────────────────────────────────────────────────────────────────────────────────────────
def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="seed", choices=CONTEXT)
    parser.add_argument("--vocab", type=int, default=64793)
    parser.add_argument("--context", type=int)
    parser.add_argument("--contenders", nargs="+", default=DEFAULT, choices=CONTENDERS)
    parser.add_argument("--rows", nargs="+", default=[], metavar="N|NAME=N", help="several make several contenders")
    parser.add_argument("--documents", type=int, default=400, help="tokens of one on average, where rows are packed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--segment-s", type=float, default=1.0, help="seconds of a contender's turn")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--memory-gib", type=float, help="let PyTorch have no more, as on a smaller card")
    parser.add_argument("--find-rows", action="store_true", help="the largest batch that fits, instead of speed")
    parser.add_argument("--granularity", type=int, default=8, help="rows, for --find-rows")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="toy sizes, to see that the script works")
    args = parser.parse_args()
    if args.small:
        args.preset, args.vocab, args.context, args.eager = "tiny", 257, 32, True
        args.rows, args.rounds, args.segment_s = args.rows or ["2"], 2, 0.01
    return args


def chosen_rows(args: argparse.Namespace) -> list[tuple[str, int]]:
    """(contender, rows): what --rows says, a name's own entry first, then the table's."""
    plain = [int(item) for item in args.rows if "=" not in item]
    named: dict[str, list[int]] = {}
    for name, _, count in (item.partition("=") for item in args.rows if "=" in item):
        named.setdefault(name, []).append(int(count))
    usual = ROWS.get(args.preset, {})
    found = []
    for name in args.contenders:
        kind = name.split("-")[0]
        table_rows = usual.get(name.removesuffix("-eager"), usual.get(kind, 8))
        found += [(name, rows) for rows in named.get(name) or named.get(kind) or plain or [table_rows]]
    return found


def main() -> None:
    args = parse()
    setup = Setup(args)
    if args.memory_gib and setup.device.type == "cuda":
        whole = torch.cuda.get_device_properties(setup.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.memory_gib * 2**30 / whole), setup.device)
    torch._dynamo.config.automatic_dynamic_shapes = False  # a second batch size is another contender, not a hint
    about = {"preset": args.preset, "vocab": args.vocab, "memory_gib": args.memory_gib,
             "parameters": setup.config.parameters}  # fmt: skip
    where, file = facts(setup.device), args.results / "train_speed.jsonl"
    print(f"{args.preset}, V {args.vocab}, {where['device']}, {where['versions']}", flush=True)
    if args.find_rows:
        if setup.device.type != "cuda":
            sys.exit("--find-rows needs a GPU: nothing says when a CPU's memory is full")
        for name, start in chosen_rows(args):
            with surviving(name):
                best, peaks = largest_rows(setup, name, start, args.granularity)
                tried = {"contender": name, "context": setup.context, "largest_rows": best, "peak_gib": peaks.get(best)}
                append(file, {**where, **about, **tried})
                print(f"{name}: {best} × {setup.context} tokens fit, {best + args.granularity} do not", flush=True)
        return
    entries = contest(setup, chosen_rows(args), args.rounds, args.segment_s)
    reference = [entry for entry in entries if entry.name.startswith("ours")]
    rows = []
    for entry in entries:
        figures = entry.figures(reference)
        append(file, {**where, **about, **figures})
        ratios = [figures["times_faster"].get(r.label) for r in reference]
        mfu = "–" if figures["mfu"] is None else f"{figures['mfu']:.1%}"
        rows.append([entry.label, f"{figures['tokens_per_second']:,}", mfu, entry.peak_gib,
                     f"{entry.first_step_s:.1f}", f"{entry.second_step_s:.2f}", *ratios])  # fmt: skip
    table(["contender", "tokens/s", "MFU", "peak GiB", "1st step s", "2nd", *(f"× {r.label}" for r in reference)], rows)


if __name__ == "__main__":
    main()
