"""Rows of numbers that a long job finishes in order, kept so that a killed one goes on.

While the job runs, rows lie in a file beside the output: a line of JSON that says what they belong
to, then float32 numbers, row after row. What a kill left of a row is dropped. At the end the output
is made of them under another name and put in its place, so that it is there whole or not at all.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from gimlax.errors import SpecError

MAX_LINE_BYTES = 1 << 16
NUM_AT_ONCE = 4096  # rows that are copied at a time


class Rows:
    """The rows of one job, so far.

    Args:
      output: where the result will be; the rows lie at the same path with `.rows` behind it.
      belongs: what the rows are rows of, as JSON; rows of something else are not gone on with.
      width: numbers in a row.

    Raises:
      SpecError: there are rows of something else.
    """

    def __init__(self, output: Path, *, belongs: Mapping[str, Any], width: int) -> None:
        self.path = output.with_name(f"{output.name}.rows")
        self.output = output
        self._row_bytes = 4 * width
        self._width = width
        head = json.dumps({**belongs, "width": width}, sort_keys=True).encode() + b"\n"
        try:
            self._file = self._opened(head)
        except OSError as error:
            raise SpecError(f"'{self.path}' cannot be written: {error.strerror}") from error
        self._start = len(head)

    def _opened(self, head: bytes) -> IO[bytes]:
        file = self.path.open("r+b" if self.path.exists() else "x+b")
        found = file.readline(MAX_LINE_BYTES)
        if not found.endswith(b"\n"):  # nothing yet, or a kill while it was begun
            file.seek(0)
            file.truncate()
            file.write(head)
            file.flush()
        elif found != head:
            file.close()
            raise SpecError(
                f"'{self.path}' holds rows of another job ({found[:200].decode(errors='replace')!r}"
                "); delete it to begin anew, or choose another output"
            )
        return file

    def __len__(self) -> int:
        """Whole rows that are there."""
        self._file.seek(0, os.SEEK_END)
        return (self._file.tell() - self._start) // self._row_bytes

    def append(self, rows: np.ndarray) -> None:
        """Keeps the rows that follow, [rows, width]; they are on the disk when it returns."""
        assert rows.shape[1:] == (self._width,)
        self._file.seek(self._start + len(self) * self._row_bytes)
        self._file.write(np.ascontiguousarray(rows, np.float32).tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())

    def read(self) -> np.ndarray:
        """All rows, [rows, width], mapped."""
        shape = (len(self), self._width)
        if not shape[0]:
            return np.zeros(shape, np.float32)
        return np.memmap(self.path, np.float32, "r", offset=self._start, shape=shape)

    def finish(self, write: Callable[[IO[bytes], np.ndarray], None]) -> None:
        """Makes the output by `write(file, rows)`, and forgets the rows."""
        made = self.output.with_name(f"{self.output.name}.new")
        with made.open("wb") as file:
            write(file, self.read())
            file.flush()
            os.fsync(file.fileno())
        made.replace(self.output)
        self.close()
        self.path.unlink()

    def close(self) -> None:
        """Leaves the rows where they are."""
        self._file.close()


def write_npy(file: IO[bytes], rows: np.ndarray) -> None:
    """As one `.npy` array."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": rows.shape}
    )
    for start in range(0, len(rows), NUM_AT_ONCE):
        file.write(np.ascontiguousarray(rows[start : start + NUM_AT_ONCE], "<f4").tobytes())


def write_jsonl(file: IO[bytes], rows: np.ndarray) -> None:
    """As one JSON object a line: `{"index": 0, "embedding": [...]}`, digits enough for float32."""
    for index, row in enumerate(rows):
        numbers = ", ".join(f"{number:.9g}" for number in row.tolist())
        file.write(f'{{"index": {index}, "embedding": [{numbers}]}}\n'.encode())
