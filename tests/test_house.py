"""The rules of the house, read from the source: layers, exports, sizes, and a README that runs."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import gimlax

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gimlax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])

# A package imports from lower ranks only, and names of one rank do not see each other.
RANKS = {
    "_floor": 0,
    "errors": 0,
    "experts": 0,
    "units": 0,
    "checking": 0,
    "records": 0,
    "_jax": 0,
    "hosts": 0,
    "lazy": 0,
    "host_memory": 0,
    "mapped": 0,
    "graph": 1,
    "devices": 1,
    "fabric": 1,
    "partition": 2,
    "planning": 3,
    "program": 4,
    "simulator": 5,
    "runtime": 5,
    "serving": 6,
    "verification": 6,
    "traffic": 7,
    "models": 7,
    "api": 8,
    "checkpoints": 8,
    "cli": 8,
    "__init__": 8,
}
SEES_RANK_ZERO_ONLY = {"models"}
FOR_API_ONLY = {"models"}
# The foundation is one rank, but all of it may raise the errors.
FOUNDATION = {
    ("_jax", "errors"),
    ("units", "errors"),
    ("checking", "errors"),
    ("records", "errors"),
    ("records", "checking"),
    ("hosts", "errors"),
    ("hosts", "checking"),
    ("lazy", "errors"),
}


def part_of(path):
    """The name in RANKS that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """(line, absolute dotted name) of every import in a file, nested ones included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write it out"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def label(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_imports_come_from_lower_ranks(path):
    here = part_of(path)
    for line, name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "gimlax":
            continue
        there = parts[1] if len(parts) > 1 else "__init__"
        if there == here or (here, there) in FOUNDATION:
            continue
        assert there in RANKS, f"{label(path)}:{line}: {name} has no rank"
        assert RANKS[there] < RANKS[here] or here == "__init__", f"{label(path)}:{line}: {name}"
        if here in SEES_RANK_ZERO_ONLY:
            assert RANKS[there] == 0, f"{label(path)}:{line}: {name}"
        if there in FOR_API_ONLY:
            assert here in {"api", "checkpoints", "__init__"}, f"{label(path)}:{line}: {name}"


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=label)
def test_only_one_file_touches_private_jax(path):
    if path == PACKAGE / "_jax.py":
        return
    for line, name in imports_of(path):
        assert not re.match(r"jax(lib)?\.(_src|extend|interpreters|lib|xla_)", name), (
            f"{label(path)}:{line}: {name} belongs to gimlax/_jax.py"
        )
    attributes = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in {"_src", "extend"}
        and isinstance(node.value, ast.Name)
        and node.value.id == "jax"
    ]
    assert not attributes, f"{label(path)}: lines {attributes} belong to gimlax/_jax.py"


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=label)
def test_a_module_is_one_idea(path):
    text = path.read_text()
    assert text.count("\n") <= 400, f"{label(path)} is longer than 400 lines"
    assert path.stem.strip("_") not in {"utils", "util", "helpers", "common", "misc"}
    assert ast.get_docstring(ast.parse(text)), f"{label(path)} does not say its idea"
    for number, line in enumerate(text.splitlines(), 1):
        assert not re.search(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b", line), (
            f"{label(path)}:{number}: {line.strip()}"
        )


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_nothing_is_pickled_evaluated_or_asked_of_a_platform_name(path):
    for line, name in imports_of(path):
        assert name.split(".")[0] not in {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, (
            f"{label(path)}:{line}: {name}"
        )
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"{label(path)}:{node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_records_are_frozen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        for decorator in node.decorator_list:
            if "dataclass" in ast.unparse(decorator):
                assert "frozen=True" in ast.unparse(decorator), (
                    f"{label(path)}:{node.lineno}: {node.name} can be changed"
                )


@pytest.mark.parametrize(
    "name",
    ["gimlax"] + [f"gimlax.{m.name}" for m in pkgutil.iter_modules([str(PACKAGE)]) if m.ispkg],
)
def test_every_export_exists_and_says_what_it_is(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} does not say its idea"
    assert len(module.__all__) == len(set(module.__all__)), f"{name}.__all__ repeats a name"
    for export in module.__all__:
        value = getattr(module, export)
        if callable(value):
            assert value.__doc__, f"{name}.{export} has no docstring"


def python_blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore:.*was passed as an ordinary tree")
def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where they may write
    namespace = {}
    blocks = python_blocks(ROOT / "README.md")
    assert "gx.jit(" in blocks[0]
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"README.md, example {number}", "exec"), namespace)


def test_the_version_is_said_once():
    assert f'version = "{gimlax.__version__}"' in (ROOT / "pyproject.toml").read_text()
