"""plan: for a card, a time (or money) and a corpus: which model, which batch, how long, how much memory, which loss.

With `model` it says what that model needs; without, it chooses one. Nothing is trained and nothing but `out` written.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator
from rich.console import Console
from rich.table import Table

from babyllama.amounts import amount, duration, short
from babyllama.atomic import json_text, write_atomic
from babyllama.commands.table import table_of
from babyllama.data.shards.shards import Prepared
from babyllama.errors import InputError
from babyllama.foresight.budget import Proposal, Terms, best, ladder, propose, usable_gib
from babyllama.foresight.forecast import CONTEXT_GIB, GIB, memory, step_seconds
from babyllama.foresight.rates import settings
from babyllama.foresight.scaling import BYTES_PER_TOKEN
from babyllama.hardware import Card, can_compile, find_card, this_card
from babyllama.load import pick_device
from babyllama.model.config import ModelChoice
from babyllama.recipe import Recipe
from babyllama.train.engines.engines import Ddp, Fsdp
from babyllama.train.engines.mesh import Mesh

LAW_HOLDS = 2e7  # tokens
CENTURY = 100 * 365.25 * 86400  # seconds
BESIDE = 2  # models shown on either side of the chosen one


def _by_name(engine: Any) -> Any:
    """``engine=fsdp`` for ``engine.kind=fsdp``."""
    return {"kind": engine} if isinstance(engine, str) else engine


class PlanRecipe(Recipe):
    """The verb's recipe; every key can be overridden on the command line."""

    gpu: str = Field(default="auto", description="RTX 3060, 4090, A100 40G, H100, …; auto: what is here; cpu")
    gpus: int = Field(default=1, ge=1, description="cards of this kind")
    engine: Annotated[Ddp | Fsdp, Field(discriminator="kind"), BeforeValidator(_by_name)] = Field(
        default=Ddp(), description="for several GPUs, as train's: engine=fsdp engine.replicate=2 engine.context=4"
    )
    hours: float | None = Field(default=None, gt=0, description="the longest the training may take")
    money: float | None = Field(default=None, gt=0, description="the most that it may cost, with price_per_hour")
    price_per_hour: float | None = Field(default=None, gt=0, description="of one GPU, in the same currency as money")
    data: Path | None = Field(
        default=None, description="a prepared folder, for the number of tokens and the vocabulary"
    )
    corpus_tokens: int | None = Field(
        default=None, ge=1, description="tokens of the corpus, instead of data; default: unlimited"
    )
    bytes_per_token: float | None = Field(default=None, gt=0, description=f"the data's, else {BYTES_PER_TOKEN:g}")
    vocab_size: int | None = Field(default=None, ge=1, description="default: the data's, else ChatGLM2's 64,793")
    model: ModelChoice | None = Field(default=None, description="default: chosen to suit the hours")
    tokens: int | None = Field(
        default=None, ge=1, description="tokens to train on; default: as many as time and corpus allow"
    )
    max_epochs: float = Field(default=4.0, gt=0, description="of the corpus; four are worth nearly as much as new text")
    context: int | None = Field(default=None, ge=2, description="tokens in a row; default: the model's")
    global_batch_tokens: int | None = Field(default=None, ge=1, description="of one step; default: automatic")
    micro_batch_size: int | None = Field(default=None, ge=1, description="rows; default: automatic")
    recompute: bool | None = Field(
        default=None, description="activation checkpointing; default: only if nothing else fits"
    )
    optimizer: Literal["muon", "adamw"] = Field(
        default="muon", description="whose state and speed the plan counts with"
    )
    compile: bool | None = Field(default=None, description="whether torch.compile is used; null: where it works")
    format: Literal["table", "json"] = Field(default="table", description="a table for people, or one JSON object")
    out: Path | None = Field(default=None, description="x.json: all figures; x.yaml: a recipe for babyllama train")

    @model_validator(mode="after")
    def _consistent(self) -> PlanRecipe:
        if self.hours is not None and self.money is not None:
            raise ValueError("give hours or money, not both")
        if self.money is not None and self.price_per_hour is None:
            raise ValueError("money needs price_per_hour, that of one GPU")
        if self.data is not None and self.corpus_tokens is not None:
            raise ValueError("give data or corpus_tokens, not both")
        if self.model is None and self.hours is None and self.money is None:
            raise ValueError("give hours (or money and price_per_hour) to have a model chosen, or the model")
        if self.out is not None and self.out.suffix not in (".json", ".yaml"):
            raise ValueError(f"out={self.out} must end in .json (all figures) or .yaml (a recipe)")
        if self.seconds is not None and self.seconds > CENTURY:
            raise ValueError("hours (or what money buys): more than a hundred years; give less")
        return self

    @property
    def seconds(self) -> float | None:
        """The time that hours or money buy."""
        if self.money is not None and self.price_per_hour is not None:
            return 3600 * self.money / (self.price_per_hour * self.gpus)
        return None if self.hours is None else 3600 * self.hours


