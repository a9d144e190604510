"""A folder of Stable Diffusion 3 in diffusers' layout, small and random, for tests of what reads
it."""

import importlib
import json

import jax
import numpy as np
from safetensors.numpy import save_file

from gimlax.models.stable_diffusion_files import CLIP, MMDIT, T5, VAE
from tests.specimens import diffusion_model

LETTERS = "abcdefghijklmnopqrstuvwxyz!"
MERGES = ("t h", "th e</w>", "f o", "fo x</w>")
FAMILIES = {"clip_l": CLIP, "clip_g": CLIP, "t5": T5, "transformer": MMDIT, "vae": VAE}
FOLDERS = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "t5": "text_encoder_3",
    "transformer": "transformer",
    "vae": "vae",
}
INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
}
SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}


def clip_config(config):
    return {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "projection_dim": config.projection_width,
        "hidden_act": config.activation,
        "vocab_size": config.vocab_size,
        "eos_token_id": config.end_id,
    }


def configs(config):
    """What each part's config.json says."""
    t5, transformer, vae = config.t5, config.transformer, config.vae
    return {
        "clip_l": clip_config(config.clip_l),
        "clip_g": clip_config(config.clip_g),
        "t5": {
            "model_type": "t5",
            "architectures": ["T5EncoderModel"],
            "feed_forward_proj": "gated-gelu",
            "d_model": t5.width,
            "d_ff": t5.mlp_width,
            "d_kv": t5.head_size,
            "num_layers": t5.num_layers,
            "num_heads": t5.num_heads,
            "vocab_size": t5.vocab_size,
        },
        "transformer": {
            "_class_name": "SD3Transformer2DModel",
            "num_layers": transformer.num_layers,
            "num_attention_heads": transformer.num_heads,
            "attention_head_dim": transformer.head_size,
            "caption_projection_dim": transformer.width,
            "joint_attention_dim": transformer.text_width,
            "pooled_projection_dim": transformer.pooled_width,
            "in_channels": transformer.channels,
            "out_channels": None,
            "sample_size": transformer.sample_size,
            "patch_size": transformer.patch,
            "pos_embed_max_size": transformer.max_size,
            "qk_norm": "rms_norm" if transformer.qk_norm else None,
            "dual_attention_layers": list(transformer.dual_layers),
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "block_out_channels": list(vae.widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.widths),
            "latent_channels": vae.channels,
            "layers_per_block": vae.blocks_per_level,
            "norm_num_groups": vae.num_groups,
            "scaling_factor": vae.scaling,
            "shift_factor": vae.shift,
            "use_post_quant_conv": vae.post_conv,
        },
    }


def write_tokenizers(folder):
    """Those of both CLIPs as vocabulary and merges, that of T5 as one file."""
    package = importlib.import_module("tokenizers")
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    words += ["".join(merge.split()) for merge in MERGES]
    ids = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        (folder / name).mkdir(parents=True)
        (folder / name / "vocab.json").write_text(json.dumps(ids))
        (folder / name / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
        about = {"pad_token": pad, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "tokenizer_3").mkdir()
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    encoder = package.Tokenizer(
        package.models.Unigram([*scores, *((x, -3.0) for x in LETTERS)], unk_id=2)
    )
    encoder.add_special_tokens(["<pad>", "</s>", "<unk>"])
    encoder.pre_tokenizer = package.pre_tokenizers.Metaspace()
    encoder.post_processor = package.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    encoder.save(str(folder / "tokenizer_3" / "tokenizer.json"))
    about = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    about |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_3" / "tokenizer_config.json").write_text(json.dumps(about))


def write(folder):
    """The folder of `specimens.diffusion_model()`; returns the model."""
    model = diffusion_model()
    for name, fields in configs(model.config).items():
        inside = folder / FOLDERS[name]
        inside.mkdir(parents=True)
        (inside / "config.json").write_text(json.dumps(fields))
        part, tensors = model.config.parts[name], {}
        for keys, leaf in jax.tree_util.tree_leaves_with_path(model.params[name]):
            (tensor,) = FAMILIES[name].names(part, tuple(key.key for key in keys))
            tensors[tensor] = np.asarray(leaf)
        save_file(tensors, inside / "model.safetensors")
    write_tokenizers(folder)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return model
