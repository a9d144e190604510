"""A whole calibration: each mesh, each link, each pair that shares a host.

Meshes of as many equal devices of one backend are measured once, all devices at once. Units:
seconds.
"""

import dataclasses
import datetime
import itertools
import time
from collections.abc import Callable, Sequence

import jax

from gimlax import _jax
from gimlax.devices.calibration import Calibration
from gimlax.devices.cluster import Cluster
from gimlax.devices.live import bind
from gimlax.devices.measuring.collectives import KINDS, group_sizes, measure_collectives
from gimlax.devices.measuring.grids import microbenchmarks
from gimlax.devices.measuring.links import measure_link
from gimlax.devices.measuring.operations import LONGEST_S, crowding, dispatch_s, guess_s, measure
from gimlax.devices.measuring.programs import Microbenchmark
from gimlax.devices.measuring.sharing import measure_slowdown
from gimlax.devices.measuring.timing import Clock, Probe
from gimlax.devices.mesh import AXIS_NAMES, MeshSpec
from gimlax.devices.processor import processor_name
from gimlax.devices.samples import MeasuredLink, MeshCalibration, Slowdown
from gimlax.errors import SpecError

__all__ = ["calibrate"]

Progress = Callable[[float, float, str], None]

_BUDGET_S = 140.0  # repeated visits stop beyond it; what is left is half a minute at most


def calibrate(
    cluster: Cluster,
    *,
    progress: Progress = lambda done, total, what: None,
    benchmarks: Sequence[Microbenchmark] | None = None,
    clock: Clock = time.perf_counter,
) -> Calibration:
    """Measures what is live of a cluster.

    Args:
        cluster: for example of `gimlax.discover()`.
        progress: told (done, total, what is being measured).
        benchmarks: the operations, by default those that a cost model needs.
        clock: seconds.

    Raises:
        SpecError: no mesh of it is live.
        BackendError: a backend that it names is not there.
    """
    live = [mesh for mesh in cluster.meshes if mesh.backend]
    if not live:
        raise SpecError(
            "calibration: no mesh of the cluster names a backend, so there is nothing to measure;"
            " use a discovered cluster, or name the backends in the cluster file"
        )
    devices = {name: tuple(mesh.devices.flat) for name, mesh in bind(map(_closed, live)).items()}
    pairs = [
        (a.name, b.name)
        for a, b in itertools.permutations(live, 2)
        if cluster.link(a.name, b.name) is not None
    ]
    sharers = [
        (a.name, b.name)
        for a, b in itertools.combinations(live, 2)
        if b.name in cluster.sharing(a.name, "compute") + cluster.sharing(a.name, "memory")
    ]
    first = {_alike(mesh): mesh.name for mesh in reversed(live)}
    chosen = microbenchmarks() if benchmarks is None else benchmarks
    sums = sum(len(KINDS) * len(group_sizes(len(devices[name]))) for name in first.values())
    work = _Work(progress, clock, len(first) * len(chosen) + 10 * (sums + len(pairs + sharers)))
    measured = {name: _mesh(name, devices[name], chosen, work) for name in first.values()}
    links: list[MeasuredLink] = []
    for source, target in pairs:
        work.step(f"link {source} -> {target}", 10)
        ends = (source, devices[source][0], target, devices[target][0])
        links.append(measure_link(*ends, clock=clock))
    slowdowns: list[Slowdown] = []
    for a, b in sharers:
        work.step(f"{a} beside {b}", 10)
        factor = measure_slowdown(devices[a][0], devices[b][0], clock=clock)
        slowdowns.append(Slowdown(meshes=(a, b), factor=factor))
    return Calibration(
        jax_version=jax.__version__,
        processor=processor_name(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        meshes=tuple(_named(mesh, measured[first[_alike(mesh)]]) for mesh in live),
        links=tuple(links),
        slowdowns=tuple(slowdowns),
    )


class _Work:
    """Counts what is done, and says whether it goes fast enough."""

    def __init__(self, progress: Progress, clock: Clock, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self.clock, self._start_s = clock, clock()

    def in_time(self) -> bool:
        """Whether at this pace all of it will fit the budget."""
        return self.clock() - self._start_s < _BUDGET_S * self._done / self._total

    def step(self, what: str, size: int = 1) -> None:
        self._progress(self._done, self._total, what)
        self._done += size


def _closed(mesh: MeshSpec) -> MeshSpec:
    """The mesh with axes: which ones does not matter here."""
    if mesh.axes:
        return mesh
    axes = tuple(zip(AXIS_NAMES, (1, mesh.num_devices), strict=True))
    return dataclasses.replace(mesh, axes=axes)


def _alike(mesh: MeshSpec) -> tuple[str, str, int]:
    return mesh.backend, mesh.device_kind, mesh.num_devices


def _mesh(
    name: str, devices: Sequence[_jax.Device], benchmarks: Sequence[Microbenchmark], work: _Work
) -> MeshCalibration:
    probe = Probe(devices[0], work.clock)
    call_s = dispatch_s(devices, clock=work.clock)
    crowd = crowding(devices, clock=work.clock)
    samples = []
    for benchmark in benchmarks:
        work.step(f"{name}: {benchmark.kind}")
        if crowd > 1 and crowd * guess_s(benchmark) > LONGEST_S:
            continue
        timed = measure(
            benchmark, devices, probe, call_s, crowd=crowd, in_time=work.in_time, clock=work.clock
        )
        samples.append(timed)
    samples += measure_collectives(
        devices, step=lambda what: work.step(f"{name}: {what}", 10), clock=work.clock
    )
    return MeshCalibration(
        mesh=name,
        device_kind=devices[0].device_kind,
        num_devices=len(devices),
        dispatch_s=call_s,
        probe_s=probe.best_s,
        samples=tuple(samples),
    )


def _named(mesh: MeshSpec, measured: MeshCalibration) -> MeshCalibration:
    return MeshCalibration(
        mesh=mesh.name,
        device_kind=mesh.device_kind,
        num_devices=mesh.num_devices,
        dispatch_s=measured.dispatch_s,
        probe_s=measured.probe_s,
        samples=measured.samples,
    )
