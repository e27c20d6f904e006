"""Which model, batch and length fit a card, a time and a corpus. Pure arithmetic over forecast.py, no torch.

Not here: where the card, the hours and the corpus come from (commands/plan.py), the forecasts themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from babyllama.errors import InputError
from babyllama.foresight.forecast import (
    AROUND,
    COMPILE_S,
    USABLE,
    Workload,
    block_parameters,
    memory_gib,
    step_seconds,
)
from babyllama.foresight.rates import stages
from babyllama.foresight.scaling import BYTES_PER_TOKEN, LossForecast, expected_loss
from babyllama.hardware import chunk_rows
from babyllama.model.config import ModelChoice, ModelConfig
from babyllama.model.products import MULTIPLE
from babyllama.train.engines.mesh import ALONE, Mesh

if TYPE_CHECKING:
    from babyllama.hardware import Card

STEPS = 2000  # that a training should have at least: fewer and its optimiser has not converged
GLOBAL_BATCH = (4_096, 524_288)  # tokens of one step, at least and at most
MOST_ROWS = 1 << 16
DEPTHS = range(2, 41)
# Parameters in the blocks for each different token of the corpus, at most: 5.6 learned it by heart and got worse on
# held-out text after 3.6 epochs (docs/log.md), which no scaling law says.
PARAMETERS_PER_TOKEN = 5.0
AS_GOOD = 1.005  # among models whose expected loss is this near the lowest, the smallest is the best


@dataclass(frozen=True)
class Terms:
    """What is given. Lengths: `seconds` is a limit, `tokens` a wish; without either, `max_epochs` of the corpus.

    Attributes:
        unique: different tokens in the corpus; None: more than anyone can read.
        max_epochs: how often the corpus may be read when time allows more.
        recompute, micro_batch_size, global_batch_tokens: chosen here when None.
    """

    card: Card
    context: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    unique: int | None = None
    max_epochs: float = 4.0
    bytes_per_token: float = BYTES_PER_TOKEN
    mesh: Mesh = ALONE
    optimizer: Literal["muon", "adamw"] = "muon"
    compiled: bool = True
    recompute: bool | None = None
    micro_batch_size: int | None = None
    global_batch_tokens: int | None = None


@dataclass(frozen=True)
class Proposal:
    """One training and what it is expected to need and bring."""

    work: Workload
    card: Card
    largest_micro_batch: int
    steps: int
    loss: LossForecast

    @property
    def tokens(self) -> int:
        return self.steps * self.work.step_tokens

    @property
    def seconds(self) -> float:
        """From the command to the finished model."""
        return self.steps * self.step_seconds * AROUND + start_seconds(self.work)

    @property
    def step_seconds(self) -> float:
        return sum(step_seconds(self.work, self.card).values())

    @property
    def memory_gib(self) -> float:
        return memory_gib(self.work, not self.card.is_cpu)


def start_seconds(work: Workload) -> float:
    return COMPILE_S if work.compiled else 0.0


# ── what fits ──────────────────────────────────────────────────────────────────────────────────────────────────────
def usable_gib(card: Card) -> float:
    """How much of the card's memory a plan may fill."""
    return USABLE * card.memory_gib


def largest_micro_batch(work: Workload, card: Card) -> int:
    """The most rows whose forecast fits the card; 0 when not even one does. Memory grows with the rows: bisection."""

    def fits(rows: int) -> bool:
        return memory_gib(replace(work, micro_batch_size=rows), not card.is_cpu) <= usable_gib(card)

    low, high = 0, 1
    while high <= MOST_ROWS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def round_down(rows: int) -> int:
    """To a number that people and tiles like: at most three binary digits beside zeros, 160 for 166."""
    step = 1 << max(0, rows.bit_length() - 3)
    return rows // step * step


# ── one model ──────────────────────────────────────────────────────────────────────────────────────────────────────
def propose(config: ModelConfig, terms: Terms) -> Proposal:
    """Batch, length and forecast for one model.

    Raises:
        InputError: it does not fit the card or the mesh, or the time is over before the first step.
    """
    work, largest = _fitting(config, terms)
    portioned = _portion(work, largest, terms.tokens or 0, terms)
    for _ in range(5):  # the batch depends on the length, the length on the speed, the speed on the batch
        portioned = _portion(work, largest, _steps(portioned, terms) * portioned.step_tokens, terms)
    steps = _steps(portioned, terms)
    largest = largest_micro_batch(portioned, terms.card)
    loss = expected_loss(config, steps * portioned.step_tokens, terms.unique, terms.bytes_per_token, terms.optimizer)
    return Proposal(portioned, terms.card, largest, steps, loss)


