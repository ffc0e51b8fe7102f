"""A batch is worked on while a run of it lives, and held when the last one ends.

Jobs of a stopped run must not be called, and paid for, because another run lives. What a living run wants too goes on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from worker.clock import SystemClock
from worker.errors import NotFound
from worker.files.home import try_lock
from worker.operations.run_locks import RunLock, home_name, is_lock_held, lock_path, open_lock
from worker.operations.steps import repeat_steps
from worker.settings import Settings
from worker.storage.batches import (
    Batch,
    begin_run,
    count_open_at_home,
    fetch_unheld_runs,
    free_batch,
    hold_batch,
    is_held,
    move_run,
    resume_batch,
)
from worker.storage.engine import Ledger
from worker.storage.tables import MAX_ROWS
from worker.storage.wants import bring_home, hand_over, needs_bringing_home


@contextmanager
def worked_on(ledger: Ledger, settings: Settings, batch: Batch) -> Iterator[RunLock]:
    """While inside, the batch's jobs are worked on; after it, only if another run of the same batch lives.

    Raises NotFound where the batch was pruned just now, SettingsError where the home cannot be used.
    """
    descriptor = open_lock(settings, batch.id)
    try:
        # Waits while another command holds the batch because its last run was killed; then it goes on.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _begin(ledger, batch)
        _resume(ledger, batch.id)
        if batch.kind == "run" and batch.details.get("home") != home_name(settings):
            # A prune, and the search for abandoned runs, ask the locks of this home from now on.
            ledger.run(partial(move_run, batch_id=batch.id, home=home_name(settings)))
        try:
            yield RunLock(descriptor)
        finally:
            if try_lock(descriptor):
                _hold(ledger, batch.id)
    finally:
        os.close(descriptor)


def _begin(ledger: Ledger, batch: Batch) -> None:
    if not ledger.run(partial(begin_run, batch_id=batch.id)):
        raise NotFound(f"{batch.id} was pruned just now: type the command again")


def tend(ledger: Ledger, batch_id: str) -> None:
    """Makes sure that the jobs of a living run are worked on, also after other runs of them have ended.

    Two transactions of PostgreSQL that did not see each other may leave a job with a batch that is held; an older
    antrean, or a person, may have held this one. Writes nothing where nothing is wrong.
    """
    with ledger.read() as connection:
        is_stopped = is_held(connection, batch_id)
        is_missing_some = is_stopped or needs_bringing_home(connection, batch_id)
    if is_stopped:
        _resume(ledger, batch_id)
    elif is_missing_some:
        repeat_steps(ledger, partial(bring_home, batch_id=batch_id))


def hold_abandoned(ledger: Ledger, settings: Settings) -> list[tuple[Batch, int]]:
    """Holds the runs of this home that were killed with jobs left: each with the number of these jobs, oldest first.

    Jobs that a living run wants too are not left: they go on with it.
    """
    with ledger.read() as connection:
        runs = fetch_unheld_runs(connection, home=home_name(settings))
    held = []
    for batch in runs:
        # Its jobs were queued again for any worker: no run of it need live.
        # First a test that blocks no run; then under the lock, so that a run that begins waits for us.
        if batch.is_for_workers or is_lock_held(lock_path(settings, batch.id)):
            continue
        descriptor = open_lock(settings, batch.id)
        try:
            if try_lock(descriptor):
                _hold(ledger, batch.id)
                held.append(batch)
        finally:
            os.close(descriptor)
    with ledger.read() as connection:
        counts = [(batch, count_open_at_home(connection, batch.id)) for batch in held]
    return [(batch, count) for batch, count in counts if count]


def keep_from_runs(ledger: Ledger, batch: Batch) -> None:
    """Lets a batch go on after each end of a run of it: it was submitted for any worker to do."""
    if batch.kind == "run" and ledger.run(partial(free_batch, batch_id=batch.id)) >= MAX_ROWS:
        repeat_steps(ledger, partial(bring_home, batch_id=batch.id))


def _hold(ledger: Ledger, batch_id: str) -> None:
    now_ms = SystemClock().now_ms()
    if ledger.run(partial(hold_batch, batch_id=batch_id, now_ms=now_ms)) >= MAX_ROWS:
        repeat_steps(ledger, partial(hand_over, batch_id=batch_id))


def _resume(ledger: Ledger, batch_id: str) -> None:
    if ledger.run(partial(resume_batch, batch_id=batch_id)) >= MAX_ROWS:
        repeat_steps(ledger, partial(bring_home, batch_id=batch_id))
