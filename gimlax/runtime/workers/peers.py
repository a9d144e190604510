"""The controller's side of a process: requests and answers, what it tells, whether it lives."""

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from gimlax import errors
from gimlax.errors import BackendError, GimlaxError
from gimlax.runtime.workers.connection import Connection, connect
from gimlax.runtime.workers.launching import Launched
from gimlax.runtime.workers.noticing import Pulse
from gimlax.runtime.workers.server import PROTOCOL
from gimlax.runtime.workers.wire import Message, from_wire, to_wire

__all__ = ["Answer", "Listener", "Member", "Peer", "error_of"]

_CONNECT_S = 20.0

Listener = Callable[[Message], None]
Answer = tuple[Mapping[str, Any], list[Any]]


class Peer(Protocol):
    """A worker that was started: one process, or several that are one mesh.

    See `Member` for what the methods do.

    Attributes:
        name: of the worker.
        lost: why it is given up, None while it is good.
        members: its processes.
    """

    name: str
    lost: BackendError | None

    @property
    def members(self) -> Sequence["Member"]: ...

    def ask(self, kind: str, fields: Mapping[str, Any], arrays: Sequence[Any] = ()) -> Answer: ...

    def begin(
        self, kind: str, fields: Mapping[str, Any], arrays: Sequence[Any] = ()
    ) -> Future[Answer]: ...

    def tell(
        self,
        kind: str,
        fields: Mapping[str, Any],
        arrays: Sequence[Any] = (),
        numbers: Sequence[int] = (),
    ) -> None: ...

    def listen(self, deployment: int, listener: Listener) -> None: ...

    def ignore(self, deployment: int) -> None: ...

    def when_lost(self, call: Callable[["Peer"], None], deployment: int = -1) -> None: ...

    def give_up(self, why: str) -> None: ...

    def close(self) -> None: ...