def _fitting(config: ModelConfig, terms: Terms) -> tuple[Workload, int]:
    """The workload, with recomputation only where nothing else fits, and its largest micro-batch."""
    context = terms.context or config.max_position_embeddings
    terms.mesh.check(config, context)
    work = Workload(config, context, 1, 1, terms.optimizer, not terms.card.is_cpu, terms.compiled, False, terms.mesh,
                    chunk_rows(terms.card.memory_gib), terms.card.float8 and config.hidden_size % MULTIPLE == 0,
                    stages(config))  # fmt: skip
    rows = terms.micro_batch_size or 1
    work = replace(work, recompute=bool(terms.recompute))
    largest = largest_micro_batch(work, terms.card)
    if largest < rows and terms.recompute is None:
        work = replace(work, recompute=True)
        largest = largest_micro_batch(work, terms.card)
    if largest >= rows:
        return work, largest
    needed = memory_gib(replace(work, micro_batch_size=rows), not terms.card.is_cpu)
    remedy = f"at most {largest} rows fit" if largest else "choose a smaller model, a shorter context or a larger card"
    if not largest and terms.mesh.shard == 1:
        remedy += ", or several with engine=fsdp"
    if not largest and terms.mesh.context == 1:
        remedy += ", engine.context=2 or more for long rows"
    raise InputError(
        f"{config.parameters / 1e6:,.4g} M parameters on {terms.card.name}: micro_batch_size {rows} × {context} tokens "
        f"{'with recompute ' if work.recompute else ''}needs {needed:.1f} GiB, {usable_gib(terms.card):.1f} of "
        f"{terms.card.memory_gib:g} GiB can be used; {remedy}"
    )


def _portion(work: Workload, largest: int, tokens: float, terms: Terms) -> Workload:
    """Micro-batch and accumulation for a global batch that suits the length."""
    wished = terms.global_batch_tokens or min(max(tokens / STEPS, GLOBAL_BATCH[0]), GLOBAL_BATCH[1])
    rows = max(1, round(wished / (work.context * work.mesh.readers)))  # that one process reads in one step
    if terms.micro_batch_size:
        chosen = terms.micro_batch_size
    elif largest >= rows:
        return replace(work, micro_batch_size=round_down(rows), micro_batches=1)
    else:  # gradients that wait for the next micro-batch take memory too
        chosen = round_down(largest_micro_batch(replace(work, micro_batches=2), terms.card) or largest)
    portioned = replace(work, micro_batch_size=chosen, micro_batches=max(1, round(rows / chosen)))
    fits = memory_gib(portioned, not terms.card.is_cpu) <= usable_gib(terms.card)
    return portioned if fits else replace(portioned, micro_batches=1)


def _steps(work: Workload, terms: Terms) -> int:
    """Of the wished length, or as many as time and corpus allow; at least one."""
    readable = math.inf if terms.unique is None else terms.max_epochs * terms.unique
    if terms.tokens is not None:
        return math.ceil(terms.tokens / work.step_tokens)
    if terms.seconds is None:
        if terms.unique is None:
            raise InputError("give hours (or money and price_per_hour), tokens, or a corpus: the length is not known")
        return math.ceil(readable / work.step_tokens)
    left = terms.seconds - start_seconds(work)
    steps = int(left / (sum(step_seconds(work, terms.card).values()) * AROUND))
    if steps < 1:
        raise InputError(
            f"{terms.seconds:.0f} s are over before the first step of {work.config.parameters / 1e6:,.3g} M parameters "
            f"on {terms.card.name} (starting takes {start_seconds(work):.0f} s); give more hours or a smaller model"
        )
    return max(1, int(min(steps, readable / work.step_tokens)))


# ── many models ────────────────────────────────────────────────────────────────────────────────────────────────────
def ladder(context: int | None) -> Iterable[ModelChoice]:
    """The models to choose from: the depth dial and the presets."""
    yield from (ModelChoice(depth=depth, max_position_embeddings=context) for depth in DEPTHS)
    yield ModelChoice(preset="base-218m", max_position_embeddings=context)


def best(choices: Iterable[ModelChoice], vocab_size: int, terms: Terms) -> list[tuple[ModelChoice, Proposal]]:
    """All models that can be trained within the terms, the best first, then by size.

    The best has the lowest expected loss, or nearly and is smaller.

    Raises:
        InputError: none can; says why the smallest cannot.
    """
    most = math.inf if terms.unique is None else PARAMETERS_PER_TOKEN * terms.unique
    configs = sorted(((c, c.build(vocab_size)) for c in choices), key=lambda pair: pair[1].parameters)
    found, refused = [], list[InputError]()
    for choice, config in configs:
        if found and block_parameters(config) > most:
            continue  # but the smallest is always tried
        try:
            found.append((choice, propose(config, terms)))
        except InputError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    enough = AS_GOOD * min(proposal.loss.bits_per_byte for _, proposal in found)
    chosen = next(pair for pair in found if pair[1].loss.bits_per_byte <= enough)
    return [chosen, *(pair for pair in found if pair is not chosen)]