@dataclass(frozen=True)
class Corpus:
    """What there is to read. `tokens` None: more than anyone can."""

    tokens: int | None
    vocab_size: int
    bytes_per_token: float


def main(recipe: PlanRecipe) -> None:
    """Forecast, show, and write if asked."""
    corpus, (card, compiled) = _corpus(recipe), _card(recipe)
    terms = Terms(card, recipe.context, recipe.seconds, recipe.tokens, corpus.tokens, recipe.max_epochs,
                  corpus.bytes_per_token, recipe.engine.mesh(recipe.gpus), recipe.optimizer, compiled,
                  recipe.recompute, recipe.micro_batch_size, recipe.global_batch_tokens)  # fmt: skip
    if recipe.model is None:
        found = best(ladder(recipe.context), corpus.vocab_size, terms)
    else:
        choice = recipe.model
        if recipe.context is not None and choice.max_position_embeddings is None:
            choice = choice.model_copy(update={"max_position_embeddings": recipe.context})
        config = choice.build(corpus.vocab_size)
        if recipe.context is not None and recipe.context > config.max_position_embeddings:
            raise InputError(
                f"context: {recipe.context} is above the model's {config.max_position_embeddings} positions"
            )
        found = [(choice, propose(config, terms))]
    train = train_recipe(recipe, *found[0])
    figures = {**_figures(found[0][1], recipe, corpus), "command": command(train, recipe.gpus), "recipe": train,
               "others": [_brief(other) for _, other in found[1:]]}  # fmt: skip
    if recipe.format == "json":
        print(json_text(figures, indent=1))
    else:
        _show(found, figures, recipe)
    if recipe.out is not None:
        text = yaml.safe_dump(train, sort_keys=False) if recipe.out.suffix == ".yaml" else json_text(figures, indent=1)
        write_atomic(recipe.out, text.rstrip() + "\n")


def _corpus(recipe: PlanRecipe) -> Corpus:
    if recipe.data is None:
        return Corpus(recipe.corpus_tokens, recipe.vocab_size or 64_793, recipe.bytes_per_token or BYTES_PER_TOKEN)
    manifest = Prepared.open(recipe.data).manifest
    splits = [(c["kind"], c["splits"]["train"]) for c in manifest["corpora"].values()]
    tokens = sum(split["tokens"] for _, split in splits)
    if not tokens:
        raise InputError(f"{recipe.data}: the train split is empty; prepare more")
    texts = [split for kind, split in splits if kind == "text" and split["tokens"]]  # a chat's bytes: its answers only
    density = sum(s["bytes"] for s in texts) / sum(s["tokens"] for s in texts) if texts else BYTES_PER_TOKEN
    return Corpus(tokens, recipe.vocab_size or manifest["vocab_size"], recipe.bytes_per_token or density)


def _card(recipe: PlanRecipe) -> tuple[Card, bool]:
    """The card, and whether the model will be compiled there."""
    if recipe.gpu.lower() in ("auto", "cpu"):
        device = pick_device(recipe.gpu.lower())
        card, compiled = this_card(device), device.type == "cuda" and can_compile(device)
    else:
        card, compiled = find_card(recipe.gpu), True
    if card.is_cpu and recipe.gpus > 1:
        raise InputError(f"gpus: {recipe.gpus}, but this is a CPU; name the card with gpu=…")
    return card, compiled if recipe.compile is None else recipe.compile


