"""The controller's part in links between workers: who offers, who calls, who mends one.

A receiver's worker makes an offer, which the sender's worker gets by way of the controller. Workers
of one host meet in shared memory, others over TCP.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gimlax.errors import GimlaxError
from gimlax.planning import Carrier
from gimlax.program import Program, track_of_link
from gimlax.runtime.workers.peers import Peer

__all__ = ["Links"]


@dataclass(slots=True)
class _Link:
    """A link between two workers; `made` counts how often it was made."""

    sender: Peer
    receiver: Peer
    kind: str
    made: int = 0


class Links:
    """All links of a deployment between different workers."""

    def __init__(
        self,
        deployment: int,
        programs: Sequence[Program],
        workers: Mapping[str, Peer],
        carriers: Sequence[Carrier],
    ) -> None:
        """`workers` has the worker of each mesh, `carriers` are those of the plan."""
        planned = {(of.source, of.target): of.kind for of in carriers}
        self._deployment = deployment
        self._lock = threading.Lock()
        self._closed = False
        self._links = {
            track_of_link(source, target): _Link(
                workers[source], workers[target], planned[source, target]
            )
            for program in programs
            for (source, target), _ in program.links
            if workers[source] is not workers[target]
        }

    def join_all(self) -> None:
        """Makes every link.

        Raises:
            BackendError: a worker cannot reach another.
        """
        for track in self._links:
            self._join(track)

    def hear(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Acts on what a worker tells of a link: that it broke, or that something never came."""
        if kind == "missing":
            sender = self._links[fields["track"]].sender
            sender.tell(
                "again",
                {"deployment": self._deployment, "track": fields["track"], "pass": fields["pass"]},
            )
        elif kind == "broken":
            # The thread that hears a worker must not wait for its answer.
            threading.Thread(
                target=self._mend,
                args=(fields["track"], fields["made"]),
                name="gimlax mend",
                daemon=True,
            ).start()

    def close(self) -> None:
        """Makes no link any more."""
        self._closed = True

    def _mend(self, track: str, made: int) -> None:
        with self._lock:
            # Both ends tell of a break; the second word is about a link that is no more.
            if made != self._links[track].made or self._closed:
                return
            try:
                self._join(track)
            except GimlaxError as error:
                link = self._links[track]
                if link.sender.lost is None and link.receiver.lost is None and not self._closed:
                    link.receiver.give_up(f"cannot be reached by {link.sender.name!r} ({error})")

    def _join(self, track: str) -> None:
        link = self._links[track]
        link.made += 1
        fields = {"deployment": self._deployment, "track": track, "made": link.made}
        said, _ = link.receiver.ask("offer", {**fields, "kind": link.kind})
        link.sender.ask("connect", {**fields, "offer": said["offer"]})
