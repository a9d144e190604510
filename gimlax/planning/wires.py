"""Fewer bytes between processes: what narrowed float32 leaves of the hand-overs of a chain.

An array is narrowed or not by its shape and by the devices at both ends alone, whatever their
shardings turn out to be, so that what is predicted is what is sent: see `gimlax.fabric.narrows`.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from gimlax import _jax
from gimlax.devices import Cluster
from gimlax.errors import SpecError
from gimlax.fabric import NARROWINGS, forms, narrows
from gimlax.graph import Chain
from gimlax.planning.carriers import BETWEEN_PROCESSES, kind_between
from gimlax.planning.cost import Costs
from gimlax.planning.handovers import handovers_s
from gimlax.planning.problem import Array

__all__ = ["Wire", "check_wire"]


def check_wire(wire: str | None) -> None:
    """Refuses what no float32 goes as.

    Raises:
        SpecError: says what there is.
    """
    if wire is not None and wire not in NARROWINGS:
        raise SpecError(
            f"wire is {wire!r}, and float32 goes between processes as "
            f"{' or '.join(map(repr, NARROWINGS))}; give one, or leave it out for all its bits"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wire:
    """What is sent between the meshes of a cluster where float32 goes narrowed.

    `narrowed` has the bytes of one call of each phase, by pairs of meshes between which it does so.
    [phase, boundary]
    """

    narrowed: Mapping[tuple[str, str], Array]

    @classmethod
    def of(cls, chain: Chain, cluster: Cluster, narrowing: str) -> Self:
        """For a chain on a cluster."""
        known: dict[tuple[int, int], Array] = {}
        narrowed: dict[tuple[str, str], Array] = {}
        for source, target in itertools.permutations(cluster.meshes if narrowing else (), 2):
            if kind_between(source, target, cluster.workers) in BETWEEN_PROCESSES:
                ends = source.num_devices, target.num_devices
                if ends not in known:
                    known[ends] = _sent_bytes(chain, narrowing, *ends)
                narrowed[source.name, target.name] = known[ends]
        return cls(narrowed=narrowed)

    def sent_bytes(self, figures: Costs, source: str, target: str) -> Array:
        """Bytes of one call of each phase from mesh to mesh. [phase, boundary]"""
        return self.narrowed.get((source, target), figures.boundary_bytes)

    def priced(self, figures: Costs, cluster: Cluster) -> Costs:
        """The figures with hand-overs of what is sent, over the links of the cluster."""
        if not self.narrowed:
            return figures
        index = {mesh.name: k for k, mesh in enumerate(cluster.meshes)}
        transfer_s = figures.problem.transfer_s.copy()
        for sent in {id(sent): sent for sent in self.narrowed.values()}.values():
            seconds = handovers_s(cluster, figures.calls, sent)
            for (source, target), of in self.narrowed.items():
                if of is sent:
                    pair = index[source], index[target]
                    transfer_s[pair] = seconds[pair]
        return replace(figures, problem=replace(figures.problem, transfer_s=transfer_s))


def _sent_bytes(chain: Chain, narrowing: str, *num_devices: int) -> Array:
    rows = [phase.segments for phase in chain.phases]
    result = np.zeros((len(rows), chain.num_segments + 1))
    for sent, row in zip(result, rows, strict=True):
        for boundary, segment in enumerate(row[:-1], start=1):
            sent[boundary] = sum(_bytes(aval, narrowing, *num_devices) for aval in segment.boundary)
    return result


def _bytes(aval: jax.ShapeDtypeStruct, narrowing: str, *num_devices: int) -> int:
    if not narrows(aval.shape, str(aval.dtype), narrowing, *num_devices):
        return _jax.nbytes(aval)
    sent = forms(aval.shape, narrowing)
    return sum(_jax.nbytes(jax.ShapeDtypeStruct(shape, jnp.dtype(of))) for shape, of in sent)
