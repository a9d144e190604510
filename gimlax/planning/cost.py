"""What stages and transfers cost on a cluster: operations by rate, memory by stage.

A segment is the sum of its operations, each priced by the best rates there are for the device; a
stage is the sum of its segments and one dispatch; a transfer is the latency of its link and its
bytes over the bandwidth. What a calibration knows goes before what cards and cluster files say.
Streamed inputs and outputs travel between host and mesh for free. Of a mesh of several devices that
an interconnect joins, or whose collectives were measured, one device's share of a sharded segment
and the collectives are charged, and its share of parameters and state; temporaries and received
values are charged whole. Else more devices add nothing. Measured seconds are of all devices of a
mesh at work, so those that share a host's cores are no faster together than the cores are.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import PartitionSpec

from gimlax.devices import Calibration, Cluster, DeviceKind
from gimlax.errors import SpecError
from gimlax.graph import Chain, Role
from gimlax.planning.compiled_memory import passing_as_compiled
from gimlax.planning.handovers import check_size, handovers_s
from gimlax.planning.pieces import (
    Piece,
    added_bytes,
    device_bytes,
    pieces,
    shared_bytes,
    used_bytes,
)
from gimlax.planning.problem import Array, Problem
from gimlax.planning.rates import (
    Collectives,
    Rates,
    card_for,
    collectives_for,
    rates_for,
    reads_on_chip,
)
from gimlax.planning.rates.measured import Measured
from gimlax.planning.rates.pricing import price
from gimlax.planning.sharding import Pieces, Sharded, shard, take_apart
from gimlax.planning.tariffs import tariffs

# Host time to start one compiled stage: a call of a jitted function takes 4 to 8 us on JAX's CPU
# client and 6 to 11 us on a plugin (2-core AMD Genoa, November 2026). A calibration knows better.
DISPATCH_S = 10e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Costs:
    """All figures of a chain on a cluster, as arrays over [phase], [mesh], [segment], [boundary].

    Attributes:
        calls: calls per request. [phase]
        flops, bytes_accessed, temp_bytes: of one call of a segment. [phase, segment]
        boundary_bytes: what crosses before each segment. [phase, boundary]
        seconds: of one call of a segment. [phase, mesh, segment]
        memory_bound_s: the part of it in operations that wait for memory. [phase, mesh, segment]
        compute_s, memory_s: the same if only that mattered, by card. [phase, mesh, segment]
        rates: what prices each mesh. [mesh]
        on_chip: whether its card's bandwidth on the chip is what they rest on. [mesh]
        collectives: what those of each mesh rest on, empty where it splits nothing. [mesh]
        dispatch_s: per request, what a stage takes beyond its segments. [mesh]
        shared_segment_s, shared_dispatch_s: per request, for which a segment and a dispatch occupy
            what meshes share. [shared, mesh, segment] and [shared, mesh]
        host_bytes: host memory in which a mesh may park. [mesh]
        host_s_per_byte: per request, what a parked byte takes. [mesh]
        pieces: the memory of resident and carried arguments.
        piece_bytes: of each on one device. [mesh, piece]
        sharded: how everything lies on meshes of several devices, by name.
        problem: the same as a search reads it, per request.
    """

    calls: Array
    flops: Array
    bytes_accessed: Array
    temp_bytes: Array
    boundary_bytes: Array
    seconds: Array
    memory_bound_s: Array
    compute_s: Array
    memory_s: Array
    rates: tuple[Rates, ...]
    on_chip: tuple[bool, ...]
    collectives: tuple[str, ...]
    dispatch_s: Array
    shared_segment_s: Array
    shared_dispatch_s: Array
    host_bytes: Array
    host_s_per_byte: Array
    pieces: tuple[Piece, ...]
    piece_bytes: Array
    sharded: Mapping[str, Sharded]
    problem: Problem

    @property
    def segment_s(self) -> Array:
        """Seconds per request of each segment, dispatch left out. [mesh, segment]"""
        return np.tensordot(self.calls, self.seconds, 1)

    @property
    def segment_usd(self) -> Array:
        """Dollars per request of each segment while its mesh is at work, NaN without a price.

        A plan is paid for whole periods, in which meshes also wait. [mesh, segment]
        """
        return self.problem.usd_per_s[:, None] * self.segment_s

    @property
    def segment_joules(self) -> Array:
        """Joules per request of each segment at full power, NaN if not known. [mesh, segment]"""
        return self.problem.busy_watts[:, None] * self.segment_s

    def resident_bytes(self, mesh: int, runs: Sequence[tuple[int, int]]) -> int:
        """Parameters that these runs of segments use, each once, on a device of a mesh."""
        return used_bytes(self.pieces, self.piece_bytes[mesh], Role.RESIDENT, runs)

    def carried_bytes(self, mesh: int, runs: Sequence[tuple[int, int]]) -> int:
        """State that these runs of segments use, on a device of a mesh."""
        return used_bytes(self.pieces, self.piece_bytes[mesh], Role.CARRIED, runs)

    def passing_bytes(self, first: int, stop: int) -> tuple[int, int]:
        """Temporaries and received values of the phase in which a stage has most of both."""
        temp = self.temp_bytes[:, first:stop].max(axis=1)
        received = self.boundary_bytes[:, first]
        phase = int((temp + received).argmax())
        return int(temp[phase]), int(received[phase])


def costs(
    chain: Chain,
    cluster: Cluster,
    calibration: Calibration | None = None,
    shardings: Mapping[str, PartitionSpec] | None = None,
    held_on_chip: Collection[str] = (),
) -> Costs:
    """Figures of every segment of every phase on every mesh.

    Args:
        chain: what runs.
        cluster: where.
        calibration: measured figures that go before others.
        shardings: specs to be kept, by the path of an argument.
        held_on_chip: meshes whose stages have to fit on the chip, and are read as fast as that.

    Raises:
        SpecError: a kind of device has no peak for a dtype that the model computes in, or the
            calibration belongs to something else.
        PlanError: there are too many meshes for a table of all pairs.
    """
    check_size(cluster, chain.num_segments)
    if calibration is not None:
        calibration.check(cluster)
        cluster = calibration.onto(cluster)
    n = chain.num_segments
    kinds = [card_for(cluster, m.name, held_on_chip=m.name in held_on_chip) for m in cluster.meshes]
    calls = np.array([phase.calls for phase in chain.phases], float)
    segments = [phase.segments for phase in chain.phases]
    flops = np.array([[sum(f for _, f in s.flops) for s in row] for row in segments], float)
    bytes_accessed = np.array([[s.bytes_accessed for s in row] for row in segments], float)
    boundary_bytes = np.zeros((len(segments), n + 1))
    boundary_bytes[:, 1:n] = [[s.boundary_bytes for s in row[:-1]] for row in segments]
    found = pieces(chain)
    resident_bytes = sum(piece.num_bytes for piece in found if piece.role is Role.RESIDENT)
    rates = _rates(chain, cluster, calibration, resident_bytes, held_on_chip)
    joined = [collectives_for(cluster, mesh.name, calibration) for mesh in cluster.meshes]
    sharded = _sharded(chain, cluster, kinds, rates, joined, shardings)
    piece_bytes = device_bytes(found, sharded)
    priced = [
        price([s for row in (of.segments if of else segments) for s in row], [rate], [kind])[0]
        for of, rate, kind in zip(sharded, rates, kinds, strict=True)
    ]

    def by_phase(figure: str) -> Array:  # [phase, mesh, segment]
        rows = np.stack([getattr(mesh, figure) for mesh in priced])
        return rows.reshape(len(kinds), len(segments), n).swapaxes(0, 1)

    seconds = by_phase("seconds")
    for mesh, of in enumerate(sharded):
        if of is not None:
            seconds[:, mesh] += [[s.collectives_s for s in row] for row in of.segments]
    temp_bytes = np.array([[s.temp_bytes for s in row] for row in segments], float)

    legal = np.array([True, *(not chain.splits(b) for b in range(1, n)), True])
    possible = legal[:, None] & legal[None, :] & (np.arange(n + 1) > np.arange(n + 1)[:, None])
    compute_s, memory_s = by_phase("compute_s"), by_phase("memory_s")
    segment_s = np.tensordot(calls, seconds, 1)
    dispatch_s = calls.sum() * _dispatches_s(cluster, calibration)
    stage_s = np.where(possible, _runs(segment_s) + dispatch_s[:, None, None], np.inf)
    by_kind = (
        np.tensordot(calls, compute_s, 1),
        np.tensordot(calls, memory_s, 1),
        segment_s,
    )
    shared_segment_s, shared_dispatch_s = _shared(cluster, calibration, *by_kind, dispatch_s)
    shared_s = np.stack([_runs(s) for s in shared_segment_s] or [np.zeros_like(stage_s)])
    shared_s = shared_s[: len(shared_segment_s)] + shared_dispatch_s[:, :, None, None]
    added = np.where(possible, _runs(added_bytes(found, piece_bytes, n)), 0.0)
    shared = shared_bytes(found, piece_bytes, n)
    passing = np.broadcast_to(_passing_bytes(temp_bytes, boundary_bytes), stage_s.shape)
    held = added + sum(shared)
    return Costs(
        calls=calls,
        flops=flops,
        bytes_accessed=bytes_accessed,
        temp_bytes=temp_bytes,
        boundary_bytes=boundary_bytes,
        seconds=seconds,
        memory_bound_s=by_phase("memory_bound_s"),
        compute_s=compute_s,
        memory_s=memory_s,
        rates=rates,
        on_chip=tuple(
            not isinstance(rate, Measured)
            and reads_on_chip(cluster.kind(mesh.name), held_on_chip=mesh.name in held_on_chip)
            for mesh, rate in zip(cluster.meshes, rates, strict=True)
        ),
        collectives=tuple(of.source if of else "" for of in joined),
        dispatch_s=dispatch_s,
        shared_segment_s=shared_segment_s,
        shared_dispatch_s=shared_dispatch_s,
        host_bytes=np.zeros(len(kinds)),
        host_s_per_byte=np.zeros(len(kinds)),
        pieces=found,
        piece_bytes=piece_bytes,
        sharded={m.name: of for m, of in zip(cluster.meshes, sharded, strict=True) if of},
        problem=Problem(
            stage_s=stage_s,
            transfer_s=handovers_s(cluster, calls, boundary_bytes),
            shared_s=np.where(possible, shared_s, 0.0),
            added_bytes=added,
            largest_bytes=np.stack(
                [passing_as_compiled(passing, held, chain, cluster, calibration), *shared]
            ),
            parked_bytes=np.zeros_like(stage_s),
            capacity_bytes=np.array([cluster.memory_bytes(m.name) for m in cluster.meshes], float),
            pool=_pools(cluster, held_on_chip),
            **tariffs(cluster),
        ),
    )


def _rates(
    chain: Chain,
    cluster: Cluster,
    calibration: Calibration | None,
    resident_bytes: float,
    held_on_chip: Collection[str],
) -> tuple[Rates, ...]:
    """What prices each mesh; meshes of one kind with equal samples, if any, share it."""
    operations = [op for phase in chain.phases for s in phase.segments for op in s.operations]
    known: dict[tuple[object, ...], Rates] = {}
    found: list[Rates] = []
    for mesh in cluster.meshes:
        measured = calibration.mesh(mesh.name) if calibration else None
        on_chip = mesh.name in held_on_chip
        key = (mesh.device_kind, on_chip, tuple(measured.samples) if measured else None)
        if key not in known:
            rates = rates_for(
                cluster,
                mesh.name,
                calibration,
                resident_bytes=resident_bytes,
                held_on_chip=on_chip,
            )
            if isinstance(rates, Measured):
                rates = rates.on_card(cluster.kind(mesh.name), operations)
            known[key] = rates
        found.append(known[key])
    return tuple(found)


def _sharded(
    chain: Chain,
    cluster: Cluster,
    kinds: Sequence[DeviceKind],
    rates: Sequence[Rates],
    joined: Sequence[Collectives | None],
    given: Mapping[str, PartitionSpec] | None,
) -> list[Sharded | None]:
    """How a chain is split over each mesh of several devices that something joins.

    Equal meshes are split alike, so each sort is searched once.

    Raises:
        SpecError: a mesh has more devices than its interconnect joins, or specs are given and no
            mesh could use them.
    """
    _check_joined(cluster)
    known: dict[tuple[object, ...], Sharded] = {}
    pieces: Pieces | None = None
    found: list[Sharded | None] = []
    for mesh, kind, rate, collectives in zip(cluster.meshes, kinds, rates, joined, strict=True):
        key = (kind, mesh.axes, id(rate))  # equal meshes share their rates
        if collectives is not None and key not in known:
            pieces = pieces or take_apart(chain)
            known[key] = shard(
                pieces, kind, dict(mesh.axes), rate, collectives=collectives, given=given
            )
        found.append(known[key] if collectives else None)
    if given and not any(found):
        raise SpecError(
            f"shardings are given for {', '.join(given)}, but no mesh of the cluster has several"
            " devices that an interconnect joins; leave them out, describe such a mesh, or"
            " calibrate the one that there is"
        )
    return found


def _check_joined(cluster: Cluster) -> None:
    wrong: list[str] = []
    for mesh in cluster.meshes:
        joined = cluster.kind(mesh.name).interconnect
        if joined is not None and mesh.num_devices > (joined.num_devices or math.inf):
            wrong.append(
                f"mesh {mesh.name!r} has {mesh.num_devices} devices, but {joined.name} joins at "
                f"most {joined.num_devices} of {mesh.device_kind!r}; describe meshes of at most "
                f"{joined.num_devices} with links between them, or correct [interconnect] "
                "num_devices of the card"
            )
    if wrong:
        raise SpecError("\n".join(wrong))


def _runs(per_segment: Array) -> Array:
    """Sums over `[first, stop)`. [row, segment] -> [row, first, stop]"""
    total = np.concatenate([np.zeros((len(per_segment), 1)), per_segment.cumsum(axis=1)], axis=1)
    return total[:, None, :] - total[:, :, None]


def _passing_bytes(temp_bytes: Array, boundary_bytes: Array) -> Array:
    """Temporaries and received values of a stage in its largest phase. [first, stop]"""
    n = temp_bytes.shape[1]
    result = np.zeros((n + 1, n + 1))
    for first in range(n):
        live = np.maximum.accumulate(temp_bytes[:, first:], axis=1) + boundary_bytes[:, first, None]
        result[first, first + 1 :] = live.max(axis=0)
    return result


def _dispatches_s(cluster: Cluster, calibration: Calibration | None) -> Array:
    """Of one call on each mesh. [mesh]"""
    measured = [calibration and calibration.mesh(mesh.name) for mesh in cluster.meshes]
    return np.array([found.dispatch_s if found else DISPATCH_S for found in measured])


def _shared(
    cluster: Cluster,
    calibration: Calibration | None,
    compute_s: Array,
    memory_s: Array,
    segment_s: Array,
    dispatch_s: Array,
) -> tuple[Array, Array]:
    """How long segments and a dispatch occupy what meshes share; [mesh, segment] each.

    Meshes that share compute and memory are one machine: a stage occupies it for all of its time,
    or for the share of it that leads to the slowdown of two meshes at once that was measured.

    Returns:
        [shared, mesh, segment] and [shared, mesh]
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for what in ("compute", "memory"):
        for mesh in cluster.meshes:
            group = cluster.sharing(mesh.name, what)
            if len(group) > 1 and mesh.name == group[0]:
                groups.setdefault(group, []).append(what)
    shared_segment_s = np.zeros((len(groups), *segment_s.shape))
    shared_dispatch_s = np.zeros((len(groups), len(segment_s)))
    for shared, (group, whats) in enumerate(groups.items()):
        members = [index for index, mesh in enumerate(cluster.meshes) if mesh.name in group]
        if len(whats) == 2:
            # Two that take twice as long beside each other each occupy all of it, two that do not
            # mind each other half; no stage can occupy more than all of it.
            part = min(calibration.slowdown(group) / 2, 1.0) if calibration else 1.0
            shared_segment_s[shared, members] = part * segment_s[members]
            shared_dispatch_s[shared, members] = part * dispatch_s[members]
        else:
            only = compute_s if whats == ["compute"] else memory_s
            shared_segment_s[shared, members] = only[members]
    return shared_segment_s, shared_dispatch_s


def _pools(cluster: Cluster, held_on_chip: Collection[str]) -> np.ndarray:
    """The memory of each mesh; what is held on a chip is in one with meshes of that chip alone."""
    names = [mesh.name for mesh in cluster.meshes]

    def first(name: str) -> str:
        here = name in held_on_chip
        mates = cluster.sharing(name, "compute" if here else "memory")
        return next(mate for mate in mates if (mate in held_on_chip) == here)

    return np.array([names.index(first(name)) for name in names])
