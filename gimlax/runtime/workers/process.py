"""`python -m gimlax.runtime.workers.process`: a worker as a process of its own.

Reads one line of JSON from standard input (the secret, where to listen), writes one with its
address to standard output, and ends when its controller hangs up, or when standard input does: a
controller that was killed leaves no process behind.
"""

import ctypes
import json
import os
import signal
import sys
import threading

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves until the controller or standard input hangs up."""
    # A process that is stopped cannot notice either, so the system is asked to end it too.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    told = json.loads(sys.stdin.readline())
    # The address goes to the real standard output; nothing that a library prints may follow it.
    address_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    from gimlax.runtime.workers.connection import listen
    from gimlax.runtime.workers.server import serve

    listener, address = listen(told["listen"])
    print(json.dumps({"address": address}), file=address_to, flush=True)
    address_to.close()
    threading.Thread(target=_end_with_standard_input, name="gimlax orphan", daemon=True).start()
    serve(listener, bytes.fromhex(told["secret"]), told["listen"])
    sys.stdout.flush()
    os._exit(0)  # threads of a backend that hangs must not keep the process


def _end_with_standard_input() -> None:
    while sys.stdin.read(1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
