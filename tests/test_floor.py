"""The oldest JAX is refused below, and said the same everywhere."""

import re
import tomllib
from pathlib import Path

import pytest

from gimlax._floor import JAX_FLOOR, require_jax

ROOT = Path(__file__).parent.parent
FLOOR = ".".join(map(str, JAX_FLOOR))


def test_an_older_jax_is_refused_with_the_command_to_run():
    message = re.escape(f"needs JAX {FLOOR} or newer and found 0.4.38; run: python -m pip install")
    with pytest.raises(ImportError, match=message):
        require_jax("0.4.38")


@pytest.mark.parametrize("version", [FLOOR, "0.12.0.1", "0.11.0.dev20260101+abc", "1.0"])
def test_the_floor_and_newer_are_taken(version):
    require_jax(version)


def test_the_installed_jax_is_taken():
    require_jax()


def test_the_floor_is_the_same_in_every_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = (ROOT / "requirements" / "floor.txt").read_text().splitlines()
    for package in ("jax", "jaxlib"):
        assert f"{package}>={FLOOR}" in project["dependencies"]
        assert f"{package}=={FLOOR}" in pinned


def test_no_dependency_has_an_upper_limit():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for dependency in project["dependencies"]:
        assert re.fullmatch(r"[a-z-]+>=[\d.]+", dependency)
