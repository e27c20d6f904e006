"""ModelConfig: the shape of a LLaMA-2, in Hugging Face's field names.

Also the presets and the depth dial that choose a shape. Not here: weights, modules, the RoPE laws themselves (laws.py),
``config.json`` (config_json.py).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from babyllama.errors import InputError
from babyllama.model.laws import (
    PlainRope,
    RopeConfig,
    settle,
)
from babyllama.recipe import Recipe, validate

Weights = Literal["dense", "ternary", "onebit"]


class Swiglu(Recipe):
    """down(silu(gate(x)) · up(x)), `width` numbers wide between (arXiv 2002.05202)."""

    kind: Literal["swiglu"] = "swiglu"
    width: int

    def parameters(self, hidden_size: int) -> int:
        """Numbers in its matrices."""
        return 3 * hidden_size * self.width

    def multiplied(self, hidden_size: int) -> int:
        """Numbers that each token is multiplied by: all of them."""
        return self.parameters(hidden_size)

    @property
    def inner(self) -> int:
        """Numbers that a token becomes between the first matrices and the last."""
        return self.width


class Moe(Recipe):
    """A mixture of experts, SwiGLUs of `width`: each token goes through the `active` ones that a router chooses, and
    through the shared ones. Without shared ones transformers' Mixtral (arXiv 2401.04088), with them its Qwen2-MoE."""

    kind: Literal["moe"] = "moe"
    experts: int = Field(default=8, ge=2, description="experts of a block, of which a router chooses")
    active: int = Field(default=2, ge=1, description="experts that each token goes through")
    shared: int = Field(default=0, ge=0, description="experts that every token goes through besides")
    width: int | None = Field(
        default=None, ge=1, description="width of an expert; default: a token costs what it does without experts"
    )

    @model_validator(mode="after")
    def _check(self) -> Moe:
        if self.active > self.experts:
            raise ValueError(f"active {self.active} is more than the {self.experts} experts there are")
        return self

    @property
    def expert_width(self) -> int:
        """`width`, once it is known."""
        assert self.width is not None
        return self.width

    def parameters(self, hidden_size: int) -> int:
        """As Swiglu's; the router's too."""
        return self._of(hidden_size, self.experts)

    def multiplied(self, hidden_size: int) -> int:
        """As Swiglu's: of the experts those that are active, and the shared ones."""
        return self._of(hidden_size, self.active)

    @property
    def inner(self) -> int:
        """As Swiglu's, over all experts of a token."""
        return (self.active + self.shared) * self.expert_width

    def _of(self, hidden_size: int, experts: int) -> int:
        gates = self.experts + bool(self.shared)
        return hidden_size * (3 * self.expert_width * (experts + self.shared) + gates)


