"""The controller's side of a worker of several processes, which are one mesh and fail as one.

All are told the same, in the same order, since a computation over the mesh has to be started in one
order by all of them. What each answers or tells of its part is put together here, so that
whoever asks need not know how many there are.
"""

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

import jax

from gimlax.errors import BackendError, GimlaxError, SpecError
from gimlax.fabric.linking import LOOPBACK
from gimlax.runtime.workers.peers import Answer, Listener, Member, Peer
from gimlax.runtime.workers.server import PROTOCOL
from gimlax.runtime.workers.shares import join
from gimlax.runtime.workers.wire import Message

__all__ = ["GroupPeer", "join_up"]

_RESET_S = 20.0  # for all to come out of a stage that one of them could not do


class GroupPeer:
    """A worker of several processes; see `Peer`."""

    def __init__(self, name: str, members: Sequence[Member]) -> None:
        """Takes over processes that know of each other; see `join_up`."""
        self.name = name
        self.lost: BackendError | None = None
        self._members = tuple(members)
        self._order = threading.Lock()
        self._lock = threading.Lock()
        self._when_lost: defaultdict[int, list[Callable[[Peer], None]]] = defaultdict(list)
        self._ending = False
        self._listeners: dict[int, Listener] = {}
        self._owners: dict[int, int] = {}  # by deployment, the compilation that it is of
        self._failed: set[int] = set()  # deployments of which a member has failed a pass
        self._teller = 0  # who told last of what may end it
        self._done: defaultdict[tuple[int, ...], dict[int, Message]] = defaultdict(dict)
        for member in self._members:
            member.when_lost(self._one_is_lost)

    @property
    def members(self) -> Sequence[Member]:
        """See `Peer`."""
        return self._members

    def ask(self, kind: str, fields: Mapping[str, Any], arrays: Sequence[Any] = ()) -> Answer:
        """What they answer together; `members` of its fields is what each said."""
        return self.begin(kind, fields, arrays).result()

    def begin(
        self, kind: str, fields: Mapping[str, Any], arrays: Sequence[Any] = ()
    ) -> Future[Answer]:
        """The future of an answer; see `ask`."""
        together: Future[Answer] = Future()
        if kind == "prepare" and (other := self._others(fields)):
            together.set_exception(other)
            return together
        if kind == "close":
            self._owners.pop(fields["deployment"], None)
        if kind == "reset":
            self._forget(fields["deployment"])
        with self._order:
            futures = [member.begin(kind, fields, arrays) for member in self._members]
        rest = set(range(len(futures)))
        lock = threading.Lock()

        def ended(number: int) -> None:
            with lock:
                rest.discard(number)
                if rest:
                    return
            self._settle(together, futures)

        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: ended(number))
        if kind == "reset" and fields["deployment"] in self._failed:
            self._failed.discard(fields["deployment"])
            self._expect(futures)
        return together

    def tell(
        self,
        kind: str,
        fields: Mapping[str, Any],
        arrays: Sequence[Any] = (),
        numbers: Sequence[int] = (),
    ) -> None:
        """Sends all what is not answered."""
        with self._order:
            for member in self._members:
                member.tell(kind, fields, arrays, numbers)

    def listen(self, deployment: int, listener: Listener) -> None:
        """See `Peer`; that a pass is done is said once all have said so."""
        self._listeners[deployment] = listener
        for number, member in enumerate(self._members):
            member.listen(deployment, lambda said, number=number: self._hear(number, said))

    def ignore(self, deployment: int) -> None:
        """Undoes `listen` and `when_lost`."""
        self._listeners.pop(deployment, None)
        with self._lock:
            self._when_lost.pop(deployment, None)
        for member in self._members:
            member.ignore(deployment)
        self._forget(deployment)

    def when_lost(self, call: Callable[[Peer], None], deployment: int = -1) -> None:
        """See `Peer`."""
        with self._lock:
            if self.lost is None:
                self._when_lost[deployment].append(call)
                return
        call(self)

    def give_up(self, why: str) -> None:
        """Ends all processes and all that waits for them."""
        self._members[self._teller].give_up(why)

    def close(self) -> None:
        """See `Peer`."""
        with self._lock:
            self._ending = True
            calls, self._when_lost = self._when_lost, defaultdict(list)
        for member in self._members:
            member.close()
        if self.lost is None:
            self.lost = self._members[0].lost
        for call in itertools.chain(*calls.values()):
            call(self)

    def _one_is_lost(self, of: Peer) -> None:
        with self._lock:
            if self._ending:
                return
            self._ending = True
            calls, self._when_lost = self._when_lost, defaultdict(list)
            self.lost = BackendError(  # before anything fails that waits for the others
                f"worker {self.name!r} of {len(self._members)} processes is lost with one of them:"
                f" {of.lost}"
            )
        for member in self._members:
            if member is not of:
                member.give_up(f"is one mesh with {of.name!r}, which was lost")
        for call in itertools.chain(*calls.values()):
            call(self)

    def _hear(self, number: int, message: Message) -> None:
        fields = message.fields
        listener = self._listeners.get(fields["deployment"])
        if listener is None or (message.kind == "progress" and number):
            return
        if message.kind == "failed":
            self._failed.add(fields["deployment"])
            threading.Thread(
                target=self._confirm, args=(listener, message), name="gimlax confirm", daemon=True
            ).start()
            return
        if message.kind == "hung":
            self._teller = number
        if message.kind == "done":
            key = (fields["deployment"], *message.numbers)
            with self._lock:
                done = self._done[key]
                done[number] = message
                if len(done) < len(self._members):
                    return
                del self._done[key]
            arrays, keys = join(
                [(done[n].fields["shares"], done[n].arrays) for n in range(len(self._members))]
            )
            numbers = message.numbers
            message = Message(kind="done", fields=fields, arrays=arrays, keys=keys, numbers=numbers)
        listener(message)

    def _confirm(self, listener: Listener, message: Message) -> None:
        """Passes on that a stage failed, unless it did because another process is no more.

        Who computes with one that dies may hear of it before the controller does.
        """
        futures = [member.begin("hello", {"protocol": PROTOCOL}) for member in self._members]
        wait(futures)
        if not any(future.exception() for future in futures):
            listener(message)

    def _forget(self, deployment: int) -> None:
        with self._lock:
            for key in [key for key in self._done if key[0] == deployment]:
                del self._done[key]

    def _settle(self, together: Future[Answer], futures: Sequence[Future[Answer]]) -> None:
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            lost = self.lost
            together.set_exception(errors[0] if lost is None else BackendError(str(lost)))
            return
        try:
            answers = [future.result() for future in futures]
            fields = {**answers[0][0], "members": [said for said, _ in answers]}
            arrays: list[Any] = []
            if "shares" in fields:
                arrays, keys = join([(said["shares"], parts) for said, parts in answers])
                for index, generator in keys.items():
                    arrays[index] = jax.random.wrap_key_data(
                        jax.numpy.asarray(arrays[index]), impl=generator
                    )
            together.set_result((fields, arrays))
        except Exception as error:  # such as no memory for all of an array
            known = isinstance(error, GimlaxError)
            together.set_exception(
                error
                if known
                else BackendError(
                    f"what the processes of worker {self.name!r} hold could not be put together:"
                    f" {type(error).__name__}: {error}"
                )
            )

    def _expect(self, futures: Sequence[Future[Answer]]) -> None:
        """Gives up if not all answer in time: they wait for one that has failed."""

        def late() -> None:
            _, silent = wait(futures, _RESET_S)
            for member, future in zip(self._members, futures, strict=True):
                if future in silent:
                    member.give_up(
                        f"did not come out of a stage within {_RESET_S:.0f} s of the failure of"
                        " another process"
                    )

        threading.Thread(target=late, name="gimlax reset", daemon=True).start()

    def _others(self, fields: Mapping[str, Any]) -> SpecError | None:
        """An error if another compilation is on it: only one has its passes in one order."""
        if any(owner != fields["owner"] for owner in self._owners.values()):
            return SpecError(
                f"worker {self.name!r} of {len(self._members)} processes runs another compilation,"
                " and they would not start the stages of both in one order; close that one first,"
                " or compile all phases together as a gimlax.Workload"
            )
        self._owners[fields["deployment"]] = fields["owner"]
        return None


def join_up(name: str, members: Sequence[Member]) -> GroupPeer:
    """Lets processes find each other, before their backends start.

    Raises:
        BackendError: they do not.
    """
    first = members[0].launched.host or LOOPBACK
    port = members[0].ask("port", {"host": first})[0]["port"]
    futures = [
        member.begin("join", {"host": first, "port": port, "count": len(members), "number": number})
        for number, member in enumerate(members)
    ]
    wait(futures)
    for member, future in zip(members, futures, strict=True):
        if (error := future.exception()) is not None:
            raise BackendError(f"{member.name}: {error}") from error
    return GroupPeer(name, members)
