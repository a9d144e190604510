"""A sentence encoder's folder, small and random, for tests of what reads it."""

import json

import jax
import numpy as np
from safetensors.numpy import save_file

from gimlax.models import BertConfig
from gimlax.models.bert_files import BERT
from gimlax.models.decoder import init_params
from tests.specimens import moved

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] ! ' the cat sat ##s a man eats food what is it where 猫 s"
).split()
CONFIG = BertConfig(
    vocab_size=len(WORDS), width=24, num_layers=2, num_heads=3, mlp_width=40, max_context=16
)
FIELDS = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": CONFIG.width,
    "intermediate_size": CONFIG.mlp_width,
    "layer_norm_eps": CONFIG.norm_eps,
    "max_position_embeddings": CONFIG.max_context,
    "num_attention_heads": CONFIG.num_heads,
    "num_hidden_layers": CONFIG.num_layers,
    "type_vocab_size": CONFIG.num_types,
    "vocab_size": CONFIG.vocab_size,
}


def tensors():
    """Parameters by the names that files give them."""
    found = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(moved(init_params(CONFIG))):
        (name,) = BERT.names(CONFIG, tuple(key.key for key in keys))
        found[name] = np.asarray(leaf)
    return found


def write(folder):
    """The folder, as the library sentence-transformers has it, with `vocab.txt`."""
    (folder / "1_Pooling").mkdir(parents=True)
    kinds = ("Transformer", "Pooling", "Normalize")
    contents = {
        "config.json": FIELDS,
        "modules.json": [
            {"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}" if i else ""}
            for i, kind in enumerate(kinds)
        ],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 24},
        "sentence_bert_config.json": {"max_seq_length": 12},
        "tokenizer_config.json": {"do_lower_case": True},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    save_file(tensors(), folder / "model.safetensors")
    return folder