Mlp = Swiglu | Moe  # what follows attention in a block


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
    weights: Weights = Field(default="dense", description="of the blocks' matrices; ternary: BitNet b1.58, onebit")
    reward: bool = Field(default=False, description="its head gives one number, what a text is worth, and no logits")
    moe: Moe | None = Field(default=None, description="experts in each block, each intermediate_size wide")
    rope: RopeConfig = PlainRope(theta=10_000.0)  # last: it is settled by the fields above

    @field_validator("rope")
    @classmethod
    def _settled(cls, rope: RopeConfig, info: ValidationInfo) -> RopeConfig:
        longest = info.data.get("max_position_embeddings", 1)
        return settle(rope, 10_000.0, longest / rope.reach)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def mlp(self) -> Mlp:
        """What follows attention in each block; in files it stands in Hugging Face's fields."""
        if self.moe is not None:
            return self.moe.model_copy(update={"width": self.intermediate_size})
        return Swiglu(width=self.intermediate_size)

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        width, heads, kv_heads = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        if width % heads:
            raise ValueError(f"hidden_size {width} must be a multiple of num_attention_heads {heads}")
        if heads % kv_heads:
            raise ValueError(f"num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}")
        if self.head_dim == 2 and self.rope.kind in ("ntk", "dynamic_ntk", "clex"):
            raise ValueError(f"rope.kind: {self.rope.kind} needs a head_dim above 2")
        if self.reward and self.tie_word_embeddings:
            raise ValueError("reward: a head of one number cannot be the embedding; tie_word_embeddings must be false")
        if self.moe is not None and self.moe.width is not None:
            raise ValueError("moe.width: an expert's width is intermediate_size here")
        if self.moe is not None and self.weights != "dense":
            raise ValueError(f"weights: {self.weights} matrices are not for experts; leave weights or moe out")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} (hidden_size / num_attention_heads) must be even for RoPE")
        return self

    @property
    def trained_context(self) -> int:
        """Tokens of the context that a RoPE law starts from."""
        return self.max_position_embeddings if isinstance(self.rope, PlainRope) else self.rope.trained

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied head counts once."""
        width, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        block = 2 * width * width + 2 * width * kv + self.mlp.parameters(width) + 2 * width
        if self.weights == "onebit":  # g and h of each matrix
            block += 9 * width + 2 * kv + 3 * self.intermediate_size
        head = width if self.reward else 0 if self.tie_word_embeddings else self.vocab_size * width
        law = self.rope.parameters(self.head_dim)
        return self.num_hidden_layers * block + width + self.vocab_size * width + head + law

    def flops_per_token(self, context: int) -> float:
        """Training FLOPs a token: 6 for each weight that is multiplied, plus causal attention's 6·L·T·width.

        The figure behind MFU (PaLM, arXiv 2204.02311, appendix B, with the causal half of the score matrix).
        """
        width, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        block = 2 * width * width + 2 * width * kv + self.mlp.multiplied(width)
        multiplied = self.num_hidden_layers * block + self.vocab_size * width
        return 6.0 * multiplied + 6.0 * self.num_hidden_layers * context * width

    @property
    def active_parameters(self) -> int:
        """Those that a token meets: all but the experts that it does not go through."""
        idle = self.mlp.parameters(self.hidden_size) - self.mlp.multiplied(self.hidden_size)
        return self.parameters - self.num_hidden_layers * idle


class ModelChoice(Recipe):
    """How a recipe chooses a shape: a preset or the depth dial, then any single field on top.

    `depth` derives the rest: hidden_size = 64 × depth, heads of 64, SwiGLU of 8/3 × width.
    """

    preset: Literal["tiny", "seed", "base-218m"] | None = Field(
        default=None, description="a shape by name, which the other keys change"
    )
    depth: int | None = Field(default=None, ge=1, le=64, description="layers; all other sizes follow from it")
    hidden_size: int | None = Field(default=None, description="numbers in a token's vector")
    intermediate_size: int | None = Field(default=None, description="width of the MLP")
    num_hidden_layers: int | None = Field(default=None, description="layers")
    num_attention_heads: int | None = Field(default=None, description="heads of queries")
    num_key_value_heads: int | None = Field(
        default=None, description="heads of keys and values; fewer than queries: GQA, 1: MQA"
    )
    max_position_embeddings: int | None = Field(default=None, description="the model's context, in tokens")
    rms_norm_eps: float | None = Field(default=None, description="added to the mean square in RMSNorm")
    tie_word_embeddings: bool | None = Field(default=None, description="one table for embedding and head")
    weights: Literal["dense", "ternary"] | None = Field(
        default=None, description="ternary: the matrices of BitNet b1.58"
    )
    moe: Moe | None = Field(default=None, description="a mixture of experts in place of each block's MLP")
    rope: RopeConfig = Field(default=PlainRope(), description="how positions turn queries and keys")

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
        if self.moe is not None:
            parts = self.moe.active + self.moe.shared
            full["intermediate_size"] = self.moe.width or _multiple(-(-full["intermediate_size"] // parts), 32)
            full["moe"] = self.moe.model_dump(exclude={"width"})
        return validate(ModelConfig, full, "model")


def swiglu_width(hidden_size: int, multiple: int = 32) -> int:
    """LLaMA's feed-forward width: 2/3 of 4 × hidden_size, rounded up to a multiple."""
    return _multiple(-(-hidden_size * 8 // 3), multiple)


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


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


def extended(config: ModelConfig, rope: RopeConfig) -> ModelConfig:
    """The same model with another law, and the context that it reaches: trained context × factor.

    The trained context and theta are the model's own unless `rope` says otherwise; kind none takes a law away.

    Raises:
        InputError: a factor of 1, which changes nothing; a trained context that is not known.
    """
    trained = config.trained_context
    new = settle(rope, config.rope.base, trained)
    if isinstance(new, PlainRope):
        return validate(ModelConfig, changed(config, new, trained), "rope")
    if new.reach <= 1:
        raise InputError(f"rope.factor: {new.reach:g} changes nothing; give new context / trained context, above 1")
    return validate(ModelConfig, changed(config, new, int(new.trained * new.reach)), "rope")


def changed(config: ModelConfig, rope: RopeConfig, longest: int) -> dict[str, Any]:
    """The fields of the same model with another law, for as many positions."""
    return {**config.model_dump(), "rope": rope.model_dump(), "max_position_embeddings": longest}
