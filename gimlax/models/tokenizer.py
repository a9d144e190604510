"""Text to token ids and back, from the vocabulary inside a GGUF file.

Encoding is byte-level BPE by the `tokenizers` package. Decoding needs no package: a token stands
for bytes, so ids become bytes and bytes become text. A stream of tokens is cut anywhere, also
inside a character; `StreamDecoder` holds such bytes back until the character is whole.
"""

import codecs
import functools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from gimlax.errors import SpecError
from gimlax.models.encoders import check_text
from gimlax.models.extras import require
from gimlax.models.gguf import Gguf, read_gguf
from gimlax.models.tokenizer_json import FolderTokenizer, load_folder_tokenizer

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types of GGUF that matter here
LLAMA_BPE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gpt2_pieces(pre_tokenizers: Any) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def smollm_pieces(pre_tokenizers: Any) -> Any:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, gpt2_pieces(pre_tokenizers)])


def llama_bpe_pieces(pre_tokenizers: Any) -> Any:
    pattern = require("tokenizers", "reading a tokenizer").Regex(LLAMA_BPE_PATTERN)
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, rest])


PIECES: dict[str, Callable[[Any], Any]] = {  # `tokenizer.ggml.pre` -> how text is split before BPE
    "gpt-2": gpt2_pieces,
    "smollm": smollm_pieces,
    "llama-bpe": llama_bpe_pieces,
}


@functools.cache
def byte_of_char() -> dict[str, int]:
    """GPT-2's printable character for each byte, inverted.

    Bytes that are printable in Latin-1 stand for themselves; U+0100 and on stand for the others.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: 0x100 + index for index, byte in enumerate(others)}
    return {chr(stand_in.get(byte, byte)): byte for byte in range(256)}


def bytes_of(token: str) -> bytes:
    """The bytes that a token of the vocabulary stands for."""
    table = byte_of_char()
    if all(char in table for char in token):
        return bytes(table[char] for char in token)
    return token.encode()  # added later than the byte alphabet, so written as plain text


class StreamDecoder:
    """Turns one token at a time into text, whole characters only."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Text that `token_id` completes; '' while a character is unfinished."""
        return self._decoder.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else ''."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokenizer:
    """A vocabulary; special tokens (`<|im_end|>`) in a text become their ids."""

    tokens: tuple[str, ...]
    special_ids: frozenset[int]  # not part of the text: left out when decoding
    plain_ids: frozenset[int]  # of tokens that are written as plain text, not in the byte alphabet
    bos_id: int | None
    eos_ids: tuple[int, ...]  # any of these ends a text
    adds_bos: bool
    encoder: Any  # tokenizers.Tokenizer

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def bos_token(self) -> str:
        return "" if self.bos_id is None else self.tokens[self.bos_id]

    @property
    def eos_token(self) -> str:
        return self.tokens[self.eos_ids[0]] if self.eos_ids else ""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with BOS in front if the file says so and the text does not."""
        check_text(text)
        ids = self.encoder.encode(text, add_special_tokens=False).ids
        if self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for, special tokens by their name."""
        if not 0 <= token_id < len(self.tokens):
            raise SpecError(
                f"token id {token_id} is not in the vocabulary of {len(self.tokens)} tokens"
            )
        token = self.tokens[token_id]
        if token_id in self.plain_ids or token_id in self.special_ids:
            return token.encode()
        return bytes_of(token)

    def text_bytes(self, token_id: int) -> bytes:
        """As `token_bytes`, and nothing for special tokens."""
        return b"" if token_id in self.special_ids else self.token_bytes(token_id)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        piece = self.text_bytes if skip_special else self.token_bytes
        return b"".join(map(piece, ids)).decode(errors="replace")

    def stream(self) -> StreamDecoder:
        """A decoder that takes one token at a time; special tokens give no text."""
        return StreamDecoder(self.text_bytes)


def token_id(gguf: Gguf, key: str, vocab_size: int) -> int | None:
    """The token id at metadata `key`, if the file has one."""
    if key not in gguf.metadata:
        return None
    value = gguf.field(key, int)
    if not 0 <= value < vocab_size:
        raise SpecError(
            f"'{gguf.path}': '{key}' is {value}, the vocabulary has {vocab_size} tokens"
        )
    return value


def strings(gguf: Gguf, key: str) -> tuple[str, ...]:
    """An array of strings in the metadata."""
    values = gguf.field(key, tuple)
    if not all(isinstance(value, str) for value in values):
        raise SpecError(f"'{gguf.path}': '{key}' is not an array of strings")
    return values


