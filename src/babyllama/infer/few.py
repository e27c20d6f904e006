"""Up to sixteen rows on a GPU, by kernels of their own (few_kernels.py): how they are launched and want packed weights.

They hold more of the weights before their turn and have less to do in it. Models that they do not suit, and more rows,
go by `Decoder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from babyllama.infer.decoding import LAID, Bits, Decoder, Tiles, bits_of, copy_of, groups_of, packed_in, words_of
from babyllama.infer.rows import Rows
from babyllama.infer.step import power
from babyllama.model.cache import KVCache
from babyllama.model.surgery import Words
from babyllama.model.transformer import Transformer

EIGHT = 8  # outputs of a tile of weights; warps of a program, at most
MOST = 16  # rows
LEAST = 4  # warps of a program of several rows, at least: they load the rows' inputs
SIZES = 128, 64, 32  # inputs of a tile that a warp has
REGISTERS = 144  # of a thread for its share of weights and inputs, at most
HEADS = 32, 64, 128  # sizes of a head

# As measured on an H200: docs/log.md. `inputs`: of a warp, where there are warps for them.
TILES = {bits: Tiles(EIGHT, EIGHT, EIGHT, outputs, splits=4, inputs=256, head_inputs=256, head_holds=held)
         for bits, outputs, held in ((0, 32, 1 << 15), (4, 64, 1 << 16), (8, 32, 1 << 15))}  # fmt: skip


def decoder_of(model: Transformer, rows: Rows, cache: KVCache, count: int, tiles: Tiles | None = None,
               **more: Any) -> Decoder:  # fmt: skip
    """Of the first `count` rows, by whichever kernels are the fastest."""
    return (Few if suits(model, count) else Decoder)(model, rows, cache, count, tiles, **more)


def suits(model: Transformer, count: int) -> bool:
    """Whether these kernels compute so many rows of this model, of those that `fused.suits`, and faster than others."""
    config, parts = model.config, (model.layers, model.lm_head)
    matrices = [module for part in parts for module in part.modules() if bits_of(module) is not None]
    kinds = {bits_of(module) or Bits() for module in matrices}
    packed = sum(words.words.nbytes for words in packed_in(*parts))
    grouped = all(kind.bits == 0 or (kind.group >= SIZES[-1] and kind.group == power(kind.group)) for kind in kinds)
    C, F = config.hidden_size, config.intermediate_size
    # Of eight warps each thread has C / 32 registers of weights (two tiles) and C / 512 of each row's inputs, or half
    # as many weights of a matrix with F inputs.
    held = max(C * (16 + power(count)), F * (8 + power(count))) / 512
    fits = C % SIZES[-1] == 0 and F % SIZES[-1] == 0 and held <= REGISTERS and config.head_dim in HEADS
    return count <= MOST and fits and grouped and packed <= LAID and not any(kind.ordered for kind in kinds)


def pieces(inputs: int, warps: int, most: int = SIZES[0]) -> tuple[tuple[int, int], ...]:
    """How so many warps share out the inputs of a matrix: (first input, inputs of each warp), of at most `most`."""
    left, found, at = -(-inputs // (SIZES[-1] * warps)), list[tuple[int, int]](), 0
    for size in SIZES:
        while size <= most and left * SIZES[-1] >= size:
            found.append((at, size))
            at, left = at + warps * size, left - size // SIZES[-1]
    return tuple(found)


def in_tiles(words: Words, rows: Tensor, shares: tuple[tuple[int, int], ...], warps: int) -> tuple[Tensor, Tensor]:
    """A packed matrix as these kernels take it: eight of its `rows` (blocks, 8) a tile, its inputs by `pieces`.

    Returns:
        Words (blocks, words of a block) int32, side by side what a thread loads at a time, with neighbouring codes of 4
        bits in the halves of a word; groups (blocks, pieces, warps, 8) int32, as `groups_of`. Zero where nothing is.
    """
    bits, codes, groups, laid, beside = words.bits, words.words, groups_of(words), list[Tensor](), list[Tensor]()
    if bits == 4:
        wide = codes.long()
        places = [(8 * m + 4 * half, 4 * m + 16 * half) for m in range(4) for half in range(2)]
        codes = sum((((wide >> source) & 15) << target for source, target in places), torch.zeros_like(wide))
        codes = codes.to(torch.int32)  # the lowest 32 bits
    inputs, device = len(codes) * 32 // bits, rows.device
    for start, size in shares:
        first = start + size * torch.arange(warps, device=device)
        units = torch.arange(size * bits // 32, device=device).view(size // 32, 4, bits // 4).transpose(1, 2)
        units = first[:, None, None] * bits // 32 + units.flatten(0, 1)  # (warps, words, 4 lanes)
        found = codes[units.clamp(max=len(codes) - 1)[:, :, None], rows[:, None, None, :, None]]
        found = torch.where((units < len(codes))[:, :, None], found, 0)  # (blocks, warps, words, 8, 4 lanes)
        side = min(4, found.shape[2])
        laid.append(found.unflatten(2, (-1, side)).flatten(-2).transpose(3, 4).flatten(1))
        group = first.clamp(max=inputs - 1) // words.group_size
        beside.append(groups[group[:, None], rows[:, None, :]])
    return torch.cat(laid, 1), torch.stack(beside, 1)


@dataclass(eq=False)
class Few(Decoder):
    """y and h lie as the kernel reads them that comes next, with zeros where a piece goes on; the first y as it is."""

    def __post_init__(self) -> None:
        head = bits_of(self.model.lm_head) or Bits()
        self.tiles = self.tiles or TILES[head.bits]
        super().__post_init__()

    @property
    def kind(self) -> tuple[Any, ...]:
        return *super().kind, self.count

    def _room_between(self, C: int, F: int) -> None:
        from babyllama.infer import few_kernels

        super()._room_between(C, F)
        room = few_kernels.ROOM.value
        self.between, self.h = (torch.zeros(self.count, n + room, dtype=self.dtype, device=self.device) for n in (C, F))
        self.parts = power(C // EIGHT)

    def _shares(self, linear: Any, k: int, inputs: int) -> dict[str, Any]:
        """How the warps of a program share out the k inputs of a matrix."""
        bits, group, _ = bits_of(linear) or Bits()
        warps = max(1 if self.count == 1 else LEAST, min(EIGHT, power(k) // inputs))
        return {"PIECES": pieces(k, warps, min(SIZES[0], group or SIZES[0])), "W": warps, "BITS": bits,
                "ROWS": self.count, "num_warps": warps}  # fmt: skip

    def _in_tiles(self, linears: tuple[Any, ...], meta: dict[str, Any], head_dim: int = 0) -> tuple[Tensor, Tensor]:
        """Matrices of the same inputs one below the other, packed: words and groups; `head_dim`: of which a program has
        two tiles, the halves of eight pairs."""

        def made() -> tuple[Tensor, Tensor]:
            found = list[tuple[Tensor, Tensor]]()
            for words in filter(None, map(words_of, linears)):
                outputs, whole = words.words.shape[1], EIGHT if head_dim else self.plan.predict
                rows = torch.arange(outputs + -outputs % whole, device=self.device).clamp(max=outputs - 1)
                rows = rows.view(-1, EIGHT)
                if head_dim:
                    rows = rows.view(-1, 2, head_dim // 2 // EIGHT, EIGHT).transpose(1, 2).flatten(0, 2)
                found.append(in_tiles(words, rows, meta["PIECES"], meta["W"]))
            words, groups = zip(*found, strict=True)
            return torch.cat(words), torch.cat(groups)

        return copy_of(linears[0], (self.plan.predict, meta["W"]), made)

    def _of(self, linear: Any, meta: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """One matrix: words and groups, or weights and anything."""
        return self._in_tiles((linear,), meta) if meta["BITS"] else (linear.weight, linear.weight)

    def _hidden(self) -> None:
        config, model = self.model.config, self.model
        blocks: list[Any] = list(model.layers)
        norms = [*(block.input_layernorm.weight for block in blocks), model.norm.weight]
        C, F, inputs = config.hidden_size, config.intermediate_size, self.plan.inputs
        of_attention = [self._shares(block.self_attn.q_proj, C, inputs) for block in blocks]
        readers = [*of_attention[1:], self._shares(model.lm_head, C, self.plan.head_inputs)]  # of y after each layer
        for number, block in enumerate(blocks):
            attention, mlp = block.self_attn, block.mlp
            of_mlp, of_down = self._shares(mlp.gate_proj, C, inputs), self._shares(mlp.down_proj, F, inputs)
            self._attend(attention, number, of_attention[number])
            self._end(self.split, attention.o_proj, C, self.splits, block.post_attention_layernorm.weight,
                      self._shares(attention.o_proj, C, inputs), of_mlp)  # fmt: skip
            self._middle(mlp, of_mlp, of_down)
            self._end(self.h, mlp.down_proj, F, 1, norms[number + 1], of_down, readers[number])

    def _attend(self, attention: Any, number: int, meta: dict[str, Any]) -> None:
        from babyllama.infer import few_kernels

        config, keys, values = self.model.config, self.cache.keys[number], self.cache.values[number]
        C, D, H, K = config.hidden_size, config.head_dim, config.num_attention_heads, config.num_key_value_heads
        slots, sizes, nothing = keys.shape[2], {"D": D, "H": H, "K": K}, self.x
        linears = attention.q_proj, attention.k_proj, attention.v_proj
        if meta["BITS"]:
            parts = nothing, nothing, nothing, *self._in_tiles(linears, meta, D)
        else:
            parts = *(linear.weight for linear in linears), nothing, nothing
        y = self.between if number else self.y
        self._launch(few_kernels.project, ((H + 2 * K) * D // 2 // EIGHT,), y, self.squares, *parts, self.cos,
                     self.sin, self.position, self.q, keys, values, 1, slots, config.rms_norm_eps, C=C,
                     PARTS=self.parts, FIRST=number == 0, **sizes, **meta)  # fmt: skip
        warps = self.plan.attend_warps
        self._launch(few_kernels.attend, (H, self.splits, self.count), self.q, keys, values, self.position, self.split,
                     self.peaks, self.sums, 1, slots, D**-0.5, STEP=self.plan.slots, SPLITS=self.splits, W=warps,
                     num_warps=warps, **sizes)  # fmt: skip

    def _middle(self, mlp: Any, meta: dict[str, Any], after: dict[str, Any]) -> None:
        from babyllama.infer import few_kernels

        config, F = self.model.config, self.model.config.intermediate_size
        parts = *self._of(mlp.gate_proj, meta), *self._of(mlp.up_proj, meta)
        self._launch(few_kernels.widen, (F // EIGHT,), self.between, self.squares, *parts, self.h, 1,
                     config.rms_norm_eps, C=config.hidden_size, F=F, PARTS=self.parts, NEXT=after["PIECES"],
                     **meta)  # fmt: skip

    def _end(self, a: Tensor, linear: Any, k: int, splits: int, norm: Tensor, meta: dict[str, Any],
             after: dict[str, Any]) -> None:  # fmt: skip
        from babyllama.infer import few_kernels

        config = self.model.config
        C, H = config.hidden_size, config.num_attention_heads
        self._launch(few_kernels.add, (C // EIGHT,), a, self.peaks, self.sums, *self._of(linear, meta), self.x, norm,
                     self.between, self.squares, 1, k=k, C=C, D=config.head_dim, H=H, HEADS=power(H), PARTS=self.parts,
                     NEXT=after["PIECES"], SPLITS=splits, ORDERED=a is self.h, **meta)  # fmt: skip

    def _predict(self) -> None:
        from babyllama.infer import few_kernels

        config, head, rows = self.model.config, self.model.lm_head, self.rows
        meta = self._shares(head, config.hidden_size, self.plan.head_inputs)
        self._launch(few_kernels.predict, (self.blocks,), self.between, self.squares, *self._of(head, meta), rows.rules,
                     self.logits, self.best, self.places, self.masses, 1, self.V, head.out_features,
                     config.rms_norm_eps, C=config.hidden_size, PARTS=self.parts, TILES=self.plan.predict // EIGHT,
                     **meta)  # fmt: skip
