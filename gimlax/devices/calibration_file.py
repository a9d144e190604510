"""A calibration as JSON that people can read: a sample a line.

JSON rather than TOML because most of it is one long table of numbers. Reading trusts nothing: what
is no number, has another name or more bytes than any calibration is refused with its place.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from gimlax.devices.samples import MeasuredLink, MeshCalibration, Sample, Slowdown
from gimlax.errors import SpecError

__all__ = ["parse_calibration", "read_calibration", "write_calibration"]

SCHEMA_VERSION = 1
_ADVICE = "write it anew with scripts/calibrate.py"
_MOST_BYTES = 2**26
_MOST_SHOWN = 5
_PARTS = {"meshes": MeshCalibration, "links": MeasuredLink, "slowdowns": Slowdown}


def write_calibration(fields: dict[str, Any]) -> str:
    """The fields of a Calibration as JSON."""
    lines = ["{", f' "schema_version": {SCHEMA_VERSION},']
    lines += [
        f" {json.dumps(key)}: {json.dumps(value)},"
        for key, value in fields.items()
        if key not in _PARTS
    ]
    for key in ("links", "slowdowns"):
        rows = [f"\n  {json.dumps(dataclasses.asdict(record))}" for record in fields[key]]
        lines.append(f' "{key}": [{",".join(rows)}],')
    blocks = []
    for mesh in fields["meshes"]:
        record = dataclasses.asdict(mesh)
        samples = ",\n   ".join(json.dumps(sample) for sample in record.pop("samples"))
        blocks.append(f'  {json.dumps(record)[:-1]}, "samples": [\n   {samples}]}}')
    return "\n".join(lines) + '\n "meshes": [\n' + ",\n".join(blocks) + "\n ]\n}\n"


def read_calibration(path: str | Path) -> str:
    """The text of a calibration file.

    Raises:
        SpecError: it cannot be read, or is far larger than any calibration.
    """
    try:
        size = Path(path).stat().st_size
        if size > _MOST_BYTES:
            raise SpecError(
                f"calibration file {str(path)!r} has {size} bytes, where a calibration has at most"
                f" {_MOST_BYTES}; {_ADVICE}"
            )
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"calibration file {str(path)!r} cannot be read ({error}); {_ADVICE}"
        ) from error


def parse_calibration(text: str, name: str) -> dict[str, Any]:
    """Fields of the Calibration that a JSON text describes; mistakes call it by `name`.

    Raises:
        SpecError: it is no calibration of this schema, or holds figures that none has.
    """
    try:
        record = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise SpecError(f"{name}: it is not JSON that could be one ({said}); {_ADVICE}") from None
    if not isinstance(record, dict):
        raise SpecError(f"{name}: it holds no object; {_ADVICE}")
    version = record.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise SpecError(
            f"{name}: its schema_version is {version!r}, this gimlax reads {SCHEMA_VERSION};"
            f" {_ADVICE}"
        )
    mistakes: list[str] = []
    for key, kind in _PARTS.items():
        record[key] = _records(kind, record.get(key), key, mistakes)
    if mistakes:
        more = len(mistakes) - _MOST_SHOWN
        shown = "; ".join(mistakes[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise SpecError(f"{name}: {shown}; {_ADVICE}")
    return record


def _records(kind: Any, rows: Any, where: str, mistakes: list[str]) -> tuple[Any, ...]:
    if not isinstance(rows, list):
        mistakes.append(f"{where} is no list")
        return ()
    found = []
    for index, row in enumerate(rows):
        place = f"{where}[{index}]"
        if not isinstance(row, dict):
            mistakes.append(f"{place} is no object")
            continue
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in row.items()
        }
        if kind is MeshCalibration:
            fields["samples"] = _records(Sample, row.get("samples"), f"{place}.samples", mistakes)
        try:
            found.append(kind(**fields))
        except SpecError as error:
            mistakes.append(f"{place}: {error}")
        except TypeError as error:  # a key that is missing or that no record has
            mistakes.append(f"{place}: {str(error).partition(' ')[2]}")
    return tuple(found)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no figure that can be measured")
