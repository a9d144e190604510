"""Text to the token ids of an encoder: WordPiece, as the folder of the model describes it.

The `tokenizers` package does the work, from `tokenizer.json` or, where that is missing, from
`vocab.txt` and `tokenizer_config.json`. Padding and truncation that a file asks for are left out:
whoever makes batches pads, and how long a text may be is the caller's to say.
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

NUM_AROUND = 2  # [CLS] and [SEP]
AROUND = ("[UNK]", "[CLS]", "[SEP]")
SPECIAL = (*AROUND, "[PAD]", "[MASK]")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WordPiece:
    """A vocabulary and its rules; `encoder` is a `tokenizers.Tokenizer`."""

    path: Path
    encoder: Any

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return ids_below(self.encoder)

    def encode(self, texts: Sequence[str], *, max_tokens: int) -> list[np.ndarray]:
        """The ids of each text, int32, with [CLS] and [SEP] around them.

        Texts that are longer lose their end, so that no more than `max_tokens` are left.

        Raises:
          SpecError: `max_tokens` leaves no room for a word, or a text is no UTF-8.
        """
        if max_tokens <= NUM_AROUND:
            raise SpecError(
                f"max_tokens is {max_tokens}, of which {NUM_AROUND} stand around the text; give "
                f"{NUM_AROUND + 1} or more"
            )
        for index, text in enumerate(texts):
            check_text(text, f"text {index}")
        with guarded(self.path):
            self.encoder.enable_truncation(max_length=max_tokens)
            found = self.encoder.encode_batch_fast(list(texts), add_special_tokens=True)
        return [np.array(encoding.ids, np.int32) for encoding in found]


def load_wordpiece(folder: str | os.PathLike[str]) -> WordPiece:
    """The tokenizer in a model's folder; raises `SpecError` if there is none that can be read."""
    folder = Path(folder)
    package = require("tokenizers", PURPOSE)
    whole, words = folder / "tokenizer.json", folder / "vocab.txt"
    path = whole if whole.is_file() else words
    if path == whole:
        encoder = read_encoder(whole)
    elif words.is_file():
        with guarded(words):
            encoder = tried(from_vocabulary(package, words))
    else:
        raise SpecError(f"'{folder}' has neither 'tokenizer.json' nor 'vocab.txt'")
    if not isinstance(encoder.model, package.models.WordPiece):
        raise SpecError(
            f"'{path}' has a tokenizer of kind '{type(encoder.model).__name__}'; needed is "
            "'WordPiece'"
        )
    return WordPiece(path=path, encoder=encoder)


def from_vocabulary(package: Any, path: Path) -> Any:
    """BERT's rules over a vocabulary, one word a line; its number is its id."""
    words = read_text(path).decode().split("\n")
    ids = {word.rstrip("\r"): index for index, word in enumerate(words) if word}
    beside = path.parent / "tokenizer_config.json"
    rules = read_json(beside, "tokenizer config") if beside.is_file() else {}
    missing = [word for word in AROUND if word not in ids]
    if missing:
        raise SpecError(f"'{path}' lacks the words {', '.join(missing)}, which BERT needs")
    encoder = package.Tokenizer(package.models.WordPiece(ids, unk_token="[UNK]"))
    encoder.add_special_tokens([word for word in SPECIAL if word in ids])
    encoder.normalizer = package.normalizers.BertNormalizer(
        lowercase=rules.get("do_lower_case", True),
        strip_accents=rules.get("strip_accents"),
        handle_chinese_chars=rules.get("tokenize_chinese_chars", True),
    )
    encoder.pre_tokenizer = package.pre_tokenizers.BertPreTokenizer()
    encoder.post_processor = package.processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    return encoder
