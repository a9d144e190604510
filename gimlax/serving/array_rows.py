"""Rows of arrays for any function of batches: out of .npy, .npz or JSON lines, and back.

A file holds one array, or several by name; a row is what they have at one index of their first dim.
What a function makes of a row is a record in JSON, whose numbers come back exactly, so records can
be made arrays again at the end.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax.errors import SpecError
from gimlax.serving.text_rows import check_utf8, read_lines

OUTPUT = "output"  # under which a record has what the function made
CHECKED_AT_ONCE = 1 << 20  # integers
SMALL_BYTES = 1 << 26  # that any .npz may unpack to
MAX_RATIO = 100  # to which others are packed; floats of models are hardly at all, zeros 1,000-fold


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayRows:
    """An array, or several by name, each [row, ...]; rows with a fault are zeros."""

    tree: np.ndarray | dict[str, np.ndarray]
    num_rows: int
    faults: Mapping[int, str] = field(default_factory=dict)

    def shapes(self, size: int) -> Any:
        """Of `size` rows."""
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), _of_jax(a.dtype)), self.tree
        )

    def group(self, start: int, end: int, size: int) -> Any:
        """Rows from `start` to `end`, and zeros up to `size` rows."""

        def cut(array: np.ndarray, like: jax.ShapeDtypeStruct) -> np.ndarray:
            found = np.zeros(like.shape, like.dtype)
            found[: end - start] = array[start:end]
            bad = [row - start for row in self.faults if start <= row < end]
            found[np.array(bad, int)] = 0
            return found

        return jax.tree.map(cut, self.tree, self.shapes(size))


def read_array_rows(path: Path) -> ArrayRows:
    """The rows of a file, by its ending.

    Raises:
      SpecError: it cannot be read, has another ending, its arrays have different numbers of rows,
        or one is of what is no real number. A bad row among JSON lines, and one whose integers are
        wider than those of JAX, is a fault of that row only.
    """
    if path.suffix == ".jsonl":
        return _of_lines(path)
    if path.suffix not in (".npy", ".npz"):
        raise SpecError(f"input '{path}': its ending is none of .npy, .npz, .jsonl")
    try:
        if path.suffix == ".npy":
            tree: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                _check_packed(path, file.zip)
                tree = {name: file[name] for name in file.files}
    except SpecError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise SpecError(f"input '{path}': {error}") from error
    except Exception as error:  # what zip files raise has no common class
        raise SpecError(f"input '{path}' is no sound {path.suffix}: {error}") from error
    lengths = {name: a.shape[:1] for name, a in _named(tree).items()}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        shown = ", ".join(f"{name}: {list(length)}" for name, length in lengths.items())
        raise SpecError(f"input '{path}': its arrays have no common number of rows ({shown})")
    odd = {name: a.dtype for name, a in _named(tree).items() if not _is_real(a.dtype)}
    if odd:
        shown = ", ".join(f"{name}: {dtype}" for name, dtype in odd.items())
        raise SpecError(
            f"input '{path}': its arrays are not all of real numbers ({shown}); save them as "
            "booleans, integers or floats of up to 64 bits"
        )
    faults: dict[int, str] = {}
    for array in _named(tree).values():
        faults = _too_wide(array) | faults
    return ArrayRows(tree=tree, num_rows=next(iter(lengths.values()))[0], faults=faults)


def _check_packed(path: Path, file: zipfile.ZipFile) -> None:
    """Refuses what is out of all proportion to its file; no member gives more than it says."""
    num_bytes = sum(info.file_size for info in file.infolist())
    most = max(SMALL_BYTES, MAX_RATIO * path.stat().st_size)
    if num_bytes > most:
        raise SpecError(
            f"input '{path}' unpacks to {num_bytes} bytes, more than {MAX_RATIO} times its own; "
            "save it without compression, or as a .npy"
        )


def _of_jax(dtype: np.dtype) -> np.dtype:
    """What JAX makes of it, in the byte order of this machine."""
    return jax.dtypes.canonicalize_dtype(dtype.newbyteorder("="))


def _is_real(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8


def _too_wide(array: np.ndarray) -> dict[int, str]:
    """The fault of each row with an integer that JAX's integers of its kind do not hold."""
    narrow = _of_jax(array.dtype)
    if array.dtype.kind not in "iu" or narrow.itemsize == array.dtype.itemsize:
        return {}
    faults = {}
    at_once = max(1, CHECKED_AT_ONCE // max(1, array[:1].size))
    for start in range(0, len(array), at_once):
        rows = array[start : start + at_once].reshape(min(at_once, len(array) - start), -1)
        within = np.iinfo(narrow)
        wide = (rows < within.min) | (rows > within.max)
        for row in np.flatnonzero(wide.any(axis=1)):
            value = rows[row, wide[row].argmax()]
            faults[start + int(row)] = f"it has {value}, no {narrow.itemsize * 8}-bit integer"
    return faults


def _of_lines(path: Path) -> ArrayRows:
    """Each line an array, or an object of arrays; what most rows look like first is right."""
    lines = [line for line in read_lines(path) if line.strip()]
    found: dict[int, dict[str, np.ndarray]] = {}
    faults: dict[int, str] = {}
    for index, line in enumerate(lines):
        try:
            check_utf8(line)
            found[index] = _row(line)
            right = next(iter(found.values()))
            if _shapes(found[index]) != _shapes(right):
                fault = f"its shape is {_shapes(found.pop(index))}, not {_shapes(right)}"
                raise SpecError(fault.replace("''", "row"))
        except SpecError as error:
            faults[index] = str(error)
    if not found:
        raise SpecError(f"input '{path}': none of its {len(lines)} rows is an array of numbers")
    whole = {}
    for name, like in next(iter(found.values())).items():
        dtype = np.result_type(*{row[name].dtype for row in found.values()})
        whole[name] = np.zeros((len(lines), *like.shape), dtype)
        for index, row in found.items():
            whole[name][index] = row[name]
    tree = whole[""] if whole.keys() == {""} else whole
    return ArrayRows(tree=tree, num_rows=len(lines), faults=faults)


def _row(line: str) -> dict[str, np.ndarray]:
    try:
        value = json.loads(line)
        named = value if isinstance(value, dict) else {"": value}
        arrays = {name: np.array(of) for name, of in named.items()}
    except (ValueError, RecursionError) as error:
        raise SpecError(f"it is no array of numbers ({str(error)[:200]})") from error
    if not arrays or any(array.dtype.kind not in "bif" for array in arrays.values()):
        raise SpecError("it is no array of numbers")
    for name, array in arrays.items():
        if fault := _too_wide(array[None]):
            raise SpecError(fault[0])
        arrays[name] = array.astype(_of_jax(array.dtype))
    return arrays


def _shapes(row: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in row.items()}


def _named(tree: Any) -> dict[str, Any]:
    return tree if isinstance(tree, dict) else {OUTPUT: tree}


def records(outputs: Any, num_rows: int, *, nulls: bool = False) -> Iterator[dict[str, Any]]:
    """A record for each of the first rows of what the function made.

    Args:
      outputs: an array, or arrays by name.
      num_rows: how many of its rows are wanted.
      nulls: put None in the place of NaN and infinity, which JSON has not; arrays cannot be made
        of such records again.
    """
    arrays = jax.tree.map(np.asarray, outputs)
    wide = jax.tree.map(lambda a: a.astype(_plain(a.dtype)), arrays)
    if nulls:
        wide = jax.tree.map(_with_nulls, wide)
    for row in range(num_rows):
        yield {OUTPUT: jax.tree.map(lambda a, at=row: a[at : at + 1].tolist()[0], wide)}


def _with_nulls(array: np.ndarray) -> np.ndarray:
    held = array.astype(object)
    held[~np.isfinite(array)] = None
    return held


def check_outputs(shapes: Any, num_rows: int) -> None:
    """Raises `SpecError` unless the function makes an array, or arrays by name, of each row."""
    named = _named(shapes)
    sound = all(
        hasattr(a, "shape") and a.shape[:1] == (num_rows,) and _plain(a.dtype).kind in "biuf"
        for a in named.values()
    )
    if not named or not sound:
        shown = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", shapes)
        raise SpecError(
            f"of {num_rows} rows the function makes {shown}; needed is a real array of {num_rows} "
            "rows, or a dict of such"
        )


def _plain(dtype: Any) -> np.dtype:
    """What numpy's files and JSON can hold: floats that numpy does not have become float32."""
    dtype = np.dtype(dtype)
    odd = dtype.kind != "f" and jnp.issubdtype(dtype, np.floating)
    return np.dtype(np.float32) if odd else dtype


def write_arrays(
    file: IO[bytes], rows: Iterator[Mapping[str, Any]], shapes: Any, num_rows: int
) -> None:
    """Makes a .npy of the records of one array, or a .npz of those of several.

    Args:
      rows: records, as `records` makes them.
      shapes: what the function makes of a batch.
      num_rows: how many records there are.
    """
    whole = {
        name: np.zeros((num_rows, *of.shape[1:]), _plain(of.dtype))
        for name, of in _named(shapes).items()
    }
    for index, row in enumerate(rows):
        for name, value in _named(row[OUTPUT]).items():
            whole[name][index] = value
    if isinstance(shapes, dict):
        with zipfile.ZipFile(file, "w") as held:  # `np.savez` takes no array called 'file'
            for name, array in whole.items():
                with held.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    else:
        np.lib.format.write_array(file, whole[OUTPUT], allow_pickle=False)
