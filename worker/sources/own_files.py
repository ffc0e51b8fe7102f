"""Files of antrean and of the run itself. They are never documents, wherever they lie."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from schemas.sqlite_address import is_sqlite_address, parse_sqlite_path
from worker.settings import Settings

_SETTINGS = (".env", "antrean.toml")
# The first command in a home makes one of these. No folder of documents has one.
_MARKS_OF_A_HOME = ("stack.lock", "antrean.db")


class OwnFiles:
    """A description for each of these files, by device and inode: a link or a second name is recognised, too."""

    def __init__(self, *, output_start: bytes = b"") -> None:
        """`output_start`: the first bytes of every file of results."""
        self._output_start = output_start
        self._words: dict[tuple[int, int], str] = {}

    @classmethod
    def of_run(cls, settings: Settings, *, prompt: Path, output: Path, output_start: bytes) -> Self:
        """The files of a run with these settings that exist."""
        own = cls(output_start=output_start)
        for path, words in _list_own(settings, prompt):
            own.add(path, words)
        # Any other file of that name is a document, and is never overwritten.
        if _begins_with(output, output_start):
            own.add(output, "the output")
        # For `run … > run.log` in the folder: without this the second run would send run.log as a document.
        for stream, words in ((sys.stdout, "standard output"), (sys.stderr, "standard error")):
            with suppress(OSError, ValueError, AttributeError):  # the stream is closed or missing
                own._add(os.fstat(stream.fileno()), f"where {words} goes")
        return own

    def add(self, path: Path, words: str) -> None:
        """Records the file or folder at `path` with the description `words`. A missing one is ignored."""
        try:
            facts = path.stat()
        except OSError:
            return
        self._add(facts, words)

    def describe(self, path: Path) -> str | None:
        """The description of the file or folder at `path` if it is one of antrean's own, else None."""
        try:
            facts = path.stat()
            known = self._words.get((facts.st_dev, facts.st_ino))
            if known is None and stat.S_ISDIR(facts.st_mode) and _is_home(path):
                return "a home of antrean"
        except OSError:
            return None  # the caller reads the file next and reports the error
        return known

    def describe_text(self, raw: bytes) -> str | None:
        """The description of a file with these bytes if they show that it is one of antrean's own, else None."""
        return "earlier results" if self._output_start and raw.startswith(self._output_start) else None

    def _add(self, facts: os.stat_result, words: str) -> None:
        if stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode):
            self._words.setdefault((facts.st_dev, facts.st_ino), words)


def _begins_with(path: Path, start: bytes) -> bool:
    """Whether the file begins with `start`, or is empty."""
    try:
        with path.open("rb") as file:
            return file.read(len(start)) in (b"", start)
    except OSError:
        return False


def _list_own(settings: Settings, prompt: Path) -> Iterator[tuple[Path, str]]:
    yield from ((file, "the file of a key or password") for file in settings.secret_files)
    yield from ((Path(name), "settings") for name in _SETTINGS)
    yield prompt, "the prompt"
    yield settings.home, "the home of antrean"
    if settings.database_url is not None:
        address = settings.database_url.get_secret_value()
        if is_sqlite_address(address):
            yield Path(parse_sqlite_path(address)), "the ledger"


def _is_home(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _MARKS_OF_A_HOME)
