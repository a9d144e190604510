"""Messages that wait to be sent: a queue bounded by bytes, and the thread that empties it.

The thread waits for the values, so that `put` returns while they are still computed. A small
message whose values are there, with none before it, is sent by the caller, since handing it over to
a thread would take longer than sending it; what the system does not take of it at once is left to
the thread, so that a caller waits for room in the queue only, or for nothing at all.
"""

import collections
import threading
import time
from collections.abc import Callable

from gimlax.fabric.failures import LinkClosed, LinkError, LinkTimeout
from gimlax.fabric.packing import Packet

__all__ = ["Outbox"]

_SMALL_BYTES = 64 * 1024


class Outbox:
    """Carries packets in the order of `put`.

    Args:
        link: for messages.
        limit_bytes: payloads that may wait, the one under way included; one that is larger waits
            alone.
        carry: sends a packet, or what is left of one that was begun.
        begin: sends what it can of a small packet without waiting; whether that was all. Of these
            two one runs at a time.
        ended: called once, after `stop`, when no `carry` runs any more.
    """

    def __init__(
        self,
        link: str,
        limit_bytes: int,
        *,
        carry: Callable[[Packet], None],
        begin: Callable[[Packet], bool],
        ended: Callable[[], None],
    ) -> None:
        self._link = link
        self._limit_bytes = limit_bytes
        self._carry = carry
        self._begin = begin
        self._ended = ended
        self._waiting: collections.deque[Packet] = collections.deque()
        self._bytes = 0
        self._busy = False
        self._stopped = False
        self._failure: LinkError | None = None
        lock = threading.Lock()
        self._changed = threading.Condition(lock)  # for callers: room, or nothing under way
        self._work = threading.Condition(lock)  # for the thread, which sleeps through small ones
        self._thread = threading.Thread(target=self._run, name=f"gimlax {link}", daemon=True)
        self._thread.start()

    def put(self, packet: Packet, *, wait: bool = True) -> bool:
        """Takes a packet once there is room; without `wait` only if there is, and whether it did.

        Raises:
            LinkError: why none is carried any more.
        """
        with self._changed:
            while self._failure is None and (
                self._bytes and self._bytes + packet.payload_bytes > self._limit_bytes
            ):
                if not wait:
                    return False
                self._changed.wait()
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            alone = not self._busy and not self._waiting
            if not (alone and packet.payload_bytes <= _SMALL_BYTES and packet.ready):
                self._waiting.append(packet)
                self._bytes += packet.payload_bytes
                self._work.notify()
                return True
            self._busy = True
        all_sent, failure = self._attempt(self._begin, packet)
        with self._changed:
            if not all_sent and not self._stopped:
                self._waiting.appendleft(packet)
                self._bytes += packet.payload_bytes
            self._settle(failure)
            if (failure := self._failure) is not None:
                raise failure.with_traceback(None)
        return True

    def drain(self, timeout_s: float | None) -> None:
        """Waits until nothing waits and nothing is under way.

        Raises:
            LinkTimeout: that took longer.
            LinkError: why it will not happen.
        """
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while self._failure is None and (self._waiting or self._busy):
                rest_s = None if end_s is None else end_s - time.monotonic()
                if rest_s is not None and rest_s <= 0:
                    raise LinkTimeout(
                        self._link, f"{self._bytes} bytes were not sent in {timeout_s} s"
                    )
                self._changed.wait(rest_s)
            if self._failure is not None:
                raise self._failure.with_traceback(None)

    def stop(self) -> bool:
        """Carries nothing more and wakes whoever waits; whether nothing was under way."""
        with self._changed:
            if self._failure is None:
                self._failure = LinkClosed(self._link, "it was closed at this end")
            self._stopped = True
            self._waiting.clear()
            self._changed.notify_all()
            self._work.notify()
            return not self._busy

    def join(self, timeout_s: float) -> None:
        """Waits for the thread to end, after `stop`."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._busy or not (self._waiting or self._stopped):
                    self._work.wait()
                if self._stopped:
                    break
                packet = self._waiting.popleft()
                self._busy = True
            _, failure = self._attempt(self._carry, packet)
            with self._changed:
                self._bytes -= packet.payload_bytes
                self._settle(failure)
            del packet, failure  # their arrays are not held while nothing is to be done
        self._ended()

    def _attempt(
        self, send: Callable[[Packet], bool | None], packet: Packet
    ) -> tuple[bool | None, LinkError | None]:
        """What `send` returned, and why it could not."""
        try:
            return send(packet), None
        except LinkError as error:
            return True, error
        except Exception as error:  # ours; the thread may not die of it unseen
            failure = LinkError(self._link, f"{packet.tag} was not sent: {error!r}")
            failure.__cause__ = error
            return True, failure

    def _settle(self, failure: LinkError | None) -> None:
        """Nothing is under way any more; the caller holds the lock."""
        self._busy = False
        if failure is not None:
            self._failure = self._failure or failure
            self._waiting.clear()
        if self._waiting or self._stopped:
            self._work.notify()
        self._changed.notify_all()
