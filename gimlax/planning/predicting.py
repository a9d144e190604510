"""What a layout that was chosen is predicted to take: the records of a plan, from the figures.

Seconds and bytes are of one call of each phase, memory and load of a mesh are of all its stages.
"""

from collections.abc import Sequence

from gimlax.devices import Calibration, Cluster
from gimlax.graph import Chain
from gimlax.planning.cost import Costs
from gimlax.planning.layout import OUTSIDE, Layout
from gimlax.planning.predictions import (
    MeshPrediction,
    PhasePrediction,
    StagePrediction,
    TransferPrediction,
)
from gimlax.planning.problem import loads_s, spans
from gimlax.planning.rates import DECLARED, MEASURED
from gimlax.planning.wires import Wire


def predict_phase(
    chain: Chain,
    cluster: Cluster,
    calibration: Calibration | None,
    figures: Costs,
    layout: Layout,
    meshes: Sequence[int],
    index: int,
    wire: Wire | None = None,
) -> PhasePrediction:
    """One call of the phase `index`: each stage of the layout and each transfer between them.

    `wire` says what is sent where something goes narrowed.
    """
    phase = chain.phases[index]
    transfers: list[TransferPrediction] = []
    for hop_index, hop in enumerate(layout.hops):
        if OUTSIDE in (hop.source, hop.target):
            continue
        source, target = (layout.holdings[end].mesh for end in (hop.source, hop.target))
        boundary = layout.holdings[hop.target].first_segment
        measured = calibration.link(source, target) if calibration else None
        link = (calibration.onto(cluster) if calibration else cluster).link(source, target)
        assert link is not None
        sent = wire.sent_bytes(figures, source, target) if wire else figures.boundary_bytes
        num_bytes = 0 if source == target else int(sent[index, boundary])
        transfers.append(
            TransferPrediction(
                hop=hop_index,
                source=source,
                target=target,
                num_bytes=num_bytes,
                seconds=link.transfer_s(num_bytes) if num_bytes else 0.0,
                basis=MEASURED if measured else DECLARED,
            )
        )
    return PhasePrediction(
        name=phase.name,
        calls=float(phase.calls),
        stages=tuple(
            _stage(figures, index, mesh, holding_index, holding.first_segment, holding.stop)
            for holding_index, (holding, mesh) in enumerate(
                zip(layout.holdings, meshes, strict=True)
            )
        ),
        transfers=tuple(transfers),
    )


def _stage(
    figures: Costs, phase: int, mesh: int, holding: int, first: int, stop: int
) -> StagePrediction:
    run = (phase, mesh, slice(first, stop))
    memory_bound_s = float(figures.memory_bound_s[run].sum())
    overhead_s = float(figures.dispatch_s[mesh] / figures.calls.sum())
    shares = {
        "compute": float(figures.seconds[run].sum()) - memory_bound_s,
        "bandwidth": memory_bound_s,
        "overhead": overhead_s,
        "host": _parked_s(figures, mesh, first, stop) / float(figures.calls.sum()),
    }
    return StagePrediction(
        holding=holding,
        seconds=sum(shares.values()),
        compute_s=float(figures.compute_s[run].sum()),
        memory_s=float(figures.memory_s[run].sum()),
        overhead_s=overhead_s,
        parked_s=shares["host"],
        flops=float(figures.flops[phase, first:stop].sum()),
        bytes_accessed=float(figures.bytes_accessed[phase, first:stop].sum()),
        binds=max(shares, key=lambda what: shares[what]),
    )


def _parked_s(figures: Costs, mesh: int, first: int, stop: int) -> float:
    """Seconds per request for which a stage streams what is parked in host memory."""
    if not figures.problem.parked_bytes[mesh, first, stop]:
        return 0.0
    streamed_s = figures.problem.stage_s[mesh, first, stop] - figures.dispatch_s[mesh]
    return max(float(streamed_s - figures.segment_s[mesh, first:stop].sum()), 0.0)


def predict_meshes(
    cluster: Cluster, figures: Costs, cuts: Sequence[int], meshes: Sequence[int]
) -> tuple[MeshPrediction, ...]:
    """Memory and load of each mesh that stages with these cuts and meshes use."""
    runs = spans(cuts, figures.problem.num_segments)
    load_s = loads_s(figures.problem, cuts, meshes)
    result: list[MeshPrediction] = []
    for mesh in dict.fromkeys(meshes):
        own = [run for run, m in zip(runs, meshes, strict=True) if m == mesh]
        temp, received = max((_passing(figures, mesh, *run) for run in own), key=sum)
        result.append(
            MeshPrediction(
                mesh=cluster.meshes[mesh].name,
                resident_bytes=figures.resident_bytes(mesh, own),
                carried_bytes=figures.carried_bytes(mesh, own),
                temp_bytes=temp,
                received_bytes=received,
                parked_bytes=sum(int(figures.problem.parked_bytes[mesh, *run]) for run in own),
                capacity_bytes=int(figures.problem.capacity_bytes[mesh]),
                load_s=float(load_s[mesh]),
                basis=figures.rates[mesh].source,
                collectives=figures.collectives[mesh],
                memory="on_chip" if figures.on_chip[mesh] else "device",
            )
        )
    return tuple(result)


def _passing(figures: Costs, mesh: int, first: int, stop: int) -> tuple[int, int]:
    """Temporaries and received values of a stage, by its compiler where that was asked."""
    temp, received = figures.passing_bytes(first, stop)
    needed = int(figures.problem.largest_bytes[0, mesh, first, stop])
    return (temp, received) if needed == temp + received else (max(needed - received, 0), received)
