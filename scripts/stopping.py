"""SIGTERM ends a script within seconds, whatever it is doing.

The handler makes the main thread leave as soon as it runs Python again. That may be long, while XLA
compiles or a pass runs, so the signal also wakes a thread through a pipe, which ends the process if
it is still there after a grace. What a script has appended to a journal is on the disk by then.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType

GRACE_S = 3.0
EXIT_CODE = 128 + signal.SIGTERM


def heed_sigterm() -> None:
    """Call once, in the main thread."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end, args=(read,), name="sigterm", daemon=True).start()


def _leave(number: int, frame: FrameType | None) -> None:
    print("SIGTERM: what is finished is kept; the same command goes on", file=sys.stderr)
    sys.exit(EXIT_CODE)


def _end(read: int) -> None:
    while signal.SIGTERM not in os.read(read, 64):
        pass
    time.sleep(GRACE_S)
    os._exit(EXIT_CODE)
