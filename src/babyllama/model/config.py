"""ModelConfig and RopeConfig: the shape of a LLaMA-2, in Hugging Face's field names.

Also the presets and the depth dial that choose a shape, and the translation from and to ``config.json``.
Not here: weights, modules.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from babyllama.errors import InputError
from babyllama.recipe import Recipe, validate


class RopeConfig(Recipe):
    """Rotary position embedding (arXiv 2104.09864): which frequencies turn the keys and queries.

    Every law that extends the context is one more `kind`; `rope.FREQUENCIES` holds its formula.
    """

    kind: Literal["none"] = "none"
    theta: float = Field(default=10_000.0, gt=1)


class ModelConfig(Recipe):
    """A LLaMA-2 decoder. Field names are Hugging Face's LlamaConfig."""

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    tie_word_embeddings: bool = True
    rope: RopeConfig = RopeConfig()

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        width, heads, kv_heads = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        if width % heads:
            raise ValueError(f"hidden_size {width} must be a multiple of num_attention_heads {heads}")
        if heads % kv_heads:
            raise ValueError(f"num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} (hidden_size / num_attention_heads) must be even for RoPE")
        return self

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied head counts once."""
        width, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        block = 2 * width * width + 2 * width * kv + 3 * width * self.intermediate_size + 2 * width
        heads = 1 if self.tie_word_embeddings else 2
        return self.num_hidden_layers * block + width + heads * self.vocab_size * width

    def flops_per_token(self, context: int) -> float:
        """Training FLOPs a token: 6 for each weight that is multiplied, plus causal attention's 6·L·T·width.

        The figure behind MFU (PaLM, arXiv 2204.02311, appendix B, with the causal half of the score matrix).
        """
        width, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        block = 2 * width * width + 2 * width * kv + 3 * width * self.intermediate_size
        multiplied = self.num_hidden_layers * block + self.vocab_size * width
        return 6.0 * multiplied + 6.0 * self.num_hidden_layers * context * width


class ModelChoice(Recipe):
    """How a recipe chooses a shape: a preset or the depth dial, then any single field on top.

    `depth` derives the rest: hidden_size = 64 × depth, heads of 64, SwiGLU of 8/3 × width.
    """

    preset: Literal["tiny", "seed", "base-218m"] | None = None
    depth: int | None = Field(default=None, ge=1, le=64)
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    max_position_embeddings: int | None = None
    rms_norm_eps: float | None = None
    tie_word_embeddings: bool | None = None
    rope: RopeConfig = RopeConfig()

    def build(self, vocab_size: int) -> ModelConfig:
        """The full shape for a vocabulary.

        Raises:
            InputError: neither or both of preset and depth, or sizes that do not fit together.
        """
        if (self.preset is None) == (self.depth is None):
            raise InputError("model: give either preset (tiny, seed, base-218m) or depth, then any field on top")
        shape = PRESETS[self.preset] if self.preset else _from_depth(self.depth or 0)
        own = {k: v for k, v in self.model_dump(exclude={"preset", "depth", "rope"}).items() if v is not None}
        if "hidden_size" in own and "intermediate_size" not in own:
            own["intermediate_size"] = swiglu_width(own["hidden_size"])
        if "num_attention_heads" in own and "num_key_value_heads" not in own:
            own["num_key_value_heads"] = own["num_attention_heads"]
        full = {**shape, **own, "vocab_size": vocab_size, "rope": self.rope.model_dump()}
        return validate(ModelConfig, full, "model")


def swiglu_width(hidden_size: int, multiple: int = 32) -> int:
    """LLaMA's feed-forward width: 2/3 of 4 × hidden_size, rounded up to a multiple."""
    return -(-hidden_size * 8 // 3 // multiple) * multiple


def _shape(width: int, layers: int, heads: int, context: int, kv_heads: int | None = None) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": swiglu_width(width),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "max_position_embeddings": context,
    }


def _from_depth(depth: int) -> dict[str, Any]:
    return _shape(64 * depth, depth, depth, 1024)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _shape(192, 4, 6, 128),  # the CPU quickstart: 2–3 M parameters
    "seed": _shape(512, 8, 8, 512),  # 58 M with ChatGLM2's vocabulary, as the earlier project's first model
    "base-218m": _shape(1024, 12, 16, 1024),
}


def to_hugging_face(config: ModelConfig, bos_id: int, eos_id: int, dtype: str) -> dict[str, Any]:
    """``config.json`` of a LlamaForCausalLM. The context laws beyond plain RoPE add their own fields here."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **config.model_dump(exclude={"rope"}),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": config.rope.theta,
        "rope_scaling": None,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "dtype": dtype,
        "torch_dtype": dtype,  # the name that readers before transformers 5 know
    }


def from_hugging_face(data: Any, where: str) -> ModelConfig:
    """A LLaMA ``config.json`` → ModelConfig.

    Raises:
        InputError: another architecture, or a feature that our LLaMA-2 does not compute.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: must hold a JSON object, not a {type(data).__name__}")
    if data.get("model_type") != "llama":
        raise InputError(f"{where}: model_type is {data.get('model_type')!r}; only 'llama' can be loaded")
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    law = rope.get("rope_type", rope.get("type", "default"))
    refused = {
        "rope_scaling": law if law != "default" else None,
        "attention_bias": data.get("attention_bias") or None,
        "mlp_bias": data.get("mlp_bias") or None,
        "hidden_act": data.get("hidden_act") if data.get("hidden_act", "silu") != "silu" else None,
    }
    for key, value in refused.items():
        if value is not None:
            raise InputError(f"{where}: {key} = {value!r} is not supported here; use a plain LLaMA folder")
    fields = {name: data[name] for name in ModelConfig.model_fields if name in data and name != "rope"}
    fields.setdefault("num_key_value_heads", data["num_attention_heads"])
    fields.setdefault("tie_word_embeddings", False)
    fields.setdefault("rms_norm_eps", 1e-6)
    fields.setdefault("max_position_embeddings", 2048)
    theta = rope.get("rope_theta", data.get("rope_theta", 10_000.0))
    config = validate(ModelConfig, {**fields, "rope": {"theta": theta}}, where)
    if data.get("head_dim") not in (None, config.head_dim):
        raise InputError(f"{where}: head_dim = {data['head_dim']!r} is not supported here; use a plain LLaMA folder")
    return config
