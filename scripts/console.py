"""What the scripts share: one line per error, progress with and without a terminal, a cache.

Progress goes to standard error, so that standard output holds the results alone.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import app
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gimlax.errors import GimlaxError, SpecError


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a script; an error of gimlax becomes one line on standard error and exit code 2."""

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; every option is a --flag")
        try:
            main(argv)
        except GimlaxError as error:
            sys.stdout.flush()
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(guarded)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[float, float, str], None]]:
    """Shows how far something is, as a bar on a terminal and as two lines off it.

    Yields a function of (done, total, what is being done).
    """
    console = Console(stderr=True)
    start_s = time.monotonic()
    if not console.is_terminal:
        print(f"{title} ...", file=sys.stderr, flush=True)
        yield lambda done, total, what: None
        print(f"{title}: {time.monotonic() - start_s:.1f} s", file=sys.stderr, flush=True)
        return
    what = TextColumn("{task.description}")
    columns = TextColumn(f"{title:12}"), BarColumn(), TimeElapsedColumn(), what
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("", total=None)

        def update(done: float, total: float, what: str) -> None:
            bars.update(task, completed=done, total=total, description=what)

        yield update
        bars.update(task, completed=1, total=1, description="")


def check_output(path: str | None) -> None:
    """Raises `SpecError` before any work if a file asked for could not be written at its end."""
    if path is not None and (not Path(path).parent.is_dir() or Path(path).is_dir()):
        raise SpecError(f"output {path!r}: it names no file in a folder that exists; create that")


def prepare_jax() -> None:
    """Lets later runs reuse what this one compiles, and leaves only errors of JAX on the screen."""
    jax.config.update("jax_logging_level", "ERROR")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "gimlax" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
