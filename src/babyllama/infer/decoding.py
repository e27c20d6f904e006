"""Decoding on a GPU without the host: five kernels a layer, the head, the next token; several steps are one graph.

It computes what the model's forward path computes, with the sums and the residual stream in float32, and draws as
choosing.py does. Weights of 4 or 8 bits in groups stay packed where rows are few. In one file although it is long: what
a step launches shares its buffers. Not here: the kernels (kernels.py), the faster ones of up to sixteen rows (few.py),
which models and requests they are for (fused.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from babyllama.infer.rows import Rows
from babyllama.infer.step import Recorder, power
from babyllama.model.cache import KVCache
from babyllama.model.surgery import Words
from babyllama.model.transformer import Transformer

CANDIDATES = 2048  # tokens of a row that are sorted; where more may be drawn, the row is searched instead
SORTED = 64, 256  # the same for most rows: so few are compared each with each, are sorted faster
SPANS = 512  # of the vocabulary at most, whose best tokens say where the cuts lie
READ = 2048  # logits that are looked through for candidates at a time
DRAWING = 16  # warps of a program that draws
PROGRAMS = 132  # that a GPU of this kind runs at a time: as many shares of the slots as bring attention there
ONE, SOME = 1, 32  # rows up to which the first, the second of `TILES` is faster
LOOKED_AT = 128  # slots whose keys and values a program of a few rows holds before it waits, at most
WARP = 4096  # weights that a warp of a few rows keeps in registers at most
MADE = 512  # inputs that it makes, by a norm or of shares, at most
UNPACKED = 128  # inputs of a packed head that it takes at most
LAID = 1 << 28  # bytes of packed layers up to which copies of them lie as programs read them
SPARE = 16  # part of a GPU's memory that an unpacked copy may take
# Inputs with which a program of a few rows takes twice as many outputs: fewer normalise the same row. With more inputs
# its weights would not fit into registers.
WIDE = range(1024, 2049)
PACKED = 4  # rows up to which packed weights are multiplied by one after the other


class Tiles(NamedTuple):
    """What one program takes, and how it is compiled.

    Attributes:
        pairs, add, widen, predict: outputs: pairs of a head, of a projection, of the MLP, of the head.
        rows: of the batch, on tensor cores; 0: all, one after the other.
        inputs, head_inputs: of a product at a time; 0: all.
        splits: shares of a row's slots, where there are programs for them; slots: of a share at a time; of one row both
            go by the cache, too.
        head_rows: of the head, where they are others than `rows`.
        head_registers, draw_registers: of a thread of the head, of drawing, at most; 0: no limit.
        head_holds: weights of the head that a program has in registers at most.
    """

    pairs: int
    add: int
    widen: int
    predict: int
    rows: int = 0
    inputs: int = 0
    head_inputs: int = 0
    splits: int = 1
    slots: int = 64
    warps: int = 4
    head_warps: int = 4
    stages: int = 1
    head_rows: int = 0
    attend_warps: int = 4
    attend_stages: int = 2
    head_stages: int = 1
    head_registers: int = 0
    draw_registers: int = 0
    head_holds: int = 16384


# As measured on an H200: docs/log.md.
TILES = (Tiles(2, 2, 4, 32, splits=4, warps=1),
         Tiles(16, 16, 16, 128, rows=32, inputs=128, head_inputs=64, splits=8, stages=4, head_stages=4),
         Tiles(32, 32, 32, 128, rows=64, inputs=64, head_rows=128, head_inputs=64, head_warps=8, stages=4,
               head_stages=3))  # fmt: skip

# Packed heads are held as they are: with 4 bits all programs have room at a time.
HEADS = {bits: TILES[0]._replace(predict=outputs, head_registers=64, head_holds=65536)
         for bits, outputs in ((4, 64), (8, 32))}  # fmt: skip


def tiles_for(rows: int, bits: int = 0, few: int = ONE, inputs: int = 0) -> Tiles:
    """By the number of rows, of which so many are `few`, by the bits of the head, and by hidden_size."""
    if rows <= few:
        found = HEADS.get(bits, TILES[0])
        return found._replace(add=4, widen=8) if inputs in WIDE else found
    if rows <= SOME:
        return TILES[1]._replace(rows=16 if rows <= 16 else 32)
    two = 64 if rows > PROGRAMS else 0  # then two programs that draw have room at a time
    return TILES[2]._replace(head_rows=min(TILES[2].head_rows, power(rows)), draw_registers=two)


def packed(model: Transformer) -> bool:
    """Whether any matrix is."""
    return bool(packed_in(model))


def packed_in(*parts: nn.Module) -> list[Words]:
    """Their packed matrices."""
    return [words for part in parts for words in map(words_of, part.modules()) if words is not None]


def unpacked_fits(model: Transformer) -> bool:
    """Whether there may be a copy of the packed matrices that are multiplied by, unpacked."""
    every = packed_in(model.layers, model.lm_head)
    device = model.embed_tokens.weight.device
    room = torch.cuda.get_device_properties(device).total_memory // SPARE if device.type == "cuda" else LAID
    return sum(16 // words.bits * words.words.nbytes for words in every) <= room


class Bits(NamedTuple):
    """How a matrix is held: bits 0 is a plain one. `ordered`: its codes are in an order of their own."""

    bits: int = 0
    group: int = 0
    ordered: bool = False


def bits_of(module: Any) -> Bits | None:
    """Of a linear or an embedding; None for what the kernels do not multiply by."""
    if type(module) in (nn.Linear, nn.Embedding):
        return Bits() if getattr(module, "bias", None) is None else None
    words = words_of(module)
    return None if words is None else Bits(words.bits, words.group_size, words.order is not None)


def words_of(module: Any) -> Words | None:
    return getattr(module, "in_words", None)


COPIES: WeakKeyDictionary[nn.Module, dict[Any, tuple[Tensor, Any]]] = WeakKeyDictionary()


def copy_of(packed: nn.Module, kind: Any, make: Callable[[], Any]) -> Any:
    """A packed matrix in another form, made once for all who want it so, as long as the matrix lives."""
    words, kept = words_of(packed), COPIES.setdefault(packed, {})
    assert words is not None
    if kind not in kept or kept[kind][0] is not words.words:
        kept[kind] = words.words, make()
    return kept[kind][1]


def _order(words: Words) -> Tensor:
    return words.words if words.order is None else words.order


def lay_out(words: Words, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A packed matrix as programs take it, `rows` (blocks, R) each, −1 for none: what one reads lies side by side. By
    columns of the whole matrix a program would use 8 or 16 of 32 bytes that memory brings.

    Returns:
        Words (blocks, U, R) int32, and groups (blocks, G, R), as `groups_of`.
    """
    there, at = rows >= 0, rows.clamp(min=0)
    parts = words.words, groups_of(words)
    found = (torch.where(there, part[:, at], 0).transpose(0, 1).contiguous() for part in parts)
    return next(found), next(found)


