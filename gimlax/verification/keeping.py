"""Answers of compilers, kept in a folder: what the same versions compiled is not compiled again.

One JSON file an answer, called by a digest of all that it depends on. What cannot be read counts as
not kept. Failures of a compiler are not kept: the next run may go better.
"""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gimlax.errors import GimlaxError, SpecError
from gimlax.records import from_json, to_json
from gimlax.verification.answers import ANSWER_VERSION, Answer

__all__ = ["Kept"]

_MOST_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A folder of answers; None keeps nothing."""

    folder: Path | None

    @classmethod
    def of(cls, folder: str | Path | None) -> Self:
        """A folder, made if it is not there.

        Raises:
            SpecError: it cannot be made or written to.
        """
        if folder is None:
            return cls(folder=None)
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise SpecError(
                f"cache {str(folder)!r} cannot be written to ({error.strerror}); give another"
                " folder, or leave it out"
            ) from error
        return cls(folder=path)

    def find(self, key: str) -> Answer | None:
        """The answer that was kept under a key, None if there is none that can be read."""
        if self.folder is None:
            return None
        with contextlib.suppress(OSError, UnicodeDecodeError, GimlaxError):
            path = self.folder / f"{key}.json"
            if path.stat().st_size <= _MOST_BYTES:
                text = path.read_text("utf-8")
                return from_json(
                    Answer, text, ANSWER_VERSION, "answer", error=SpecError, advice="leave it"
                )
        return None

    def keep(self, key: str, answer: Answer) -> None:
        """Keeps an answer; another process may keep the same at the same time."""
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            part = self.folder / f"{key}.{os.getpid()}.part"
            part.write_text(to_json(answer, ANSWER_VERSION), "utf-8")
            os.replace(part, self.folder / f"{key}.json")