def merges(gguf: Gguf, ids: dict[str, int]) -> list[tuple[str, str]]:
    """BPE merges, each of two known tokens that make a third."""
    pairs = []
    for index, merge in enumerate(strings(gguf, "tokenizer.ggml.merges")):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= ids.keys():
            raise SpecError(
                f"'{gguf.path}': merge {index} is {merge!r}, which is not two tokens of the "
                "vocabulary that make a third"
            )
        pairs.append((left, right))
    return pairs


@overload
def load_tokenizer(source: Gguf) -> Tokenizer: ...
@overload
def load_tokenizer(source: str | os.PathLike[str] | Gguf) -> Tokenizer | FolderTokenizer: ...
def load_tokenizer(source: str | os.PathLike[str] | Gguf) -> Tokenizer | FolderTokenizer:
    """The tokenizer in a GGUF file, or in a folder of Hugging Face.

    Raises `SpecError` if it is of a kind that is not supported, or contradicts itself.
    """
    if not isinstance(source, Gguf) and Path(source).is_dir():
        return load_folder_tokenizer(source)
    gguf = source if isinstance(source, Gguf) else read_gguf(source)
    kind = gguf.field("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise SpecError(
            f"'{gguf.path}' has a tokenizer of kind '{kind}'; only 'gpt2' (byte-level BPE) can be "
            "loaded"
        )
    pre = gguf.field("tokenizer.ggml.pre", str, "gpt-2")
    if pre not in PIECES:
        raise SpecError(
            f"'{gguf.path}' splits text by the rules '{pre}'; known are {', '.join(PIECES)}"
        )
    tokens = strings(gguf, "tokenizer.ggml.tokens")
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens) or not tokens:
        raise SpecError(
            f"'{gguf.path}': its vocabulary has {len(tokens)} tokens, {len(ids)} of them "
            "different; each must occur once"
        )
    embed = gguf.tensors.get("token_embd.weight")
    if embed is not None and embed.shape[0] < len(tokens):
        raise SpecError(
            f"'{gguf.path}': {len(tokens)} tokens, and embeddings of {embed.shape[0]} of them"
        )
    types = gguf.field("tokenizer.ggml.token_type", np.ndarray, np.full(len(tokens), NORMAL))
    if len(types) != len(tokens):
        raise SpecError(f"'{gguf.path}': {len(types)} token types for {len(tokens)} tokens")
    special_ids = frozenset(np.flatnonzero(types == CONTROL).tolist())
    plain_ids = frozenset(np.flatnonzero(types == USER_DEFINED).tolist())
    package = require("tokenizers", "reading a tokenizer")
    encoder = package.Tokenizer(
        package.models.BPE(ids, merges(gguf, ids), ignore_merges=pre == "llama-bpe")
    )
    encoder.pre_tokenizer = PIECES[pre](package.pre_tokenizers)
    encoder.add_special_tokens(added(package, tokens, special_ids, special=True))
    encoder.add_tokens(added(package, tokens, plain_ids, special=False))
    ends = (
        token_id(gguf, f"tokenizer.ggml.{name}_token_id", len(tokens))
        for name in ("eos", "eot", "eom")
    )
    return Tokenizer(
        tokens=tokens,
        special_ids=special_ids,
        plain_ids=plain_ids,
        bos_id=token_id(gguf, "tokenizer.ggml.bos_token_id", len(tokens)),
        eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        adds_bos=gguf.field("tokenizer.ggml.add_bos_token", bool, pre == "llama-bpe"),
        encoder=encoder,
    )


def added(package: Any, tokens: tuple[str, ...], ids: Iterable[int], *, special: bool) -> list[Any]:
    """Tokens that are found in a text before it is split, in the order of their ids."""
    return [
        package.AddedToken(tokens[index], special=special, normalized=False)
        for index in sorted(ids)
        if tokens[index]
    ]


def tokenizer_texts(gguf: Gguf, template: str | None) -> dict[str, str]:
    """The tokenizer of a GGUF file as the files that a folder of Hugging Face has, by name.

    Raises `SpecError` as `load_tokenizer` does.
    """
    found = load_tokenizer(gguf)
    package = require("tokenizers", "writing a tokenizer")
    encoder = package.Tokenizer.from_str(found.encoder.to_str())
    encoder.decoder = package.decoders.ByteLevel()
    names: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if found.bos_id is not None:
        names["bos_token"] = found.bos_token
    if found.eos_ids:
        names["eos_token"] = found.eos_token
    if found.adds_bos and found.bos_id is not None:
        encoder.post_processor = package.processors.TemplateProcessing(
            single=[found.bos_token, "$A"], special_tokens=[(found.bos_token, found.bos_id)]
        )
    if template is not None:
        names["chat_template"] = template
    return {
        "tokenizer.json": encoder.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(names, indent=2),
        "generation_config.json": json.dumps({"eos_token_id": list(found.eos_ids)}),
    }