def groups_of(words: Words) -> Tensor:
    """Of each group and output the scale and, above it, the zero, as float16: (G, N) int32."""
    return torch.stack([words.scales, words.zeros.half()], -1).view(torch.int32)[..., 0].contiguous()


def drawing(blocks: int, R: int) -> dict[str, int]:
    """How a token is drawn from so many blocks of R logits."""
    N = power(blocks)
    M = min(SPANS, N)
    return {"LEAST": min(SORTED[0], CANDIDATES), "SMALL": min(SORTED[1], CANDIDATES), "CAP": CANDIDATES,
            "CHUNK": READ, "N": N, "M": M, "R": R, "num_warps": DRAWING}  # fmt: skip


@dataclass(eq=False)
class Decoder:
    """The first `count` rows, all of them whether they decode or not."""

    model: Transformer
    rows: Rows
    cache: KVCache
    count: int
    tiles: Tiles | None = None  # by the number of rows when absent
    record: Recorder = field(default_factory=Recorder)
    fed: tuple[Tensor, Tensor, Tensor] | None = None  # (count,) each, as if rows': tokens, places, the cache's rows

    def __post_init__(self) -> None:
        weight = self.model.embed_tokens.weight
        config, B = self.model.config, self.count
        self.device, self.dtype, self.V = weight.device, weight.dtype, self.rows.vocab_size
        self._share_out()
        small = sum(words.words.nbytes for words in packed_in(self.model.layers)) <= LAID
        # With many rows a step waits for products, not for weights: unpacking them every time makes it slower.
        self.lays, self.unpacks = self.few and small, not self.few and small and unpacked_fits(self.model)
        self.blocks = -(-self.V // self.plan.predict)
        # Programs that wait hold room: with one row that costs less than starting late.
        self.early = self.few and torch.cuda.get_device_capability(weight.device) >= (9, 0)
        self.graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor] | None] = {}

        empty = self._empty
        C, F, D, H = config.hidden_size, config.intermediate_size, config.head_dim, config.num_attention_heads
        self.x = empty(B, C)
        self._room_between(C, F)
        self.squares = torch.zeros(B, self.parts, device=self.device)
        self.cos, self.sin = empty(B, D // 2), empty(B, D // 2)
        self.q, self.attended = empty(B, H, D, dtype=self.dtype), empty(B, C, dtype=self.dtype)
        self.split = empty(B, self.splits, C) if self.splits > 1 else self.attended
        self.peaks, self.sums = empty(B, self.splits, H), empty(B, self.splits, H)
        self.token, self.position, self.owner = self.fed or (self.rows.token, self.rows.position, self.rows.position)
        self.inverse = self.x  # of a packed embedding: the code of each input
        words = words_of(self.model.embed_tokens)
        if words is not None and words.order is not None:
            self.inverse = words.order.argsort().to(torch.int32)
        if self.fed is None:
            self._room_to_choose()

    def _share_out(self) -> None:
        """What programs there are: `plan`, and `splits` shares of a row's slots."""
        config, B = self.model.config, self.count
        heads, keys = config.num_attention_heads, config.num_key_value_heads
        bits = (bits_of(self.model.lm_head) or Bits()).bits
        plan = self.tiles or tiles_for(B, bits, PACKED if packed(self.model) else ONE, config.hidden_size)
        self.few = plan.rows == 0
        slots, shares = power(self.cache.keys.shape[3]), plan.splits
        if self.few:  # each program of the next kernel puts together what all rows left of theirs
            shares = max(1, max(shares, slots // LOOKED_AT) // B)
        wanted = max(1, PROGRAMS // (B * (heads if self.few else keys)))
        self.splits = min(shares, 1 << (wanted.bit_length() - 1))
        if self.few:
            looked = min(LOOKED_AT, max(16, slots // self.splits))
            plan = plan._replace(predict=min(plan.predict, max(8, plan.head_holds // power(config.hidden_size))),
                                 slots=looked, attend_warps=max(1, looked // 16))  # fmt: skip
        self.plan = plan

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _room_between(self, C: int, F: int) -> None:
        """For what kernels hand to the next one, and the parts of Σ x²."""
        self.y, self.h = self._empty(self.count, C, dtype=self.dtype), self._empty(self.count, F, dtype=self.dtype)
        self.parts = 1 if self.few else power(-(-C // self.plan.add))

    def _room_to_choose(self) -> None:
        """For logits, and what is told of them until a token is chosen."""
        B, blocks, empty = self.count, self.blocks, self._empty
        self.logits, self.places = empty(B, self.V), empty(B, blocks, dtype=torch.int32)
        self.best, self.masses = empty(B, blocks), empty(B, blocks)
        self.kept = empty(B, power(blocks), dtype=torch.int32)
        self.keys = empty(B, CANDIDATES, dtype=torch.int64)

    def __call__(self, steps: int, drawn: bool) -> Tensor:
        """`steps` more tokens of every row, (steps, B) int64, −1 where the logits are not finite."""
        return self.record.repeated(self.graphs, (steps, drawn), lambda: self.launch(steps, drawn))

    @property
    def kind(self) -> tuple[Any, ...]:
        """Decoders of one kind launch the same compiled kernels."""
        return self.plan, self.splits

    @torch.inference_mode()
    def compile(self) -> None:
        """Launch every kernel once, on whichever thread."""
        torch.cuda.set_device(self.device)
        if self.fed is not None:
            self.read(self.owner[:1])
            return
        for drawn in (False, True):
            self.launch(1, drawn)

    def launch(self, steps: int, drawn: bool) -> Tensor:
        """The kernels of so many steps."""
        chosen = torch.empty(steps, self.count, dtype=torch.int64, device=self.device)
        self._begin(drawn)
        for step in range(steps):
            self._hidden()
            self._predict()
            (self._draw if drawn else self._likeliest)(step, chosen)
        return chosen

    def read(self, last: Tensor) -> Tensor:
        """Logits (P, V) after the tokens of `fed` numbered `last` (P,); each sees what is before it in its row."""
        self._begin(False)
        self._hidden()
        return self.model.lm_head(self.model.norm(self.x[last].to(self.dtype)))[:, : self.V]

    # ── one step ───────────────────────────────────────────────────────────────────────────────────────────────
    def _launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
        more = {"launch_pdl": True} if self.early else {}
        kernel[grid](*args, EARLY=self.early, **meta, **more)

    def _grid(self, outputs: int, rows: int) -> tuple[int, int]:
        """Programs that share weights are neighbours."""
        return 1 if self.few else -(-self.count // rows), outputs

    def _meta(self, linear: Any, k: int, outputs: int = 0, head: bool = False) -> dict[str, Any]:
        """How a product over `k` inputs is shared out, and how its matrix lies in memory; `outputs`: of a program."""
        plan, (bits, group, ordered) = self.plan, self._bits(linear)
        limit = plan.head_inputs if head else plan.inputs
        rows = (plan.head_rows if head else 0) or plan.rows or self.count
        warps, made = plan.head_warps if head else plan.warps, k == self.model.config.hidden_size
        if self.few and head and bits:
            warps = min(16, max(warps, power(k) // UNPACKED))
        elif self.few and not head:
            warps = max(warps, power(k) * outputs // WARP, power(k) // MADE if made else 1)
        laid = {} if head else {"LAID": self.lays}
        return {**laid, "TILE": min(power(k), limit) if limit else power(k), "ROWS": rows,
                "FEW": self.few, "PARTS": self.parts, "BITS": bits, "GROUP": group, "ORDERED": ordered,
                "num_warps": warps,
                "num_stages": plan.head_stages if head else plan.stages}  # fmt: skip

    def _matrix(self, linear: Any, outputs: int, head_dim: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """A matrix as the kernels take it, so many outputs a program (with `head_dim` the pairs of a head): words,
        groups and order. What there is not may be anything."""
        if (words := words_of(linear)) is None or self.unpacks:
            weight = self._weight(linear)
            return weight, weight, weight
        if not self.lays:
            return words.words, copy_of(linear, "groups", lambda: groups_of(words)), _order(words)

        def laid() -> tuple[Tensor, Tensor]:
            rows = torch.arange(words.words.shape[1], device=self.device)
            if head_dim:  # (heads, pairs, 2)
                rows = rows.view(-1, 2, head_dim // 2).transpose(1, 2).flatten(1)
            return lay_out(words, pad(rows, (0, -rows.shape[-1] % outputs), value=-1).view(-1, outputs))

        return *copy_of(linear, outputs, laid), _order(words)

    def _bits(self, linear: Any) -> Bits:
        """How the kernels find a matrix."""
        return Bits() if self.unpacks else bits_of(linear) or Bits()

    def _weight(self, linear: Any) -> Tensor:
        """The whole matrix (out, in)."""
        if words_of(linear) is None:
            return linear.weight
        return copy_of(linear, "weight", lambda: linear.dense_weight().to(self.dtype))

    def _begin(self, drawn: bool) -> None:
        """As many warps add up x² as after each step, so that a step is the same whether a graph begins with it."""
        from babyllama.infer import kernels

        stream, sizes = self._stream()
        warps = DRAWING if drawn else self._choosing
        self._launch(kernels.begin, (self.count,), self.token, self.position, *stream, **sizes, num_warps=warps)

    @property
    def _choosing(self) -> int:
        """Warps of a program that chooses the likeliest token."""
        return DRAWING if self.few else 4

    def _hidden(self) -> None:
        from babyllama.infer import kernels

        config, B, plan = self.model.config, self.count, self.plan
        C, D = config.hidden_size, config.head_dim
        H, K, slots = config.num_attention_heads, config.num_key_value_heads, self.cache.keys.shape[3]
        blocks: list[Any] = list(self.model.layers)
        norms = [*(block.input_layernorm.weight for block in blocks), self.model.norm.weight]
        for number, block in enumerate(blocks):
            keys, values = self.cache.keys[number], self.cache.values[number]
            self._project(block.self_attn, norms[number], keys, values, number == 0)
            state, shares = (self.q, keys, values, self.position), (self.split, self.peaks, self.sums)
            how = {"D": D, "H": H, "K": K, "WIDTH": max(16, power(D)), "STEP": plan.slots, "SPLITS": self.splits,
                   "num_warps": plan.attend_warps, "num_stages": plan.attend_stages}  # fmt: skip
            if self.few:
                self._launch(kernels.attend_few, (B, H, self.splits), *state, *shares, B, slots, D**-0.5, **how)
            else:
                self._launch(kernels.attend, (B, K, self.splits), *state, self.owner, *shares, slots, D**-0.5,
                             G=max(16, power(H // K)), READS=self.fed is not None, **how)  # fmt: skip
            splits = self.splits
            if splits > 1 and not self.few:
                self._launch(kernels.join, (B, -(-C // 512)), self.split, self.peaks, self.sums, self.attended, k=C,
                             D=D, H=H, TILE=min(512, power(C)), SPLITS=splits)  # fmt: skip
                splits = 1
            second = block.post_attention_layernorm.weight
            self._add(self.split if splits > 1 else self.attended, block.self_attn.o_proj, C, second, splits)
            self._widen(block.mlp, second)
            self._add(self.h, block.mlp.down_proj, config.intermediate_size, norms[number + 1], 1)

    def _project(self, attention: Any, norm: Tensor, keys: Tensor, values: Tensor, first: bool) -> None:
        from babyllama.infer import kernels

        config, plan, B = self.model.config, self.plan, self.count
        C, D, H, K = config.hidden_size, config.head_dim, config.num_attention_heads, config.num_key_value_heads
        half, linears = D // 2, (attention.q_proj, attention.k_proj, attention.v_proj)
        pairs = min(plan.pairs, power(half)) if self.few else max(16, min(plan.pairs, power(half)))
        parts = (part for linear in linears for part in self._matrix(linear, 2 * pairs, D))
        grid = self._grid((H + 2 * K) * -(-half // pairs), plan.rows)
        self._launch(kernels.project, grid, self.x, self.y, self.squares, norm, *parts, self.cos, self.sin,
                     self.position, self.owner, self.q, keys, values, B, keys.shape[2], config.rms_norm_eps, C=C, D=D,
                     H=H, K=K, P=pairs, FIRST=first and self.early, READS=self.fed is not None,
                     **self._meta(linears[0], C, 2 * pairs))  # fmt: skip

    def _add(self, a: Tensor, linear: Any, k: int, norm: Tensor, splits: int) -> None:
        from babyllama.infer import kernels

        config, R = self.model.config, self.plan.add
        C, grid = config.hidden_size, self._grid(-(-config.hidden_size // R), self.plan.rows)
        self._launch(kernels.add, grid, a, self.peaks, self.sums, *self._matrix(linear, R), self.x, norm,
                     self.y, self.squares, self.count, k=k, C=C, D=config.head_dim, H=config.num_attention_heads, R=R,
                     SPLITS=splits, **self._meta(linear, k, R))  # fmt: skip

    def _widen(self, mlp: Any, norm: Tensor) -> None:
        from babyllama.infer import kernels

        config, R = self.model.config, self.plan.widen
        C, F = config.hidden_size, config.intermediate_size
        grid = self._grid(-(-F // R), self.plan.rows)
        parts = (part for linear in (mlp.gate_proj, mlp.up_proj) for part in self._matrix(linear, R))
        self._launch(kernels.widen, grid, self.x, self.y, self.squares, norm, *parts, self.h, self.count,
                     config.rms_norm_eps, C=C, F=F, R=R, **self._meta(mlp.gate_proj, C, 2 * R))  # fmt: skip

    def _predict(self) -> None:
        from babyllama.infer import kernels

        config, head, rows = self.model.config, self.model.lm_head, self.rows
        C, eps = config.hidden_size, config.rms_norm_eps
        words = words_of(head)
        if words is None or self.unpacks:
            parts = (self._weight(head),) * 5
        else:
            groups = words.words if self.few else self._matrix(head, 0)[1]
            parts = words.words, words.zeros, words.scales, groups, _order(words)
        grid = self._grid(self.blocks, self.plan.head_rows or self.plan.rows)
        self._launch(kernels.predict, grid, self.x, self.y, self.squares, self.model.norm.weight, *parts,
                     rows.rules, self.logits, self.best, self.places, self.masses, self.count, self.V,
                     head.out_features, eps, self.blocks, C=C, R=self.plan.predict,
                     maxnreg=self.plan.head_registers or None, **self._meta(head, C, head=True))  # fmt: skip

    def _stream(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a step begins with, and its sizes."""
        rope, C, half = self.model.rope, self.model.config.hidden_size, self.cos.shape[1]
        first: Any = self.model.layers[0]
        bits, group, ordered = bits_of(self.model.embed_tokens) or Bits()
        vectors = self.model.embed_tokens.weight, self.x, self.x, self.x, self.V
        if (words := words_of(self.model.embed_tokens)) is not None:
            vectors = words.words, words.zeros, words.scales, self.inverse, words.words.shape[1]
        stream = (*vectors, self.x, first.input_layernorm.weight, self.y, self.squares, rope.frequencies, rope.scale,
                  self.cos, self.sin)  # fmt: skip
        return stream, {"C": C, "TILE": power(C), "HALF": half, "PAIRS": power(half), "PARTS": self.parts,
                        "BITS": bits, "GROUP": group, "ORDERED": ordered}  # fmt: skip

    def _after(self, step: int, chosen: Tensor) -> tuple[Any, ...]:
        rows = self.rows
        return (rows.token, rows.position, rows.counter, rows.live, chosen, step, self.count,
                self.cache.keys.shape[3] - 1, *self._stream()[0])  # fmt: skip

    def _likeliest(self, step: int, chosen: Tensor) -> None:
        from babyllama.infer import kernels

        self._launch(kernels.greedy, (self.count,), self.best, self.places, self.masses, self.blocks,
                     *self._after(step, chosen), **self._stream()[1], N=power(self.blocks),
                     num_warps=self._choosing)  # fmt: skip

    def _draw(self, step: int, chosen: Tensor) -> None:
        from babyllama.infer import kernels

        rows = self.rows
        how = drawing(self.blocks, self.plan.predict)
        self._launch(kernels.draw, (self.count,), self.logits, self.best, self.places, self.masses, self.blocks,
                     self.kept, self.keys, rows.rules, rows.begin, self.V, *self._after(step, chosen),
                     **self._stream()[1], **how, maxnreg=self.plan.draw_registers or None)  # fmt: skip