# ── what to type ───────────────────────────────────────────────────────────────────────────────────────────────────
def train_recipe(recipe: PlanRecipe, choice: ModelChoice, proposal: Proposal) -> dict[str, Any]:
    """The recipe of the verb train that carries the plan out. Its accumulate counts all processes' micro-batches."""
    work = proposal.work
    model = choice.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    if choice.preset is None:
        model = {"preset": None, **model}  # else the verb's own preset would stay beside the depth
    found: dict[str, Any] = {
        "out": "runs/planned",
        "data": {"path": str(recipe.data or "runs/corpus")},
        "init": {"kind": "new", "model": model},
        **settings(work.optimizer, work.config, proposal.steps),
        "plan": {
            "steps": proposal.steps,
            "context": work.context,
            "micro_batch_size": work.micro_batch_size,
            "accumulate": work.micro_batches * work.mesh.readers,
        },
    }
    if work.recompute:
        found["plan"]["recompute"] = True
    if work.gpus > 1:
        found["engine"] = {"kind": recipe.engine.kind, **recipe.engine.model_dump(exclude_defaults=True)}
    if recipe.compile is not None:
        found["compile"] = recipe.compile
    return found


def command(train: dict[str, Any], gpus: int) -> str:
    """One line for a shell; several GPUs are started by torchrun."""
    launcher = "babyllama" if gpus == 1 else f"torchrun --standalone --nproc-per-node={gpus} -m babyllama.cli"
    return f"{launcher} train {shlex.join(_overrides(train))}"


def _overrides(tree: dict[str, Any], path: str = "") -> list[str]:
    words = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            words += _overrides(value, f"{path}{key}.")
        else:
            words.append(f"{path}{key}={value if isinstance(value, str) else json.dumps(value)}")
    return words


# ── what to read ───────────────────────────────────────────────────────────────────────────────────────────────────
def _brief(proposal: Proposal) -> dict[str, Any]:
    config, work = proposal.work.config, proposal.work
    return {
        "hidden_size": config.hidden_size, "num_hidden_layers": config.num_hidden_layers,
        "parameters": config.parameters, "active_parameters": config.active_parameters,
        "training_flops_per_token": round(config.flops_per_token(work.context)),
        "tokens": proposal.tokens, "seconds": round(proposal.seconds),
        "micro_batch_size": work.micro_batch_size, "accumulate": work.micro_batches * work.mesh.readers,
        "memory_gib": round(proposal.memory_gib, 2), "bits_per_byte": round(proposal.loss.bits_per_byte, 3),
    }  # fmt: skip


def _figures(proposal: Proposal, recipe: PlanRecipe, corpus: Corpus) -> dict[str, Any]:
    work, loss = proposal.work, proposal.loss
    parts = {name: round(size / GIB, 3) for name, size in memory(work).items() if size}
    if not proposal.card.is_cpu:
        parts["CUDA"] = CONTEXT_GIB
    cost = recipe.price_per_hour and round(recipe.price_per_hour * work.gpus * proposal.seconds / 3600, 2)
    return {
        "card": asdict(proposal.card), "gpus": work.gpus, "mesh": asdict(work.mesh), "corpus": asdict(corpus),
        **_brief(proposal), "config": work.config.model_dump(mode="json"),
        "context": work.context, "steps": proposal.steps,
        "largest_micro_batch": proposal.largest_micro_batch, "recompute": work.recompute, "compile": work.compiled,
        "global_batch_tokens": work.step_tokens, "epochs": corpus.tokens and round(proposal.tokens / corpus.tokens, 2),
        "tokens_per_second": round(work.step_tokens / proposal.step_seconds), "cost": cost,
        "usable_gib": round(usable_gib(proposal.card), 2), "memory_parts_gib": parts,
        "step_parts_seconds": {name: round(s, 5) for name, s in step_seconds(work, proposal.card).items() if s},
        "bits_per_byte_low": round(loss.low, 3), "bits_per_byte_high": round(loss.high, 3),
    }  # fmt: skip


