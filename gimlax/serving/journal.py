"""Finished rows of a long job, a line each and in order, so that a killed run goes on where it was.

While the job runs, lines are appended to `OUTPUT.part`; what a kill left of a line is cut off when
the job goes on. `OUTPUT.job` says what the lines belong to. At the end the lines become OUTPUT
under its own name, so that it is there whole or not at all, and the `.job` stays: it shows a run
that comes later, and finds nothing to do, that this is so.

Chosen over a journal of its own beside an output that is made of it (`Rows`): the lines are the
output, so they are written once, and can be read while the job runs.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from gimlax.errors import BackendError, SpecError

LONGEST_SHOWN = 60  # characters of a value in a message


class Journal:
    """The lines of one job, so far; one run at a time has it.

    Args:
      output: where the result will be.
      belongs: what the lines are lines of, as JSON; lines of something else are not gone on with.

    Attributes:
      complete: whether there is nothing left to do: the output is there.

    Raises:
      SpecError: there are lines of something else, another run has the job, a line is no JSON
        object, or a file cannot be written.
    """

    def __init__(self, output: Path, *, belongs: Mapping[str, Any]) -> None:
        self.output = output
        self.part = output.with_name(f"{output.name}.part")
        self.job = output.with_name(f"{output.name}.job")
        try:
            self._fd = self._locked()
        except OSError as error:
            raise SpecError(f"'{self.part}' cannot be written: {error.strerror}") from error
        try:
            self._check(json.loads(json.dumps(belongs)))
            self.complete = self.output.exists() and not self._size()
            self._num_lines = 0 if self.complete else self._cut_off()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise SpecError(f"'{self.output}': {error.strerror}") from error
            raise
        if self.complete:
            self.close()

    def __len__(self) -> int:
        """Finished rows that are not in the output yet."""
        return self._num_lines

    @property
    def began_s(self) -> int:
        """When the first run of the job began, in seconds since 1970; every run says the same."""
        return int(self.job.stat().st_mtime)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds the rows that follow; they are on the disk when it returns.

        Raises:
          BackendError: the disk is full, or the like.
        """
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        left = memoryview("".join(f"{line}\n" for line in lines).encode(errors="replace"))
        try:
            while left:
                left = left[os.write(self._fd, left) :]
            os.fsync(self._fd)
        except OSError as error:
            raise BackendError(f"'{self.part}' cannot be written: {error.strerror}") from error
        self._num_lines += len(lines)

    def read(self) -> Iterator[dict[str, Any]]:
        """All rows so far. Raises `SpecError` for one that is no JSON object."""
        path = self.output if self.complete else self.part
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise SpecError(
                        f"'{path}', line {number} is damaged ({line[:LONGEST_SHOWN]!r}); delete "
                        "the file to begin anew"
                    )
                yield row

    def finish(
        self, write: Callable[[IO[bytes], Iterator[dict[str, Any]]], None] | None = None
    ) -> None:
        """Makes the output of the lines: they become it, or `write(file, rows)` makes it."""
        if write is None:
            self.part.replace(self.output)
        else:
            made = self.output.with_name(f"{self.output.name}.new")
            with made.open("wb") as file:
                write(file, self.read())
                file.flush()
                os.fsync(file.fileno())
            made.replace(self.output)
            self.part.unlink()
        self._sync_folder()
        self.complete = True
        self.close()

    def close(self) -> None:
        """Leaves the lines where they are, for a run to come."""
        if self._fd >= 0:
            if not self._size() and self._is_at(self.part):
                self.part.unlink()
            os.close(self._fd)
            self._fd = -1

    def _locked(self) -> int:
        """The file of lines, opened and held against other runs."""
        while True:
            fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if not isinstance(error, BlockingIOError):
                    raise
                raise SpecError(
                    f"'{self.part}' is being written by another run; wait for it, or choose "
                    "another output"
                ) from error
            self._fd = fd
            if self._is_at(self.part):
                return fd
            os.close(fd)  # the run that had it has just finished

    def _check(self, belongs: dict[str, Any]) -> None:
        """That what is there is of this job; says so for runs to come if there is nothing yet."""
        there = [path for path in (self.output, self.part) if path.exists()]
        there = [path for path in there if path != self.part or self._size()]
        if not self.job.exists():
            if there:
                raise SpecError(
                    f"'{there[0]}' is there already, and no '{self.job.name}' says what of; delete "
                    "it, or choose another output"
                )
        else:
            found = _load(self.job)
            if found == belongs:
                return
            if there:
                raise SpecError(
                    f"'{there[0]}' is of another job: {_difference(found, belongs)}; delete it to "
                    "begin anew, or choose another output"
                )
        made = self.job.with_name(f"{self.job.name}.new")
        with made.open("w", encoding="utf-8") as file:
            file.write(json.dumps(belongs, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        made.replace(self.job)
        self._sync_folder()

    def _cut_off(self) -> int:
        """Drops what a kill left of a line, and counts whole ones."""
        num_lines = end = 0
        with self.part.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    num_lines += 1
                    end += len(line)
        os.ftruncate(self._fd, end)
        return num_lines

    def _size(self) -> int:
        return os.fstat(self._fd).st_size

    def _is_at(self, path: Path) -> bool:
        """Whether the file that is held is the one of this name."""
        try:
            return os.path.samestat(os.fstat(self._fd), path.stat())
        except FileNotFoundError:
            return False

    def _sync_folder(self) -> None:
        """Puts new names on the disk."""
        folder = os.open(self.output.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"'{path}' is no description of a job: {error}") from error
    if not isinstance(found, dict):
        raise SpecError(f"'{path}' is no description of a job, but a {type(found).__name__}")
    return found


def _difference(found: dict[str, Any], belongs: dict[str, Any]) -> str:
    keys = [key for key in {**belongs, **found} if found.get(key) != belongs.get(key)]
    return "; ".join(
        f"its {key} is {_shown(found.get(key))}, not {_shown(belongs.get(key))}" for key in keys
    )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
