"""The spool: paid answers wait here, synced to disk, while the database is away (invariant 5).

One file a process, locked for as long as the process lives, so that another process may replay what a dead
one left, and nothing that a live one still holds. It is named after its worker, whose row is in its ledger: a worker
of another ledger in the same home leaves it alone. A line is one answer in JSON; a last line that was cut by a crash
was never promised to anyone and is dropped, and it costs no line but itself. A whole line is never dropped: what the
ledger cannot take, or this version cannot read, goes to `rejected.jsonl`, and its file stays until it is there.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

import orjson
import structlog

from worker.errors import Stopping
from worker.files.private import open_private, prepare_folder
from worker.storage.cleaning import clean_text
from worker.storage.outcomes import Claim, Success, Usage

log = structlog.get_logger(__name__)
SUFFIX = ".spool"
REJECTED = "rejected.jsonl"
_BEGINNING = b'{"job_id":'  # of each line
_RETRY_S = 1.0
_ROOM_BYTES = 1 << 20  # a long answer


class Unstorable(Exception):
    """The ledger can never take this answer: whoever replays it puts it aside."""


class SpoolFile:
    """This process's spool. The file is made when it is first needed."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        self._folder = folder
        self._path = folder / f"{worker_id}{SUFFIX}"
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._waiting: list[Success] = []
        self._is_writable = True
        self._is_stopping = threading.Event()

    @property
    def is_writable(self) -> bool:
        return self._is_writable

    def __len__(self) -> int:
        """Answers that wait to be recorded."""
        return len(self._waiting)

    def stop(self) -> None:
        """Wakes those who wait for the spool: the worker ends."""
        self._is_stopping.set()

    def keep(self, success: Success) -> bool:
        """Writes and syncs the answer; False, and no more claims, if it cannot be written."""
        line = orjson.dumps(_encode(success)) + b"\n"
        with self._lock:
            try:
                _append(self._open(), line)
            except OSError as exc:
                if self._is_writable:
                    log.error("spool.unwritable", error=exc.strerror, folder=str(self._folder))
                self._is_writable = False
                return False
            self._waiting.append(success)
            self._is_writable = True
            return True

    def reject(self, success: Success) -> bool:
        """Puts an answer aside, synced, that the ledger can never store. False: it is still in memory alone."""
        return _put_aside(self._folder, orjson.dumps(_encode(success)) + b"\n", answers=1)

    def wait_until_writable(self) -> None:
        """Returns after a moment in which the spool may have recovered. Raises Stopping in a shutdown."""
        if self._is_stopping.wait(_RETRY_S):
            raise Stopping
        with self._lock:
            try:
                self._prove_room()
                self._is_writable = True
            except OSError:
                self._is_writable = False

    def replay(self, record: Callable[[Success], object]) -> int:
        """Number of this process's answers recorded, or put aside where `record` raises Unstorable.

        Raises DatabaseAway with the rest still kept. What could not even be put aside is kept as well.
        """
        done = stuck = 0
        while True:
            with self._lock:
                if len(self._waiting) == stuck:
                    if not stuck:
                        self._remove()
                    return done
                success = self._waiting[stuck]
            try:
                record(success)
            except Unstorable:
                if not self.reject(success):
                    stuck += 1
                    continue
            with self._lock:
                self._waiting.pop(stuck)
            done += 1

    def _open(self) -> int:
        if self._fd is None:
            prepare_folder(self._folder)
            fd = open_private(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_at(self._path, fd):  # another process took it for a leftover before it was locked
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                _sync_folder(self._folder)
            except OSError:
                os.close(fd)
                raise
            self._fd = fd
        return self._fd

    def _prove_room(self) -> None:
        # A full disk syncs without complaint: only room that was really taken says that an answer has some.
        fd = self._open()
        end = os.lseek(fd, 0, os.SEEK_END)
        try:
            _write_all(fd, bytes(_ROOM_BYTES))
        finally:
            os.ftruncate(fd, end)
        os.fsync(fd)

    def _remove(self) -> None:
        if self._fd is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None


def replay_leftovers(
    folder: Path,
    record: Callable[[Success], object],
    *,
    is_ours: Callable[[str, Iterable[tuple[str, str]]], bool] | None = None,
) -> int:
    """Number of answers recorded that dead processes left in `folder`. Raises DatabaseAway; the rest stays.

    A whole line that cannot be read, or that `record` calls Unstorable, is put aside as it is. A file stays while
    one of its lines could not be, and where it cannot be opened; and where `is_ours` says so of its worker and the
    claims in it (job and token): then it is of another ledger.
    """
    done = 0
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            fd = open_private(path, os.O_RDWR)
        except FileNotFoundError:
            continue  # another process was quicker
        except OSError as exc:
            log.error("spool.unreadable", file=str(path), error=exc.strerror)
            continue
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its process lives
            if not _is_at(path, fd):
                continue  # replayed and removed since it was opened; the name may be a living one's by now
            with open(fd, "rb", closefd=False) as lines:
                if is_ours is not None and not is_ours(path.name.removesuffix(SUFFIX), _claims(lines)):
                    continue
                lines.seek(0)
                refused = []
                for line in lines:
                    if not line.endswith(b"\n"):
                        continue
                    answer, torn = _decode_line(line)
                    if answer is not None and _is_recorded(answer, record):
                        done += 1
                        refused += [torn] if torn else []
                    else:
                        refused.append(line)
            # Together: of a file that stays, nothing is put aside again with each beat.
            if refused and not _put_aside(folder, b"".join(refused), answers=len(refused)):
                log.error("spool.kept", file=str(path), answers=len(refused))
            elif _is_at(path, fd):
                path.unlink()
        finally:
            os.close(fd)
    if done:
        log.info("spool.replayed", answers=done)
    return done


def _claims(lines: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Job and token of each answer."""
    for line in lines:
        answer, _ = _decode_line(line)
        if answer is not None:
            yield answer.claim.job_id, answer.claim.token


def _is_recorded(success: Success, record: Callable[[Success], object]) -> bool:
    try:
        record(success)
    except Unstorable:
        return False
    return True


def find_leftovers(folder: Path) -> dict[str, int]:
    """Answers that wait in the files of dead processes, by file name; a file without a whole one is left out."""
    found = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            with path.open("rb") as lines:
                fcntl.flock(lines, fcntl.LOCK_SH | fcntl.LOCK_NB)
                count = _count_lines(lines)
        except (FileNotFoundError, BlockingIOError):
            continue  # replayed meanwhile, or its process lives
        if count:
            found[path.name] = count
    return found


def holds_answers(folder: Path, worker_id: str) -> bool:
    """Whether this worker's file is there with something in it: nobody may take its jobs over yet.

    Somebody may be recording it this very moment. One that cannot be read says yes as well: its answers are paid
    for, and a person can make it readable, so its jobs wait, and whoever waits for it says so at each look.
    """
    try:
        return (folder / f"{worker_id}{SUFFIX}").stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def count_rejected(folder: Path) -> int:
    """Answers in `rejected.jsonl`."""
    try:
        with (folder / REJECTED).open("rb") as lines:
            return _count_lines(lines)
    except FileNotFoundError:
        return 0


def _put_aside(folder: Path, lines: bytes, *, answers: int) -> bool:
    """Whether all of the lines are now in `rejected.jsonl`, synced; else none of them is."""
    path = folder / REJECTED
    try:
        prepare_folder(folder)
        fd = open_private(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # of several processes: what is cut off below is one's own
            _append(fd, lines)
            _sync_folder(folder)
        finally:
            os.close(fd)
    except OSError as exc:
        log.error("spool.reject_failed", answers=answers, file=str(path), error=exc.strerror)
        return False
    log.error("spool.rejected", answers=answers, file=str(path))
    return True


def _count_lines(lines: Iterable[bytes]) -> int:
    return sum(line.endswith(b"\n") for line in lines)


def _encode(success: Success) -> dict[str, object]:
    # A line is flat, and has the names that older versions know: they and newer ones replay each other's.
    facts = asdict(success)
    claim = facts.pop("claim")
    if success.endpoint is None:  # so that workers of older versions can read it
        del facts["endpoint"]
    usage = asdict(success.usage) | {"model": clean_text(success.usage.model)}
    # Older versions cannot read a line with a cost in it. Whoever replays it looks the price up again.
    del usage["cost_nano"]
    raw = base64.b64encode(success.raw).decode()
    return {**claim, **facts, **_texts(success), "raw": raw, "usage": usage}


def _texts(success: Success) -> dict[str, str | None]:
    # JSON of orjson holds no lone surrogates; the ledger would replace them as well.
    texts = {name: getattr(success, name) for name in ("answer", "reasoning", "finish_reason", "request_id")}
    return {name: clean_text(text) for name, text in texts.items()}


def _decode_line(line: bytes) -> tuple[Success | None, bytes]:
    """The answer of a line, and the torn one before it where that has no end of its own."""
    success = _decode(line)
    # No text of an answer reads like this: its quotes are escaped.
    start = -1 if success is not None else line.rfind(_BEGINNING)
    if start > 0 and (whole := _decode(line[start:])) is not None:
        return whole, line[:start] + b"\n"
    return success, b""


def _decode(line: bytes) -> Success | None:
    try:
        values = orjson.loads(line)
        values["raw"] = base64.b64decode(values["raw"])
        values["usage"] = Usage(**values["usage"])
        claim = Claim(**{one.name: values.pop(one.name) for one in fields(Claim)})
        success = Success(claim=claim, **values)
    except (ValueError, TypeError, KeyError) as exc:
        log.error("spool.bad_line", error=type(exc).__name__)
        return None
    if not isinstance(claim.job_id, str) or not isinstance(claim.token, str):
        log.error("spool.bad_line", error="no claim")
        return None
    return success


def _is_at(path: Path, fd: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _append(fd: int, lines: bytes) -> None:
    start = os.lseek(fd, 0, os.SEEK_END)
    if start and os.pread(fd, 1, start - 1) != b"\n":
        lines = b"\n" + lines  # so that a torn line before cannot spoil this one
    try:
        _write_all(fd, lines)
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, start)  # no half line before a later whole one
        raise


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
