"""Noticing that a process hangs: a beat now and then, and how long its echo may take.

Silence is counted in short waits and not read off a clock: a controller that was itself kept from
running, by a long computation or because its machine slept, has not given its workers the chance to
answer, and must not take that for their fault.
"""

import threading
from collections.abc import Callable

from gimlax.runtime.workers.connection import Connection
from gimlax.runtime.workers.wire import Message

__all__ = ["Pulse"]

_BEAT_S = 0.2
_MOST_SILENT = 12  # waits of one beat without an echo: a hang is noticed within 2.6 s


class Pulse:
    """Sends beats over a connection of their own; its other end only echoes them."""

    def __init__(self, name: str, connection: Connection, silent: Callable[[float], None]) -> None:
        """Begins to beat.

        Args:
            name: of the worker.
            connection: to it.
            silent: called once with the seconds that no echo has come for.
        """
        self._connection = connection
        self._silent = silent
        self._heard = threading.Event()
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"gimlax {what} {name}", daemon=True)
            for target, what in ((self._listen, "echo"), (self._beat, "beat"))
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Beats no more."""
        self._ended.set()
        self._heard.set()
        self._connection.close()

    def join(self) -> None:
        """Waits for its threads, unless this is one."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _listen(self) -> None:
        while self._connection.receive() is not None:
            self._heard.set()

    def _beat(self) -> None:
        while not self._ended.is_set():
            self._heard.clear()
            try:
                self._connection.send(Message(kind="beat"))
            except OSError:
                return  # whoever has the other connection says why
            for _ in range(_MOST_SILENT):
                if self._heard.wait(_BEAT_S):
                    break
            else:
                if not self._ended.is_set():
                    self._silent(_MOST_SILENT * _BEAT_S)
                return
            self._ended.wait(_BEAT_S)
