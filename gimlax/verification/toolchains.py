"""Which interpreter compiles for a platform: the one that was named, this one, or a usual place.

An interpreter is asked for the versions of what it has installed, nothing is imported there: a few
hundredths of a second, and no library is loaded to find out that it is missing.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gimlax.errors import SpecError

__all__ = ["PLATFORMS", "Toolchain", "environment_folder", "find_toolchain", "how_to_install"]

_ASKING = """\
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try: found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: pass
print(json.dumps(found))
"""
_ASK_LIMIT_S = 60.0
# What compiles for a platform: any one of these, beside JAX and what reads a stage.
_COMPILERS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("jaxlib",),
    "tpu": ("libtpu",),
    "cuda": ("jax-cuda13-plugin", "jax-cuda12-plugin"),
}
PLATFORMS = tuple(_COMPILERS)
_PACKAGES = ("jax", "jaxlib", "flatbuffers")
_EXTRAS = {"tpu": "verify-tpu", "cuda": "verify-cuda"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """An interpreter that can compile for a platform, and the versions of what matters there."""

    platform: str
    python: str
    versions: tuple[tuple[str, str], ...]
    is_own: bool = False

    def __str__(self) -> str:
        versions = dict(self.versions)
        compiler = next(
            (n for n in _COMPILERS.get(self.platform, ()) if n in versions and n != "jaxlib"), None
        )
        with_compiler = f", {compiler} {versions[compiler]}" if compiler else ""
        return f"JAX {versions.get('jax', 'unknown')}{with_compiler}"


def find_toolchain(platform: str, given: str | os.PathLike[str] | None = None) -> Toolchain | None:
    """The interpreter that compiles for a platform, None if there is none.

    Args:
        platform: 'cpu', 'tpu' or 'cuda'.
        given: what the user named; else this interpreter, then `.venv-PLATFORM` in the folder that
            this process is in and beside the package.

    Raises:
        SpecError: what the user named is no interpreter, or lacks the compiler.
    """
    if given is not None:
        versions = _versions(str(given))
        if isinstance(versions, str):
            raise SpecError(
                f"python for {platform!r} is {str(given)!r}, which {versions}; give the path of an"
                f" interpreter, such as {environment_folder(platform)}/bin/python"
            )
        if lacks := _lacks(platform, versions):
            raise SpecError(
                f"python for {platform!r} is {str(given)!r}, which lacks {lacks};"
                f" {how_to_install(platform)}"
            )
        own = Path(given).absolute() == Path(sys.executable).absolute()
        return _toolchain(platform, str(Path(given).absolute()), versions, own)
    beside = Path(__file__).parent.parent.parent
    folder = environment_folder(platform)
    usual = [Path.cwd() / folder / "bin" / "python", beside / folder / "bin" / "python"]
    for python in (sys.executable, *map(str, usual)):
        own = python == sys.executable
        versions = _versions(python) if own or Path(python).is_file() else "is not there"
        if not isinstance(versions, str) and not _lacks(platform, versions):
            return _toolchain(platform, python, versions, own)
    return None


def environment_folder(platform: str) -> str:
    """The usual place of an environment that compiles for a platform."""
    return f".venv-{platform}"


def how_to_install(platform: str) -> str:
    """What a user does to get a compiler for a platform."""
    if platform not in _EXTRAS:
        return "install jax"
    folder = environment_folder(platform)
    return (
        f"make one: python -m venv {folder} && {folder}/bin/pip install"
        f" 'gimlax[{_EXTRAS[platform]}]'"
    )


def _toolchain(platform: str, python: str, versions: Mapping[str, str], own: bool) -> Toolchain:
    return Toolchain(
        platform=platform, python=python, versions=tuple(sorted(versions.items())), is_own=own
    )


def _lacks(platform: str, versions: Mapping[str, str]) -> str:
    """What is missing among the installed, empty if nothing is."""
    compilers = _COMPILERS[platform]
    lacks = [name for name in _PACKAGES if name not in versions]
    if not any(name in versions for name in compilers):
        lacks.append(" or ".join(compilers))
    return ", ".join(lacks)


@functools.lru_cache(maxsize=32)
def _versions(python: str) -> Mapping[str, str] | str:
    """Versions of what an interpreter has of all that matters, or why it cannot be asked."""
    names = dict.fromkeys((*_PACKAGES, *(name for of in _COMPILERS.values() for name in of)))
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    own = python == sys.executable
    try:
        child = subprocess.run(
            [python, "-c", _ASKING, *names],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_ASK_LIMIT_S,
            env=dict(os.environ) if own else environment,
        )
        found = json.loads(child.stdout)
    except OSError as error:
        return f"cannot be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        return f"gave no answer within {_ASK_LIMIT_S:g} s"
    except ValueError:
        return "is no Python interpreter"
    if not isinstance(found, dict) or not all(
        name in names and isinstance(version, str) and version.isprintable()
        for name, version in found.items()
    ):
        return "is no Python interpreter"
    return found
