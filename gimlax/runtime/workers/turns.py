"""What a controller asks for, in turn, where one thing has to be waited for elsewhere.

On one of several processes of a worker nothing may overtake a stage that is tried, since all of
them compute in one order. But passes under way, which it waits for, may need to be sent something
again, a new link, or to be given up; so it is waited for in a thread of its own, and only what must
not overtake it is held back.
"""

import os
import threading
from collections import deque
from collections.abc import Callable

from gimlax.runtime.workers.wire import Message

__all__ = ["Turns"]

_AT_ONCE = ("again", "close", "connect", "hello", "offer", "reset")


class Turns:
    """Holds messages back while one is acted on."""

    def __init__(self, do: Callable[[Message], None]) -> None:
        """`do` acts on a message."""
        self._do = do
        self._lock = threading.Lock()
        self._held: deque[Message] | None = None  # None if nothing is waited for
        self._thread: threading.Thread | None = None

    def holds(self, message: Message) -> bool:
        """Whether a message waits for its turn; it is acted on then."""
        with self._lock:
            if self._held is None or message.kind in _AT_ONCE:
                return False
            self._held.append(message)
            return True

    def take(self, act: Callable[[], None]) -> None:
        """Acts in another thread, and holds back what comes meanwhile."""
        if threading.current_thread() is self._thread:  # what was held back itself
            act()
            return
        with self._lock:
            self._held = deque()
        self._thread = threading.Thread(
            target=self._act, args=(act,), name="gimlax turn", daemon=True
        )
        self._thread.start()

    def _act(self, act: Callable[[], None]) -> None:
        try:
            act()
            while True:
                with self._lock:
                    if not self._held:
                        self._held = None
                        return
                    message = self._held.popleft()
                self._do(message)
        except BaseException as error:
            # Such as no memory for a thread: what is held back would wait for ever.
            print(f"the turn of a worker failed: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
