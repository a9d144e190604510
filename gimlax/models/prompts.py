"""Prompts to the token ids of text encoders, as folders of Stable Diffusion describe it.

The `tokenizers` package does the work, from `tokenizer.json` or, of CLIP, from `vocab.json` and
`merges.txt`. Whatever a prompt's length is, its ids are padded or cut to one length, since encoders
were trained to see the padding.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gimlax.errors import SpecError
from gimlax.models.checkpoint import read_json
from gimlax.models.encoders import (
    PURPOSE,
    check_text,
    guarded,
    ids_below,
    read_encoder,
    read_text,
    tried,
)
from gimlax.models.extras import require

__all__ = ["PromptTokenizer", "load_prompt_tokenizer"]

CLIP_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_START, CLIP_END, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptTokenizer:
    """A vocabulary with its rules; `encoder` is a `tokenizers.Tokenizer`, `pad_id` fills up."""

    path: Path
    encoder: Any
    pad_id: int

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return ids_below(self.encoder)

    def encode(self, texts: Sequence[str], *, length: int) -> np.ndarray:
        """The ids of each text, int32 [text, length]; what is too long loses its end.

        Raises:
          SpecError: a text is no UTF-8, or `length` leaves no room for a word.
        """
        around = self.encoder.num_special_tokens_to_add(is_pair=False)
        if length <= around:
            raise SpecError(
                f"length is {length}, of which {around} stand around the text; give "
                f"{around + 1} or more"
            )
        for index, text in enumerate(texts):
            check_text(text, f"prompt {index}")
        found = np.full((len(texts), length), self.pad_id, np.int32)
        with guarded(self.path):
            self.encoder.enable_truncation(max_length=length)
            encodings = self.encoder.encode_batch(list(texts))
        for row, encoding in zip(found, encodings, strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return found


def load_prompt_tokenizer(folder: str | os.PathLike[str]) -> PromptTokenizer:
    """The tokenizer in `folder`; raises `SpecError` if there is none that can be read."""
    folder = Path(folder)
    whole, words, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    path = whole if whole.is_file() else words
    if path == whole:
        encoder = read_encoder(whole)
    elif words.is_file() and merges.is_file():
        with guarded(words):
            encoder = tried(_clip(folder))
    else:
        raise SpecError(
            f"'{folder}' has neither 'tokenizer.json' nor 'vocab.json' and 'merges.txt'"
        )
    pad = _pad_token(folder, encoder)
    with guarded(path):
        encoder.add_special_tokens([pad])  # in a text, too, as the reference has it
    return PromptTokenizer(path=path, encoder=encoder, pad_id=encoder.token_to_id(pad))


def _clip(folder: Path) -> Any:
    """CLIP's rules over a vocabulary and its merges."""
    package, path = require("tokenizers", PURPOSE), folder / "merges.txt"
    lines = read_text(path).decode().split("\n")
    merges = [tuple(line.split()) for line in lines if line.strip() and line[:9] != "#version:"]
    if odd := next((merge for merge in merges if len(merge) != 2), None):
        raise SpecError(
            f"'{path}' has the merge {' '.join(odd)[:80]!r}, which is not of two tokens"
        )
    ids = read_json(folder / "vocab.json", "vocabulary")
    if missing := [token for token in (CLIP_START, CLIP_END) if token not in ids]:
        raise SpecError(f"'{folder / 'vocab.json'}' lacks {', '.join(missing)}, which CLIP needs")
    model = package.models.BPE(
        ids, merges, end_of_word_suffix=END_OF_WORD, unk_token=CLIP_END, fuse_unk=False
    )
    encoder = package.Tokenizer(model)
    normal, pieces = package.normalizers, package.pre_tokenizers
    spaces = normal.Replace(package.Regex(r"\s+"), " ")
    encoder.normalizer = normal.Sequence([normal.NFC(), spaces, normal.Lowercase()])
    words = pieces.Split(package.Regex(CLIP_PIECES), behavior="removed", invert=True)
    encoder.pre_tokenizer = pieces.Sequence([words, pieces.ByteLevel(add_prefix_space=False)])
    encoder.add_special_tokens([CLIP_START, CLIP_END])
    encoder.post_processor = package.processors.RobertaProcessing(
        (CLIP_END, ids[CLIP_END]),
        (CLIP_START, ids[CLIP_START]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return encoder


def _pad_token(folder: Path, encoder: Any) -> str:
    """The token that files name for padding."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        token = read_json(path, "tokenizer config").get("pad_token") if path.is_file() else None
        if isinstance(token, dict):  # with how it is found in a text
            token = token.get("content")
        if token is None:
            continue
        if not isinstance(token, str) or encoder.token_to_id(token) is None:
            raise SpecError(f"'{path}': 'pad_token' is {str(token)[:80]!r}, no token of '{folder}'")
        return token
    raise SpecError(
        f"'{folder}' names no 'pad_token' in 'tokenizer_config.json'; prompts are padded with it"
    )
