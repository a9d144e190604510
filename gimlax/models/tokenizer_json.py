"""Text to token ids and back, as a folder of Hugging Face describes it in tokenizer.json.

The `tokenizers` package does the work in both directions, so every kind of tokenizer that it knows
can be read. Which tokens begin and end a text stands in other files of the folder.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gimlax.errors import SpecError
from gimlax.models.checkpoint import read_json
from gimlax.models.encoders import PURPOSE, check_text, guarded, ids_below, read_encoder
from gimlax.models.extras import require


class FolderStream:
    """Turns one token at a time into text, whole characters only."""

    def __init__(self, encoder: Any) -> None:
        decoders = require("tokenizers", PURPOSE).decoders
        self._encoder = encoder
        self._stream = decoders.DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Text that `token_id` completes; '' while a character is unfinished."""
        text = self._stream.step(self._encoder, token_id)
        self._held = [*self._held, token_id] if text is None else []
        return text or ""

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else ''."""
        held, self._held = self._held, []
        return self._encoder.decode(held, skip_special_tokens=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FolderTokenizer:
    """A vocabulary and its rules; special tokens (`<|im_end|>`) in a text become their ids."""

    path: Path
    vocab_size: int  # ids are below this
    bos_id: int | None
    eos_ids: tuple[int, ...]  # any of these ends a text
    adds_bos: bool
    encoder: Any  # tokenizers.Tokenizer

    @property
    def bos_token(self) -> str:
        return "" if self.bos_id is None else self.encoder.id_to_token(self.bos_id)

    @property
    def eos_token(self) -> str:
        return self.encoder.id_to_token(self.eos_ids[0]) if self.eos_ids else ""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with BOS in front if the file says so and the text does not."""
        check_text(text)
        with guarded(self.path):
            ids = self.encoder.encode(text, add_special_tokens=False).ids
        if self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return self.encoder.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> FolderStream:
        """A decoder that takes one token at a time; special tokens give no text."""
        return FolderStream(self.encoder)


def load_folder_tokenizer(folder: str | os.PathLike[str]) -> FolderTokenizer:
    """The tokenizer in a model's folder.

    Raises `SpecError` if there is none that can be read, or a token that it names does not exist.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    encoder = read_encoder(path)
    names = token_names(folder)
    bos_id = _id_of(path, encoder, "bos_token", names.get("bos_token"))
    eos_id = _id_of(path, encoder, "eos_token", names.get("eos_token"))
    vocab_size = ids_below(encoder)
    ends = [*_ends_of(folder / "generation_config.json", "generation config", vocab_size)]
    ends += [] if eos_id is None else [eos_id]
    ends += _ends_of(folder / "config.json", "config", vocab_size) if not ends else []
    around = encoder.encode("", add_special_tokens=True).ids
    return FolderTokenizer(
        path=path,
        vocab_size=vocab_size,
        bos_id=bos_id,
        eos_ids=tuple(dict.fromkeys(ends)),
        adds_bos=bos_id is not None and around[:1] == [bos_id],
        encoder=encoder,
    )


def token_names(folder: Path) -> dict[str, str]:
    """`bos_token` and `eos_token`, of those that the folder names."""
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        values = read_json(path, "tokenizer config") if path.is_file() else {}
        for key in ("bos_token", "eos_token"):
            value = values.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                found[key] = value
            elif value is not None:
                raise SpecError(f"'{path}': {key!r} is {repr(value)[:80]}; needed is a string")
    return found


def _id_of(path: Path, encoder: Any, key: str, token: str | None) -> int | None:
    if token is None:
        return None
    found = encoder.token_to_id(token)
    if found is None:
        raise SpecError(f"'{path}' has no token {token[:80]!r}, which its folder names as {key}")
    return found


def _ends_of(path: Path, what: str, vocab_size: int) -> list[int]:
    """The `eos_token_id` of a config, one or several."""
    found = read_json(path, what).get("eos_token_id") if path.is_file() else None
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(end) is int and 0 <= end < vocab_size for end in ends):
        raise SpecError(
            f"'{path}': 'eos_token_id' is {repr(found)[:80]}, the vocabulary has {vocab_size} "
            "tokens"
        )
    return ends
