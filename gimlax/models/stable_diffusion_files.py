"""How the parts of Stable Diffusion 3 are written in folders: config keys and tensor names.

The transformer and the autoencoder are diffusers' (their config has a `_class_name`), the text
encoders those of transformers.
"""

from typing import Any

from gimlax.models.clip import ClipConfig
from gimlax.models.decoder import abstract_params
from gimlax.models.families import KINDS, Family, Reader, tensor_named
from gimlax.models.leaves import KeyPath
from gimlax.models.mmdit import MMDiTConfig
from gimlax.models.t5 import T5Config
from gimlax.models.vae import VaeConfig

__all__ = ["CLIP", "MMDIT", "T5", "VAE"]

# Of whole models by key path, of their layers by the keys behind the number.
MMDIT_NAMES = {
    ("patch",): "pos_embed.proj.weight",
    ("patch_bias",): "pos_embed.proj.bias",
    ("positions",): "pos_embed.pos_embed",
    ("time", "up"): "time_text_embed.timestep_embedder.linear_1",
    ("time", "down"): "time_text_embed.timestep_embedder.linear_2",
    ("pooled", "up"): "time_text_embed.text_embedder.linear_1",
    ("pooled", "down"): "time_text_embed.text_embedder.linear_2",
    ("text",): "context_embedder",
    ("modulate",): "norm_out.linear",
    ("output",): "proj_out",
}
STREAM_NAMES = {
    ("image", "modulate"): "norm1.linear",
    ("image", "heads", "query"): "attn.to_q",
    ("image", "heads", "key"): "attn.to_k",
    ("image", "heads", "value"): "attn.to_v",
    ("image", "heads", "output"): "attn.to_out.0",
    ("image", "heads", "query_norm"): "attn.norm_q.weight",
    ("image", "heads", "key_norm"): "attn.norm_k.weight",
    ("image", "dual_heads", "query"): "attn2.to_q",
    ("image", "dual_heads", "key"): "attn2.to_k",
    ("image", "dual_heads", "value"): "attn2.to_v",
    ("image", "dual_heads", "output"): "attn2.to_out.0",
    ("image", "dual_heads", "query_norm"): "attn2.norm_q.weight",
    ("image", "dual_heads", "key_norm"): "attn2.norm_k.weight",
    ("image", "up"): "ff.net.0.proj",
    ("image", "down"): "ff.net.2",
    ("text", "modulate"): "norm1_context.linear",
    ("text", "heads", "query"): "attn.add_q_proj",
    ("text", "heads", "key"): "attn.add_k_proj",
    ("text", "heads", "value"): "attn.add_v_proj",
    ("text", "heads", "output"): "attn.to_add_out",
    ("text", "heads", "query_norm"): "attn.norm_added_q.weight",
    ("text", "heads", "key_norm"): "attn.norm_added_k.weight",
    ("text", "up"): "ff_context.net.0.proj",
    ("text", "down"): "ff_context.net.2",
}
CLIP_NAMES = {
    ("embed",): "text_model.embeddings.token_embedding.weight",
    ("positions",): "text_model.embeddings.position_embedding.weight",
    ("norm",): "text_model.final_layer_norm",
    ("project",): "text_projection",
}
CLIP_LAYER_NAMES = {
    ("attention_norm",): "layer_norm1",
    ("query",): "self_attn.q_proj",
    ("key",): "self_attn.k_proj",
    ("value",): "self_attn.v_proj",
    ("output",): "self_attn.out_proj",
    ("mlp_norm",): "layer_norm2",
    ("up",): "mlp.fc1",
    ("down",): "mlp.fc2",
}
CLIP_BUFFER = "text_model.embeddings.position_ids"  # that older files have
ACTIVATION_NAMES = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
T5_NAMES = {
    ("embed",): "shared.weight",
    ("distances",): "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ("norm",): "encoder.final_layer_norm.weight",
}
T5_LAYER_NAMES = {
    ("attention_norm",): "layer.0.layer_norm.weight",
    ("query",): "layer.0.SelfAttention.q",
    ("key",): "layer.0.SelfAttention.k",
    ("value",): "layer.0.SelfAttention.v",
    ("output",): "layer.0.SelfAttention.o",
    ("mlp_norm",): "layer.1.layer_norm.weight",
    ("gate",): "layer.1.DenseReluDense.wi_0.weight",
    ("up",): "layer.1.DenseReluDense.wi_1.weight",
    ("down",): "layer.1.DenseReluDense.wo.weight",
}
T5_TWIN = "encoder.embed_tokens.weight"  # the same as `shared.weight`
VAE_NAMES = {
    ("post",): "post_quant_conv",
    ("input",): "decoder.conv_in",
    ("norm",): "decoder.conv_norm_out",
    ("output",): "decoder.conv_out",
    ("attention", "norm"): "decoder.mid_block.attentions.0.group_norm",
    ("attention", "query"): "decoder.mid_block.attentions.0.to_q",
    ("attention", "key"): "decoder.mid_block.attentions.0.to_k",
    ("attention", "value"): "decoder.mid_block.attentions.0.to_v",
    ("attention", "output"): "decoder.mid_block.attentions.0.to_out.0",
}
RESIDUAL_NAMES = {
    "first_norm": "norm1",
    "first": "conv1",
    "second_norm": "norm2",
    "second": "conv2",
    "shortcut": "conv_shortcut",
}
VAE_ENCODER = ("encoder.", "quant_conv.")  # which nothing here needs


