"""The LLaMA-2 decoder: tokens → hidden states → logits, nothing else.

RMSNorm (arXiv 1910.07467), RoPE, grouped-query attention, pre-norm blocks. It knows no loss, no adapter, no
quantisation, no generation: those replace modules or call it from outside. Not here: what follows attention (mlp.py).
Shapes: B batch, T query tokens, S key tokens, C hidden_size, H heads, K key-value heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import rms_norm
from torch.utils.checkpoint import checkpoint

from babyllama.model.attention import Attend, Mask, attend_sdpa, branches, documents_for
from babyllama.model.bitnet import replace_matrices
from babyllama.model.cache import KVCache
from babyllama.model.config import ModelConfig
from babyllama.model.fused import rotated_product
from babyllama.model.laws import ClexRope
from babyllama.model.mlp import MLPS, joined
from babyllama.model.roles import exact
from babyllama.model.rope import DynamicNtk, Rope, rotate, spans


class RMSNorm(nn.Module):
    """x / rms(x) · weight; the statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x.float(), x.shape[-1:], None, self.eps).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Causal self-attention with grouped key-value heads. `attend` may be replaced (S²-Attn, the eager reference),
    `float8` be set while training: the joined product going forward (products.py)."""

    float8 = False

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        C, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.layer, self.head_dim = layer, config.head_dim
        self.q_proj = nn.Linear(C, C, bias=False)
        self.k_proj = nn.Linear(C, kv, bias=False)
        self.v_proj = nn.Linear(C, kv, bias=False)
        self.o_proj = nn.Linear(C, C, bias=False)
        self.attend: Attend = attend_sdpa

    def forward(self, x: Tensor, angles: Angles, mask: Mask, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        weights = joined(x, self.q_proj, self.k_proj, self.v_proj)
        learned = angles.query[0].requires_grad  # what is fused has no gradient for them
        if weights is not None and cache is None and not learned:
            q_heads, kv_heads, _ = (weight.shape[0] // self.head_dim for weight in weights)
            cos, sin = angles.query
            q, k, v = rotated_product(x, torch.cat(weights), cos, sin, (q_heads, kv_heads, kv_heads), self.float8)
            return self.o_proj(self.attend(q, k, v, mask).transpose(1, 2).reshape(B, T, C))
        q = self.q_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.k_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)
        q = rotate(q, *angles.query)
        if cache is None:
            k = rotate(k, *angles.query)
        elif cache.rotated:
            k, v = cache.update(self.layer, rotate(k, *angles.query), v, angles.positions)
        else:
            k, v = cache.update(self.layer, k, v, angles.positions)
            k = rotate(k, *angles.key)
        return self.o_proj(self.attend(q, k, v, mask).transpose(1, 2).reshape(B, T, C))


class Angles:
    """The rotations of one forward pass, computed once for all layers; the arguments are those of `hidden`."""

    def __init__(self, rope: Rope, positions: Tensor, segments: Tensor | None = None, cache: KVCache | None = None,
                 lengths: Tensor | None = None, part: Callable[[Tensor], Tensor] | None = None) -> None:  # fmt: skip
        self.positions = positions
        if lengths is None and not rope.static:
            lengths = positions.amax(-1) + 1 if segments is None else spans(positions, segments)
        if part is None:
            self.query = rope(positions, lengths)
        else:
            self.query = rope(part(positions), lengths if lengths is None or lengths.ndim == 1 else part(lengths))
        self.key = self.query
        if cache is not None and not cache.rotated:
            self.key = rope(cache.key_positions(positions.device), lengths)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLPS[config.mlp.kind](config.mlp, config.hidden_size)

    def forward(self, x: Tensor, angles: Angles, mask: Mask, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angles, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


def direct(block: Block, x: Tensor, angles: Angles, mask: Mask, cache: KVCache | None) -> Tensor:
    """Run a block and keep what its backward pass needs."""
    return block(x, angles, mask, cache)


def recompute(block: Block, x: Tensor, angles: Angles, mask: Mask, cache: KVCache | None) -> Tensor:
    """Run a block, keep its input only and run it again for the backward pass: activation checkpointing.

    Weights that stand in for the block's own during the forward pass (half copies of them) do so the second time too.
    """
    if not torch.is_grad_enabled():
        return block(x, angles, mask, cache)
    lent = {name: weight for name, weight in block.named_parameters() if not isinstance(weight, nn.Parameter)}
    if not lent:
        return checkpoint(block, x, angles, mask, cache, use_reentrant=False)  # type: ignore[return-value]
    return checkpoint(functional_call, block, lent, (x, angles, mask, cache), use_reentrant=False)  # type: ignore[return-value]


class Transformer(nn.Module):
    """tokens (B, T) → logits (B, T, V), or of a reward model what each beginning is worth, (B, T, 1). `hidden` stops
    before the head, for losses that never build all logits.

    `through` runs one block and may be replaced (`recompute`). Where processes share a row out, `part` takes of
    columns (B, T, …) those that this one computes: `hidden` gets whole rows and returns the states of that part.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # `initialise` draws. PyTorch's own draw, on the meta device, imports its compiler: two seconds of every chat.
        start = torch.zeros(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(start, freeze=False)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, 1 if config.reward else config.vocab_size, bias=False)
        self.rope = make_rope(config)
        self.through: Callable[[Block, Tensor, Angles, Mask, KVCache | None], Tensor] = direct
        self.part: Callable[[Tensor], Tensor] | None = None
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        replace_matrices(self, config.weights)

    def hidden(self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None,
               cache: KVCache | None = None, lengths: Tensor | None = None,
               embedded: Tensor | None = None, trunk: bool = False) -> Tensor:  # fmt: skip
        """tokens (B, T) → final normed hidden states (B, T, C).

        Args:
            positions: (B, T), or (1, T) for all rows; 0 … T−1 when absent. With a cache they are also the slots that
                are written.
            segments: (B, T) document numbers; tokens see only their own document. Not together with a cache.
            cache: read and extended in place; prefill, chunks and single tokens all come this way.
            lengths: (B,) tokens of each row's sequence where padding follows them; only laws whose frequencies change
                with the length ask. When absent, what each document spans, or a row's last position + 1.
            embedded: (B, T, C) that goes in instead of the tokens' embeddings.
            trunk: document 0 of each row is what its other documents go on from: they see it, too.
        """
        if positions is None:
            T = tokens.shape[1]
            start = 0 if cache is None else cache.append(T)
            positions = torch.arange(start, start + T, device=tokens.device)[None]
        mask: Mask = None
        if cache is not None:
            mask = cache.mask(positions)
        angles = Angles(self.rope, positions, segments, cache, lengths, self.part)
        if self.part is not None:
            tokens, embedded = self.part(tokens), embedded if embedded is None else self.part(embedded)
        x = self.embed_tokens(tokens) if embedded is None else embedded
        if cache is None and segments is not None:
            attend: Attend = self.layers[0].self_attn.attend  # type: ignore[union-attr,assignment]
            mask = branches(segments) if trunk else documents_for(attend, segments)
        for block in self.layers:
            x = self.through(block, x, angles, mask, cache)  # type: ignore[arg-type]
        return self.norm(x)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:  # fmt: skip
        return self.lm_head(self.hidden(tokens, positions, segments, cache))


