"""A worker: takes callers that know the secret, and does what its controller asks.

Each caller has a connection and a thread. The controller's carries requests, passes and what became
of them; another only answers that the process is alive, from a thread that no compilation keeps
waiting, since XLA compiles without Python's lock.
"""

import contextlib
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from gimlax import _jax, devices
from gimlax.devices import MeshSpec
from gimlax.errors import BackendError, GimlaxError, InternalError
from gimlax.records import from_json
from gimlax.runtime.compilation import Progress
from gimlax.runtime.workers.building import analyses, build, run_once
from gimlax.runtime.workers.connection import Connection, accept
from gimlax.runtime.workers.files import read_filed
from gimlax.runtime.workers.laying import lay
from gimlax.runtime.workers.orders import Orders
from gimlax.runtime.workers.possessions import Possessions
from gimlax.runtime.workers.shares import share
from gimlax.runtime.workers.site import Site
from gimlax.runtime.workers.telling import PassOrder
from gimlax.runtime.workers.turns import Turns
from gimlax.runtime.workers.wire import Message, from_wire, to_wire

__all__ = ["PROTOCOL", "serve"]

PROTOCOL = 1
_HANDSHAKE_S = 10.0
_LONG = ("prepare", "connect", "try", "finite", "tapped")  # nothing else must wait for these


def serve(listener: socket.socket, secret: bytes, host: str = "") -> None:
    """Takes callers until the controller hangs up.

    Args:
        listener: where they call.
        secret: that they have to know.
        host: the address by which workers of other hosts reach this one, empty if there are none.
    """
    # To wake a thread of XLA's for a stage costs 50 µs where the stage itself takes 4, and the one
    # that dispatches has nothing else to do meanwhile (AMD Genoa, November 2026).
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _Worker(listener, secret, host).serve()


