"""How Llama and Mixtral are written in folders of Hugging Face: config keys and tensor names."""

import dataclasses
import re
from typing import Any

from gimlax.models.decoder import DecoderConfig, abstract_params
from gimlax.models.families import Family, Reader
from gimlax.models.leaves import KeyPath
from gimlax.models.llama import LlamaConfig, RopeScaling
from gimlax.models.mixtral import MixtralConfig

__all__ = ["LLAMA", "MIXTRAL", "config_json"]

MODEL_NAMES: dict[KeyPath, str] = {
    ("embed",): "model.embed_tokens.weight",
    ("norm", "scale"): "model.norm.weight",
    ("head",): "lm_head.weight",
}
LAYER_NAMES: dict[KeyPath, str] = {
    ("attention_norm", "scale"): "input_layernorm",
    ("attention", "query"): "self_attn.q_proj",
    ("attention", "key"): "self_attn.k_proj",
    ("attention", "value"): "self_attn.v_proj",
    ("attention", "output"): "self_attn.o_proj",
    ("mlp_norm", "scale"): "post_attention_layernorm",
    ("mlp", "gate"): "mlp.gate_proj",
    ("mlp", "up"): "mlp.up_proj",
    ("mlp", "down"): "mlp.down_proj",
    ("mlp", "router"): "block_sparse_moe.gate",
}
EXPERT_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}
# Buffers that older files have: they follow from the config.
BUFFERS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def _sizes(reader: Reader, *, theta: float, eps: float) -> dict[str, Any]:
    """What every decoder has; `theta` and `eps` are what transformers takes where a file has
    none."""
    reader.only(hidden_act="silu", attention_bias=False, mlp_bias=False, partial_rotary_factor=1.0)
    width, num_heads = reader.get("hidden_size", int), reader.get("num_attention_heads", int)
    rope = reader.get("rope_parameters", dict, reader.get("rope_scaling", dict, {}))
    inside = Reader(reader.path, {"rope_theta": reader.values.get("rope_theta"), **rope})
    return {
        "vocab_size": reader.get("vocab_size", int),
        "width": width,
        "num_layers": reader.get("num_hidden_layers", int),
        "num_heads": num_heads,
        "num_kv_heads": reader.get("num_key_value_heads", int, num_heads),
        "head_size": reader.get("head_dim", int, width // num_heads if num_heads > 0 else 0),
        "mlp_width": reader.get("intermediate_size", int),
        "max_context": reader.get("max_position_embeddings", int),
        "rope_theta": inside.get("rope_theta", float, theta),
        "norm_eps": reader.get("rms_norm_eps", float, eps),
        "tied": reader.get("tie_word_embeddings", bool, False),
    }


def _rope(reader: Reader) -> RopeScaling | None:
    """The scaling of rotary frequencies, which files of different age call differently."""
    rope = reader.get("rope_parameters", dict, reader.get("rope_scaling", dict, {}))
    inside = Reader(reader.path, rope)
    kind = inside.get("rope_type", str, inside.get("type", str, "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        reader.fail(
            f"rotary frequencies are scaled by {kind[:40]!r}, which is not supported; supported are"
            " default, llama3"
        )
    return RopeScaling(
        factor=inside.get("factor", float),
        low_freq_factor=inside.get("low_freq_factor", float),
        high_freq_factor=inside.get("high_freq_factor", float),
        original_context=inside.get("original_max_position_embeddings", int),
    )


def _llama(reader: Reader) -> LlamaConfig:
    return LlamaConfig(
        **_sizes(reader, theta=10000.0, eps=1e-6),
        rope_scaling=_rope(reader),
    )


def _mixtral(reader: Reader) -> MixtralConfig:
    if _rope(reader) is not None:
        reader.fail("it scales rotary frequencies, which is not supported for a Mixtral")
    window = reader.values.get("sliding_window")
    return MixtralConfig(
        **_sizes(reader, theta=1e6, eps=1e-5),
        num_experts=reader.get("num_local_experts", int, 8),
        num_chosen=reader.get("num_experts_per_tok", int, 2),
        sliding_window=None if window is None else reader.get("sliding_window", int),
    )


def config_json(config: LlamaConfig | MixtralConfig) -> dict[str, Any]:
    """The config.json of these sizes, as transformers reads it."""
    found: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_context,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }
    if isinstance(config, MixtralConfig):
        return found | {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.num_chosen,
            "sliding_window": config.sliding_window,
        }
    scaling = config.rope_scaling
    if scaling is not None:
        found["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return found


def _names(config: DecoderConfig, path: KeyPath) -> tuple[str, ...]:
    if path[0] != "layers":
        return (MODEL_NAMES[path],)
    layer, own = f"model.layers.{path[1]}", path[2:]
    if isinstance(config, MixtralConfig) and own[0] == "mlp" and own[1] in EXPERT_NAMES:
        experts = f"{layer}.block_sparse_moe.experts"
        tensor = EXPERT_NAMES[str(own[1])]
        return tuple(f"{experts}.{n}.{tensor}.weight" for n in range(config.num_experts))
    return (f"{layer}.{LAYER_NAMES[own]}.weight",)


def _num_tensors(config: DecoderConfig) -> int:
    num_experts = config.num_experts if isinstance(config, MixtralConfig) else 1
    return config.num_layers * (6 + 3 * num_experts)


def _may_have(config: DecoderConfig, name: str) -> bool:
    return (config.tied and name == MODEL_NAMES[("head",)]) or bool(BUFFERS.fullmatch(name))


LLAMA = Family(
    config=_llama,
    num_tensors=_num_tensors,
    params=abstract_params,
    names=_names,
    may_have=_may_have,
)
MIXTRAL = dataclasses.replace(LLAMA, config=_mixtral)
