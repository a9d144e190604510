"""PartitionSpecs as plain data, and what is wrong with one that a user gave.

`Spec` holds for each dim the mesh axes that it is split along, the slowest first: what a
`jax.sharding.PartitionSpec` says, with nothing left out, so that equal ones compare equal and a
plan can be written as JSON.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

from jax.sharding import PartitionSpec

__all__ = ["Spec", "mistakes", "normal", "partition_spec", "shard_shape", "whole"]

Spec = tuple[tuple[str, ...], ...]


def normal(spec: Iterable[object], rank: int) -> Spec:
    """The spec of an array of `rank` dims, from a PartitionSpec or anything written like one."""
    entries: list[tuple[str, ...]] = []
    for entry in spec:
        if entry is None:
            entries.append(())
        elif isinstance(entry, str):
            entries.append((entry,))
        else:
            entries.append(tuple(entry))  # pyright: ignore[reportArgumentType]
    return (*entries, *((),) * (rank - len(entries)))


def whole(rank: int) -> Spec:
    """The spec of an array that every device has all of."""
    return ((),) * rank


def partition_spec(spec: Spec) -> PartitionSpec:
    """The same for JAX."""
    return PartitionSpec(*(axes[0] if len(axes) == 1 else axes or None for axes in spec))


def shard_shape(shape: tuple[int, ...], spec: Spec, axes: Mapping[str, int]) -> tuple[int, ...]:
    """What one device has of an array."""
    return tuple(
        size // math.prod(axes[axis] for axis in of) for size, of in zip(shape, spec, strict=True)
    )


def mistakes(
    path: str, spec: Iterable[object], shape: tuple[int, ...], axes: Mapping[str, int]
) -> Iterator[str]:
    """What is wrong with a spec given for the array at `path` on a mesh with these axes."""
    spec = tuple(spec)
    where = f"{path}: spec {spec}"
    if len(spec) > len(shape):
        yield f"{where} has {len(spec)} dims, the array {list(shape)}; leave some out"
        return
    if odd := [entry for entry in spec if not _is_entry(entry)]:
        yield f"{where} has {odd[0]!r}; give None, an axis or a tuple of axes for each dim"
        return
    given = normal(spec, len(shape))
    used = [axis for of in given for axis in of]
    if unknown := [axis for axis in used if axis not in axes]:
        yield f"{where} names axis {unknown[0]!r}, but meshes have {', '.join(map(repr, axes))}"
        return
    if twice := [axis for axis in dict.fromkeys(used) if used.count(axis) > 1]:
        yield f"{where} splits two dims along axis {twice[0]!r}; name an axis once"
        return
    for dim, (size, of) in enumerate(zip(shape, given, strict=True)):
        parts = math.prod(axes[axis] for axis in of)
        if size % parts:
            yield (
                f"{where} splits dim {dim} of {list(shape)} into {parts} parts, which {size} does"
                " not divide into; split another dim or leave it whole"
            )


def _is_entry(entry: object) -> bool:
    """Whether this can stand in a spec for one dim."""
    axes = entry if isinstance(entry, tuple) else (entry,)
    return entry is None or all(isinstance(axis, str) for axis in axes)
