"""Calibrations by a law instead of a clock: all samples of a real one, on a made-up device."""

import jax

from gimlax.devices import Calibration, MeasuredLink, MeshCalibration, Sample, Slowdown
from gimlax.devices.measuring.grids import microbenchmarks
from gimlax.devices.processor import processor_name

FLOPS_PER_S = 1e11
BYTES_PER_S = 2e10
START_S = 2e-6
DISPATCH_S = 7e-6


def law(flops, num_bytes):
    """Seconds of an operation on the made-up device."""
    return START_S + flops / FLOPS_PER_S + num_bytes / BYTES_PER_S


def samples():
    return tuple(
        Sample(
            kind=b.kind,
            dims=b.dims,
            dtype=b.dtype,
            layout=b.layout,
            flops=b.flops,
            transcendentals=b.transcendentals,
            num_bytes=b.num_bytes,
            out_itemsize=b.out_itemsize,
            seconds=law(b.flops, b.num_bytes),
        )
        for b in microbenchmarks()
    )


def calibration_of(cluster, *, links=(), slowdowns=(), **changes):
    """Every mesh of a cluster by the law; links as (source, target, latency_s, bytes_per_s)."""
    figures = {
        "jax_version": jax.__version__,
        "processor": processor_name(),
        "date": "2026-11-24",
        "meshes": tuple(
            MeshCalibration(
                mesh=mesh.name,
                device_kind=mesh.device_kind,
                num_devices=mesh.num_devices,
                dispatch_s=DISPATCH_S,
                probe_s=3e-3,
                samples=samples(),
            )
            for mesh in cluster.meshes
        ),
        "links": tuple(
            MeasuredLink(source=s, target=t, latency_s=latency_s, bandwidth_bytes_per_s=rate)
            for s, t, latency_s, rate in links
        ),
        "slowdowns": tuple(Slowdown(meshes=pair, factor=factor) for pair, factor in slowdowns),
    }
    return Calibration(**(figures | changes))
