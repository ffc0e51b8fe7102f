"""A worker's presence on its machine: a lock that the kernel lets go when the process dies, however it dies.

A lease has to be waited for. A lock that is free is certain at once: the process is gone. So what a killed
worker held goes on without delay where its home folder is at hand, and by its lease elsewhere.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import structlog

from worker.files.home import try_lock
from worker.files.private import open_private, prepare_folder

log = structlog.get_logger(__name__)
_SUFFIX = ".lock"
_GIVEN_BACK = b"given back\n"


class Presence:
    """The lock of this process, held until it ends."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        self._folder = folder
        self._path = folder / f"{worker_id}{_SUFFIX}"
        self._descriptor: int | None = None

    def begin(self) -> None:
        """Takes the lock. A folder that cannot be written leaves this worker to its lease alone."""
        # Locked before it has its name: who looks at a lock holds it for that moment, and would keep it from us.
        unnamed = self._path.with_suffix(".new")
        try:
            prepare_folder(self._folder)
            self._descriptor = open_private(unnamed, os.O_RDWR | os.O_CREAT)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(self._path)
        except OSError as exc:
            log.warning("presence.unlocked", folder=str(self._folder), error=exc.strerror)

    def end(self) -> None:
        """Lets the lock go, at an orderly end."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def say_all_is_given_back(self) -> None:
        """At an orderly end that the database could not be told of: whoever rescues the jobs counts no loss."""
        if self._descriptor is not None:
            with suppress(OSError):  # then they count as lost with it, twice at most before they run alone
                os.write(self._descriptor, _GIVEN_BACK)

    def has_given_back(self, worker_id: str) -> bool:
        """Whether a dead worker of this folder has said so."""
        try:
            return (self._folder / f"{worker_id}{_SUFFIX}").read_bytes() == _GIVEN_BACK
        except OSError:
            return False

    def find_dead(self) -> list[str]:
        """Ids of workers of this folder whose process is gone for certain."""
        dead = []
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if path != self._path and _is_locked(path) is False:
                dead.append(path.name.removesuffix(_SUFFIX))
        return dead

    def is_alive(self, worker_id: str) -> bool:
        """Whether this worker's process is of this folder, and there."""
        return is_alive(self._folder, worker_id)

    def forget(self, worker_id: str) -> None:
        """Removes what a dead worker left, once its jobs are rescued."""
        forget(self._folder, worker_id)


def _is_locked(path: Path) -> bool | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None  # gone already, or not ours to judge
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def is_alive(folder: Path, worker_id: str) -> bool:
    """Whether the worker's lock is in `folder` and held. False: it is dead, or of another machine."""
    return _is_locked(folder / f"{worker_id}{_SUFFIX}") is True


def has_died(folder: Path, worker_id: str) -> bool:
    """Whether the worker's lock is in `folder` and nobody holds it. False: it lives, or is of another machine."""
    return _is_locked(folder / f"{worker_id}{_SUFFIX}") is False


def forget(folder: Path, worker_id: str) -> None:
    """Removes the lock of a dead worker, once its jobs are rescued."""
    (folder / f"{worker_id}{_SUFFIX}").unlink(missing_ok=True)
