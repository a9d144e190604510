"""Writes small folders of language models as Hugging Face has them, tokenizer and all."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers

from gimlax.models import abstract_params, init_params
from gimlax.models.leaves import flat_shapes
from gimlax.models.mamba import MambaConfig
from gimlax.models.mamba2 import Mamba2Config
from gimlax.models.state_space import StateSpaceConfig
from gimlax.models.state_space_files import MAMBA
from tests.models.gguf_files import MERGES, TEMPLATE, TINY, TINY_EXPERTS, VOCABULARY
from tests.models.safetensors_files import config_of, tensors_of, write_folder

SIZES = {"vocab_size": len(VOCABULARY), "width": 16, "num_layers": 2, "inner_width": 32}
CONFIGS = {
    "llama": TINY,
    "mixtral": TINY_EXPERTS,
    "mamba": MambaConfig(**SIZES, state_size=5, step_rank=3),
    "mamba2": Mamba2Config(**SIZES, state_size=4, head_size=8, num_groups=2),
}


def encoder() -> tokenizers.Tokenizer:
    """The rules of the GGUF files of `gguf_files`, split as GPT-2 does."""
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    found = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges))
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    found.add_special_tokens(["<|start|>", "<|end|>"])
    found.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    return found


def write(folder: Path, kind: str = "llama", **rules: Any) -> Path:
    """A model of a kind, of random weights; `rules` replace, add or (None) drop those of the
    tokenizer."""
    config = CONFIGS[kind]
    if isinstance(config, StateSpaceConfig):
        values, tensors = state_space(config)
    else:
        values, tensors = config_of(config), tensors_of(config)[0]
    write_folder(folder, values, {"model.safetensors": tensors})
    encoder().save(str(folder / "tokenizer.json"))
    found = {
        "bos_token": "<|start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|end|>", "special": True},
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
    } | rules
    found = {key: value for key, value in found.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(found))
    return folder


def state_space(config: StateSpaceConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    values = {
        "model_type": "mamba2" if isinstance(config, Mamba2Config) else "mamba",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "state_size": config.state_size,
        "tie_word_embeddings": True,
    }
    if isinstance(config, Mamba2Config):
        values |= {"head_dim": 8, "num_heads": 4, "n_groups": 2}
    elif isinstance(config, MambaConfig):
        values["time_step_rank"] = config.step_rank
    params, tensors = init_params(config), {}
    for path in flat_shapes(abstract_params(config)):
        leaf: Any = params
        for key in path:
            leaf = leaf[key]
        (name,) = MAMBA.names(config, path)
        tensors[name] = np.asarray(jax.device_get(leaf))
    return values, tensors
