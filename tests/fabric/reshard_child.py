"""One side of a transfer between two meshes: `reshard_child.py send|ring|tcp NUM_DEVICES`.

Both go through the same cases. The receiver says of each how many bytes came, how far the array is
from what was sent, and how it lies.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gimlax import fabric

WATCHDOG_S = 120
# shape, axes and spec of the source, axes and spec of the target
CASES = (
    (
        (24, 36),
        (("data", 2), ("model", 4)),
        P("data", "model"),
        (("data", 3), ("model", 2)),
        P("data"),
    ),
    (
        (24, 36),
        (("data", 2), ("model", 4)),
        P("model"),
        (("data", 3), ("model", 2)),
        P(None, "data"),
    ),
    (
        (24, 36),
        (("data", 2), ("model", 4)),
        P(("data", "model")),
        (("model", 6),),
        P(None, "model"),
    ),
    ((24, 36), (("data", 8),), P(), (("data", 3), ("model", 2)), P(("model", "data"))),
    ((24, 36), (("data", 8),), P("data"), (("data", 6),), P()),
    ((512, 48), (("data", 8),), P(None, "data"), (("data", 1), ("model", 1)), P()),
    ((512, 48), (("data", 1),), P(), (("data", 6),), P(None, "data")),
    ((), (("data", 8),), P(), (("data", 6),), P()),
    ((0, 12), (("data", 4),), P(None, "data"), (("data", 6),), P(None, "data")),
)


def values(shape):
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def placed(axes, spec):
    names, sizes = zip(*axes)
    count = int(np.prod(sizes))
    return NamedSharding(Mesh(np.array(jax.devices()[:count]).reshape(sizes), names), spec)


def send():
    with fabric.connect(fabric.Offer.from_json(sys.stdin.readline())) as sender:
        for number, (shape, axes, spec, target_axes, target_spec) in enumerate(CASES):
            sharding = placed(axes, spec)
            mine = fabric.shards(shape, axes, spec)
            devices = dict(enumerate(sharding.mesh.devices.flat))
            known = sharding.devices_indices_map(shape)
            for position, device in devices.items():
                for one, other, size in zip(mine[position], known[device], shape):
                    assert one.indices(size) == other.indices(size), (axes, spec)
            blocks = fabric.route(shape, mine, fabric.shards(shape, target_axes, target_spec))
            array = jax.jit(lambda x: x * 1.0, out_shardings=sharding)(jnp.asarray(values(shape)))
            sender.send(fabric.Tag(pass_number=number), fabric.cut(array, 0, blocks, devices))
        sender.drain(WATCHDOG_S)


def receive(kind):
    with fabric.listen(kind, "mesh -> mesh") as receiver:
        print(receiver.offer.to_json().replace("\n", " "), flush=True)
        for shape, _, _, axes, spec in CASES:
            message = receiver.receive(WATCHDOG_S)
            sharding = placed(axes, spec)
            landed = fabric.assemble(message.parts, shape, np.float32, sharding)
            result = jax.jit(lambda x: x + 1)(landed.array)
            off = np.abs(np.asarray(result) - values(shape) - 1).max(initial=0)
            report = {
                "bytes": sum(part.data.nbytes for part in message.parts),
                "size": values(shape).nbytes,
                "off": float(off),
                "sharded": landed.array.sharding == sharding,
                "aliased": landed.aliased,
            }
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
    if sys.argv[1] == "send":
        send()
    else:
        receive(sys.argv[1])
