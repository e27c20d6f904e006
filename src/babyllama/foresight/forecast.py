"""What a training will need, before it runs: memory, seconds. Pure arithmetic, no torch.

Each term is written out, and every constant that a measurement can move is a named one below: recalibrate there;
tests/foresight/test_forecast.py holds the measured points. Not here: what it brings (scaling.py), which size to
choose (budget.py), what cards can do (hardware.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from babyllama.foresight.rates import vocab_share
from babyllama.model.config import ModelConfig
from babyllama.train.engines.mesh import ALONE, Mesh

if TYPE_CHECKING:
    from babyllama.hardware import Card

GIB = 2**30

# ── memory ─────────────────────────────────────────────────────────────────────────────────────────────────────────
CHUNKS_ALIVE = 1  # their gradient takes the logits' place, and each chunk is freed before the next
FLOAT8_CHUNK = 1.5  # of the bytes of a chunk in half precision: its gradient, half as large, lies beside it
CHUNKS_ALIVE_FP32 = 4  # the path without the kernel: logits, their exact copy, its exponentials, the gradient
# × hidden_size, × the MLP's inner numbers: numbers a token that a block saves beside keys and values (see saved_bytes)
SAVED, SAVED_EAGER, SAVED_EAGER_FP32 = (6, 2), (10, 4), (8, 4)
OUTSIDE = 4  # × hidden_size numbers a token outside the blocks: embedding, final norm, the loss's gradient
ROUTED = 2  # × hidden_size numbers a token and expert: its copy by expert, and what the expert makes of it
BACKWARD = 3  # × (hidden_size + the MLP's inner) numbers a token while one block goes backward
CONTEXT_GIB = 0.6  # what CUDA and its libraries take beside PyTorch's own allocations
USABLE = 0.92  # share of a card that may be planned: the rest is fragmentation and the desktop

# ── time ───────────────────────────────────────────────────────────────────────────────────────────────────────────
PRODUCTS = 0.75  # share of the peak that products inside the blocks reach
HEAD_PRODUCTS = 0.80  # and the head's: 798 of an H100's 989 TFLOP/s on large ones
FLOAT8_PRODUCTS = 1.65  # × as many in float8: 1.64 at a width of 512, 1.74 at 1,024 (docs/log.md, 2026-11-30)
FLOAT8_PASSES = 1.25  # × the logits' traffic: read, and their gradient written, read, turned over, a byte each
NEWTON_SCHULZ = 0.40  # and Muon's, which are small
BANDWIDTH = 0.85  # share of the data sheet's memory bandwidth that streaming kernels reach
PASSES = 9.0  # how often each number that a compiled block saves crosses the memory bus, forward and backward
EAGER_PASSES = 25.0
RECOMPUTE = 4 / 3  # a second forward pass
LAUNCH_S = 6e-6
LAUNCHES, EAGER_LAUNCHES = 40, 170  # kernels of one block, forward and backward
LINK = 0.6  # share of the link's rate that an exchange of gradients reaches
COMPILE_S = 40.0
AROUND = 1.03  # validation, samples and saving on top of the steps


# ── optimisers ─────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Cost:
    """What an optimiser takes for the matrices inside the blocks, all else being AdamW's, and what it brings.

    Attributes:
        moments: bytes a parameter.
        moved: bytes a parameter and step: norm, clip, moments, master, half-precision copy.
        work: bytes for each number of the largest stack of equal matrices, while it steps.
        iterations: of Newton–Schulz a step.
        reducible: what is left above E, against Chinchilla's: set by one run each, 512 × 8, 40 M tokens (30 M different
            ones) of mixed Chinese text in ChatGLM2's ids: 1.633 bits per byte with Muon, 1.688 with AdamW. E itself
            stays: an anchor at one small size says little about the limit, and shifting E instead would promise
            absurdly small losses to large models.
    """

    moments: int
    moved: int
    work: int
    iterations: int
    reducible: float


ADAMW = Cost(moments=8, moved=52, work=0, iterations=0, reducible=0.602)
COSTS = {"adamw": ADAMW, "muon": Cost(moments=4, moved=90, work=24, iterations=5, reducible=0.571)}


@dataclass(frozen=True)
class Workload:
    """One training step, as a card sees it. `micro_batches`: of one process in one step."""

    config: ModelConfig
    context: int
    micro_batch_size: int = 1
    micro_batches: int = 1
    optimizer: Literal["muon", "adamw"] = "muon"
    half: bool = True
    compiled: bool = True
    recompute: bool = False
    mesh: Mesh = ALONE  # of the processes, each with a GPU
    chunk_rows: int = 8192  # of logits held at a time: hardware.chunk_rows
    fp8_head: bool = False  # the objective's, on a card that has it
    stages: tuple[tuple[float, float], ...] = ()  # of objective.sampled

    @property
    def cost(self) -> Cost:
        """Of its optimiser."""
        return COSTS[self.optimizer]

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.mesh.size

    @property
    def tokens(self) -> int:
        """Of one micro-batch, on one GPU."""
        return self.micro_batch_size * self.context // self.mesh.context

    @property
    def step_tokens(self) -> int:
        """Of one optimiser step, over all GPUs."""
        return self.tokens * self.micro_batches * self.gpus

    @property
    def float8(self) -> bool:
        """Whether its head is multiplied so: only instead of half precision."""
        return self.half and self.fp8_head

    @property
    def vocab_share(self) -> float:
        """Of the vocabulary that the loss is over, in the mean of a whole training."""
        return vocab_share(self.stages, self.tokens, self.config.vocab_size)

    @property
    def number_bytes(self) -> int:
        return 2 if self.half else 4

    @property
    def padded_vocab(self) -> int:
        """As the loss pads it on a GPU."""
        return -(-self.config.vocab_size // 128) * 128 if self.half else self.config.vocab_size

    @property
    def saved_bytes(self) -> int:
        """What one block keeps for its backward pass, bytes a token.

        Compiled: the residual before each norm, both normed inputs, q, k, v, the attention's output and its
        log-sum-exp; gate, up and their product. Eager keeps each norm's float32 input and half-precision middle too,
        and silu(gate): exactly what autograd counts.
        """
        c = self.config
        widths, ffn = SAVED if self.compiled else SAVED_EAGER if self.half else SAVED_EAGER_FP32
        if c.moe is not None:
            widths += ROUTED * c.moe.active
        numbers = widths * c.hidden_size + 2 * kv_width(c) + ffn * c.mlp.inner
        return numbers * self.number_bytes + 4 * c.num_attention_heads


def kv_width(config: ModelConfig) -> int:
    """Numbers in all keys of a token."""
    return config.num_key_value_heads * config.head_dim


def block_parameters(config: ModelConfig) -> int:
    """Parameters without embedding, head and final norm: the N of the scaling law."""
    return config.parameters - outside(config)


def outside(config: ModelConfig) -> int:
    """Embedding, head and final norm."""
    heads = 1 if config.tie_word_embeddings else 2
    return (heads * config.vocab_size + 1) * config.hidden_size


# ── memory ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def memory(work: Workload) -> dict[str, float]:
    """The terms of the fullest moment of a step, in bytes; their sum is what max_memory_allocated will say.

    Three moments can be it: the loss or the first block's backward on top of all activations; the gradients' way up to
    float32 at the end of the backward pass; the optimiser's step.
    """
    count, share = work.config.parameters, work.mesh.shard
    inside = block_parameters(work.config)
    moments = ADAMW.moments * (count - inside) + work.cost.moments * inside
    state = {"parameters": 4 * count / share, "moments": moments / share}
    full = 4 * count / share
    held = full if work.micro_batches > 1 or (work.gpus > 1 and share == 1) else 0.0  # DDP's buckets stay
    copies = _copies(work) if work.half else 0
    instants = (
        {"half-precision copies": copies, "gradients": held, "activations": _activations(work),
         "loss and backward": _loss(work)},
        {"gradients": full + held, "gradients in half": 2 * count / share if work.half else 0},
        {"gradients": full, "optimiser's work": _stack_bytes(work) / share},
    )  # fmt: skip
    return {**state, **max(instants, key=lambda terms: sum(terms.values()))}


def memory_gib(work: Workload, on_gpu: bool = True) -> float:
    """All of it, with what CUDA itself takes."""
    return sum(memory(work).values()) / GIB + (CONTEXT_GIB if on_gpu else 0.0)


def _copies(work: Workload) -> float:
    if work.mesh.shard == 1:
        return 2 * work.config.parameters
    per_layer = block_parameters(work.config) / work.config.num_hidden_layers
    outside = work.config.parameters - block_parameters(work.config)
    return 2 * (outside + min(2, work.config.num_hidden_layers) * per_layer)  # this block's and the next one's


def _activations(work: Workload) -> float:
    c = work.config
    kept = c.num_hidden_layers * work.saved_bytes
    if work.recompute:
        kept = c.num_hidden_layers * c.hidden_size * work.number_bytes + work.saved_bytes
    return work.tokens * (kept + OUTSIDE * c.hidden_size * work.number_bytes)


def _loss(work: Workload) -> float:
    """The larger of the chunked loss and the first block's backward; the first is over when the second begins."""
    c, size = work.config, work.number_bytes
    head = work.padded_vocab * c.hidden_size
    alive = (FLOAT8_CHUNK if work.float8 else CHUNKS_ALIVE) if work.half else CHUNKS_ALIVE_FP32
    logits = alive * min(work.tokens, work.chunk_rows) * work.padded_vocab * size
    padded = head * size if work.padded_vocab != c.vocab_size else 0
    if work.float8:
        padded, logits = 2 * head, logits + 2 * work.tokens * c.hidden_size  # a byte, laid both ways
    backward = work.tokens * BACKWARD * (c.hidden_size + c.mlp.inner) * size + head * (4 + size)
    return padded + 4 * head + max(logits, backward)