def _clex(law: ClexRope, head_dim: int) -> Rope:
    from babyllama.model.clex import Clex  # late: its file imports PyTorch's compiler, which takes two seconds

    return Clex(law, head_dim)


ROPES: dict[str, Callable[..., Rope]] = {"dynamic_ntk": DynamicNtk, "clex": _clex}  # the others: Rope


def make_rope(config: ModelConfig) -> Rope:
    """The module of the config's law; its numbers are the config's, so they are there on the meta device too."""
    with torch.device("cpu"):
        return ROPES.get(config.rope.kind, Rope)(config.rope, config.head_dim)


def with_reward_head(model: Transformer, seed: int) -> Transformer:
    """The same weights under a new head of one number, which is drawn from `seed`."""
    with torch.device("meta"):
        found = Transformer(model.config.model_copy(update={"reward": True, "tie_word_embeddings": False}))
    for name, module in model.named_children():
        if name != "lm_head":
            setattr(found, name, module)
    head = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(seed)) * 0.02
    found.lm_head.weight = nn.Parameter(head.to(model.norm.weight.dtype))
    return found


def attach_value_head(model: Transformer) -> None:
    """A second head, `value`: what is to be expected from each place on. It begins at 0 and is in no folder."""
    head = nn.Linear(model.config.hidden_size, 1, bias=False)
    nn.init.zeros_(head.weight)
    model.add_module("value", head)


def expected(model: Transformer, hidden: Tensor) -> Tensor:
    """What the value head says of final hidden states (…, C): (…) float32."""
    return model.get_submodule("value")(hidden)[..., 0].float()


def initialise(model: Transformer, seed: int) -> None:
    """Normal(0, 0.02) weights; the two projections that write into the residual stream shrink by 1/√(2L) (GPT-2).

    Deterministic in `seed` whatever the device: drawn on the CPU, in the order of the module tree.
    """
    generator = torch.Generator().manual_seed(seed)
    shrink = 1 / math.sqrt(2 * model.config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if exact(name):  # a law's weights have a start of their own
                continue
            if parameter.ndim < 2:
                parameter.fill_(1.0)
                continue
            into = name.removesuffix(".weight").endswith(("o_proj", "down_proj"))  # the residual stream
            std = 0.02 * (shrink if into else 1.0)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
