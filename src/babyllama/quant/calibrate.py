"""The walk: block by block, each matrix with the inputs that the already quantised parts before it produce.

Within a block q, k, v → o → gate, up → down (GPTQ's "true sequential"). Of all activations only one block's inputs are
held. The model computes in float32 meanwhile. Not here: how one matrix is rounded (rtn.py, gptq.py, awq.py), files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import Batch, DataRecipe, Stream
from babyllama.errors import InputError
from babyllama.model.mlp import MoE
from babyllama.model.surgery import dense_weight, replace_modules
from babyllama.model.transformer import Block, Transformer
from babyllama.quant.gptq import Gptq
from babyllama.quant.grid import Bits, Solution
from babyllama.quant.inputs import Part, watch
from babyllama.quant.int8 import Int8
from babyllama.quant.linear import GroupedLinear, PackedEmbedding
from babyllama.quant.onebit import PackSigns, check_trained
from babyllama.quant.rtn import Method, Moments, Rtn, output_error
from babyllama.recipe import Recipe

STAGES = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",),
          ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))  # fmt: skip
Progress = Callable[[int, int, str], None]  # (matrices done, all of them, the name of the last)


class Calibration(Recipe):
    """Which rows of the training split are shown to the model, drawn as training draws them."""

    samples: int = Field(default=128, ge=1, description="rows")
    context: int | None = Field(default=None, ge=2, description="tokens in a row; default: the model's")
    packing: Literal["stream", "documents"] = Field(
        default="stream", description="rows cut from the stream of tokens, or of whole documents"
    )
    weights: dict[str, float] | None = Field(default=None, description="of the corpora; default: by their size")
    rows: int = Field(default=8, ge=1, description="of a batch")

    def batches(self, prepared: Prepared, longest: int, seed: int) -> list[Batch]:
        """The same for the same seed. `longest` is the model's context.

        Raises:
            InputError: a context beyond the model's, too few tokens.
        """
        context = self.context or longest
        if context > longest:
            raise InputError(f"calibration.context: {context} is above the model's {longest} positions")
        recipe = DataRecipe(
            path=Path(prepared.path), packing=self.packing, weights=self.weights, separate_documents=False
        )
        stream = Stream(prepared, "train", recipe, context, seed)
        if stream.rows < self.samples:
            raise InputError(f"{prepared.path}: too short for calibration.samples={self.samples}: its train split has "
                             f"{stream.rows} rows of {context} tokens; give fewer, or prepare more")  # fmt: skip
        starts = range(0, self.samples, self.rows)
        return [stream.batch(start, min(self.rows, self.samples - start)) for start in starts]


class Ends(Recipe):
    """What becomes of the head and the embedding. In a tied model they are one matrix: either means both."""

    head: Literal["keep", "rtn", "gptq"] = Field(
        default="keep", description="left in 16 bits, rounded to nearest, or by GPTQ"
    )
    embedding: Literal["keep", "rtn"] = Field(default="keep", description="left in 16 bits, or rounded to nearest")
    bits: Bits = Field(default=8, description="of both; the rest of the grid is that of the method")


class Layer(NamedTuple):
    """What was lost in one matrix. `error`: Σ(change · x)² / Σ(weight · x)² over the calibration tokens, of an
    embedding Σ change² / Σ weight². `bits`: a weight, scales and zeros included.
    """

    name: str
    weights: int
    bits: float
    error: float
    seconds: float


@dataclass(frozen=True)
class Report:
    """All matrices in the order of the walk."""

    layers: tuple[Layer, ...]
    tokens: int

    @property
    def bits_per_weight(self) -> float:
        """Of the quantised matrices."""
        return sum(layer.bits * layer.weights for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def error(self) -> float:
        """The layers' mean."""
        return sum(layer.error for layer in self.layers) / len(self.layers)

    @property
    def seconds(self) -> float:
        return sum(layer.seconds for layer in self.layers)


def silent(done: int, total: int, name: str) -> None:
    """No progress shown."""


@torch.no_grad()
def quantise(model: Transformer, batches: Sequence[Batch], method: Method | Int8 | PackSigns, ends: Ends | None = None,
             progress: Progress = silent) -> Report:  # fmt: skip
    """Put packed linears in the place of the blocks' matrices, and of the ends as asked; the model is changed.

    Args:
        model: in float32, on the device to work on.
        batches: calibration rows.
        ends: for methods that walk.

    Raises:
        InputError: a matrix that is already quantised or not finite, inputs that are not finite.
    """
    check(model, method)
    if isinstance(method, Method):
        return _Walk(model, method, ends or Ends(), progress).run(batches)
    return _place(model, batches, method, progress)


