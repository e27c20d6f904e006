"""FusedStep: a step of all rows on a GPU, several tokens as one graph, by the kernels where they compute the model.

What they do not compute (adapters, other packed weights, float32, penalties, masks, log-probabilities) goes the model's
own way. Not here: how the kernels are launched (decoding.py, few.py), prompts, when an answer ends (engine.py).
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from babyllama.hardware import ampere
from babyllama.infer.choosing import Uses
from babyllama.infer.decoding import CANDIDATES, Decoder, bits_of, drawing
from babyllama.infer.few import decoder_of
from babyllama.infer.rows import Rows, Sampled
from babyllama.infer.step import Recorder, Step, power
from babyllama.model.cache import KVCache
from babyllama.model.mlp import SwiGLU
from babyllama.model.transformer import Attention, RMSNorm, Transformer


def suits(model: Transformer, cache: KVCache) -> bool:
    """Whether the kernels compute this model: 16 bits on a GPU of Ampere or later, plain matrices, static RoPE."""
    weight = model.embed_tokens.weight
    if not (weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16)) or cache.sinks or not cache.rotated:
        return False
    if not runs(weight.device):
        return False
    ends = map(bits_of, (model.embed_tokens, model.lm_head))
    return all(map(_plain, model.layers)) and None not in ends and type(model.norm) is RMSNorm


def runs(device: torch.device) -> bool:
    """Whether the kernels run there."""
    return device.type == "cuda" and ampere(device)


def _plain(block: Any) -> bool:
    attention, mlp = block.self_attn, block.mlp
    if type(attention) is not Attention or type(mlp) is not SwiGLU:
        return False
    together = ((attention.q_proj, attention.k_proj, attention.v_proj), (attention.o_proj,),
                (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,))  # fmt: skip
    kinds = [set(map(bits_of, linears)) for linears in together]
    return all(len(found) == 1 and None not in found for found in kinds)


def plain(uses: Uses) -> bool:
    """Whether the kernels choose as these rows ask."""
    return not (uses.penalties or uses.bias or uses.mask) and uses.logprobs is None


def choose_of(rows: Rows, which: Tensor, logits: Tensor) -> Sampled:
    """`Rows.choose` of the rows numbered `which`, all of which go on, without what only some requests ask for, in two
    kernels: where a nucleus is searched for, PyTorch takes more than a hundred. Logits (B, V)."""
    from babyllama.infer import kernels

    (B, V), R, device = logits.shape, 128, rows.device
    blocks, which = -(-V // R), which.contiguous()
    how = drawing(blocks, R)
    best, masses = torch.empty(2, B, blocks, device=device).unbind(0)
    places, kept = (torch.empty(B, n, dtype=torch.int32, device=device) for n in (blocks, how["N"]))
    exact, keys = torch.empty(B, V, device=device), torch.empty(B, CANDIDATES, dtype=torch.int64, device=device)
    chosen = torch.empty(1, B, dtype=torch.int64, device=device)
    sum_up: Any = kernels.sum_up
    draw_of: Any = kernels.draw_of
    sum_up[B, blocks](logits, logits.stride(0), exact, rows.rules, which, best, places, masses, blocks, V, R=R)
    draw_of[(B,)](exact, best, places, masses, blocks, kept, keys, rows.rules, rows.begin, V, which, rows.token,
                  rows.position, rows.counter, sys.maxsize, chosen, **how)  # fmt: skip
    return Sampled(chosen)


class FusedStep:
    """A `Step` by the kernels; `other` takes what they do not compute. Graphs are kept by rows, steps and kind."""

    most = 16

    def __init__(self, model: Transformer, rows: Rows, cache: KVCache, other: Step) -> None:
        self.model, self.rows, self.cache, self.other = model, rows, cache, other
        self.versions, self.record = (0, 0), Recorder()
        self.decoders: dict[int, Decoder] = {}

    def __call__(self, which: slice, end: int, uses: Uses, limit: int) -> Sampled:
        if not plain(uses) or which.start != 0:
            return self.other(which, end, uses, 1)
        steps = 1 << (min(limit, self.most).bit_length() - 1)
        return Sampled(self._decoder(which.stop)(steps, uses.drawn)[:, : which.stop])

    def _decoder(self, rows: int) -> Decoder:
        """That of at least so many rows."""
        if self.versions != (self.rows.version, self.cache.version):  # the graphs read tensors that are gone
            self.decoders, self.record = {}, Recorder()
            self.versions = self.rows.version, self.cache.version
        count = min(self.rows.count, power(rows))
        if count not in self.decoders:
            self.decoders[count] = decoder_of(self.model, self.rows, self.cache, count, record=self.record)
        return self.decoders[count]

    def warm(self) -> None:
        """Compile and record all there is, while no row decodes: a step that comes later waits for none."""
        self.rows.go(0)
        sizes = [1 << n for n in range(power(self.rows.count).bit_length())]
        kinds = {decoder.kind: decoder for decoder in map(self._decoder, sizes)}
        with ThreadPoolExecutor() as pool:  # the compiler leaves Python to others most of the time
            list(pool.map(Decoder.compile, kinds.values()))
        for decoder in map(self._decoder, sizes):
            for steps in range(self.most.bit_length()):
                for drawn in (False, True):
                    for _ in ("launched", "recorded"):
                        decoder(1 << steps, drawn)