def _show(found: list[tuple[ModelChoice, Proposal]], figures: dict[str, Any], recipe: PlanRecipe) -> None:
    console = Console(highlight=False)
    console.print(_plan_table(figures))
    if recipe.model is None:
        console.print(_ladder_table(found))
    if figures["seconds"] < 0.9 * (recipe.seconds or 0):
        console.print(f"The corpus is the limit, not the time: {recipe.max_epochs:g} epochs are read. More text helps.")
    if figures["tokens"] < LAW_HOLDS:
        console.print(f"Below {short(LAW_HOLDS)} tokens the loss is only good for comparing: real ones are lower.")
    console.print("All figures are forecasts: memory ± 10 %, time ± 15 % on an H100 and ± 40 % elsewhere; the loss is "
                  "a scaling law anchored at one run on mixed text.", style="dim")  # fmt: skip
    console.print(figures["command"], markup=False, soft_wrap=True)


def _plan_table(figures: dict[str, Any]) -> Table:
    f, config, card = figures, figures["config"], figures["card"]
    active = f" ({short(f['active_parameters'])} active)" if f["active_parameters"] < f["parameters"] else ""
    gpus = f"{f['gpus']} × " if f["gpus"] > 1 else ""
    table = table_of(["", ""], [], title=f"plan for {gpus}{card['name']}, {card['memory_gib']:.0f} GiB")
    table.show_header = False
    epochs = "" if f["epochs"] is None else f", {f['epochs']:.2g} epochs of {short(f['corpus']['tokens'])}"
    rows = f"{f['micro_batch_size']} × {f['context']} tokens" + (", recompute" if f["recompute"] else "")
    used = f"{f['memory_gib']:.1f} GiB of {f['usable_gib']:.1f} usable" + (" on each" if f["gpus"] > 1 else "")
    parts = ", ".join(f"{name} {size:.2f}" for name, size in f["memory_parts_gib"].items())
    mesh = str(Mesh(**f["mesh"]))
    lines = {
        **({"mesh": mesh} if mesh else {}),
        "model": f"{config['hidden_size']} × {config['num_hidden_layers']}, {short(f['parameters'])} parameters"
                 f"{active}, vocabulary {config['vocab_size']:,}",
        "micro-batch": f"{rows}; the largest that fits: {f['largest_micro_batch']}",
        "accumulate": f"{f['accumulate']}: {short(f['global_batch_tokens'])} tokens in a step",
        "tokens": f"{short(f['tokens'])} in {amount(f['steps'], 'step')}{epochs}",
        "speed": f"{f['tokens_per_second']:,} tokens/s",
        "time": duration(f["seconds"]) + ("" if f["cost"] is None else f", costs {f['cost']:,.2f}"),
        "memory": f"{used}\n{parts}",
        "expected loss": f"{f['bits_per_byte']:.2f} bits per byte, roughly "
                         f"{f['bits_per_byte_low']:.2f} to {f['bits_per_byte_high']:.2f}",
    }  # fmt: skip
    for name, text in lines.items():
        table.add_row(name, text)
    return table


def _ladder_table(found: list[tuple[ModelChoice, Proposal]]) -> Table:
    """The chosen model between its neighbours in size."""
    chosen, by_size = found[0], sorted(found, key=lambda pair: pair[1].work.config.parameters)
    at = by_size.index(chosen)
    table = table_of([""], ["model", "parameters", "tokens", "time", "GiB", "bits per byte"], title="beside it")
    for pair in by_size[max(0, at - BESIDE) : at + BESIDE + 1]:
        config, p = pair[1].work.config, pair[1]
        table.add_row("▸" if pair is chosen else "", f"{config.hidden_size} × {config.num_hidden_layers}",
                      short(config.parameters), short(p.tokens), duration(p.seconds), f"{p.memory_gib:.1f}",
                      f"{p.loss.bits_per_byte:.3f}")  # fmt: skip
    return table
