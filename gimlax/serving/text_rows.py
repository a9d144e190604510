"""Lines of a text file, of which one that is no UTF-8 spoils no other.

Bytes that are no UTF-8 stay in their line as lone surrogates (PEP 383), which no sound file gives,
so a line can be looked at first and is refused where it is used.
"""

from pathlib import Path

from gimlax.errors import SpecError

__all__ = ["check_utf8", "read_lines"]


def read_lines(path: Path) -> list[str]:
    """The lines of a file without their ends; raises `SpecError` if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise SpecError(f"input '{path}': {error}") from error
    if lines[-1] == "":
        lines.pop()
    return lines


def check_utf8(line: str) -> None:
    """Raises `SpecError` with the first byte of a line that is no UTF-8."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        before = len(line[: error.start].encode())
        raise SpecError(
            f"its byte {before} is {ord(line[error.start]) - 0xDC00:#x}, which is no UTF-8"
        ) from error
