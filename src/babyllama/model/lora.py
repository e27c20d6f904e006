"""Adapters: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353) around any linear-like module; QLoRA is the same around
a packed one.

`attach` wraps what a recipe names and freezes everything else; adapters attached one after the other stack. Not here:
the wrappers (wrappers.py), files (adapters.py), packed weights (nf4.py).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from babyllama.errors import InputError
from babyllama.model.nf4 import Base, plain_linear
from babyllama.model.surgery import dense_weight, replace_modules
from babyllama.model.wrappers import Adapted, DoraLinear, LoraLinear, Trained, base_dtype, in_use, is_tied
from babyllama.recipe import Recipe

Extra = Literal["embed_tokens", "norms", "lm_head"]
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


class Lora(Recipe):
    """W + s·B·A with frozen W (out, in), A (R, in), B (out, R), s = alpha / rank. B starts at zero.

    `train` names whole modules that are trained beside the factors; with embeddings and norms this is what LongLoRA
    (arXiv 2309.12307) calls LoRA+.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1, description="directions in which a matrix may change")
    ranks: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default={}, description="ranks of single targets, where they differ from `rank`"
    )
    alpha: float = Field(
        default=32.0, gt=0, description="the adapter's part is multiplied by alpha / rank (rsLoRA: / √rank)"
    )
    scaling: Literal["rank", "sqrt_rank"] = Field(default="rank", description="s = α/r, or rsLoRA's α/√r (2312.03732)")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="on the adapters' input, while training")
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1,
        description="ends of the names of linears in the blocks: q_proj, or layers.0.mlp.up_proj",
    )  # fmt: skip
    train: tuple[Extra, ...] = Field(default=(), description="modules trained whole, beside the adapters")
    base: Base = Field(default="dense", description="how the frozen blocks are kept; nf4 and int8 are QLoRA")

    def scale(self, rank: int) -> float:
        """s of a wrapper of that rank."""
        return self.alpha / (rank if self.scaling == "rank" else math.sqrt(rank))

    def rank_of(self, name: str) -> int:
        """The rank of the linear `name`."""
        return next((rank for target, rank in self.ranks.items() if is_end(name, target)), self.rank)


class Dora(Lora):
    """m ⊙ (W + s·B·A) / ‖W + s·B·A‖: LoRA turns each output row, the trained m (out,) is its length."""

    kind: Literal["dora"] = "dora"  # type: ignore[assignment]


WRAPPERS: dict[str, type[LoraLinear]] = {"lora": LoraLinear, "dora": DoraLinear}


def is_end(name: str, target: str) -> bool:
    """Whether a dotted name ends with the whole parts of `target`."""
    return name == target or name.endswith(f".{target}")


