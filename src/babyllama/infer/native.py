"""Decoding on a CPU by one call for a whole token, or for several: native.cpp over the model's own weights.

It chooses the tokens too, as choosing.py does. Where it cannot be compiled (library.py), or the model holds something
that is not known here, PyTorch's path goes on: it is the oracle too.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from babyllama.infer.choosing import Uses
from babyllama.infer.library import library
from babyllama.infer.rows import Rows, Sampled
from babyllama.infer.step import ModelForward
from babyllama.infer.threads import count, wide
from babyllama.model.attention import attend_sdpa
from babyllama.model.cache import KVCache
from babyllama.model.mlp import SwiGLU
from babyllama.model.surgery import FewBits
from babyllama.model.transformer import Transformer

MOST_ROWS, MORE_ROWS = 8, 64  # of a batch: with more, products of matrices are faster; of a small model with more yet:
MOST_READ = 256  # tokens of prompts that are read at once
SMALL = 200_000_000  # rows × weights, up to which what PyTorch's operators take beside their work outweighs it; twice
# as much of prompts, since they pad the pieces of different lengths to one
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
BUDGET = 30_000_000  # nanoseconds of one call, a token more or less: others wait for its end
EIGHT, FOUR, UNIT, PAGE = 3, 4, 32, 2 << 20  # codes of a row are filled up to UNITs; bytes of a large page


# ── native.cpp's structs ────────────────────────────────────────────────────────────────────────────────────────────
class _Matrix(Structure):
    _fields_ = [*((name, c_int64) for name in ("kind", "outputs", "inputs", "padded", "group", "groups")),
                *((name, c_void_p) for name in ("data", "scales", "zeros", "order", "before", "kept_index", "kept")),
                *((name, c_int64) for name in ("kept_count", "rounds", "normed"))]  # fmt: skip


LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


class _Layer(Structure):
    _fields_ = [("first_norm", c_void_p), ("second_norm", c_void_p), *((name, _Matrix) for name in LINEARS)]


class _Model(Structure):
    _fields_ = [*((name, c_int64) for name in ("layers", "width", "inner", "heads", "kv_heads", "head_dim")),
                ("eps", c_float), ("layer", POINTER(_Layer)), ("norm", c_void_p), ("cos", c_void_p), ("sin", c_void_p),
                ("embedding", _Matrix), ("head", _Matrix)]  # fmt: skip


class _Call(Structure):
    _fields_ = [
        *(
            (name, c_int64)
            for name in ("rows", "threads", "dtype", "layer_stride", "row_stride", "head_stride", "slot_stride")
        ),
        *((name, c_void_p) for name in ("tokens", "positions", "places", "keys", "values", "logits")),
        ("wanted_count", c_int64),
        ("wanted", c_void_p),
    ]


class _Choices(Structure):
    _fields_ = [*((name, c_int64) for name in ("most", "budget", "vocabulary")),
                *((name, c_void_p) for name in ("tokens", "positions", "counters", "rules", "begins", "seen", "counts",
                                                "ends", "made"))]  # fmt: skip


# ── a model ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class Native:
    """A model whose tokens native.cpp computes. Dense weights are read where they lie, packed ones in its own order.

    Raises:
        TypeError: the model has a part that is not known here.
    """

    def __init__(self, model: Transformer, library: Any) -> None:
        self.library, self.rope, self.config = library, model.rope, model.config
        self.held: list[Tensor] = []  # what pointers lead to
        self.matrices: dict[int, _Matrix] = {}
        self.cos = self.sin = torch.empty(0)
        self.layers = (_Layer * len(model.layers))()
        for layer, block in zip(self.layers, model.layers, strict=True):
            attention, mlp = block.self_attn, block.mlp
            if attention.attend is not attend_sdpa:  # type: ignore[union-attr]
                raise TypeError("another attention")
            if not isinstance(mlp, SwiGLU):
                raise TypeError("another MLP")
            layer.first_norm = self._numbers(block.input_layernorm.weight)  # type: ignore[union-attr]
            layer.second_norm = self._numbers(block.post_attention_layernorm.weight)  # type: ignore[union-attr]
            for name in LINEARS:
                setattr(layer, name, self._matrix(getattr(attention if name in "qkvo" else mlp, f"{name}_proj")))
        config = self.config
        self.model = _Model(len(model.layers), config.hidden_size, config.intermediate_size, config.num_attention_heads,
                            config.num_key_value_heads, config.head_dim, config.rms_norm_eps, self.layers,
                            self._numbers(model.norm.weight), None, None)  # fmt: skip
        self.model.embedding, self.model.head = self._matrix(model.embed_tokens), self._matrix(model.lm_head)
        weights = sum(matrix.outputs * matrix.inputs for matrix in self.matrices.values())
        self.most_rows = max(MOST_ROWS, min(MORE_ROWS, SMALL // weights))
        self.most_read = max(MOST_ROWS, min(MOST_READ, 2 * SMALL // weights))
        _in_large_pages(self.held)

    def step(self, tokens: Tensor, positions: Tensor, cache: KVCache, places: Tensor | None = None,
             wanted: Tensor | None = None) -> Tensor:  # fmt: skip
        """One token for every row; the cache's slots at `positions` are written.

        Args:
            tokens, positions: (B,) int64. Several tokens of one text may be read at once, each in a row of its own.
            places: (B,) int64, the cache's row of each; 0 … B−1 when absent.
            wanted: (W,) int64, ascending: the rows after which logits are wanted; all when absent.

        Returns:
            (W, V) float32.
        """
        logits, call, _ = self._call(tokens, positions, cache, places, wanted)
        self.library.babyllama_step(ctypes.addressof(self.model), ctypes.addressof(call))
        return logits

    def steps(self, which: slice, rows: Rows, cache: KVCache, uses: Uses, limit: int) -> Tensor:
        """At most `limit` tokens for each of these rows, (n, B) int64, which go on by them: fewer where one of them may
        end an answer, or when `BUDGET` is over. Penalties are known here, a bias and a mask are not."""
        state = [part[which] for part in (rows.token, rows.position, rows.counter, rows.rules, rows.begin)]
        tokens, positions, *_ = state
        made = torch.empty(limit, len(tokens), dtype=torch.int64)
        seen, counts = (None if table is None or not uses.penalties else table[which].data_ptr()
                        for table in (rows.seen, rows.counts))  # fmt: skip
        choices = _Choices(limit, BUDGET, rows.vocab_size, *(part.data_ptr() for part in state), seen, counts,
                           rows.ends.data_ptr(), made.data_ptr())  # fmt: skip
        _, call, _ = held = self._call(tokens, positions, cache, rows.index[which], None)
        found = self.library.babyllama_steps(*map(ctypes.addressof, (self.model, call, choices)))
        del held  # what the call's pointers lead to
        return made[:found]

    def _call(self, tokens: Tensor, positions: Tensor, cache: KVCache, places: Tensor | None, wanted: Tensor | None
              ) -> tuple[Tensor, _Call, tuple[Tensor, ...]]:  # fmt: skip
        """(logits, the call, what else its pointers lead to)."""
        B, keys, tokens, positions = len(tokens), cache.keys, tokens.contiguous(), positions.contiguous()
        places, wanted = (torch.arange(B) if rows is None else rows.contiguous() for rows in (places, wanted))
        self._angles(cache.max_tokens)
        logits = torch.empty(len(wanted), self.config.vocab_size)
        layer, row, head, slot, _ = keys.stride()
        call = _Call(B, count(), KINDS[keys.dtype], layer, row, head, slot, tokens.data_ptr(),
                     positions.data_ptr(), places.data_ptr(), keys.data_ptr(), cache.values.data_ptr(),
                     logits.data_ptr(), len(wanted), wanted.data_ptr())  # fmt: skip
        return logits, call, (tokens, positions, places, wanted)

    def _angles(self, end: int) -> None:
        """Tables of cos and sin for positions below `end`."""
        if len(self.cos) < end:
            cos, sin = self.rope(torch.arange(max(end, 2 * len(self.cos)))[None])
            self.cos, self.sin = cos[0, 0].contiguous(), sin[0, 0].contiguous()
            self.model.cos, self.model.sin = self.cos.data_ptr(), self.sin.data_ptr()

    def _numbers(self, values: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
        """The address of these numbers in that dtype."""
        if values is not None:
            self.held.append(values.detach().to(dtype).contiguous())
        return None if values is None else self.held[-1].data_ptr()

    def _matrix(self, module: Any) -> _Matrix:
        """What a linear, an embedding or what stands in for one is to native.cpp; the same module twice is one."""
        module = getattr(module, "packed", module)  # an embedding that reads a packed matrix
        key = id(module)
        if key not in self.matrices:
            if type(module) in (nn.Linear, nn.Embedding) and getattr(module, "bias", None) is None:
                weight = module.weight.detach()
                if weight.dtype not in KINDS or not weight.is_contiguous():
                    raise TypeError(f"weights of {weight.dtype}")
                self.held.append(weight)
                shape = *weight.shape, weight.shape[1]
                self.matrices[key] = _Matrix(KINDS[weight.dtype], *shape, data=weight.data_ptr())
            elif hasattr(module, "few_bits"):
                self.matrices[key] = self._packed(module.few_bits())
            else:
                raise TypeError(type(module).__name__)
        return self.matrices[key]

    def _packed(self, form: FewBits) -> _Matrix:
        """Codes in whole units; those of four bits and less, in whole groups of units, two to a byte."""
        (outputs, inputs), groups = form.codes.shape, form.scales.shape[0]
        four = form.bits <= 4 and (groups == 1 or form.group_size % UNIT == 0)
        codes = nn.functional.pad(form.codes, (0, -inputs % UNIT))
        scales, zeros = form.scales.T.float(), form.zeros.T.float()
        if four:
            low, high = codes.unflatten(1, (-1, 2, UNIT // 2)).unbind(2)
            data = (low | high << 4).contiguous()
        else:  # in signed bytes around the middle of their grid, so that little cancels
            middle = 1 << (form.bits - 1)
            data, zeros = (codes.to(torch.int16) - middle).to(torch.int8), zeros - middle
        kinds = torch.float32, torch.float32
        if groups > 1:  # as GPTQ's folders have them, filled up to what vectors take
            scales, zeros = (nn.functional.pad(part, (0, -groups % 16)) for part in (scales, zeros))
            kinds = torch.float16, torch.int8
        self.held.append(data)
        kept = None if form.kept is None or not form.kept.shape[1] else form.kept
        return _Matrix(FOUR if four else EIGHT, outputs, inputs, codes.shape[1], form.group_size, groups,
                       data.data_ptr(), self._numbers(scales, kinds[0]), self._numbers(zeros, kinds[1]),
                       self._numbers(form.order, torch.int32), self._numbers(form.before),
                       self._numbers(None if kept is None else form.kept_index, torch.int32), self._numbers(kept),
                       0 if kept is None else kept.shape[1], form.rounds, form.normed)  # fmt: skip


def _in_large_pages(tensors: list[Tensor]) -> None:
    """Ask Linux to keep weights in pages of 2 MiB, whose addresses it need not look up so often."""
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    ranges = [(tensor.data_ptr() // PAGE, (tensor.data_ptr() + tensor.nbytes - 1) // PAGE) for tensor in tensors]
    # Each page by itself, those too that a tensor only begins or ends in: they hold others of them, or may be refused.
    for page in sorted({page for first, last in ranges for page in range(first, last + 1)}):
        for advice in (14, 25):  # MADV_HUGEPAGE for what comes, MADV_COLLAPSE for what is there
            advise(c_void_p(page * PAGE), ctypes.c_size_t(PAGE), advice)


_KNOWN: WeakKeyDictionary[Transformer, tuple[Any, Native | None]] = WeakKeyDictionary()


def native(model: Transformer) -> Native | None:
    """The model's `Native`, made anew after its weights or modules changed; None where PyTorch's path has to do."""
    if model.norm.weight.device.type != "cpu" or not model.rope.static or any(map(_watched, model.modules())):
        return None
    found = library()
    if found is None:
        return None
    state = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
                  for tensor in (*model.parameters(), *model.buffers()))  # fmt: skip
    state = state, tuple(map(id, model.modules()))
    known = _KNOWN.get(model)
    if known is None or known[0] != state:
        try:
            made = Native(model, found)
        except TypeError:
            made = None
        _KNOWN[model] = known = state, made
    return known[1]


def _watched(module: nn.Module) -> bool:
    """Whether somebody wants to see or change what this module computes: a hook, another method of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or {"forward", "hidden"} & vars(module).keys())


class NativeStep:
    """A `Step` on a CPU: compiled where that can be, several tokens a call; else the model's own pass, and sampling."""

    most = 16

    def __init__(self, model: Transformer, rows: Rows, cache: KVCache) -> None:
        self.model, self.rows, self.cache, self.next = model, rows, cache, 0
        self.native: Native | None = None
        self.plain = ModelForward(model, rows, cache)

    def __call__(self, which: slice, end: int, uses: Uses, limit: int) -> Sampled:
        rows, cache, start = self.rows, self.cache, end - limit
        if start != self.next:  # not the token after the last one: others may have changed the model in between
            self.native = native(self.model)
        made = self.native
        if made is None or not cache.rotated or which.stop - which.start > made.most_rows:
            self.next = start + 1
            with wide():
                return rows.choose(which, self.plain(which, start + 1), uses)
        if uses.bias or uses.mask or uses.logprobs is not None:
            self.next = start + 1
            logits = made.step(rows.token[which], rows.position[which], cache, rows.index[which])
            return rows.choose(which, logits[:, : rows.vocab_size], uses)
        found = made.steps(which, rows, cache, uses, limit)
        self.next = start + len(found)
        return Sampled(found)