def _place(model: Transformer, batches: Sequence[Batch], method: Int8 | PackSigns, progress: Progress) -> Report:
    """For methods that need no walk. The errors are Σ change² / Σ weight²."""
    before = dict(_projections(model))
    parts, started = [Part(model, batch) for batch in batches] if isinstance(method, Int8) else [], time.perf_counter()

    def run() -> None:
        for part in parts:
            for block in model.layers:
                part.x = part.through(block)

    layers, names = [], method.place(model, run)
    for done, name in enumerate(names):
        module, weight = model.get_submodule(name), dense_weight(before[name]).float()
        lost = share((dense_weight(module) - weight).square().sum(), weight.square().sum())
        bits = 8 * sum(buffer.nbytes for buffer in module.buffers()) / weight.numel()
        now = time.perf_counter()
        layers.append(Layer(name, weight.numel(), bits, lost, now - started))
        started = now
        progress(done + 1, len(names), name)
    return Report(tuple(layers), sum(int(part.kept.sum()) for part in parts))


def _projections(model: Transformer) -> Iterator[tuple[str, nn.Module]]:
    """Name → every matrix of the blocks, in the order of the walk."""
    for number, block in enumerate(model.layers):
        yield from ((f"layers.{number}.{name}", module) for name, module in linears_of(block).items())


def settled(method: Any, model: Transformer) -> Any:
    """The method, with less than the default's 128 inputs a scale where that divides no width of the blocks.

    Only where nobody chose: a group_size that is given stays, and `check` refuses it where it does not fit.
    """
    if not isinstance(method, Method) or "group_size" in method.model_fields_set or method.short_group:
        return method
    widths = [module.in_features for block in model.layers for module in linears_of(block).values()]
    fits = next((size for size in (128, 64, 32, 16) if all(width % size == 0 for width in widths)), None)
    return method.model_copy(update={"group_size": fits})


def check(model: Transformer, method: Method | Int8 | PackSigns) -> None:
    """Raise InputError for a model that `method` cannot take, before anything costly is done."""
    if isinstance(method, PackSigns):
        check_trained(model)
    ends = [("lm_head", model.lm_head), ("embed_tokens", model.embed_tokens)] if isinstance(method, Method) else []
    for name, module in (*_projections(model), *ends):
        if not isinstance(method, PackSigns) and type(module) not in (nn.Linear, nn.Embedding):
            raise InputError(f"{name} is a {type(module).__name__}: the model is already quantised; "
                             "give the one that it was made from")  # fmt: skip
        if not all(weight.isfinite().all() for weight in module.parameters()):
            raise InputError(f"{name}: NaN or infinite weights; the model is damaged, take an earlier checkpoint")
    if isinstance(method, Method) and method.group_size and not method.short_group:
        _check_groups(model, method.group_size)


def _check_groups(model: Transformer, size: int) -> None:
    """The ends' inputs are as many as those of the blocks' first matrices."""
    for name, module in _projections(model):
        inputs = module.in_features
        if inputs % size:  # type: ignore[operator]
            fits = next((g for g in (256, 128, 64, 32, 16) if g < size and inputs % g == 0), None)  # type: ignore[operator]
            raise InputError(f"method.group_size: {name} has {inputs} inputs, no multiple of {size}; give "
                             f"{fits or 'null'}, or method.short_group=true for a last group of {inputs % size}, "  # type: ignore[operator]
                             "which fewer programs read")  # fmt: skip


def linears_of(block: nn.Module) -> dict[str, nn.Linear]:
    """Name inside the block → matrix, in the order of the walk. Raises InputError for a block of experts."""
    if isinstance(block.mlp, MoE):
        raise InputError("model: experts cannot be put in few bits here; quantise a model without them")
    return {name: block.get_submodule(name) for stage in STAGES for name in stage}  # type: ignore[misc]


def norms_of(block: nn.Module) -> dict[str, nn.Module]:
    return {name: block.get_submodule(name) for name in ("input_layernorm", "post_attention_layernorm")}


