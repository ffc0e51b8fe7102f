"""A file of results that is written while jobs end. It gets its name when it is finished."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from schemas.job import JobState
from worker.errors import InputError
from worker.reports.batchlines import (
    LINE_START,
    Counts,
    count_lines,
    odd_finish_reasons,
    output_line,
    put_in_place,
    write_results,
)
from worker.reports.outputs import Output, part_of
from worker.storage.engine import Ledger
from worker.storage.reading import JobOutcome, iterate_outcomes

_PAGE = 500


class GrowingResults:
    """Writes the output lines of `ids`, in their order, to `path`. `path` None: to standard output, at the end.

    Until `finish`, the lines up to the first job that has not ended are in `<path>.part`. They stay there if the run is
    stopped or killed; the name shows that lines are missing.
    """

    def __init__(
        self, ledger: Ledger, ids: Sequence[str], path: Path | None, *, output: Output | None = None
    ) -> None:
        self._ledger = ledger
        self._output = output
        self._ids = ids
        self._path = path
        self._states: list[JobState | None] = []  # of the jobs written so far; None: it has no line
        self._finish_reasons: Counter[str] = Counter()  # unusual finish reasons of those jobs
        self._part: Path | None = None
        self._stream: BinaryIO | None = None
        self._is_growing = path is not None and (path.is_file() or not path.exists())

    @property
    def part(self) -> Path | None:
        """The file with the lines so far; None if there are none, or if only this process can open it."""
        return self._part if self._part is not None and self._is_to_stay() else None

    def _is_to_stay(self) -> bool:
        return any(self._states) and self._part is not None and not self._part.name.startswith(".")

    def advance(self, is_open: Callable[[str], bool]) -> None:
        """Writes the lines of the jobs that have ended, up to the first one that has not."""
        while self._is_growing and len(self._states) < len(self._ids):
            page = self._ids[len(self._states) : len(self._states) + _PAGE]
            ended = next((i for i, id_ in enumerate(page) if is_open(id_)), len(page))
            if not ended:
                return
            try:
                self._append(page[:ended])
            except OSError:
                # The results are in the ledger. `finish` tries again, and reports the error.
                self._is_growing = False
                self._states.clear()
                self._finish_reasons.clear()
                self.close()

    def finish(self) -> Counts:
        """Writes the rest, renames the file to `path`, and returns the number of its lines.

        Raises InputError if that fails, or would replace a file that must stay.
        """
        if not self._is_growing or self._path is None:
            self._check_again()
            return write_results(iterate_outcomes(self._ledger, self._ids), self._path)
        try:
            for start in range(len(self._states), len(self._ids), _PAGE):
                self._append(self._ids[start : start + _PAGE])
            if any(state is not JobState.SUCCEEDED for state in self._states):
                self._rewrite_changed()
            assert self._stream is not None
            assert self._part is not None
            self._check_again()
            put_in_place(self._stream, self._part, self._path)
        except OSError as exc:
            why = exc.strerror or type(exc).__name__
            raise InputError(f"{self._path} cannot be written ({why}): nothing of it was changed") from exc
        self._part = None
        self.close()
        written = Counter(state for state in self._states if state is not None)
        return count_lines(written, self._finish_reasons)

    def close(self) -> None:
        """Closes the `.part` file. It stays if it has lines and other processes can open it."""
        if self._stream is None:
            return
        with suppress(OSError):
            self._stream.close()
        self._stream = None
        if self._part is not None and not self._is_to_stay():
            self._part.unlink(missing_ok=True)
            self._part = None

    def _check_again(self) -> None:
        if self._output is not None:
            self._output.check_again()

    def _append(self, ids: Sequence[str]) -> None:
        if self._stream is None:
            assert self._path is not None
            target = Path(os.path.realpath(self._path))  # a link stays a link
            self._part, self._stream = _open_part(target, self._output)
        for outcome in self._fetch(ids):
            if outcome is not None:
                self._stream.write(output_line(outcome))
                self._finish_reasons.update(odd_finish_reasons(outcome))
            self._states.append(None if outcome is None else outcome.state)
        self._stream.flush()

    def _rewrite_changed(self) -> None:
        """Writes lines again that may have changed: another run may have retried a job that had failed.

        The line of a success is final. It is kept even if the job has been removed from the ledger since.
        """
        assert self._stream is not None
        assert self._part is not None
        with self._part.open("rb") as lines:
            path = _hidden(self._part)
            again = path.open("xb")
            try:
                for start in range(0, len(self._ids), _PAGE):
                    states = self._states[start : start + _PAGE]
                    ids = self._ids[start : start + _PAGE]
                    left = [
                        id_ for id_, state in zip(ids, states, strict=True) if state is not JobState.SUCCEEDED
                    ]
                    fresh = iter(self._fetch(left))
                    for i, state in enumerate(states, start=start):
                        line = b"" if state is None else lines.readline()
                        if state is not JobState.SUCCEEDED and (outcome := next(fresh)) is not None:
                            line = output_line(outcome)
                            self._states[i] = outcome.state
                            self._finish_reasons.update(odd_finish_reasons(outcome))
                        again.write(line)
            except BaseException:
                again.close()
                path.unlink()
                raise
        self._stream.close()
        self._part.unlink()
        self._part, self._stream = path, again

    def _fetch(self, ids: Sequence[str]) -> list[JobOutcome | None]:
        """The outcome of each of `ids` (at most 500); None where the job has not ended, or is gone."""
        ended = iterate_outcomes(self._ledger, ids)
        found: list[JobOutcome | None] = []
        outcome = next(ended, None)
        for id_ in ids:
            if outcome is not None and outcome.id == id_:
                found.append(outcome)
                outcome = next(ended, None)
            else:
                found.append(None)
        return found


def _open_part(target: Path, output: Output | None) -> tuple[Path, BinaryIO]:
    """An empty file beside the target. A file of that name is used only if an earlier run left it there."""
    path = part_of(target)
    if output is None or output.may_grow_in(path):
        # Another run may be writing it just now, or may have renamed it.
        with suppress(BlockingIOError, FileNotFoundError):
            stream = _open_own(path)
            if stream is not None:
                return path, stream
    path = _hidden(target)
    return path, path.open("xb")


def _open_own(path: Path) -> BinaryIO | None:
    """The file, emptied and locked; None if it was not left by a run."""
    flags = (
        os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    )  # no link, which may lead to any file; and no wait for a pipe
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        is_new = True
    except FileExistsError:
        if not path.is_file() or path.is_symlink():
            return None
        descriptor, is_new = os.open(path, flags), False
    stream = os.fdopen(descriptor, "wb")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        beginning = os.pread(descriptor, len(LINE_START), 0)
        is_ours = is_new or beginning == LINE_START
        # Another run may have renamed it meanwhile.
        if is_ours and os.path.samestat(path.stat(), os.fstat(descriptor)):
            stream.truncate(0)
            return stream
    except BaseException:
        stream.close()
        raise
    stream.close()
    return None


def _hidden(beside: Path) -> Path:
    return beside.with_name(f".antrean-{secrets.token_hex(6)}.part")
