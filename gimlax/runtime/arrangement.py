"""How every array of a deployment lies on the devices of its mesh: the specs of a plan, live."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
from jax.sharding import NamedSharding, PartitionSpec

from gimlax.partition import Spec, partition_spec
from gimlax.planning import MeshSharding
from gimlax.program import Program

__all__ = ["Arrangement"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrangement:
    """Shardings by mesh and name; what has no spec is whole on every device."""

    meshes: Mapping[str, jax.sharding.Mesh]
    specs: Mapping[tuple[str, str], Spec] = field(default_factory=dict)

    @classmethod
    def of(
        cls, meshes: Mapping[str, jax.sharding.Mesh], planned: Sequence[MeshSharding] = ()
    ) -> "Arrangement":
        """The specs of a plan on live meshes."""
        specs = {(of.mesh, name): spec for of in planned for name, spec in of.specs}
        return cls(meshes=meshes, specs=specs)

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
