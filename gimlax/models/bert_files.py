"""How BERT is written in folders of Hugging Face: config keys and tensor names."""

from gimlax.models.bert import BertConfig
from gimlax.models.decoder import abstract_params
from gimlax.models.families import Family, Reader, tensor_named
from gimlax.models.leaves import KeyPath

__all__ = ["BERT"]

MODEL_NAMES = {
    ("embed",): "embeddings.word_embeddings.weight",
    ("positions",): "embeddings.position_embeddings.weight",
    ("types",): "embeddings.token_type_embeddings.weight",
    ("embed_norm",): "embeddings.LayerNorm",
    ("pooler",): "pooler.dense",
}
LAYER_NAMES = {
    ("query",): "attention.self.query",
    ("key",): "attention.self.key",
    ("value",): "attention.self.value",
    ("output",): "attention.output.dense",
    ("attention_norm",): "attention.output.LayerNorm",
    ("up",): "intermediate.dense",
    ("down",): "output.dense",
    ("mlp_norm",): "output.LayerNorm",
}
BUFFER = "embeddings.position_ids"  # that older files have


def _bert(reader: Reader) -> BertConfig:
    reader.only(
        hidden_act="gelu",
        position_embedding_type="absolute",
        is_decoder=False,
        architectures=["BertModel"],
    )
    return BertConfig(
        vocab_size=reader.get("vocab_size", int),
        width=reader.get("hidden_size", int),
        num_layers=reader.get("num_hidden_layers", int),
        num_heads=reader.get("num_attention_heads", int),
        mlp_width=reader.get("intermediate_size", int),
        max_context=reader.get("max_position_embeddings", int, 512),
        num_types=reader.get("type_vocab_size", int, 2),
        norm_eps=reader.get("layer_norm_eps", float, 1e-12),
    )


def _names(config: BertConfig, path: KeyPath) -> tuple[str, ...]:
    if path[0] != "layers":
        return (tensor_named(MODEL_NAMES, path),)
    return (f"encoder.layer.{path[1]}.{tensor_named(LAYER_NAMES, path[2:])}",)


def _num_tensors(config: BertConfig) -> int:
    return 16 * config.num_layers


def _may_have(config: BertConfig, name: str) -> bool:
    return name == BUFFER


BERT = Family(
    config=_bert,
    num_tensors=_num_tensors,
    params=abstract_params,
    names=_names,
    may_have=_may_have,
)
