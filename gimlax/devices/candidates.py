"""What could be loaded here: what the environment names, and what is installed.

Only names and paths are looked at; nothing is imported or loaded. A wheel that ships a library
without telling JAX is found through the catalogue's `plugins.toml`.
"""

import importlib.util
import json
import os
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gimlax.devices.catalogue import read_data

__all__ = ["Candidate", "find_candidates", "find_missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Something to be tried.

    Attributes:
        name: the name to register it with; for a module, which registers names of its own, the
            module.
        library: path of a PJRT library.
        module: plugin module with an `initialize()`. Neither library nor module: JAX knows it.
        options: for the client, as pairs.
        priority: by which JAX chooses the default backend.
        source: where it was found.
        fault: why it cannot even be tried.
    """

    name: str
    library: str = ""
    module: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    priority: int = -1
    source: str
    fault: str = ""


def find_candidates(environ: Mapping[str, str] = os.environ) -> tuple[Candidate, ...]:
    """Every candidate but JAX's own CPU backend, the first of each name.

    Args:
        environ: where PJRT_NAMES_AND_LIBRARY_PATHS and TPU_LIBRARY_PATH are looked up.
    """
    found: dict[str, Candidate] = {}
    for candidate in (
        *_named_by_environment(environ.get("PJRT_NAMES_AND_LIBRARY_PATHS", "")),
        *_tpu(environ),
        *_modules(),
        *_known_libraries(),
    ):
        found.setdefault(candidate.name, candidate)
    return tuple(found.values())


def find_missing(environ: Mapping[str, str] = os.environ) -> tuple[tuple[str, str], ...]:
    """Well-known backends of which nothing is installed: (name, what to do)."""
    here = {*(c.module for c in _modules()), *(c.name for c in _tpu(environ))}
    return tuple(
        (known["name"], f"not installed; {known['install']}")
        for known in read_data("plugins.toml")["module"]
        if not here & {known["name"], *known["packages"]}
    )


def _named_by_environment(value: str) -> Iterator[Candidate]:
    """`name:path,name:path`, as JAX reads it; a path to JSON holds library_path, create_options."""
    source = "PJRT_NAMES_AND_LIBRARY_PATHS"
    for entry in filter(None, value.split(",")):
        name, separator, path = entry.partition(os.path.pathsep)
        options: tuple[tuple[str, Any], ...] = ()
        fault = "" if separator else f"{source} has {entry!r}; write name{os.path.pathsep}path"
        if not fault and path.endswith(".json"):
            try:
                config = json.loads(Path(path).read_text("utf-8"))
                path = config["library_path"]
                options = tuple(config.get("create_options", {}).items())
            except (OSError, ValueError, KeyError, TypeError) as error:
                fault = f"{source} names {path}, which is no plugin configuration ({error!r})"
        if not fault and os.sep in path and not Path(path).is_file():
            fault = f"{source} names {path}, which is no file"
        yield Candidate(
            name=name, library=path, options=options, priority=400, source=source, fault=fault
        )


def _tpu(environ: Mapping[str, str]) -> Iterator[Candidate]:
    """JAX starts this backend itself, given the library."""
    if "TPU_LIBRARY_PATH" in environ or importlib.util.find_spec("libtpu"):
        yield Candidate(name="tpu", source="package libtpu")


def _modules() -> Iterator[Candidate]:
    """Plugin modules by JAX's two conventions: a namespace package and an entry point."""
    modules = {point.value for point in metadata.entry_points(group="jax_plugins")}
    namespace = importlib.util.find_spec("jax_plugins")
    places = (namespace and namespace.submodule_search_locations) or ()
    modules |= {f"jax_plugins.{module.name}" for module in pkgutil.iter_modules(list(places))}
    for module in sorted(modules):
        yield Candidate(name=module, module=module, source=f"plugin module {module}")


def _known_libraries() -> Iterator[Candidate]:
    """Libraries of the catalogue whose package is installed."""
    for known in read_data("plugins.toml")["library"]:
        package = importlib.util.find_spec(known["package"])
        for folder in (package and package.submodule_search_locations) or ():
            library = Path(folder, known["path"])
            if library.is_file():
                yield Candidate(
                    name=known["name"],
                    library=str(library),
                    options=tuple(known.get("options", {}).items()),
                    source=f"package {known['package']}",
                )
