"""ModelConfig ⇄ ``config.json``, as Hugging Face's LlamaForCausalLM has it, with experts its Mixtral or Qwen2-MoE.

Not here: the weights beside it (checkpoint.py, expert_names.py), the words for RoPE laws (laws.py).
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from babyllama.errors import InputError
from babyllama.model.config import ModelConfig, Moe, changed
from babyllama.model.laws import (
    DynamicNtkRope,
    PlainRope,
    RopeConfig,
    from_hugging_face_rope,
    hugging_face_rope,
)
from babyllama.recipe import validate

_FAMILIES = {"llama": "Llama", "mixtral": "Mixtral", "qwen2_moe": "Qwen2Moe"}  # model_type → how its classes begin
_SCORES = "ForSequenceClassification"
OWN_TYPE = "babyllama"  # model_type of what another program's LLaMA would compute wrongly


def to_hugging_face(config: ModelConfig, bos_id: int, eos_id: int, dtype: str, stock: bool = False, own: bool = False,
                    pad_id: int | None = None) -> dict[str, Any]:  # fmt: skip
    """``config.json`` of a LlamaForCausalLM, of a reward model of a LlamaForSequenceClassification with one label, with
    experts of Mixtral's or Qwen2-MoE's; with other than dense weights of a model_type that only we know.

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
        kind = "matrices packed in this way" if config.weights == "dense" else f"{config.weights} matrices"
        raise InputError(f"weights: {kind} have no form in a Hugging Face LLaMA folder, only babyllama reads them; "
                         "give a model of dense ones, or packed by gptq, awq or rtn")  # fmt: skip
    if config.reward and own:
        raise InputError("reward: a reward model has no form in few bits; give a dense one")
    if config.moe is not None and own:
        raise InputError("moe: experts have no form in few bits; give a dense model, or one without experts")
    scores = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}} if config.reward else {}
    model_type = family(config.moe)
    classes = _FAMILIES[model_type] + (_SCORES if config.reward else "ForCausalLM")
    others = {"rope", "reward", "moe"} if own else {"rope", "reward", "moe", "weights"}
    return {
        "architectures": ["BabyllamaForCausalLM" if own else classes],
        "model_type": OWN_TYPE if own else model_type,  # nobody else may take such weights as dense
        **config.model_dump(exclude=others),
        **_written_experts(config),
        **scores,
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


def family(moe: Moe | None) -> str:
    """The model_type whose mathematics is ours."""
    return "llama" if moe is None else "qwen2_moe" if moe.shared else "mixtral"


def _written_experts(config: ModelConfig) -> dict[str, Any]:
    moe, width = config.moe, config.intermediate_size
    if moe is None:
        return {}
    found: dict[str, Any] = {"num_experts_per_tok": moe.active, "output_router_logits": False, "sliding_window": None}
    if not moe.shared:
        return found | {"num_local_experts": moe.experts}
    shared = moe.shared * width
    return found | {"num_experts": moe.experts, "moe_intermediate_size": width, "norm_topk_prob": True,
                    "shared_expert_intermediate_size": shared, "decoder_sparse_step": 1, "mlp_only_layers": [],
                    "qkv_bias": False, "use_sliding_window": False}  # fmt: skip


def _read_experts(data: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of ModelConfig that say which experts there are. Raises InputError for what ours do not compute."""
    if data.get("model_type") == "mixtral":
        _refuse(where, {"sliding_window": data.get("sliding_window")})
        return {"moe": {"experts": data.get("num_local_experts", 8), "active": data.get("num_experts_per_tok", 2)}}
    if data.get("model_type") != "qwen2_moe":
        return {}
    width, shared = data["moe_intermediate_size"], data["shared_expert_intermediate_size"]
    _refuse(where, {
        "qkv_bias": data.get("qkv_bias", True) or None, "use_sliding_window": data.get("use_sliding_window") or None,
        "mlp_only_layers": data.get("mlp_only_layers") or None,
        "norm_topk_prob": None if data.get("norm_topk_prob", False) else "false",
        "decoder_sparse_step": None if data.get("decoder_sparse_step", 1) == 1 else data["decoder_sparse_step"],
        "shared_expert_intermediate_size": None if shared and shared % width == 0 else shared,
    })  # fmt: skip
    moe = {"experts": data["num_experts"], "active": data["num_experts_per_tok"], "shared": shared // width}
    return {"moe": moe, "intermediate_size": width}


def _refuse(where: str, found: dict[str, Any]) -> None:
    for key, value in found.items():
        if value is not None:
            raise InputError(f"{where}: {key} = {value!r} is not supported here; use a plain LLaMA folder")


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
    if data.get("model_type") not in _FAMILIES and not own:
        raise InputError(f"{where}: model_type is {data.get('model_type')!r}; only 'llama' can be loaded, and with "
                         "experts 'mixtral' and 'qwen2_moe'")  # fmt: skip
    _refuse(where, {
        "attention_bias": data.get("attention_bias") or None,
        "mlp_bias": data.get("mlp_bias") or None,
        "hidden_act": data.get("hidden_act") if data.get("hidden_act", "silu") != "silu" else None,
    })  # fmt: skip
    foreign = {"rope", "reward", "moe"} if own else {"rope", "reward", "moe", "weights"}
    fields = {name: data[name] for name in ModelConfig.model_fields if name in data and name not in foreign}
    fields |= _read_experts(data, where)
    fields.setdefault("num_key_value_heads", data["num_attention_heads"])
    fields.setdefault("tie_word_embeddings", False)
    if any(str(name).endswith(_SCORES) for name in data.get("architectures") or ()):
        labels = data.get("num_labels", len(data.get("id2label") or (0, 1)))
        if labels != 1:
            raise InputError(f"{where}: classifies into {labels} labels; only reward models with one can be loaded")
        fields |= {"reward": True, "tie_word_embeddings": False}
    fields.setdefault("rms_norm_eps", 1e-6)
    fields.setdefault("max_position_embeddings", 2048)
    config = validate(ModelConfig, fields, where)
    if data.get("head_dim") not in (None, config.head_dim):
        raise InputError(f"{where}: head_dim = {data['head_dim']!r} is not supported here; use a plain LLaMA folder")
    rope, longest = _read_rope(data, config, where)
    return validate(ModelConfig, changed(config, rope, longest), where)


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
