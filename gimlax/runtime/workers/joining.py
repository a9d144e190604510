"""The controller's part in links between workers: who offers, who calls, who mends one.

A receiver's worker makes an offer, which the sender's worker gets by way of the controller. Workers
of one host meet in shared memory, others over TCP. A link over which something was sent again and
still did not come is made anew; if that does not help either, its receiver is given up.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gimlax.errors import GimlaxError
from gimlax.fabric import Offer
from gimlax.planning import Carrier
from gimlax.planning.carriers import TCP
from gimlax.program import Program, track_of_link
from gimlax.runtime.workers.peers import Member, Peer

__all__ = ["Detour", "Links"]

Detour = Callable[[str, Offer], Offer]

_MOST_RESENT = 2  # times that something is sent again over one link
_MOST_STUCK = 3  # links made anew in a row, and nothing came through


_Ends = tuple[str, int, int]  # a track, and which process of either worker is at its ends


@dataclass(slots=True)
class _Link:
    """A link between two processes; `made` counts how often it was made."""

    sender: Member
    receiver: Member
    kind: str
    made: int = 0
    stuck: int = 0


class Links:
    """All links of a deployment between different workers."""

    def __init__(
        self,
        deployment: int,
        programs: Sequence[Program],
        workers: Mapping[str, Peer],
        carriers: Sequence[Carrier],
        detour: Detour | None = None,
    ) -> None:
        """Makes none yet.

        Args:
            deployment: number of it.
            programs: of all phases.
            workers: the worker of each mesh.
            carriers: those of the plan.
            detour: gives for the track of a link and the offer of its receiver the offer that the
                sender gets; the link is then over TCP.
        """
        planned = {(of.source, of.target): of.kind for of in carriers}
        self._detour = detour
        self._resent: Counter[tuple[_Ends, int, int]] = Counter()  # and link made, pass
        self._deployment = deployment
        self._lock = threading.Lock()
        self._closed = False
        self._links = {
            (track_of_link(source, target), number, to): _Link(
                sender, receiver, TCP if detour else planned[source, target]
            )
            for program in programs
            for (source, target), _ in program.links
            if workers[source] is not workers[target]
            for number, sender in enumerate(workers[source].members)
            for to, receiver in enumerate(workers[target].members)
        }

    def join_all(self) -> None:
        """Makes every link.

        Raises:
            BackendError: a worker cannot reach another.
        """
        for ends in self._links:
            self._join(ends)

    def hear(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Acts on what a worker tells of a link: that it broke, or that something never came."""
        if kind == "missing":
            for (track, _, to), link in self._links.items():
                if (track, to) == (fields["track"], fields["to"]):
                    said = {"track": track, "to": to, "pass": fields["pass"]}
                    link.sender.tell("again", {"deployment": self._deployment, **said})
        elif kind == "broken":
            self._begin_to_mend(_ends(fields), fields["made"])
        elif kind == "resent":
            link = self._links[_ends(fields)]
            key = _ends(fields), link.made, fields["pass"]
            self._resent[key] += 1
            if self._resent[key] == _MOST_RESENT:
                link.stuck += 1
                if link.stuck > _MOST_STUCK:
                    threading.Thread(
                        target=link.receiver.give_up,
                        args=(f"never gets what {link.sender.name!r} sends",),
                        name="gimlax mend",
                        daemon=True,
                    ).start()
                else:
                    self._begin_to_mend(_ends(fields), link.made)

    def progress(self) -> None:
        """A pass has come through."""
        if self._resent:
            self._resent.clear()
            for link in self._links.values():
                link.stuck = 0

    def _begin_to_mend(self, ends: _Ends, made: int) -> None:
        # The thread that hears a worker must not wait for its answer.
        threading.Thread(
            target=self._mend, args=(ends, made), name="gimlax mend", daemon=True
        ).start()

    def close(self) -> None:
        """Makes no link any more."""
        self._closed = True

    def _mend(self, ends: _Ends, made: int) -> None:
        with self._lock:
            # Both ends tell of a break; the second word is about a link that is no more.
            if made != self._links[ends].made or self._closed:
                return
            try:
                self._join(ends)
            except GimlaxError as error:
                link = self._links[ends]
                if link.sender.lost is None and link.receiver.lost is None and not self._closed:
                    link.receiver.give_up(f"cannot be reached by {link.sender.name!r} ({error})")

    def _join(self, ends: _Ends) -> None:
        track, number, to = ends
        link = self._links[ends]
        link.made += 1
        fields = {
            "deployment": self._deployment,
            "track": track,
            "from": number,
            "to": to,
            "made": link.made,
        }
        said, _ = link.receiver.ask("offer", {**fields, "kind": link.kind})
        offer = said["offer"]
        if self._detour is not None:
            offer = self._detour(track, Offer.from_json(offer)).to_json()
        link.sender.ask("connect", {**fields, "offer": offer})


def _ends(fields: Mapping[str, Any]) -> _Ends:
    return fields["track"], fields["from"], fields["to"]
