"""The shutdown of a worker: calls end within the grace, claims are given back, and the end is recorded."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from schemas.shortage import describe_shortage
from worker.attempt.dispatch import Dispatcher, Received
from worker.attempt.execute import Executor
from worker.attempt.routes import Routes
from worker.attempt.slots import Slots
from worker.errors import ExitCode
from worker.logs.sink import flush_logs
from worker.storage.errors import DatabaseAway
from worker.storage.writer import GroupWriter
from worker.upkeep.heartbeat import Heartbeat
from worker.upkeep.relay import Relay
from worker.upkeep.spool import SpoolFile

log = structlog.get_logger(__name__)
_AFTER_GRACE_S = 2.0  # what remains for giving back, flushing and leaving
_FOR_DATABASE_S = 3.0  # how long it may take to record the end once nothing else is left
_FOR_HEARTBEAT_S = 0.3
_FOR_CELERY_S = 1.0  # how long Celery may take to leave once all is written; it can hang in a stalled broker


class Pokeable(Protocol):
    """A limiter, whose thread waits for its next exchange."""

    def poke(self) -> None: ...


class Shutdown:
    """One per worker process. `begin` once or more.

    `is_stopping` is set when no new work is to begin, and `is_leaving` when no call is in flight any more: until then
    the worker beats, because its calls need the lease. `exit_code` is what the process ends with.
    """

    def __init__(
        self,
        *,
        grace_s: float,
        exit_code: ExitCode,
        routes: Routes,
        dispatcher: Dispatcher,
        slots: Slots[Received],
        executor: Executor,
        writer: GroupWriter,
        spool: SpoolFile,
        heartbeat: Heartbeat,
        relay: Relay,
        limiters: Sequence[Pokeable],
        hinted_jobs: Callable[[], Sequence[str]],
    ) -> None:
        """`hinted_jobs` tells whose hints this worker has received and not finished."""
        self.exit_code = exit_code
        self.is_stopping = threading.Event()
        self.is_leaving = threading.Event()
        self.heartbeat_thread: threading.Thread | None = None
        self.limiter_threads: list[threading.Thread] = []
        self._grace_s = grace_s
        self._routes = routes
        self._dispatcher = dispatcher
        self._slots = slots
        self._executor = executor
        self._writer = writer
        self._spool = spool
        self._heartbeat = heartbeat
        self._relay = relay
        self._limiters = tuple(limiters)
        self._hinted_jobs = hinted_jobs
        self._is_hurried = False  # no Event: a signal may come while the handler of another one sets it
        self._begins = threading.Lock()  # taken once, and never given back
        self._thread: threading.Thread | None = None

    def begin(self, *, hurry: bool = False) -> None:
        """Starts the shutdown, in a thread outside Celery's loop. `hurry`, also in a later call, cuts the grace.

        May be called from a signal handler.
        """
        if hurry:
            self._is_hurried = True
        # Does not block: this signal may have interrupted the handler of another one, which holds the lock.
        if not self._begins.acquire(blocking=False):
            return
        # Not a daemon, also where one begins it: the interpreter waits for it even when Celery is done first.
        self._thread = threading.Thread(target=self._shut_down, name="antrean-shutdown", daemon=False)
        try:
            self._thread.start()
        except RuntimeError as exc:
            # No thread can be started, so this one does it. Celery's loop stands still meanwhile. Messages that it does
            # not acknowledge are delivered again, and their jobs have ended by then.
            log.error("worker.stops_in_this_thread", lack=describe_shortage(exc))
            self._shut_down()

    def _shut_down(self) -> None:
        """Shuts down. The process ends after an unexpected error, too."""
        try:
            self._end_calls_and_leave()
        except Exception as exc:
            log.critical("worker.way_out_failed", error=type(exc).__name__, exc_info=exc)
            self._leave_now()

    def _end_calls_and_leave(self) -> None:
        grace_s = self._grace_s
        end_s = time.monotonic() + grace_s
        deadline = self._leave_after(grace_s)
        log.info("worker.stopping", calls_in_flight=self._routes.calls_in_flight, grace_s=grace_s)
        self._dispatcher.stop()
        self.is_stopping.set()
        self._routes.cut_key_commands()  # no call has begun for the jobs that wait for them
        self._relay.poke()
        self._slots.wait_until_idle(
            lambda: self._is_hurried or time.monotonic() >= end_s or self._is_only_database_awaited()
        )
        if self._is_only_database_awaited():  # the process leaves soon, also if its end cannot be recorded
            deadline.cancel()
            deadline = self._leave_after(0.0)
        cut = self._routes.cut_all_calls()
        self._slots.wait_until_idle(lambda: False, timeout_s=0.5)
        # Records that are not written by now wait for a database that hangs: paid answers go to the spool, or are lost.
        self._writer.abandon_records()
        self._slots.wait_until_idle(lambda: False, timeout_s=0.5)
        self._spool.stop()
        self.is_leaving.set()
        for limiter in self._limiters:
            limiter.poke()
        if end_s - time.monotonic() > _FOR_DATABASE_S and not self._executor.has_answers_at_stake:
            # Only the end is left to be recorded. The process does not wait out its grace for that.
            deadline.cancel()
            deadline = self._leave_after(0.0 if self._writer.is_stuck else _FOR_DATABASE_S)
        heartbeat = self.heartbeat_thread
        if heartbeat is not None and heartbeat is not threading.current_thread():
            heartbeat.join(_FOR_HEARTBEAT_S)  # a beat after the end would register this worker again
        leaving_s = time.monotonic() + _FOR_HEARTBEAT_S
        for thread in self.limiter_threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, leaving_s - time.monotonic()))  # it gives its share up
        try:
            self._heartbeat.end(self._hinted_jobs())
        except (DatabaseAway, OSError) as exc:
            log.warning("worker.end_not_recorded", error=type(exc).__name__)  # its lease will say so
        is_flushed = self._writer.stop(timeout_s=0.5)
        log.info("worker.stopped", calls_cut=cut, is_flushed=is_flushed)
        if not is_flushed:
            return  # the timer ends the process
        if threading.current_thread() is not threading.main_thread():
            threading.main_thread().join(timeout=_FOR_CELERY_S)
            if not threading.main_thread().is_alive():
                deadline.cancel()
                return
        self._leave_now()

    def _is_only_database_awaited(self) -> bool:
        """Whether the jobs that are left wait for a database that is away, and no answer is lost without it."""
        return self._writer.is_stuck and not self._executor.has_answers_at_stake

    def _leave_after(self, grace_s: float) -> threading.Timer:
        """Ends the process `grace_s` from now, and what remains for leaving, unless the timer is cancelled."""
        deadline = threading.Timer(grace_s + _AFTER_GRACE_S - 0.2, self._leave_now)
        deadline.daemon = True
        try:
            deadline.start()
        except RuntimeError as exc:  # all waits of the way out have ends of their own, if later ones
            log.error("worker.stops_without_a_timer", lack=describe_shortage(exc))
        return deadline

    def _leave_now(self) -> None:
        # Celery can hang for minutes after SIGTERM if the broker is stalled. Everything is written by now.
        log.warning("worker.left_without_celery")
        flush_logs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(self.exit_code))
