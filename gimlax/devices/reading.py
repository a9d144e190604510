"""Text files of the caller: how large one is counts before what it says."""

from pathlib import Path

from gimlax.errors import GimlaxError, SpecError
from gimlax.units import show_bytes

__all__ = ["MOST_BYTES", "read_text", "write_text"]

MOST_BYTES = 16 * 2**20

_TOML = "give the path of a TOML file"


def read_text(
    path: str | Path,
    what: str,
    *,
    most_bytes: int = MOST_BYTES,
    advice: str = _TOML,
    error: type[GimlaxError] = SpecError,
) -> str:
    """The text of a file.

    Args:
        path: where it is.
        what: how messages call it, such as 'cluster file'.
        most_bytes: what is larger is not read on.
        advice: what messages say to do.
        error: what is raised.

    Raises:
        error: it cannot be read, or is larger than such a file can be.
    """
    if path == "":  # which stands for the folder that a process is in
        raise error(f"{what}: its path is empty; {advice}")
    text = None
    try:
        with Path(path).open("rb") as file:
            data = file.read(most_bytes + 1)
        if len(data) <= most_bytes:
            text = data.decode("utf-8")
    # Of a path: TypeError where it is none, ValueError where it has a zero byte.
    except (OSError, TypeError, ValueError) as problem:
        raise error(f"{what} {str(path)!r} cannot be read ({problem}); {advice}") from problem
    if text is None:
        raise error(f"{what} {str(path)!r} has more than {show_bytes(most_bytes)}; {advice}")
    return text


def write_text(
    path: str | Path, text: str, what: str, *, error: type[GimlaxError] = SpecError
) -> None:
    """Writes a text file.

    Raises:
        error: it cannot be written.
    """
    try:
        Path(path).write_text(text, "utf-8")
    except (OSError, TypeError, ValueError) as problem:
        raise error(
            f"{what} cannot be written to {str(path)!r} ({problem}); give a file in a folder that "
            "exists and can be written to"
        ) from problem
