"""The locks of the runs of a home: they tell which batches are run just now, also after a crash.

A run holds its batch's lock while it lives; a prune holds the locks of all others. The files stay and are empty.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.errors import SettingsError
from worker.files.home import open_lock_file, try_lock
from worker.files.names import as_text
from worker.files.private import prepare_folder
from worker.settings import Settings
from worker.storage.batches import Batch, fetch_unheld_runs
from worker.storage.engine import Ledger


class RunLock:
    """The lock of a run's batch: shared by all who run it just now."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether no other process runs the batch. If so, none begins to while inside."""
        # flock drops our shared lock where the exclusive one is refused. Until we take it again, the shared locks of
        # the other runs keep the batch from being held.
        is_alone = try_lock(self._descriptor)
        try:
            yield is_alone
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)


@dataclass(frozen=True, slots=True)
class RunsOfHome:
    """Ids of batches: `idle` ones have no living run in this home, `living` ones have one."""

    idle: frozenset[str]
    living: frozenset[str]
    _settings: Settings

    def find_living(self, batch_ids: Collection[str]) -> frozenset[str]:
        """Those of `batch_ids` that a process of this home runs now, also one that has begun since."""
        return frozenset(
            id_ for id_ in batch_ids if id_ not in self.idle and is_lock_held(lock_path(self._settings, id_))
        )


@contextmanager
def kept_from_running(ledger: Ledger, settings: Settings, batch: Batch | None = None) -> Iterator[RunsOfHome]:
    """Which batches of this home are run now, and which of those that are not held are not; `batch` is in either set.

    While inside, no run of the idle ones begins: a run that tries waits.
    """
    with ledger.read() as connection:
        runs = fetch_unheld_runs(connection, home=home_name(settings))
    candidates = {one.id for one in runs if is_of_home(one, settings)} | ({batch.id} if batch else set())
    # A run of requests may be of a batch that `submit` made, or another home: its lock tells.
    living = {path.stem for path in lock_path(settings, "").parent.glob("*.lock") if is_lock_held(path)}
    with ExitStack() as locks:
        idle: set[str] = set()
        for run_id in sorted(candidates):
            descriptor = open_lock(settings, run_id)
            locks.callback(os.close, descriptor)
            if try_lock(descriptor):
                idle.add(run_id)
            else:
                living.add(run_id)
        yield RunsOfHome(frozenset(idle), frozenset(living - idle), settings)


def is_of_home(batch: Batch, settings: Settings) -> bool:
    """Whether a run is one of this home, whose locks tell if it lives."""
    return batch.kind == "run" and batch.details.get("home") == home_name(settings)


def home_name(settings: Settings) -> str:
    """This home among those that may share a database."""
    return f"{socket.gethostname()}:{as_text(settings.home)}"


def lock_path(settings: Settings, batch_id: str) -> Path:
    """Where the lock of a batch is in this home."""
    return settings.home / "runs" / f"{batch_id}.lock"


def open_lock(settings: Settings, batch_id: str) -> int:
    """A descriptor of the batch's lock, which is made where it is missing. Raises SettingsError."""
    path = lock_path(settings, batch_id)
    try:
        prepare_folder(path.parent)
    except OSError as exc:
        raise SettingsError(
            [f"{path.parent} cannot be used ({exc.strerror}): choose another ANTREAN_HOME"]
        ) from None
    return open_lock_file(path)


def is_lock_held(path: Path) -> bool:
    """Whether a process holds the lock at `path`."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)
