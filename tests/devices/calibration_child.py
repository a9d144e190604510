"""Calibrates a mesh of four devices with axes left open, on a clock that is wound; prints JSON."""

import itertools
import json

import jax
import jax.numpy as jnp

from gimlax.devices import Cluster, MeshSpec, calibrate
from gimlax.devices.measuring.programs import chain, matmul
from gimlax.devices.measuring.timing import compiled

TINY = (matmul((1, 2, 32, 32), "float32", "mk,kn"), chain("add", 1024, "float32"))


def main():
    steps = []
    ticks = itertools.count()
    mesh = MeshSpec(name="cpu", device_kind="cpu", num_devices=4, backend="cpu")
    one = MeshSpec(name="one", device_kind="cpu", backend="cpu", first_device=4)
    cluster = Cluster(meshes=(mesh, one))
    found = calibrate(
        cluster,
        benchmarks=TINY,
        clock=lambda: next(ticks) * 1e-3,
        progress=lambda done, total, what: steps.append([done, total, what]),
    )
    found.check(cluster)
    devices = jax.devices()[:4]
    made = compiled(lambda x: x + 1, (jnp.ones(16),), *devices)()
    shards = made.addressable_shards
    print(
        json.dumps(
            {
                "samples": {m.mesh: [[s.kind, *s.dims] for s in m.samples] for m in found.meshes},
                "seconds": [s.seconds for m in found.meshes for s in m.samples],
                "num_devices": [m.num_devices for m in found.meshes],
                "steps": steps,
                "shown": str(found),
                "buffers": len({shard.data.unsafe_buffer_pointer() for shard in shards}),
                "shapes": [list(shard.data.shape) for shard in shards],
            }
        )
    )


if __name__ == "__main__":
    main()
