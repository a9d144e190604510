"""The shardings of a plan as plain data: specs by mesh and name."""

from collections.abc import Iterator
from dataclasses import dataclass

from gimlax.errors import PlanError
from gimlax.graph import Chain
from gimlax.partition import Spec
from gimlax.planning.sharding import Sharded

__all__ = ["MeshSharding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSharding:
    """How arrays lie on a mesh, for all segments, whether the mesh holds them or not.

    Attributes:
        mesh: its name.
        specs: (name, for each dim the axes that it is split along); what is not named is whole.
            Names are made by `argument`, `edge` and `result`.
    """

    mesh: str
    specs: tuple[tuple[str, Spec], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.specs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise PlanError(
                f"sharding of mesh {self.mesh!r} has two specs for {twice[0]!r}; make a new plan"
            )

    @staticmethod
    def argument(path: str) -> str:
        """The name of a parameter or of carried state."""
        return path

    @staticmethod
    def edge(phase: str, boundary: int, place: int) -> str:
        """The name of one of the values that cross a boundary."""
        return f"{phase}: boundary {boundary}, value {place}"

    @staticmethod
    def result(phase: str, path: str) -> str:
        """The name of an output that is not carried."""
        return f"{phase}: {path}"

    @classmethod
    def of(cls, mesh: str, sharded: Sharded, chain: Chain) -> "MeshSharding":
        """What a search has found for a mesh."""

        def named() -> Iterator[tuple[str, Spec]]:
            for path, spec in sharded.specs.items():
                yield cls.argument(path), spec
            for phase, edges, results in zip(
                chain.phases, sharded.edges, sharded.results, strict=True
            ):
                for boundary, specs in enumerate(edges):
                    for place, spec in enumerate(specs):
                        yield cls.edge(phase.name, boundary, place), spec
                for path, spec in results.items():
                    yield cls.result(phase.name, path), spec

        return cls(mesh=mesh, specs=tuple((name, spec) for name, spec in named() if any(spec)))
