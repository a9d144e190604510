"""Reading a text file that somebody else wrote: how large it is counts before what it says."""

from pathlib import Path

from gimlax.errors import SpecError
from gimlax.units import show_bytes

__all__ = ["MOST_BYTES", "read_text"]

MOST_BYTES = 16 * 2**20


def read_text(path: str | Path, what: str) -> str:
    """The text of a file.

    Args:
        path: where it is.
        what: how messages call it, such as 'cluster file'.

    Raises:
        SpecError: it cannot be read, or is larger than such a file can be.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise SpecError(
                f"{what} {str(path)!r} has more than {show_bytes(MOST_BYTES)}; give the path of a "
                "TOML file"
            )
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{what} {str(path)!r} cannot be read ({error}); give the path of a TOML file"
        ) from error