def _mmdit(reader: Reader) -> MMDiTConfig:
    num_heads = reader.get("num_attention_heads", int)
    head_size = reader.get("attention_head_dim", int)
    channels = reader.get("in_channels", int)
    reader.only(caption_projection_dim=num_heads * head_size, out_channels=channels)
    dual = reader.get("dual_attention_layers", list, [])
    if not all(type(layer) is int for layer in dual):
        reader.fail(f"'dual_attention_layers' is {repr(dual)[:80]}, needed are whole numbers")
    norm = reader.values.get("qk_norm")
    if norm not in (None, "rms_norm"):
        reader.fail(f"'qk_norm' is {repr(norm)[:80]}; supported are null and 'rms_norm'")
    return MMDiTConfig(
        num_layers=reader.get("num_layers", int),
        num_heads=num_heads,
        head_size=head_size,
        text_width=reader.get("joint_attention_dim", int),
        pooled_width=reader.get("pooled_projection_dim", int),
        channels=channels,
        sample_size=reader.get("sample_size", int),
        patch=reader.get("patch_size", int),
        max_size=reader.get("pos_embed_max_size", int),
        qk_norm=norm is not None,
        dual_layers=tuple(dual),
    )


def _mmdit_names(config: MMDiTConfig, path: KeyPath) -> tuple[str, ...]:
    if path[0] != "layers":
        return (tensor_named(MMDIT_NAMES, path),)
    return (f"transformer_blocks.{path[1]}.{tensor_named(STREAM_NAMES, path[2:])}",)


def _clip(reader: Reader) -> ClipConfig:
    reader.only(architectures=["CLIPTextModelWithProjection"])
    activation = reader.get("hidden_act", str, "quick_gelu")
    if activation not in ACTIVATION_NAMES:
        reader.fail(
            f"'hidden_act' is {activation[:40]!r}; supported are {', '.join(ACTIVATION_NAMES)}"
        )
    return ClipConfig(
        width=reader.get("hidden_size", int),
        num_layers=reader.get("num_hidden_layers", int),
        num_heads=reader.get("num_attention_heads", int),
        mlp_width=reader.get("intermediate_size", int),
        projection_width=reader.get("projection_dim", int, 512),
        activation=ACTIVATION_NAMES[activation],
        vocab_size=reader.get("vocab_size", int, 49408),
        max_context=reader.get("max_position_embeddings", int, 77),
        end_id=reader.get("eos_token_id", int, 49407),
        norm_eps=reader.get("layer_norm_eps", float, 1e-5),
    )


