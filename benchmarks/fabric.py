"""How fast do arrays go from one process to another, next to other ways and to copying memory?

    python benchmarks/fabric.py --json=benchmarks/results/fabric.json

Cases take turns, each with some calls in a row of which the first is left out, since it finds the
caches full of another case. A transfer begins when the sender is asked to send an array that is
there and ends when the receiver has it, on its device where that is said, by the clock that all
processes of a host share. Two clients that read host memory share it (the array is not copied at
all), so a copy that is asked for is timed beside it. JAX's transfer server runs in processes that
are killed if they do not answer.
"""

import contextlib
import json
import logging
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from report import Figure, Report, environment

from gimlax import _jax, devices, fabric

JSON = flags.DEFINE_string("json", None, "write the report here too")
QUICK = flags.DEFINE_bool("quick", False, "a tenth of the repeats")

SIZES = {"32 B": 32, "4 KiB": 2**12, "64 KiB": 2**16, "1 MiB": 2**20, "16 MiB": 2**24}
SIZES |= {"64 MiB": 2**26}
ANSWER_S = 30.0

Case = Callable[[int], float]  # bytes → seconds


def main(argv: list[str]) -> None:
    del argv
    devices.discover()
    with contextlib.ExitStack() as stack:
        cases = dict(all_cases(stack))
        samples: dict[tuple[str, str], list[float]] = {}
        for size_name, size in SIZES.items():
            turns, burst = (30, 10) if size < 2**20 else (40, 2)
            for _ in range(max(turns // 10, 2) if QUICK.value else turns):
                for name in list(cases):
                    try:
                        took_s = [cases[name](size) for _ in range(burst)]
                    except TimeoutError as error:
                        print(f"{name}, {size_name}: {error}; it is left out from here on")
                        del cases[name]
                        continue
                    samples.setdefault((name, size_name), []).extend(took_s[1:])
    publish(samples)


def all_cases(stack: contextlib.ExitStack) -> Iterator[tuple[str, Case]]:
    """Every way that is there, by name; says which are not."""
    source = np.ones(max(SIZES.values()), np.uint8)
    target = np.zeros_like(source)
    yield "memcpy", timed(lambda size: np.copyto(target[:size], source[:size]))

    cpu = jax.devices("cpu")
    held = {size: jax.device_put(source[:size], cpu[0]) for size in SIZES.values()}
    jax.block_until_ready(held)
    yield "device_put, same client", putting(held, cpu[0], may_alias=None)
    yield "device_put, same client, copying", putting(held, cpu[0], may_alias=False)
    others = [name for name in _jax.backend_names() if jax.devices(name)[0].client != cpu[0].client]
    if others:
        other = jax.devices(others[0])[0]
        yield "device_put, two clients", putting(held, other, may_alias=None)
        yield "device_put, two clients, copying", putting(held, other, may_alias=False)
    else:
        print("no second client: pip install --no-deps -r requirements/demo.txt")

    for kind in ("ring", "tcp"):
        yield f"gimlax {kind}", link(stack, kind, held, "came_s")
        yield f"gimlax {kind}, on the device", link(stack, kind, held, "on_device_s")
    yield "plain TCP", plain_tcp(stack, source)
    yield "JAX transfer server", transfer_server(stack)
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("ray is not installed here; make bench-fabric has an environment with it")
        return
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    stack.callback(ray.shutdown)
    yield "ray.put + ray.get", timed(lambda size: ray.get(ray.put(source[:size])))


def timed(call: Callable[[int], object]) -> Case:
    """A call of this process."""

    def case(size: int) -> float:
        start_s = time.perf_counter()
        call(size)
        return time.perf_counter() - start_s

    return case


def putting(held: Mapping[int, jax.Array], device: Any, *, may_alias: bool | None) -> Case:
    """`device_put` of an array that lies on a device."""
    return timed(
        lambda size: jax.device_put(held[size], device, may_alias=may_alias).block_until_ready()
    )


class Peer:
    """A child process that answers each line with a line, or is killed."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "fabric_peer.py"), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def answer(self) -> Any:
        """Raises TimeoutError, with the process killed, if none comes."""
        out = self.process.stdout
        assert out is not None
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([out], [], [], ANSWER_S)
            piece = out.read(4096) if ready else b""
            if not piece:
                self.close()
                raise TimeoutError(f"the process {self.role!r} did not answer in {ANSWER_S} s")
            line += piece
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def link(stack: contextlib.ExitStack, kind: str, held: Mapping[int, jax.Array], until: str) -> Case:
    """A link of gimlax to another process, from `send` to one of the times that it tells."""
    peer = Peer(kind)
    stack.callback(peer.close)
    sender = fabric.connect(fabric.Offer.from_json(peer.answer()["offer"]))
    stack.callback(sender.close)

    def case(size: int) -> float:
        start_s = time.perf_counter()
        sender.send(fabric.Tag(pass_number=0), [held[size]])
        answer = peer.answer()
        assert answer["aliased"], "the receiver's client copied"
        return answer[until] - start_s

    return case


def plain_tcp(stack: contextlib.ExitStack, source: np.ndarray) -> Case:
    """`sendall` and `recv_into` between two processes."""
    peer = Peer("plain")
    stack.callback(peer.close)
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", peer.answer()["port"])))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def case(size: int) -> float:
        peer.tell(str(size))
        start_s = time.perf_counter()
        sock.sendall(source[:size].data)
        return peer.answer()["came_s"] - start_s

    return case


def transfer_server(stack: contextlib.ExitStack) -> Case:
    """JAX's own: the time of a pull of what was offered before."""
    offering, pulling = Peer("offer"), Peer("pull")
    stack.callback(offering.close)
    stack.callback(pulling.close)
    pulling.tell(offering.answer()["address"])
    numbers = iter(range(1, 10**9))

    def case(size: int) -> float:
        line = json.dumps([next(numbers), size])
        offering.tell(line)
        offering.answer()
        pulling.tell(line)
        return pulling.answer()["took_s"]

    return case


def publish(samples: Mapping[tuple[str, str], list[float]]) -> None:
    """The figures of every case and size, the ratios that goals are about, and a table."""
    figures = []
    for (name, size_name), took_s in samples.items():
        array = np.asarray(took_s)
        figures.append(Figure.of(f"{name}, {size_name}", array * 1e6, "us"))
        figures.append(Figure.of(f"{name}, {size_name}", SIZES[size_name] / 1e6 / array, "MB/s"))
    for name, against in (("gimlax ring", "memcpy"), ("gimlax tcp", "JAX transfer server")):
        mine, other = samples.get((name, "64 MiB")), samples.get((against, "64 MiB"))
        if mine and other and len(mine) == len(other):
            ratio = np.asarray(other) / np.asarray(mine)
            figures.append(Figure.of(f"{name} / {against}, bandwidth at 64 MiB", ratio, "ratio"))
    report = Report(
        benchmark="fabric",
        quick=QUICK.value,
        figures=tuple(figures),
        environment=environment() | {"load": Path("/proc/loadavg").read_text().split()[0]},
    )
    print(table(samples))
    print(
        "\n".join(f"{f.name}: {f.value:.2f} ± {f.spread:.0%}" for f in figures if f.unit == "ratio")
    )
    if JSON.value:
        report.save(JSON.value)
        print(f"written to {JSON.value}")


def table(samples: Mapping[tuple[str, str], list[float]]) -> str:
    """Medians: µs, and MB/s from 1 MiB on."""
    names = list(dict.fromkeys(name for name, _ in samples))
    width = max(map(len, names))
    lines = [f"{'':{width}}" + "".join(f"{size:>18}" for size in SIZES)]
    for name in names:
        cells = []
        for size_name, size in SIZES.items():
            took_s = samples.get((name, size_name))
            if not took_s:
                cells.append(f"{'-':>18}")
                continue
            middle_s = float(np.median(took_s))
            rate = f"{size / 1e6 / middle_s:,.0f} MB/s" if size >= 2**20 else ""
            cells.append(f"{rate or f'{middle_s * 1e6:,.1f} us':>18}")
        lines.append(f"{name:{width}}" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
