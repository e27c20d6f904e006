"""The earlier project's way to train (DLLXW/baby-llama2-chinese), written anew from its published settings.

LLaMA-2 with tied embeddings, float32 weights under fp16 autocast with a loss scale, eager; RoPE over neighbouring
pairs in float32; all logits at once; AdamW, one sequence of 32 × 512 tokens a step. Modules carry our names, so that
our validation can measure it. Not here: data, clocks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.model.config import ModelConfig

LR, FINAL_LR, WARMUP_STEPS, DECAY_STEPS = 3e-4, 3e-5, 1_000, 80_000
BETAS, WEIGHT_DECAY, CLIP, ROWS, CONTEXT = (0.9, 0.95), 0.1, 1.0, 32, 512


def learning_rate(step: int) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    if step < WARMUP_STEPS:
        return LR * step / WARMUP_STEPS
    progress = min(1.0, (step - WARMUP_STEPS) / (DECAY_STEPS - WARMUP_STEPS))
    return FINAL_LR + (LR - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * progress))


class Norm(nn.Module):
    """x / rms(x) · weight, the statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, D), each neighbouring pair turned by the angles (T, 1, D/2), in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


class Layer(nn.Module):
    """Attention and SwiGLU, each behind its norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, F = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.input_layernorm, self.post_attention_layernorm = Norm(C, config.rms_norm_eps), Norm(C, config.rms_norm_eps)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(C, C, bias=False) for _ in range(4))
        self.gate_proj, self.up_proj = nn.Linear(C, F, bias=False), nn.Linear(C, F, bias=False)
        self.down_proj = nn.Linear(F, C, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        h = self.input_layernorm(x)
        q, k, v = (proj(h).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        x = x + self.o_proj(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(silu(self.gate_proj(h)) * self.up_proj(h))


class EarlierModel(nn.Module):
    """tokens (B, T) → logits (B, T, V). Normal(0, 0.02), o_proj and up_proj (its `w3`) divided by √(2L)."""

    def __init__(self, config: ModelConfig, seed: int = 1) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        half = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        angles = torch.outer(torch.arange(config.max_position_embeddings).float(), config.rope.theta**-half)
        self.register_buffer("cos", angles.cos()[:, None], persistent=False)
        self.register_buffer("sin", angles.sin()[:, None], persistent=False)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                small = name.endswith(("o_proj.weight", "up_proj.weight"))
                std = 0.02 / math.sqrt(2 * config.num_hidden_layers) if small else 0.02
                nn.init.normal_(parameter, 0.0, std, generator=generator)

    def hidden(self, tokens: Tensor, positions: Any = None, segments: Any = None) -> Tensor:
        """(B, T) → (B, T, C). Positions count from 0; documents are not kept apart, as there."""
        x, T = self.embed_tokens(tokens), tokens.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T])
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.hidden(tokens))


class EarlierTraining:
    """Its training step. On a CPU, where fp16 has no kernels worth timing, autocast is bf16 and nothing is scaled."""

    def __init__(self, config: ModelConfig, device: torch.device, *, dtype: torch.dtype | None = None,
                 compiled: bool = False, seed: int = 1) -> None:  # fmt: skip
        self.device, self.done = device, 0
        self.dtype = dtype or (torch.float16 if device.type == "cuda" else torch.bfloat16)
        self.model = EarlierModel(config, seed).to(device)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in self.model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=device.type == "cuda")

    def autocast(self) -> torch.autocast:
        """The precision of its training, for validation too."""
        return torch.autocast(self.device.type, self.dtype)

    def step(self, batch: Batch) -> None:
        """One update. Nothing here waits for the device but the loss scale's own check."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.done)
        batch = batch.to(self.device)
        with self.autocast():
            logits = self.forward(batch.tokens)
            loss = cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
