"""The processes at the other end of what `fabric.py` measures: `fabric_peer.py ROLE`.

`ring` and `tcp` receive over a link and print when each array was there, and when on the device, in
seconds of the clock that all processes of a host share; `plain` does so over a socket. `offer` and
`pull` are the two ends of JAX's transfer server; `pull` prints how long a pull took.
"""

import json
import socket
import sys
import time
from typing import Any

import jax
import numpy as np

from gimlax import fabric

BUFFER_BYTES = 2**26


def say(value: Any) -> None:
    """Answers with a line."""
    print(json.dumps(value), flush=True)


def receive(kind: str) -> None:
    """The receiving end of a link."""
    device = jax.devices("cpu")[0]
    with fabric.listen(kind, kind, capacity_bytes=2**28) as receiver:
        say({"offer": receiver.offer.to_json()})
        while True:
            try:
                message = receiver.receive()
            except fabric.LinkClosed:
                return
            came_s = time.perf_counter()
            landed = fabric.land(message.parts[0].data, device)
            landed.array.block_until_ready()
            say({"came_s": came_s, "on_device_s": time.perf_counter(), "aliased": landed.aliased})
            del message, landed  # before the next one is waited for


def receive_plainly() -> None:
    """Bytes over TCP into one buffer, of the sizes that are read; no frame, no checksum."""
    listener = socket.create_server(("127.0.0.1", 0))
    say({"port": listener.getsockname()[1]})
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    view = memoryview(np.ones(BUFFER_BYTES, np.uint8).data)
    for line in sys.stdin:
        size, got = int(line), 0
        while got < size:
            got += sock.recv_into(view[got:size])
        say({"came_s": time.perf_counter()})


def offer() -> None:
    """Offers an array on the transfer server for each line `[id, bytes]`."""
    device = jax.devices("cpu")[0]
    server = transfer_server(device)
    say({"address": server.address()})
    arrays: dict[int, jax.Array] = {}
    for line in sys.stdin:
        number, size = json.loads(line)
        if size not in arrays:
            arrays[size] = jax.device_put(np.ones(size, np.uint8), device)
        server.await_pull(number, [arrays[size]])
        say("offered")


def pull() -> None:
    """Pulls an array for each line `[id, bytes]`, from the address in the first line."""
    device = jax.devices("cpu")[0]
    server = transfer_server(device)
    connection = server.connect(sys.stdin.readline().strip())
    sharding = jax.sharding.SingleDeviceSharding(device)
    for line in sys.stdin:
        number, size = json.loads(line)
        wanted = jax.ShapeDtypeStruct((size,), np.uint8, sharding=sharding)
        start_s = time.perf_counter()
        jax.block_until_ready(connection.pull(number, [wanted]))
        say({"took_s": time.perf_counter() - start_s})


def transfer_server(device: Any) -> Any:
    """JAX's own, on loopback."""
    from jax.experimental import transfer

    return transfer.start_transfer_server(device.client, "127.0.0.1:0", ["127.0.0.1:0"])


if __name__ == "__main__":
    role = sys.argv[1]
    roles = {"plain": receive_plainly, "offer": offer, "pull": pull}
    roles[role]() if role in roles else receive(role)
