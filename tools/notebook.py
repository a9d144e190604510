"""Makes a notebook of a script in the py:percent format: notebooks/NAME.py -> NAME.ipynb.

    python tools/notebook.py notebooks/quickstart.py

A cell begins at `# %%`, one of text at `# %% [markdown]`, whose lines are comments. A comment that
is a magic, such as `# %pip install`, is one in the notebook. The result has no outputs and depends
on the source alone, so it can be compared.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

CELL = re.compile(r"^# %%(?: \[(\w+)\])?$")
MAGIC = re.compile(r"^# (?=%\w)")


def cells_of(source: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell, 'code' or 'markdown'."""
    found: list[tuple[str, list[str]]] = []
    for line in source.splitlines():
        if match := CELL.match(line):
            found.append((match[1] or "code", []))
        elif found:
            found[-1][1].append(line)
        elif line:
            raise ValueError(f"{line!r} comes before the first cell; begin one with '# %%'")
    uncomment = {"code": lambda line: MAGIC.sub("", line), "markdown": _text}
    return [(kind, "\n".join(map(uncomment[kind], lines)).strip("\n")) for kind, lines in found]


def _text(line: str) -> str:
    if line and not line.startswith("#"):
        raise ValueError(f"{line!r} is in a cell of text; begin it with '# '")
    return line.removeprefix("#").removeprefix(" ")


def notebook(source: str) -> str:
    """The notebook (nbformat 4.5) as text."""
    cells: list[dict[str, Any]] = []
    for number, (kind, text) in enumerate(cells_of(source)):
        own = {"execution_count": None, "outputs": []} if kind == "code" else {}
        lines = text.splitlines(keepends=True)
        cells.append(
            {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": lines, **own}
        )
    found = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.with_suffix(".ipynb").write_text(notebook(path.read_text(encoding="utf-8")))