def _clip_names(config: ClipConfig, path: KeyPath) -> tuple[str, ...]:
    if path[0] != "layers":
        return (tensor_named(CLIP_NAMES, path),)
    return (f"text_model.encoder.layers.{path[1]}.{tensor_named(CLIP_LAYER_NAMES, path[2:])}",)


def _t5(reader: Reader) -> T5Config:
    reader.only(architectures=["T5EncoderModel"], feed_forward_proj="gated-gelu")
    if "feed_forward_proj" not in reader.values:
        reader.fail("it has no 'feed_forward_proj', so it is T5 1.0; supported is T5 1.1")
    return T5Config(
        width=reader.get("d_model", int),
        num_layers=reader.get("num_layers", int),
        num_heads=reader.get("num_heads", int),
        mlp_width=reader.get("d_ff", int),
        head_size=reader.get("d_kv", int),
        vocab_size=reader.get("vocab_size", int),
        num_buckets=reader.get("relative_attention_num_buckets", int, 32),
        max_distance=reader.get("relative_attention_max_distance", int, 128),
        norm_eps=reader.get("layer_norm_epsilon", float, 1e-6),
    )


def _t5_names(config: T5Config, path: KeyPath) -> tuple[str, ...]:
    if path[0] != "layers":
        return (tensor_named(T5_NAMES, path),)
    return (f"encoder.block.{path[1]}.{tensor_named(T5_LAYER_NAMES, path[2:])}",)


def _vae(reader: Reader) -> VaeConfig:
    widths = reader.get("block_out_channels", list)
    if not all(type(width) is int for width in widths):
        reader.fail(f"'block_out_channels' is {repr(widths)[:80]}, needed are whole numbers")
    reader.only(act_fn="silu", out_channels=3, up_block_types=["UpDecoderBlock2D"] * len(widths))
    return VaeConfig(
        widths=tuple(widths),
        channels=reader.get("latent_channels", int),
        blocks_per_level=reader.get("layers_per_block", int, 1),
        num_groups=reader.get("norm_num_groups", int, 32),
        scaling=reader.get("scaling_factor", float, 0.18215),
        shift=reader.get("shift_factor", float, 0.0),
        attends=reader.get("mid_block_add_attention", bool, True),
        post_conv=reader.get("use_post_quant_conv", bool, True),
    )


def _vae_names(config: VaeConfig, path: KeyPath) -> tuple[str, ...]:
    where, last = [str(key) for key in path[:-1]], KINDS[str(path[-1])]
    match where:
        case ["before" | "after" as place, part]:
            number = 0 if place == "before" else 1
            inside = f"mid_block.resnets.{number}.{RESIDUAL_NAMES[part]}"
        case ["levels", level, "blocks", block, part]:
            inside = f"up_blocks.{level}.resnets.{block}.{RESIDUAL_NAMES[part]}"
        case ["levels", level, "double"]:
            inside = f"up_blocks.{level}.upsamplers.0.conv"
        case _:
            return (tensor_named(VAE_NAMES, path),)
    return (f"decoder.{inside}.{last}",)


def _num_vae_tensors(config: VaeConfig) -> int:
    return 8 * len(config.widths) * (config.blocks_per_level + 1)


def _nothing_else(config: Any, name: str) -> bool:
    return False


MMDIT = Family(
    config=_mmdit,
    num_tensors=lambda config: 24 * config.num_layers,
    params=abstract_params,
    names=_mmdit_names,
    may_have=_nothing_else,
)
CLIP = Family(
    config=_clip,
    num_tensors=lambda config: 16 * config.num_layers,
    params=abstract_params,
    names=_clip_names,
    may_have=lambda config, name: name == CLIP_BUFFER,
)
T5 = Family(
    config=_t5,
    num_tensors=lambda config: 9 * config.num_layers,
    params=abstract_params,
    names=_t5_names,
    may_have=lambda config, name: name == T5_TWIN,
)
VAE = Family(
    config=_vae,
    num_tensors=_num_vae_tensors,
    params=abstract_params,
    names=_vae_names,
    may_have=lambda config, name: name.startswith(VAE_ENCODER),
)
