"""ModelConfig: the shape of a LLaMA-2, in Hugging Face's field names.

Also the presets and the depth dial that choose a shape, and the translation from and to ``config.json``.
Not here: weights, modules, the RoPE laws themselves (laws.py).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from babyllama.errors import InputError
from babyllama.model.laws import (
    DynamicNtkRope,
    PlainRope,
    RopeConfig,
    from_hugging_face_rope,
    hugging_face_rope,
    settle,
)
from babyllama.recipe import Recipe, validate

Weights = Literal["dense", "ternary", "onebit"]


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
    rope: RopeConfig = PlainRope(theta=10_000.0)  # last: it is settled by the fields above

    @field_validator("rope")
    @classmethod
    def _settled(cls, rope: RopeConfig, info: ValidationInfo) -> RopeConfig:
        longest = info.data.get("max_position_embeddings", 1)
        return settle(rope, 10_000.0, longest / rope.reach)

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
        if self.head_dim == 2 and self.rope.kind in ("ntk", "dynamic_ntk", "clex"):
            raise ValueError(f"rope.kind: {self.rope.kind} needs a head_dim above 2")
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
        block = 2 * width * width + 2 * width * kv + 3 * width * self.intermediate_size + 2 * width
        if self.weights == "onebit":  # g and h of each matrix
            block += 9 * width + 2 * kv + 3 * self.intermediate_size
        heads = 1 if self.tie_word_embeddings else 2
        law = self.rope.parameters(self.head_dim)
        return self.num_hidden_layers * block + width + heads * self.vocab_size * width + law

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
    weights: Literal["dense", "ternary"] | None = Field(default=None, description="ternary: BitNet b1.58's matrices")
    rope: RopeConfig = PlainRope()

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


OWN_TYPE = "babyllama"  # model_type of what another program's LLaMA would compute wrongly


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


def extended(config: ModelConfig, rope: RopeConfig) -> ModelConfig:
    """The same model with another law, and the context that it reaches: trained context × factor.

    The trained context and theta are the model's own unless `rope` says otherwise; kind none takes a law away.

    Raises:
        InputError: a factor of 1, which changes nothing; a trained context that is not known.
    """
    trained = config.trained_context
    new = settle(rope, config.rope.base, trained)
    if isinstance(new, PlainRope):
        return validate(ModelConfig, _changed(config, new, trained), "rope")
    if new.reach <= 1:
        raise InputError(f"rope.factor: {new.reach:g} changes nothing; give new context / trained context, above 1")
    return validate(ModelConfig, _changed(config, new, int(new.trained * new.reach)), "rope")


def _changed(config: ModelConfig, rope: RopeConfig, longest: int) -> dict[str, Any]:
    return {**config.model_dump(), "rope": rope.model_dump(), "max_position_embeddings": longest}


def to_hugging_face(config: ModelConfig, bos_id: int, eos_id: int, dtype: str, stock: bool = False, own: bool = False,
                    pad_id: int | None = None) -> dict[str, Any]:  # fmt: skip
    """``config.json`` of a LlamaForCausalLM; with other than dense weights of a model_type that only we know.

    Every law but plain RoPE is also written in our own words, under ``babyllama``. One that transformers cannot
    compute gets a rope_type that transformers refuses: a folder of ours never loads as something else.

    Args:
        stock: ask for a folder that others can read.
        own: its weights are packed as nobody else reads them; so are other than dense ones.

    Raises:
        InputError: `stock`, and the law has no form in Hugging Face's words.
    """
    own = own or config.weights != "dense"
    if stock and own:
        raise InputError(f"weights: {config.weights} matrices have no form in a Hugging Face LLaMA folder")
    return {
        "architectures": ["BabyllamaForCausalLM" if own else "LlamaForCausalLM"],
        "model_type": OWN_TYPE if own else "llama",  # nobody else may take such weights as dense
        **config.model_dump(exclude={"rope"} if own else {"rope", "weights"}),
        "max_position_embeddings": _their_longest(config),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **_written_rope(config, stock),
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id if pad_id is None else pad_id,
        "dtype": dtype,
        "torch_dtype": dtype,  # the name that readers before transformers 5 know
    }


def _written_rope(config: ModelConfig, stock: bool) -> dict[str, Any]:
    """The law in Hugging Face's words, and in ours where it is more than a base. Raises as `to_hugging_face`."""
    rope = config.rope
    theirs = hugging_face_rope(rope, config.head_dim)
    if theirs is None and stock:
        hint = " (with ramp: dimensions)" if getattr(rope, "ramp", None) == "rotations" else ""
        raise InputError(f"rope.kind: {rope.kind} has no form in a Hugging Face config.json; "
                         f"others can read: none, linear, ntk, dynamic_ntk, by_parts, yarn{hint}")  # fmt: skip
    parameters = theirs or {"rope_type": rope.kind, "rope_theta": rope.base}
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    found: dict[str, Any] = {
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
    }
    if not isinstance(rope, PlainRope):
        found["rope_parameters"] = parameters
        found["babyllama"] = {"rope": rope.model_dump(), "max_position_embeddings": config.max_position_embeddings}
    return found