class _Worker:
    def __init__(self, listener: socket.socket, secret: bytes, host: str) -> None:
        self._listener = listener
        self._host = host
        self._secret = secret
        self._meshes: dict[str, jax.sharding.Mesh] = {}
        self._sites: dict[int, Site] = {}
        self._possessions: defaultdict[int, Possessions] = defaultdict(Possessions)
        self._control: Connection | None = None
        self._member = 0  # which process of the worker this is
        self._is_one_of_several = False
        self._turns = Turns(self._do)
        self._requests: Mapping[str, Callable[..., Any]] = {
            "hello": self._hello,
            "port": self._port,
            "join": self._join,
            "bind": self._bind,
            "prepare": self._prepare,
            "offer": self._offer,
            "connect": self._connect,
            "shelve": self._shelve,
            "fill": self._fill,
            "read": self._read,
            "write": self._write,
            "copy": self._copy,
            "clock": lambda *_: ({"now_s": time.perf_counter()}, ()),
            "record": self._record,
            "end record": self._end_record,
            "census": self._census,
            "finite": self._finite,
            "tapped": self._tapped,
            "untap": self._untap,
            "try": self._try,
            "echo": self._echo,
            "reset": self._reset,
            "close": self._close,
        }

    def serve(self) -> None:
        while True:
            try:
                connection = accept(self._listener, self._secret, timeout_s=_HANDSHAKE_S)
            except OSError:  # closed: the controller has hung up
                return
            if connection is not None:
                threading.Thread(
                    target=self._receive, args=(connection,), name="gimlax caller", daemon=True
                ).start()

    def _receive(self, connection: Connection) -> None:
        role = ""
        try:
            first = connection.receive()
            role = first.kind if first is not None else ""
            if role == "control":
                self._control = connection
                try:
                    self._obey(connection)
                finally:  # without it nobody could ask anything, and it would still look alive
                    self._end()
            elif role == "heartbeat":
                while (message := connection.receive()) is not None:
                    connection.send(message)
        except OSError:
            pass
        except BaseException as error:
            # Such as no memory for a thread: what was asked for will not be done, so this process
            # is of no use any more. What it writes last is shown by the controller.
            print(f"the {role} of a worker failed: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        connection.close()

    def _end(self) -> None:
        # Closing a socket does not wake who waits in accept; shutting it down does.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _obey(self, connection: Connection) -> None:
        while (message := connection.receive()) is not None:
            if not self._turns.holds(message):
                self._do(message)

    def _do(self, message: Message) -> None:
        if message.kind == "pass":
            self._pass(message)
        elif message.kind == "keep":
            if (site := self._sites.get(message.fields["deployment"])) is not None:
                site.keep(message.fields["drop"], message.fields["placed"])
        elif message.kind == "again":
            # May wait for the link; of what has been closed meanwhile nothing is sent.
            threading.Thread(
                target=self._again, args=(message.fields,), name="gimlax again", daemon=True
            ).start()
        elif message.kind == "try" and self._is_one_of_several:
            self._turns.take(lambda: self._answer(message))
        elif message.kind in _LONG:
            threading.Thread(
                target=self._answer, args=(message,), name="gimlax prepare", daemon=True
            ).start()
        else:
            self._answer(message)

    def _again(self, fields: Mapping[str, Any]) -> None:
        site = self._sites.get(fields["deployment"])
        if site is not None:
            site.ports.send_again(fields["track"], fields["to"], fields["pass"])

    def _pass(self, message: Message) -> None:
        order, number = PassOrder.of(message.numbers), message.fields["deployment"]
        try:
            self._sites[number].start(order, from_wire(message))
        except Exception as error:
            if (site := self._sites.get(number)) is not None:
                site.spoil(order.epoch)
            said = {"deployment": number, "error": type(error).__name__, "what": str(error)}
            self._tell("failed", said, numbers=(order.number, order.epoch))

    def _answer(self, message: Message) -> None:
        number = message.fields["request"]
        try:
            fields, arrays = self._requests[message.kind](message.fields, from_wire(message))
            answer = {"request": number, **fields}
            if arrays and self._is_one_of_several:
                answer["shares"], arrays = share(arrays)
            if arrays:  # may be many bytes, and the controller may be busy telling something
                threading.Thread(
                    target=self._send, args=(answer, arrays), name="gimlax answer", daemon=True
                ).start()
            else:
                self._tell("answer", answer)
        except Exception as error:
            self._refuse(number, error)

    def _send(self, answer: Mapping[str, Any], arrays: Sequence[Any]) -> None:
        try:
            self._tell("answer", answer, arrays)
        except Exception as error:  # of an array that could not be computed
            self._refuse(answer["request"], error)

    def _refuse(self, number: int, error: Exception) -> None:
        kind = type(error).__name__ if isinstance(error, GimlaxError) else "BackendError"
        said = str(error) if isinstance(error, GimlaxError | RuntimeError) else repr(error)
        self._tell("refusal", {"request": number, "error": kind, "what": said})

    def _tell(
        self,
        kind: str,
        fields: Mapping[str, Any],
        arrays: Sequence[Any] = (),
        numbers: Sequence[int] = (),
    ) -> None:
        if (connection := self._control) is not None:
            message = to_wire(kind, fields, arrays, numbers)  # may wait, and raise an array's error
            with contextlib.suppress(OSError):  # the controller has gone; so shall this process
                connection.send(message)

    def _hello(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        if fields["protocol"] != PROTOCOL:
            raise BackendError(
                f"this worker speaks version {PROTOCOL} of the protocol, its controller"
                f" {fields['protocol']}; install the same gimlax on all hosts"
            )
        return {"pid": os.getpid(), "jax": jax.__version__}, ()

    def _port(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        """A port of a host of this process that is free now."""
        family = socket.getaddrinfo(fields["host"], 0, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind((fields["host"], 0))
            return {"port": trial.getsockname()[1]}, ()

    def _join(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        """Makes this process one of several that are one mesh; the first one coordinates."""
        self._member = fields["number"]
        self._is_one_of_several = True
        devices.join_processes(
            fields["host"], fields["port"], count=fields["count"], number=self._member
        )
        return {}, ()

    def _bind(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        specs = [
            from_json(MeshSpec, text, 1, "mesh", error=BackendError, advice="send it again")
            for text in fields["meshes"]
        ]
        live = devices.bind(specs, over_processes=self._is_one_of_several)
        self._meshes.update(live)
        found = {
            name: {
                "platform": mesh.local_devices[0].client.platform,
                "donates": devices.capabilities(mesh.local_devices[0]).donation,
                "mine": [
                    number
                    for number, device in enumerate(mesh.devices.flat)
                    if device.process_index == mesh.local_devices[0].process_index
                ],
            }
            for name, mesh in live.items()
        }
        return {"meshes": found}, ()

    def _prepare(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        number = fields["deployment"]
        orders = from_json(
            Orders, fields["orders"], 1, "orders", error=InternalError, advice="please report it"
        )
        names = {step.track for phase in orders.phases for step in phase.steps}

        def tell(
            kind: str,
            said: Mapping[str, Any],
            values: Sequence[Any] = (),
            numbers: Sequence[int] = (),
        ) -> None:
            about = {"deployment": number, **said}
            if kind == "done" and self._is_one_of_several:
                about["shares"], values = share(values)
            self._tell(kind, about, values, numbers)

        def progress(step: Progress) -> None:
            tell("progress", {"done": step.done, "total": step.total, "what": step.what})

        meshes = {name: mesh for name, mesh in self._meshes.items() if name in names}
        config = tuple((name, value) for name, value in fields["config"])
        mine = self._possessions[fields["owner"]]
        phases, num_compiled = build(orders, arrays, meshes, config, progress, mine.compiled)
        self._sites[number] = Site(
            orders,
            phases,
            mine.arrays,
            meshes,
            config,
            tell,
            member=self._member,
            busy_elsewhere=lambda: any(
                site.is_busy for of, site in tuple(self._sites.items()) if of != number
            ),
        )
        return {"num_compiled": num_compiled, "analyses": analyses(phases)}, ()

    def _offer(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        site, kind, made = self._site(fields), fields["kind"], fields["made"]
        offer = site.ports.offer(fields["track"], fields["from"], kind, self._host, made)
        return {"offer": offer}, ()

    def _connect(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        site = self._site(fields)
        site.ports.connect(fields["track"], fields["to"], fields["offer"], fields["made"])
        return {}, ()

    def _shelve(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        sent = iter(arrays)
        rows = [next(sent) if where is None else read_filed(where) for where in fields["files"]]
        self._site(fields).shelve(fields["mesh"], fields["numbers"], fields["specs"], rows)
        return {}, ()

    def _fill(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        rows = iter(arrays)
        for mesh, number, specs in fields["lots"]:
            self._site(fields).fill(mesh, number, specs, list(islice(rows, len(specs))))
        return {}, ()

    def _read(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        site = self._site(fields)
        return {}, (site.cells[fields["cell"]].filled()[fields["number"]],)

    def _write(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        site = self._site(fields)
        with _jax.using_config(fields["config"]):
            cell, number = site.cells[fields["cell"]], fields["number"]
            cell.write(number, lay(arrays, [cell.filled()[number].sharding])[0])
        return {}, ()

    def _copy(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        site = self._site(fields)
        site.cells[fields["new"]] = site.cells[fields["cell"]].copy()
        return {}, ()

    def _record(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        self._site(fields).record()
        return {}, ()

    def _end_record(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        return {"spans": self._site(fields).end_record()}, ()

    def _census(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        return self._site(fields).census(), ()

    def _finite(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        return {"stages": self._site(fields).taps.stages_not_finite(fields["pass"])}, ()

    def _tapped(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        taps = self._site(fields).taps
        if self._is_one_of_several:
            return {}, (taps.find(fields["pass"], fields["where"]),)
        said, piece = taps.piece(*(fields[key] for key in ("pass", "where", "start", "stop")))
        return said, (piece,)

    def _untap(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        self._site(fields).taps.pop(fields["pass"])
        return {}, ()

    def _try(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        """Runs a stage once, on arrays that come with it."""
        artifact, *given = arrays
        if self._is_one_of_several:
            for site in tuple(self._sites.values()):
                site.drain()
        return {}, run_once(fields, artifact, given, self._meshes[fields["mesh"]])

    def _echo(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        """Puts arrays on a mesh and reads them back."""
        whole = NamedSharding(self._meshes[fields["mesh"]], PartitionSpec())
        with _jax.using_config(fields["config"]):
            return {}, lay(arrays, [whole] * len(arrays))

    def _reset(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        self._site(fields).reset(fields["epoch"])
        return {}, ()

    def _close(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        site = self._sites.pop(fields["deployment"], None)
        if site is not None:
            site.close()
        if fields["last"]:
            self._possessions.pop(fields["owner"], None)
        return {}, ()

    def _site(self, fields: Mapping[str, Any]) -> Site:
        site = self._sites.get(fields["deployment"])
        if site is None:
            raise InternalError(
                f"deployment {fields['deployment']} is not on this worker; please report it"
            )
        return site
