"""TOML from users: what cannot be read is a mistake, and nothing in it can exhaust the machine."""

import re
import tomllib
from typing import Any

__all__ = ["parse_toml"]

# The parser takes time and memory that grow with the square of a key's parts.
_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]+[ \t]*\.[ \t]*){50}""")


def parse_toml(text: str, name: str, mistakes: list[str]) -> dict[str, Any] | None:
    """The document, or None after adding what is wrong with it to `mistakes`.

    Args:
        text: TOML; a byte order mark before it is passed over.
        name: how mistakes call the document.
        mistakes: gets one sentence.
    """
    if long := _LONG_KEY.search(text):
        line = text.count("\n", 0, long.start()) + 1
        mistakes.append(f"{name}: line {line} has more than 50 parts joined by dots; give fewer")
        return None
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except ValueError as error:
        mistakes.append(f"{name}: not TOML: {error}")
    except RecursionError:
        mistakes.append(f"{name}: it is nested too deeply; give tables of plain values")
    return None