def _stack_bytes(work: Workload) -> float:
    """What the optimiser holds while it steps the largest stack of equal matrices."""
    c = work.config
    attention = 2 * c.hidden_size * (c.hidden_size + (kv_width(c) if kv_width(c) == c.hidden_size else 0))
    widest = 2 * c.hidden_size * c.intermediate_size * (c.moe.experts if c.moe else 1)
    return work.cost.work * c.num_hidden_layers * max(attention, widest)


# ── time ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def step_seconds(work: Workload, card: Card) -> dict[str, float]:
    """The terms of one optimiser step, in seconds: products at their share of the peak, traffic at the bus's rate.

    Narrow models are slow for their size because of the traffic, which grows with the width where products grow with
    its square.
    """
    c, tokens = work.config, work.tokens * work.micro_batches
    peak, bus = card.tflops * 1e12, card.bandwidth * 1e9 * BANDWIDTH
    again = RECOMPUTE if work.recompute else 1.0
    inside = c.flops_per_token(work.context) - 6 * c.vocab_size * c.hidden_size
    passes, launches = (PASSES, LAUNCHES) if work.compiled else (EAGER_PASSES, EAGER_LAUNCHES)
    products = tokens * inside * again / (peak * PRODUCTS)
    traffic = tokens * c.num_hidden_layers * work.saved_bytes * passes * again / bus
    launched = 0 if card.is_cpu else work.micro_batches * c.num_hidden_layers * launches * again * LAUNCH_S
    vocab = work.padded_vocab * work.vocab_share
    logits = 2 * work.number_bytes * vocab  # read once and written once by the kernel
    faster, crossed = (FLOAT8_PRODUCTS, FLOAT8_PASSES) if work.float8 else (1.0, 1.0)
    head = 6 * vocab * c.hidden_size / (peak * HEAD_PRODUCTS * faster) + logits * crossed / bus
    return {
        "blocks, products": products,
        "blocks, memory traffic": traffic,
        "waiting for launches": max(0.0, launched - products - traffic),
        "head and loss": tokens * head,
        "optimiser": _optimizer_seconds(work, peak, bus),
        "exchange between GPUs": _exchange(work, card),
    }


