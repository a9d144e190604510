"""How every array of a deployment lies on the devices of its mesh: the specs of a plan, live."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from gimlax import devices
from gimlax.graph import Chain
from gimlax.partition import (
    Group,
    GroupSplits,
    Run,
    Spec,
    Stage,
    evaluate,
    evaluate_inside,
    find_groups,
    find_runs,
    partition_spec,
)
from gimlax.planning import MeshSharding
from gimlax.program import Program

__all__ = ["Arrangement"]


@dataclass(frozen=True, slots=True, eq=False)
class _Inside:
    """Runs, groups and their splits, of all segments of a phase."""

    runs: Sequence[Run]
    groups: Sequence[Sequence[Group]]
    splits: Sequence[Sequence[GroupSplits]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrangement:
    """Shardings by mesh and name; what has no spec is whole on every device.

    Meshes of other processes are abstract.
    """

    meshes: Mapping[str, jax.sharding.Mesh | jax.sharding.AbstractMesh]
    specs: Mapping[tuple[str, str], Spec] = field(default_factory=dict)
    inside: Mapping[tuple[str, str], _Inside] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        meshes: Mapping[str, jax.sharding.Mesh | jax.sharding.AbstractMesh],
        planned: Sequence[MeshSharding],
        chain: Chain,
    ) -> "Arrangement":
        """The shardings of a plan for a chain, on live meshes."""
        specs = {(of.mesh, name): spec for of in planned for name, spec in of.specs}
        inside: dict[tuple[str, str], _Inside] = {}
        for phase in chain.phases if planned else ():
            runs = find_runs(phase)
            groups = [find_groups(run.flat, run.escaping) for run in runs]
            for of in planned:
                splits = of.splits(phase.name, groups)
                if splits is not None:
                    inside[of.mesh, phase.name] = _Inside(runs, groups, splits)
        return cls(meshes=meshes, specs=specs, inside=inside)

    def evaluator(self, mesh: str, program: Program, stage: Stage) -> Callable[..., list[Any]]:
        """What evaluates a stage on flat inputs, its inside constrained where that is planned."""
        live = self.meshes[mesh]
        grouped = isinstance(live, jax.sharding.Mesh) and _groups(live)
        plain = evaluate(stage.jaxpr, grouped=grouped)
        planned = self.inside.get((mesh, program.phase))
        if planned is None:
            return plain
        runs, groups, splits = planned.runs, planned.groups, planned.splits
        inside = evaluate_inside(
            program.partition, stage, runs, groups, splits, live, grouped=grouped
        )
        return inside or plain

    def whole(self, mesh: str) -> NamedSharding:
        """Of what every device has all of."""
        return NamedSharding(self.meshes[mesh], PartitionSpec())

    def argument(self, mesh: str, path: str) -> NamedSharding:
        """Of a parameter or of carried state, or of rows of it."""
        return self._named(mesh, MeshSharding.argument(path))

    def value(self, mesh: str, program: Program, value: int) -> NamedSharding:
        """Of a value that crosses between stages or comes out."""
        partition = program.partition
        for edge in partition.edges:
            if value in edge.values:
                boundary = partition.stages[edge.target].first_segment
                place = edge.values.index(value)
                return self._named(mesh, MeshSharding.edge(program.phase, boundary, place))
        for output, of in zip(partition.traced.outputs, partition.outputs, strict=True):
            if of == value:
                return self._named(mesh, MeshSharding.result(program.phase, output.path))
        return self.whole(mesh)

    def _named(self, mesh: str, name: str) -> NamedSharding:
        spec = self.specs.get((mesh, name))
        if spec is None:
            return self.whole(mesh)
        return NamedSharding(self.meshes[mesh], partition_spec(spec))


def _groups(mesh: jax.sharding.Mesh) -> bool:
    """Whether the backend of a mesh has a kernel for products in groups."""
    return devices.capabilities(mesh.devices.flat[0]).grouped_products