def attach(model: nn.Module, adapter: Lora, seed: int, name: str = "default") -> None:
    """Freeze the model as it is and put the adapter on top, float32, ready to be trained. Deterministic in `seed`.

    Raises:
        InputError: a target that matches nothing, a rank above a matrix's smaller side, a tied head alone.
    """
    chosen = [path for path, module in linears(model) if any(is_end(path, target) for target in adapter.targets)]
    for key, wanted in (("targets", adapter.targets), ("ranks", adapter.ranks)):
        for target in wanted:
            if not any(is_end(path, target) for path in chosen):
                known = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path, _ in linears(model)))
                raise InputError(f"adapter.{key}: {target!r} matches no linear in the blocks that is adapted; "
                                 f"they are {known}")  # fmt: skip
    sizes = {path: (adapter.rank_of(path), adapter.scale(adapter.rank_of(path))) for path in chosen}
    for path, (rank, _) in sizes.items():
        rows, columns = dense_weight(model.get_submodule(path)).shape
        if rank > min(rows, columns):
            raise InputError(f"adapter: rank {rank} is above the smaller side of {path} ({rows} × {columns}); "
                             f"choose at most {min(rows, columns)}")  # fmt: skip
    wrap(model, sizes, WRAPPERS[adapter.kind], adapter.dropout, name)
    generator = torch.Generator().manual_seed(seed)
    for path in chosen:
        model.get_submodule(path).initialise(generator)  # type: ignore[operator]
    train_whole(model, adapter.train, name)


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of what stands for a weight matrix inside the blocks; of wrappers the outermost."""
    inside = ""
    for path, module in model.named_modules():
        outermost = path.startswith("layers.") and not (inside and path.startswith(inside))
        if outermost and (isinstance(module, nn.Linear) or hasattr(module, "dense_weight")):
            inside = f"{path}."
            yield path, module


def wrap(model: nn.Module, sizes: Mapping[str, tuple[int, float]], kind: type[LoraLinear], dropout: float, name: str
         ) -> None:  # fmt: skip
    """Freeze everything and wrap the linears of `sizes`: name → (rank, scale). The factors are zero."""
    model.requires_grad_(False)
    replace_modules(model, lambda path, _: path in sizes,
                    lambda path, module: kind(module, *sizes[path], dropout, name))  # fmt: skip


def train_whole(model: nn.Module, extras: Collection[str], name: str = "default") -> None:
    """Train whole modules too: embed_tokens, lm_head, norms for all norms, or the dotted name of one. A tied head and
    its embedding are one.

    Raises:
        InputError: a tied head without its embedding.
    """
    tied = is_tied(model)
    if tied and "lm_head" in extras and "embed_tokens" not in extras:
        raise InputError("adapter.train: lm_head is tied to embed_tokens here; give embed_tokens, which trains both")
    chosen = {*extras, *(["lm_head"] if tied and "embed_tokens" in extras else [])}

    def pick(path: str, _: nn.Module) -> bool:
        return path in chosen or ("norms" in chosen and path.rpartition(".")[2] in NORMS)

    replace_modules(model, pick, lambda _, module: _trained(module, name))
    if tied and "embed_tokens" in extras:
        model.lm_head.own.weight = model.embed_tokens.own.weight  # type: ignore[union-attr]


def _trained(base: nn.Module, name: str) -> Trained:
    own = copy.deepcopy(in_use(base))
    own.weight = nn.Parameter(base.weight.detach().float().clone())  # type: ignore[operator, union-attr]
    return Trained(base, own, name)


# ── on and off ─────────────────────────────────────────────────────────────────────────────────────────────────────
def switch(model: nn.Module, on: bool, name: str | None = None) -> None:
    """Turn the adapter `name`, or all, on or off."""
    for module in model.modules():
        if isinstance(module, Adapted) and name in (None, module.name):
            module.on = on


@contextmanager
def enabled(model: nn.Module, on: bool, name: str | None = None) -> Iterator[None]:
    """Inside, the adapter `name`, or all, is on or off; then as before."""
    before = [(module, module.on) for module in model.modules() if isinstance(module, Adapted)]
    switch(model, on, name)
    try:
        yield
    finally:
        for module, was in before:
            module.on = was


@contextmanager
def only(wrappers: Sequence[nn.Module], name: str) -> Iterator[None]:
    """Inside, of these wrappers those of the adapter `name` are on and all others off; then as before."""
    before = [wrapper.on for wrapper in wrappers]
    try:
        for wrapper in wrappers:
            wrapper.on = wrapper.name == name  # type: ignore[assignment]
        yield
    finally:
        for wrapper, was in zip(wrappers, before, strict=True):
            wrapper.on = was


# ── merging ────────────────────────────────────────────────────────────────────────────────────────────────────────
def merge(model: nn.Module) -> dict[str, nn.Module]:
    """Put plain modules in the place of all wrappers, as they are on or off: computed in float32, in the base's dtype.

    A packed base becomes dense: its unpacked values and the factors. Embedding and head stay tied where they were.

    Returns:
        What was replaced, for `unmerge`.
    """
    dtype, tied, kept = base_dtype(model), is_tied(model), {}

    def plain(path: str, module: nn.Module) -> nn.Module:
        kept[path] = module
        if isinstance(module, LoraLinear):
            return plain_linear(dense_weight(module), dtype)
        module = copy.copy(in_use(module))  # its weight stays where it is
        weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)  # type: ignore[operator, union-attr]
        module._parameters = {**module._parameters, "weight": weight}
        return module

    replace_modules(model, lambda _, module: isinstance(module, Adapted), plain)
    if tied:
        model.lm_head.weight = model.embed_tokens.weight  # type: ignore[union-attr]
    return kept


def unmerge(model: nn.Module, kept: dict[str, nn.Module]) -> None:
    """Undo `merge`, to the bit."""
    replace_modules(model, lambda path, _: path in kept, lambda path, _: kept[path])