class _Walk:
    def __init__(self, model: Transformer, method: Method, ends: Ends, progress: Progress) -> None:
        self.model, self.method, self.ends, self.progress = model, method, ends, progress
        self.tied = model.config.tie_word_embeddings
        self.layers: list[Layer] = []
        grid = {
            **{name: getattr(method, name) for name in ("group_size", "symmetric", "short_group")},
            "bits": ends.bits,
        }
        self.end_methods: dict[str, Method] = {"rtn": Rtn(**grid), "gptq": Gptq(**grid)}

    @property
    def head(self) -> str:
        """What the head's matrix gets."""
        both = self.tied and self.ends.head == "keep" and self.ends.embedding == "rtn"
        return "rtn" if both else self.ends.head

    @property
    def embedding_first(self) -> bool:
        """Whether the walk starts from a rounded embedding; a tied head's GPTQ comes last, for both."""
        return self.head == "rtn" if self.tied else self.ends.embedding == "rtn"

    @property
    def total(self) -> int:
        ends = (
            int(self.head != "keep") if self.tied else sum(e != "keep" for e in (self.ends.head, self.ends.embedding))
        )
        return len(self.model.layers) * sum(map(len, STAGES)) + ends

    def run(self, batches: Sequence[Batch]) -> Report:
        table, replaced = self.model.embed_tokens.weight, {}
        if self.embedding_first:
            solution = self._solve(self.end_methods["rtn"], table, None, "embed_tokens", "embed_tokens")
            replaced["embed_tokens"] = PackedEmbedding(GroupedLinear.of(solution), table.dtype)
        parts = [Part(self.model, batch) for batch in batches]
        for number, block in enumerate(self.model.layers):
            self._block(number, block, parts)  # type: ignore[arg-type]
        if self.head != "keep" and not (self.tied and self.embedding_first):
            inputs = Moments(table.shape[1], table.device)
            for part in parts:
                inputs.add(self.model.norm(part.x)[part.kept])
            solution = self._solve(self.end_methods[self.head], self.model.lm_head.weight, inputs, "lm_head", "lm_head")
            replaced["lm_head"] = GroupedLinear.of(solution)
        if self.tied and replaced:
            one = replaced["lm_head"] if "lm_head" in replaced else replaced["embed_tokens"].packed
            replaced = {"lm_head": one, "embed_tokens": PackedEmbedding(one, table.dtype)}
        replace_modules(self.model, lambda name, _: name in replaced, lambda name, _: replaced[name])
        return Report(tuple(self.layers), int(sum(int(part.kept.sum()) for part in parts)))

    def _block(self, number: int, block: Block, parts: Sequence[Part]) -> None:
        linears, solutions = linears_of(block), {}
        if self.method.prepares:
            self.method.prepare(linears, norms_of(block), watch(block, [stage[0] for stage in STAGES], parts))
        for stage in STAGES:
            inputs = watch(block, stage[:1], parts)[stage[0]]
            for name in stage:
                weight = linears[name].weight
                solutions[name] = self._solve(self.method, weight, inputs, name, f"layers.{number}.{name}")
        for part in parts:
            part.x = part.through(block)
        replace_modules(block, lambda name, _: name in solutions, lambda name, _: GroupedLinear.of(solutions[name]))

    def _solve(self, method: Method, weight: Tensor, inputs: Moments | None, name: str, full: str) -> Solution:
        """Round `weight` in place."""
        started, rows = time.perf_counter(), weight.float()
        hessian = None if inputs is None else inputs.hessian
        solution = method.solve(rows, inputs or Moments(0, weight.device), name)
        dense = solution.dense()
        lost, whole = ((part.square().sum() if hessian is None else output_error(part, hessian))
                       for part in (dense - rows, rows))  # fmt: skip
        weight.copy_(dense)
        layer = Layer(full, weight.numel(), stored_bits(solution), share(lost, whole), time.perf_counter() - started)
        self.layers.append(layer)
        self.progress(len(self.layers), self.total, full)
        return solution


def share(lost: Tensor, whole: Tensor) -> float:
    """lost / whole; of nothing, such as a matrix of zeros, nothing is lost: 0."""
    return float(lost / whole.clamp(min=torch.finfo(torch.float32).tiny))


def stored_bits(solution: Solution) -> float:
    """A weight: its code, its share of a scale (16 bits) and a zero, of the order of inputs (32) where there is one."""
    extra = solution.scale.numel() * (16 + solution.bits) + (0 if solution.order is None else 32 * len(solution.order))
    return solution.bits + extra / solution.codes.numel()
