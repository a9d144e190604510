"""How Mamba and Mamba-2 are written in folders of Hugging Face: config keys and tensor names."""

import math
from typing import Any

from gimlax.models.decoder import abstract_params
from gimlax.models.families import Family, Reader
from gimlax.models.leaves import KeyPath
from gimlax.models.mamba import MambaConfig
from gimlax.models.mamba2 import Mamba2Config
from gimlax.models.state_space import StateSpaceConfig

__all__ = ["MAMBA", "MAMBA2"]

MODEL_NAMES: dict[KeyPath, str] = {
    ("embed",): "backbone.embeddings.weight",
    ("norm", "scale"): "backbone.norm_f.weight",
    ("head",): "lm_head.weight",
}
LAYER_NAMES: dict[KeyPath, str] = {
    ("norm", "scale"): "norm.weight",
    ("mixer", "input"): "mixer.in_proj.weight",
    ("mixer", "input_bias"): "mixer.in_proj.bias",
    ("mixer", "conv"): "mixer.conv1d.weight",
    ("mixer", "conv_bias"): "mixer.conv1d.bias",
    ("mixer", "select"): "mixer.x_proj.weight",
    ("mixer", "step"): "mixer.dt_proj.weight",
    ("mixer", "decay_log"): "mixer.A_log",
    ("mixer", "skip"): "mixer.D",
    ("mixer", "scale"): "mixer.norm.weight",
    ("mixer", "output"): "mixer.out_proj.weight",
    ("mixer", "output_bias"): "mixer.out_proj.bias",
}
STEP_BIAS = ("mixer", "step_bias")


def _sizes(reader: Reader, *, tied: bool) -> dict[str, Any]:
    """What both models have; `tied` is what transformers takes where a file says nothing."""
    reader.only(hidden_act="silu", residual_in_fp32=True)
    width = reader.get("hidden_size", int)
    return {
        "vocab_size": reader.get("vocab_size", int),
        "width": width,
        "num_layers": reader.get("num_hidden_layers", int),
        "inner_width": reader.get("expand", int, 2) * width,
        "state_size": reader.get("state_size", int),
        "conv_size": reader.get("conv_kernel", int, 4),
        "norm_eps": reader.get("layer_norm_epsilon", float, 1e-5),
        "tied": reader.get("tie_word_embeddings", bool, tied),
        "bias": reader.get("use_bias", bool, False),
        "conv_bias": reader.get("use_conv_bias", bool, True),
    }


def _mamba(reader: Reader) -> MambaConfig:
    sizes = _sizes(reader, tied=True)
    rank = reader.values.get("time_step_rank")
    if rank in (None, "auto"):
        rank = math.ceil(sizes["width"] / 16)
    else:
        rank = reader.get("time_step_rank", int)
    return MambaConfig(**sizes, step_rank=rank)


def _mamba2(reader: Reader) -> Mamba2Config:
    sizes = _sizes(reader, tied=False)
    head_size, num_heads = reader.get("head_dim", int, 64), reader.get("num_heads", int, 128)
    if head_size * num_heads != sizes["inner_width"]:
        reader.fail(
            f"it has {num_heads} heads of {head_size}, which do not fill the inner width of"
            f" {sizes['inner_width']}"
        )
    return Mamba2Config(
        **sizes,
        head_size=head_size,
        num_groups=reader.get("n_groups", int, 8),
        step_limits=_step_limits(reader),
    )


def _step_limits(reader: Reader) -> tuple[float, float]:
    """Two numbers, of which infinity is written as one or as {'__float__': 'Infinity'}."""
    found = reader.get("time_step_limit", list, [0.0, math.inf])
    limits = [
        math.inf if n == {"__float__": "Infinity"} else float(n)
        for n in found
        if n == {"__float__": "Infinity"} or type(n) in (int, float)
    ]
    if len(found) != 2 or len(limits) != 2:
        reader.fail(f"'time_step_limit' is {repr(found)[:80]}, needed are two numbers")
    return limits[0], limits[1]


def _names(config: StateSpaceConfig, path: KeyPath) -> tuple[str, ...]:
    if path[0] != "layers":
        return (MODEL_NAMES[path],)
    own = path[2:]
    if own == STEP_BIAS:
        name = "mixer.dt_bias" if isinstance(config, Mamba2Config) else "mixer.dt_proj.bias"
    else:
        name = LAYER_NAMES[own]
    return (f"backbone.layers.{path[1]}.{name}",)


def _num_tensors(config: StateSpaceConfig) -> int:
    return 8 * config.num_layers


def _may_have(config: StateSpaceConfig, name: str) -> bool:
    return config.tied and name == MODEL_NAMES[("head",)]


MAMBA = Family(
    config=_mamba,
    num_tensors=_num_tensors,
    params=abstract_params,
    names=_names,
    may_have=_may_have,
)
MAMBA2 = Family(
    config=_mamba2,
    num_tensors=_num_tensors,
    params=abstract_params,
    names=_names,
    may_have=_may_have,
)