def tokens_per_second(work: Workload, card: Card) -> float:
    """Over all GPUs, while steps run."""
    return work.step_tokens / sum(step_seconds(work, card).values())


def _optimizer_seconds(work: Workload, peak: float, bus: float) -> float:
    c, cost, share = work.config, work.cost, work.mesh.shard
    inside, kv = block_parameters(c), kv_width(c)
    moved = ADAMW.moved * (c.parameters - inside) + cost.moved * inside
    shapes = [(c.hidden_size, c.hidden_size)] * 2 + [(c.hidden_size, kv)] * 2
    shapes += [(c.hidden_size, c.intermediate_size)] * 3 * (c.moe.experts if c.moe else 1)
    shapes += [(c.hidden_size, c.moe.shared * c.intermediate_size)] * 3 if c.moe and c.moe.shared else []
    flops = 0.0
    for one, other in shapes:  # an iteration is X·Xᵀ, its square, and their product with X
        short, long = min(one, other), max(one, other)
        flops += cost.iterations * (4 * short**2 * long + 2 * short**3) * c.num_hidden_layers
    return moved / share / bus + flops / work.gpus / (peak * NEWTON_SCHULZ)  # the ranks share the matrices out


def _exchange(work: Workload, card: Card) -> float:
    """Over the link of one GPU, in seconds: a ring among N brings each (N − 1) / N of what it is about.

    Copies: an all-reduce once a step of the float32 gradients that each holds. Shards: two gatherings of weights and a
    scattering of gradients each micro-batch. What Muon orthogonalised travels in bf16: to all copies, and each shard's
    rows there and back. Parts of a row: each block's queries, keys, values and outputs there and back, and again if it
    is recomputed.
    """
    c, mesh, moved = work.config, work.mesh, 0.0
    muon = 2 * block_parameters(c) * bool(work.cost.iterations) / mesh.shard
    moved += _others(mesh.replicate) * (2 * 4 * c.parameters / mesh.shard + muon)
    moved += _others(mesh.shard) * ((2 + 2 + 4) * work.micro_batches * c.parameters + 2 * muon)
    passes = 3 if work.recompute else 2
    numbers = 2 * c.hidden_size + 2 * max(kv_width(c), mesh.context * c.head_dim)
    moved += _others(mesh.context) * passes * work.tokens * work.micro_batches * (
        c.num_hidden_layers * numbers * work.number_bytes)  # fmt: skip
    return moved / (card.link * 1e9 * LINK)


def _others(size: int) -> float:
    """What share of something that lies evenly on so many processes lies on others."""
    return (size - 1) / size
