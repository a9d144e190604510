"""What a benchmark runs in another process, often of another environment: it answers in lines.

A child prints one JSON value a line: the first when it is ready, then one for each JSON line that
it reads. Whatever else its libraries print goes to standard error, which is shown when it dies.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
_LAST_LINES = 8


class Child:
    """A process that answers; a context manager that ends it."""

    def __init__(
        self,
        python: str,
        *args: str,
        env: Mapping[str, str] | None = None,
        cores: Sequence[int] = (),
    ) -> None:
        """Starts `python args` and waits until it is ready.

        Args:
            python: interpreter of its environment.
            *args: a script of this folder and its arguments.
            env: variables besides those of this process.
            cores: that it may use; by default those of this process.
        """
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close)
        pin = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        self._process = subprocess.Popen(
            [*pin, python, str(HERE / args[0]), *args[1:]],
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.ready = self._read()

    def ask(self, question: Any) -> Any:
        """What it answers."""
        self.tell(question)
        return self._read()

    def tell(self, question: Any) -> None:
        """Asks; `hear` has the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()

    def hear(self) -> Any:
        """The next answer."""
        return self._read()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        said = "".join(self._errors.readlines()[-_LAST_LINES:])
        raise RuntimeError(f"{self._process.args} ended with {code}:\n{said}")


def serve(ready: Any, answer: Callable[[Any], Any]) -> None:
    """The child's side: says that it is ready, then answers line by line."""
    # Libraries may print; only answers go to the parent.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def interpreter(folder: str | None, what: str, target: str) -> str | None:
    """The interpreter of a peer's environment; says what is left out where there is none."""
    path = Path(folder) / "bin" / "python" if folder else None
    if path is not None and path.exists():
        return str(path)
    print(f"{what}: no environment {folder or ''}; left out (make {target} installs it)")
    return None
