"""The heartbeat of a worker: beat, replay the spool, rescue the dead, expire the late, in that order."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from schemas.shortage import describe_shortage, is_local_shortage
from worker.clock import Clock
from worker.errors import AntreanError, tell_place
from worker.policy.cost import Price, compute_cost
from worker.storage.budgets import wake_budgets
from worker.storage.due import fetch_mark_bound, unmark_published, unmark_published_before
from worker.storage.engine import Ledger, Transaction
from worker.storage.errors import UNSTORABLE, DatabaseAway, WriterStopped
from worker.storage.moves import expire_jobs
from worker.storage.outcomes import Recorded, Success
from worker.storage.reading import fetch_asked
from worker.storage.tables import MAX_ROWS
from worker.storage.workers import (
    CallsNow,
    beat,
    end_worker,
    fetch_beats,
    fetch_endpoint_of,
    is_known,
    is_of_this_ledger,
    note_calls,
    register_worker,
    release_orphans,
    rescue_jobs,
)
from worker.storage.writer import GroupWriter
from worker.upkeep.presence import Presence
from worker.upkeep.rescue import LeaseWatch
from worker.upkeep.spool import SpoolFile, Unstorable, holds_answers, replay_leftovers

log = structlog.get_logger(__name__)
_NOTE_CALLS_S = 1.0
# At an endpoint, of a model that has the names given, the most exact first; `at_ms`.
FindPastPrice = Callable[..., Price | None]


class Heartbeat:
    """One per worker process; `run` in a thread of its own."""

    def __init__(
        self,
        ledger: Ledger,
        writer: GroupWriter,
        spool: SpoolFile,
        presence: Presence,
        clock: Clock,
        *,
        endpoint: str,
        slots: Callable[[], int],
        lease_s: float,
        beat_s: float,
        spool_folder: Path,
        max_solo_losses: int,
        on_dead: Callable[[str], None] = lambda worker_id: None,
        find_price: FindPastPrice = lambda endpoint, *models, at_ms: None,
        keep_told: Callable[[], None] = lambda: None,
        look_at_calls: Callable[[], CallsNow] | None = None,
    ) -> None:
        """`slots`: those of this worker, as it begins. `on_dead` is told of each worker that is found dead.

        `find_price`: what the endpoint that was called asked then, for answers that a dead process left: its spool has
        no costs in it. `keep_told` writes down which limits the endpoint told. `look_at_calls` tells which calls are in
        flight; they are noted for people with each beat, and each second where their number has changed.
        """
        self._ledger = ledger
        self._writer = writer
        self._spool = spool
        self._presence = presence
        self._clock = clock
        self._endpoint = endpoint
        self._slots = slots
        self._lease_s = lease_s
        self._beat_s = beat_s
        self._spool_folder = spool_folder
        self._max_solo_losses = max_solo_losses
        self._on_dead = on_dead
        self._find_price = find_price
        self._keep_told = keep_told
        self._look_at_calls = look_at_calls
        self._calls: CallsNow | None = None  # as noted last
        self._watch = LeaseWatch(own_id=writer.worker_id, lease_s=lease_s)
        self._strangers: set[str] = set()  # workers of other ledgers, whose spools lie here

    def run(self, is_stopping: threading.Event) -> None:
        """Beats until told to stop. While the database is away it tries again every second at least.

        An error that nobody thought of is logged, and the next beat comes all the same: the calls in flight are paid
        for, and no other worker would do better. What stays safe meanwhile are the leases. A beat raises this worker's
        own first, so only the spool, rescues and expiry wait; where even that fails, others take over after a lease.
        """
        while not is_stopping.is_set():
            delay_s = self._beat_s
            try:
                self.beat()
            except WriterStopped:
                return
            except AntreanError as exc:
                self._watch.forget()
                delay_s = min(1.0, self._beat_s)
                log.warning("heartbeat.ledger_away", error=str(exc))
            except Exception as exc:
                self._watch.forget()
                delay_s = min(1.0, self._beat_s)
                log.error(
                    "heartbeat.failed",
                    error=type(exc).__name__,
                    lack=describe_shortage(exc) if is_local_shortage(exc) else None,
                    where=tell_place(exc),
                )
            self._rest(is_stopping, delay_s)

    def beat(self) -> None:
        """One beat. Raises DatabaseAway."""
        self._beat_own()
        # What was paid for is recorded before anyone is taken for dead: the dead may have spooled it.
        self._spool.replay(self._record_spooled)
        replay_leftovers(self._spool_folder, self._record_spooled, is_ours=self._is_ours)
        self._rescue()
        now_ms = self._clock.now_ms()
        while self._ledger.run(lambda connection: expire_jobs(connection, now_ms=now_ms)):
            pass
        self._ledger.run(partial(wake_budgets, now_ms=now_ms))
        self._keep_told()

    def end(self, hinted_jobs: Sequence[str] = ()) -> None:
        """Marks this worker as stopped, and the jobs whose messages it leaves behind as not published.

        A claim that could not be given back, because its writer has ended, is released: no call was made for it, or
        none that brought an answer. Raises DatabaseAway; what was given back is then said by the lock that stays, also
        where the database hangs and the process ends meanwhile.
        """
        worker_id, now_ms = self._writer.worker_id, self._clock.now_ms()
        open_claims = dict(self._writer.open_claims)

        def work(connection: Transaction) -> None:
            for start in range(0, len(hinted_jobs), MAX_ROWS):
                unmark_published(connection, hinted_jobs[start : start + MAX_ROWS])
            while release_orphans(connection, worker_id, open_claims=open_claims, now_ms=now_ms):
                pass
            end_worker(connection, worker_id, reason="stopped", now_ms=now_ms)

        self._presence.say_all_is_given_back()
        self._ledger.run(work)
        self._presence.end()

    def _rest(self, is_stopping: threading.Event, delay_s: float) -> None:
        while delay_s > 0 and not is_stopping.wait(min(delay_s, _NOTE_CALLS_S)):
            delay_s -= _NOTE_CALLS_S
            if delay_s > 0 and self._look_at_calls is not None:
                calls = self._look_at_calls()
                if self._calls is None or calls.count != self._calls.count:
                    with suppress(DatabaseAway, WriterStopped, *UNSTORABLE):  # the next beat says so
                        self._writer.call(partial(self._note_calls, calls=calls))

    def _note_calls(self, connection: Transaction, calls: CallsNow) -> None:
        note_calls(connection, self._writer.worker_id, calls)
        self._calls = calls

    def _beat_own(self) -> None:
        worker_id, now_ms = self._writer.worker_id, self._clock.now_ms()

        def register(connection: Transaction) -> None:
            register_worker(
                connection,
                worker_id,
                endpoint=self._endpoint,
                hostname=socket.gethostname(),
                pid=os.getpid(),
                slots=self._slots(),
                lease_ms=round(self._lease_s * 1000),
                now_ms=now_ms,
            )

        def work(connection: Transaction) -> list[str]:
            if not beat(connection, worker_id, now_ms=now_ms):
                register(connection)
            if self._look_at_calls is not None:
                self._note_calls(connection, self._look_at_calls())
            # In the writer's thread, between two groups: no claim can be half way into `open_claims`.
            return release_orphans(
                connection,
                worker_id,
                open_claims=self._writer.open_claims,
                now_ms=now_ms,
            )

        orphans = self._writer.call(work)
        if orphans:
            log.warning("worker.orphans_released", jobs=len(orphans))

    def _is_ours(self, worker_id: str, claims: Iterable[tuple[str, str]]) -> bool:
        with self._ledger.read() as connection:
            is_ours = is_of_this_ledger(connection, worker_id, claims)
        if not is_ours and worker_id not in self._strangers:
            self._strangers.add(worker_id)
            log.warning("spool.of_another_ledger", worker_id=worker_id, folder=str(self._spool_folder))
        return is_ours

    def _record_spooled(self, success: Success) -> None:
        try:
            recorded = self._writer.record(self._with_cost(success), is_urgent=True)
        except UNSTORABLE as exc:
            # One line that no ledger can store must not keep the others, or this worker, from going on.
            log.error("spool.unstorable", job_id=success.job_id, error=type(exc).__name__)
            self._writer.forget(success.job_id)
            raise Unstorable from exc
        if recorded is Recorded.CLAIM_LOST:
            raise Unstorable  # of another ledger, or pruned here: it was paid for, and a person may still want it

    def _with_cost(self, success: Success) -> Success:
        """The answer with the cost that it has where it is recorded at once. Raises DatabaseAway."""
        tokens = success.usage
        if tokens.cost_nano is not None:
            return success
        with self._ledger.read() as connection:
            asked = fetch_asked(connection, success.job_id)
        if asked is None:  # of no job of this ledger
            return success
        cost_nano = compute_cost(
            self._find_price(
                success.endpoint or asked.endpoint, tokens.model, asked.model, at_ms=success.ended_at_ms
            ),
            prompt_tokens=tokens.prompt_tokens,
            completion_tokens=tokens.completion_tokens,
            cached_tokens=tokens.cached_tokens,
        )
        return replace(success, usage=replace(tokens, cost_nano=cost_nano))

    def _rescue(self) -> None:
        for worker_id in self._presence.find_dead():
            with self._ledger.read() as connection:
                if not is_known(connection, worker_id):
                    continue  # of another ledger of this home: only its own workers can rescue its jobs
            if self._has_to_wait(worker_id):
                continue
            has_given_back = self._presence.has_given_back(worker_id)
            rescued = self._rescue_all(worker_id, has_given_back=has_given_back)
            self._presence.forget(worker_id)
            self._on_dead(worker_id)
            log.warning("worker.died", worker_id=worker_id, jobs_rescued=rescued)
        with self._ledger.read() as connection:
            beats = fetch_beats(connection)
        for worker_id in self._watch.observe(beats, now_s=self._clock.monotonic_s()):
            # One that lives, suspended or cut off from the database, holds its spool for who knows how long.
            if not self._presence.is_alive(worker_id) and self._has_to_wait(worker_id):
                continue
            rescued = self._rescue_all(worker_id)
            self._on_dead(worker_id)
            log.warning("worker.lost", worker_id=worker_id, jobs_rescued=rescued)

    def _has_to_wait(self, worker_id: str) -> bool:
        """Whether paid answers of this worker are not recorded yet; a later beat asks again."""
        if not holds_answers(self._spool_folder, worker_id):
            return False
        log.warning("rescue.waits_for_spool", worker_id=worker_id, folder=str(self._spool_folder))
        return True

    def _rescue_all(self, worker_id: str, *, has_given_back: bool = False) -> int:
        rescued = 0
        while True:
            ids = self._ledger.run(
                partial(
                    rescue_jobs,
                    worker_id=worker_id,
                    max_solo_losses=self._max_solo_losses,
                    now_ms=self._clock.now_ms(),
                    has_given_back=has_given_back,
                )
            )
            rescued += len(ids)
            if not ids:
                break
        now_ms = self._clock.now_ms()
        # The messages that it had taken and not claimed died with it, and nobody knows which they were: all of its
        # endpoint's window is published again, and claims absorb the duplicates.
        with self._ledger.read() as connection:
            endpoint = fetch_endpoint_of(connection, worker_id) or self._endpoint
            before_ms = fetch_mark_bound(connection, endpoint, now_ms=now_ms)
        self._ledger.run(partial(end_worker, worker_id=worker_id, reason="lost", now_ms=now_ms))
        while self._ledger.run(partial(unmark_published_before, endpoint=endpoint, before_ms=before_ms)):
            pass
        return rescued
