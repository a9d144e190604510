"""The catalogue: one card a kind of device, and the data files beside them."""

import datetime
import functools
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from gimlax.devices.cards import read_card
from gimlax.devices.kinds import KINDS_FOLDER, DeviceKind, collisions, find_kind
from gimlax.devices.reading import read_text
from gimlax.errors import SpecError

__all__ = ["catalogue", "check_cards", "load_kind", "read_data"]


@functools.cache
def catalogue() -> tuple[DeviceKind, ...]:
    """Every kind that the package knows, sorted by name.

    Raises:
        SpecError: cards are wrong; all mistakes of all of them.
    """
    mistakes: list[str] = []
    kinds = []
    for file in _folder().joinpath("kinds").iterdir():
        if file.name.endswith(".toml"):
            kinds.append(read_card(file.read_text("utf-8"), file.name, mistakes))
    found = tuple(sorted((kind for kind in kinds if kind), key=lambda kind: kind.name))
    mistakes += collisions(found)
    if mistakes:
        raise SpecError(f"{KINDS_FOLDER}: " + "\n".join(mistakes))
    return found


def check_cards(paths: Iterable[str | Path], today: datetime.date) -> tuple[DeviceKind, ...]:
    """The kinds of cards that are not, or not yet, in the catalogue.

    Args:
        paths: card files.
        today: no figure may be of a later day.

    Raises:
        SpecError: everything that is wrong in any of them, names that they share with one another
            or with other kinds of the catalogue included.
    """
    mistakes: list[str] = []
    kinds: list[DeviceKind] = []
    paths = tuple(paths)
    if not paths:
        mistakes.append("no card is named, so none was checked; give paths of TOML files")
    for path in paths:
        try:
            text = read_text(path, "card")
        except SpecError as error:
            mistakes.append(str(error))
            continue
        if kind := read_card(text, str(path), mistakes, today=today):
            kinds.append(kind)
    given = {kind.name for kind in kinds}
    mistakes += collisions([*kinds, *(kind for kind in catalogue() if kind.name not in given)])
    if mistakes:
        raise SpecError("\n".join(mistakes))
    return tuple(kinds)


def load_kind(device_kind: str) -> DeviceKind:
    """The kind with this name in the catalogue, or this `device_kind` as PJRT reports it.

    Raises:
        SpecError: there is none; names the file to add.
    """
    if kind := find_kind(catalogue(), device_kind):
        return kind
    known = ", ".join(repr(kind.name) for kind in catalogue())
    raise SpecError(
        f"device kind {device_kind!r} is not known (known: {known}); add a file to {KINDS_FOLDER} "
        "with its figures and their sources, or a [[kind]] to the cluster file"
    )


def read_data(name: str) -> dict[str, Any]:
    """A data file of the catalogue that describes no kind: 'links.toml', 'plugins.toml'."""
    return tomllib.loads(_folder().joinpath(name).read_text("utf-8"))


def _folder() -> Any:
    return resources.files("gimlax.devices").joinpath("catalogue")
