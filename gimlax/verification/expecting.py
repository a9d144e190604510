"""What a plan expects of a stage on one device: its work from the graph, and what it sends.

Where a mesh splits arrays, that is what the plan's sharding says of its segments; elsewhere it is
what the plan says of the whole stage. Units: FLOPs, bytes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gimlax.graph import Chain
from gimlax.planning import Plan
from gimlax.planning.sharding import ShardedSegment, take_apart
from gimlax.program import Program
from gimlax.verification.answers import Emitted

__all__ = ["Expected", "Expecting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Of one call of a stage on one device; `collectives` is None where they are not known."""

    flops: float
    accessed_bytes: float
    collectives: tuple[Emitted, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expecting:
    """A plan and, by mesh that splits anything, its [phase][segment] on one device."""

    plan: Plan
    segments: dict[str, Sequence[Sequence[ShardedSegment]]]

    @classmethod
    def of(cls, plan: Plan, chain: Chain) -> "Expecting":
        """Of a plan and its chain, in the order of the plan."""
        pieces = take_apart(chain) if plan.shardings else None
        found: dict[str, Sequence[Sequence[ShardedSegment]]] = {}
        for sharding in plan.shardings:
            assert pieces is not None
            sharded = sharding.sharded(pieces, dict(plan.spec(sharding.mesh).axes))
            if sharded is not None:
                found[sharding.mesh] = sharded.segments
        return cls(plan=plan, segments=found)

    def stage(self, program: Program, index: int) -> Expected:
        """Of one stage of a phase."""
        mesh = program.placement[index]
        phase = [of.name for of in self.plan.phases].index(program.phase)
        if mesh in self.segments:
            stage = program.partition.stages[index]
            start = stage.first_segment
            mine = self.segments[mesh][phase][start : start + stage.num_segments]
            operations = [of for segment in mine for of in segment.operations]
            return Expected(
                flops=sum(of.count * of.flops for of in operations),
                accessed_bytes=sum(of.count * of.num_bytes for of in operations),
                collectives=_counted(mine),
            )
        prediction = self.plan.phases[phase].stages[index]
        split = any(of.mesh == mesh for of in self.plan.shardings)
        count = self.plan.spec(mesh).num_devices if split else 1
        return Expected(
            flops=prediction.flops / count,
            accessed_bytes=prediction.bytes_accessed / count,
            collectives=None if split else (),
        )


def _counted(segments: Sequence[ShardedSegment]) -> tuple[Emitted, ...]:
    count: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    for collective in (one for segment in segments for one in segment.collectives):
        count[collective.kind] += 1
        num_bytes[collective.kind] += collective.num_bytes
    return tuple(
        Emitted(kind=kind, count=count[kind], num_bytes=num_bytes[kind]) for kind in sorted(count)
    )
