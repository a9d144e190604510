"""A calibration as JSON that people can read: a sample a line.

JSON rather than TOML because most of it is one long table of numbers.
"""

import dataclasses
import json
from typing import Any

__all__ = ["SCHEMA_VERSION", "write_calibration"]

SCHEMA_VERSION = 1
_PARTS = ("links", "slowdowns", "memories", "meshes")


def write_calibration(fields: dict[str, Any]) -> str:
    """The fields of a Calibration as JSON."""
    lines = ["{", f' "schema_version": {SCHEMA_VERSION},']
    lines += [
        f" {json.dumps(key)}: {json.dumps(value)},"
        for key, value in fields.items()
        if key not in _PARTS
    ]
    for key in ("links", "slowdowns", *(("memories",) if fields["memories"] else ())):
        rows = [f"\n  {json.dumps(dataclasses.asdict(record))}" for record in fields[key]]
        lines.append(f' "{key}": [{",".join(rows)}],')
    blocks = []
    for mesh in fields["meshes"]:
        record = dataclasses.asdict(mesh)
        samples = ",\n   ".join(json.dumps(sample) for sample in record.pop("samples"))
        blocks.append(f'  {json.dumps(record)[:-1]}, "samples": [\n   {samples}]}}')
    return "\n".join(lines) + '\n "meshes": [\n' + ",\n".join(blocks) + "\n ]\n}\n"
