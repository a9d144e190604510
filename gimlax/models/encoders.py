"""The `tokenizers` package over files that nobody vouches for: every fault of theirs is one error.

What it raises is a bare `Exception`, or a panic, which is none; and some of what is wrong with a
file shows only when a text is encoded.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gimlax.errors import SpecError
from gimlax.models.extras import require

__all__ = [
    "MAX_BYTES",
    "PURPOSE",
    "check_text",
    "guarded",
    "ids_below",
    "read_encoder",
    "read_text",
    "tried",
]

MAX_BYTES = 1 << 28  # of a tokenizer.json; the largest known has 33 MB
PURPOSE = "reading a tokenizer"


@contextlib.contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Makes whatever the package raises a `SpecError` about the file that it read."""
    try:
        yield
    except SpecError:
        raise
    except BaseException as error:  # a panic of the package is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise SpecError(f"'{path}' is no tokenizer that can be read: {str(error)[:200]}") from error


def read_encoder(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json, which pads and cuts nothing.

    Raises:
        SpecError: it cannot be read, has too many bytes, or does not encode.
    """
    package, text = require("tokenizers", PURPOSE), read_text(path)
    with guarded(path):
        return tried(package.Tokenizer.from_buffer(text))


def tried(encoder: Any) -> Any:
    """The encoder, if it can encode at all; called where it is guarded."""
    encoder.no_padding()
    encoder.no_truncation()
    encoder.encode("", add_special_tokens=True)
    return encoder


def read_text(path: Path) -> bytes:
    """What is in a file of a tokenizer; raises `SpecError`."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"tokenizer '{path}' cannot be read: {error.strerror or error}") from error
    if len(text) > MAX_BYTES:
        raise SpecError(f"tokenizer '{path}' has more than {MAX_BYTES} bytes")
    return text


def ids_below(encoder: Any) -> int:
    """What all ids are below, those that stand around a text too; a vocabulary may have gaps."""
    around = encoder.encode("", add_special_tokens=True).ids
    return 1 + max([*encoder.get_vocab(with_added_tokens=True).values(), *around], default=-1)


def check_text(text: str, called: str = "text") -> None:
    """Raises `SpecError` for a text with a lone surrogate, which cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SpecError(
            f"{called} has the lone surrogate {text[error.start]!r} at character {error.start}, "
            "which no UTF-8 text has; decode it with the right encoding"
        ) from error
