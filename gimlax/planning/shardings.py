"""The shardings of a plan as plain data: specs by mesh and name."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gimlax.errors import PlanError
from gimlax.graph import Chain
from gimlax.partition import Group, GroupSplits, Spec, Split
from gimlax.planning.sharding import Pieces, Sharded, planned

__all__ = ["MeshSharding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisSplits:
    """How groups are split along an axis in one phase: a word for each group of each segment.

    `-` is whole, `2` along its label 2, `2>0` a sum over label 2 that is scattered along label 0.
    """

    axis: str
    phase: str
    segments: tuple[str, ...]

    def __post_init__(self) -> None:
        for segment in self.segments:
            for word in segment.split():
                if not re.fullmatch(r"-|\d+(>\d+)?", word):
                    raise PlanError(
                        f"sharding of phase {self.phase!r} along axis {self.axis!r} has {word!r}"
                        " for a group; make a new plan"
                    )

    def words(self) -> list[list[str]]:
        """By [segment][group]."""
        return [segment.split() for segment in self.segments]


def _written(splits: Sequence[Split]) -> str:
    return " ".join(
        "-" if s.label is None else str(s.label) if s.scatter is None else f"{s.label}>{s.scatter}"
        for s in splits
    )


def _read(word: str, group: Group) -> Split:
    if word == "-":
        return Split(label=None)
    label, _, scatter = word.partition(">")
    if max(int(label), int(scatter or 0)) >= len(group.sizes):
        raise IndexError(word)
    return Split(
        label=int(label),
        sums=tuple(value for of, value in group.sums if of == int(label)),
        scatter=int(scatter) if scatter else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSharding:
    """How arrays lie on a mesh, for all segments, whether the mesh holds them or not.

    Attributes:
        mesh: its name.
        inside: for each axis and phase how the groups of equations of each segment are split.
        specs: (name, for each dim the axes that it is split along); what is not named is whole.
            Names are made by `argument`, `edge` and `result`.
        exact: whether no sharding of the whole model along these axes takes less time; with two
            axes, or very many arrays that meet in a segment, it is the best that was found.
    """

    mesh: str
    specs: tuple[tuple[str, Spec], ...]
    inside: tuple[AxisSplits, ...] = ()
    exact: bool = True

    def __post_init__(self) -> None:
        counts = Counter(name for name, _ in self.specs)
        if twice := [name for name, count in counts.items() if count > 1]:
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

        inside = (
            AxisSplits(axis=axis, phase=phase.name, segments=tuple(map(_written, by_phase[index])))
            for axis, by_phase in sharded.splits.items()
            for index, phase in enumerate(chain.phases)
        )
        return cls(
            mesh=mesh,
            specs=tuple((name, spec) for name, spec in named() if any(spec)),
            inside=tuple(inside),
            exact=sharded.exact,
        )

    def splits(
        self, phase: str, groups: Sequence[Sequence[Group]]
    ) -> list[list[GroupSplits]] | None:
        """How the groups of each segment of a phase are split.

        Returns:
            None where the groups are not those that were planned, as with another line of JAX.
        """
        mine = {of.axis: of.words() for of in self.inside if of.phase == phase}
        try:
            return [
                [
                    {axis: _read(words[s][g], group) for axis, words in mine.items()}
                    for g, group in enumerate(of)
                ]
                for s, of in enumerate(groups)
            ]
        except IndexError:
            return None

    def sharded(self, pieces: Pieces, axes: Mapping[str, int]) -> Sharded | None:
        """What the specs mean: every segment's operations on one device and what it sends.

        Seconds in it mean nothing, as no device is asked.

        Args:
            pieces: of the chain that was planned, in the order of the plan.
            axes: of the mesh.

        Returns:
            None where the groups are not those that were planned, as with another line of JAX.
        """
        chain = pieces.chain
        splits = [
            self.splits(phase.name, of)
            for phase, of in zip(chain.phases, pieces.groups, strict=True)
        ]
        known = [of for of in splits if of is not None]
        if len(known) < len(splits):
            return None
        specs = dict(self.specs)
        named: dict[tuple[int | None, object], Spec | None] = {}
        for index, phase in enumerate(chain.phases):
            for argument in phase.traced.arguments:
                named[None, argument.path] = specs.get(self.argument(argument.path))
            for output in phase.traced.outputs:
                named[index, output.path] = specs.get(self.result(phase.name, output.path))
            for boundary, values in enumerate(pieces.crossing[index]):
                for place in range(len(values)):
                    edge = self.edge(phase.name, boundary, place)
                    named[index, (boundary, place)] = specs.get(edge)
        whole = {key: spec for key, spec in named.items() if spec is not None}
        return planned(pieces, axes, whole, known)