def _their_longest(config: ModelConfig) -> int:
    """transformers takes max_position_embeddings for the trained context of a dynamic law."""
    return config.rope.trained if isinstance(config.rope, DynamicNtkRope) else config.max_position_embeddings


def from_hugging_face(data: Any, where: str) -> ModelConfig:
    """A LLaMA ``config.json`` → ModelConfig.

    Raises:
        InputError: another architecture, or a feature that our LLaMA-2 does not compute.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: must hold a JSON object, not a {type(data).__name__}")
    few_bits = data.get("weights", "dense") != "dense" or "quantization_config" in data
    own = data.get("model_type") == OWN_TYPE and few_bits
    if data.get("model_type") != "llama" and not own:
        raise InputError(f"{where}: model_type is {data.get('model_type')!r}; only 'llama' can be loaded")
    refused = {
        "attention_bias": data.get("attention_bias") or None,
        "mlp_bias": data.get("mlp_bias") or None,
        "hidden_act": data.get("hidden_act") if data.get("hidden_act", "silu") != "silu" else None,
    }
    for key, value in refused.items():
        if value is not None:
            raise InputError(f"{where}: {key} = {value!r} is not supported here; use a plain LLaMA folder")
    foreign = {"rope"} if own else {"rope", "weights"}
    fields = {name: data[name] for name in ModelConfig.model_fields if name in data and name not in foreign}
    fields.setdefault("num_key_value_heads", data["num_attention_heads"])
    fields.setdefault("tie_word_embeddings", False)
    fields.setdefault("rms_norm_eps", 1e-6)
    fields.setdefault("max_position_embeddings", 2048)
    config = validate(ModelConfig, fields, where)
    if data.get("head_dim") not in (None, config.head_dim):
        raise InputError(f"{where}: head_dim = {data['head_dim']!r} is not supported here; use a plain LLaMA folder")
    rope, longest = _read_rope(data, config, where)
    return validate(ModelConfig, _changed(config, rope, longest), where)


def _read_rope(data: dict[str, Any], config: ModelConfig, where: str) -> tuple[RopeConfig, int]:
    """The law, and how far it reaches: in our own words where the file has them, else in Hugging Face's."""
    given = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise InputError(f"{where}: rope_scaling = {given!r} is not supported here; it must hold a JSON object")
    theirs = {"rope_theta": data.get("rope_theta", 10_000.0), **given}
    theirs.setdefault("rope_type", theirs.pop("type", "default"))
    if "babyllama" not in data:
        return from_hugging_face_rope(theirs, config.max_position_embeddings, where)
    own = data["babyllama"]
    try:
        rope = TypeAdapter(RopeConfig).validate_python(own["rope"])
        longest = int(own["max_position_embeddings"])
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: babyllama.rope is damaged ({' '.join(str(error).split())[:200]})") from None
    expected = hugging_face_rope(rope, config.head_dim) or {"rope_type": rope.kind, "rope_theta": rope.base}
    if any(theirs.get(key) != value for key, value in expected.items()):
        raise InputError(f"{where}: rope_scaling and babyllama.rope say different things; "
                         "remove babyllama to go by rope_scaling")  # fmt: skip
    return rope, longest