class Member:
    """A process that was started. `lost` tells why it is given up, None while it is good."""

    def __init__(self, name: str, launched: Launched) -> None:
        self.name = name
        self.launched = launched
        self.lost: BackendError | None = None
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._asked: dict[int, Future[Answer]] = {}
        self._listeners: dict[int, Listener] = {}
        self._when_lost: defaultdict[int, list[Callable[[Peer], None]]] = defaultdict(list)
        self._closing = False
        self._giving_up = False
        self._control = self._call("control")
        self._pulse = Pulse(
            name, self._call("heartbeat"), lambda s: self.give_up(f"has not answered for {s:.1f} s")
        )
        self._thread = threading.Thread(
            target=self._receive, name=f"gimlax hear {name}", daemon=True
        )
        self._thread.start()
        self.ask("hello", {"protocol": PROTOCOL})

    @property
    def members(self) -> Sequence["Member"]:
        """See `Peer`."""
        return (self,)

    def ask(self, kind: str, fields: Mapping[str, Any], arrays: Sequence[Any] = ()) -> Answer:
        """What the worker answers: fields and arrays.

        Raises:
            GimlaxError: it refuses; of the class that it raised.
            BackendError: it is lost.
        """
        return self.begin(kind, fields, arrays).result()

    def begin(
        self, kind: str, fields: Mapping[str, Any], arrays: Sequence[Any] = ()
    ) -> Future[Answer]:
        """The future of an answer; see `ask`."""
        number = next(self._numbers)
        future: Future[Answer] = Future()
        with self._lock:
            if self.lost is not None:
                future.set_exception(self._own(self.lost))
                return future
            self._asked[number] = future
        self.tell(kind, {"request": number, **fields}, arrays)
        return future

    def tell(
        self,
        kind: str,
        fields: Mapping[str, Any],
        arrays: Sequence[Any] = (),
        numbers: Sequence[int] = (),
    ) -> None:
        """Sends what is not answered. To a lost worker nothing is sent."""
        if self.lost is None:
            try:
                self._control.send(to_wire(kind, fields, arrays, numbers))
            except OSError as error:
                # Elsewhere: who tells may hold what those who hear of a loss want.
                threading.Thread(
                    target=self.give_up,
                    args=(f"cannot be reached any more ({error})",),
                    name="gimlax lost",
                    daemon=True,
                ).start()

    def listen(self, deployment: int, listener: Listener) -> None:
        """Calls `listener` with every message about a deployment, in the order of arrival."""
        self._listeners[deployment] = listener

    def ignore(self, deployment: int) -> None:
        """Undoes `listen` and `when_lost`."""
        self._listeners.pop(deployment, None)
        with self._lock:
            self._when_lost.pop(deployment, None)

    def when_lost(self, call: Callable[["Peer"], None], deployment: int = -1) -> None:
        """Calls once if the worker is given up, at once if it has been; `ignore` undoes it."""
        with self._lock:
            if self.lost is None:
                self._when_lost[deployment].append(call)
                return
        call(self)

    def give_up(self, why: str) -> None:
        """Ends the worker's process and all that waits for it; a second time does nothing."""
        with self._lock:
            if self._giving_up or self._closing:
                return
            self._giving_up = True
        self.launched.kill()  # first, so that what it wrote ends
        said = self.launched.said()
        with self._lock:
            self.lost = BackendError(f"worker {self.name!r} is lost: it {why}; {said}")
            asked, self._asked = self._asked, {}
            calls, self._when_lost = self._when_lost, defaultdict(list)
        self._control.close()
        self._pulse.end()
        for call in itertools.chain(*calls.values()):
            call(self)
        for future in asked.values():
            future.set_exception(self._own(self.lost))

    def close(self) -> None:
        """Hangs up, so that the worker ends by itself; then makes sure of it."""
        with self._lock:
            self._closing = True
            asked, self._asked = self._asked, {}
            calls, self._when_lost = self._when_lost, defaultdict(list)
            if self.lost is None:
                self.lost = BackendError(
                    f"worker {self.name!r} was closed; start workers and compile again"
                )
        self._control.close()
        self._pulse.end()
        self._pulse.join()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.launched.kill()
        for call in itertools.chain(*calls.values()):
            call(self)
        for future in asked.values():
            future.set_exception(self._own(self.lost))

    def _call(self, role: str) -> Connection:
        try:
            connection = connect(self.launched.address, self.launched.secret, timeout_s=_CONNECT_S)
            connection.send(Message(kind=role))
        except (BackendError, OSError) as error:
            self.launched.kill()
            raise BackendError(
                f"worker {self.name!r} does not answer: {error}; {self.launched.said()}"
            ) from error
        return connection

    def _receive(self) -> None:
        why = "hung up"
        while not self._closing:
            try:
                message = self._control.receive()
            except BackendError as error:
                message, why = None, f"sent what is no message ({error})"
            if message is None:
                break
            try:
                if message.kind in ("answer", "refusal"):
                    self._settle(message)
                elif listener := self._listeners.get(message.fields.get("deployment", -1)):
                    listener(message)
            except Exception as error:
                why = f"said what cannot be understood ({type(error).__name__}: {error})"
                break
        self.give_up(why)

    def _settle(self, message: Message) -> None:
        with self._lock:
            future = self._asked.pop(message.fields["request"], None)
        if future is None:
            return
        if message.kind == "answer":
            future.set_result((message.fields, from_wire(message)))
        else:
            future.set_exception(error_of(message.fields))

    @staticmethod
    def _own(error: BackendError) -> BackendError:
        """An error of its own for each that waits: raising one twice would mix their tracebacks."""
        return BackendError(str(error))


def error_of(fields: Mapping[str, Any]) -> GimlaxError:
    """The error that a worker told of."""
    kind = getattr(errors, str(fields["error"]), BackendError)
    known = isinstance(kind, type) and issubclass(kind, GimlaxError)
    return (kind if known else BackendError)(str(fields["what"]))
