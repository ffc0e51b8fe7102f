"""The parts of a worker process put together, started, and brought down in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from celery.worker import state
from celery.worker.state import revoked

from schemas.job import Due
from worker.attempt.dispatch import Dispatcher
from worker.attempt.execute import Executor
from worker.attempt.routes import Routes
from worker.broker.client import BrokerEpoch, broker_address, check_broker, count_messages, open_client
from worker.broker.hints import SHARED_QUEUES, queues_of
from worker.broker.publishing import publish
from worker.clock import Clock, SystemClock
from worker.consume.consumer import Consumer
from worker.consume.fetching import build_fetcher
from worker.consume.receiving import Receiver
from worker.consume.request import BlankRequest
from worker.consume.reserved import Reserved
from worker.errors import ExitCode
from worker.ids import new_id
from worker.operations.capacity import threads_needed
from worker.policy.gates import PROBE_CAP_S
from worker.pool import Pool, Surroundings, begin_limiters
from worker.settings import Settings
from worker.settings.slots import count_staged
from worker.shutdown import Shutdown
from worker.storage.engine import Ledger, Transaction
from worker.storage.errors import WriterStopped
from worker.storage.identity import fetch_identity
from worker.storage.intake import NewJob, adopt_jobs
from worker.storage.migrating import prepare_ledger
from worker.storage.moves import cancel_jobs
from worker.storage.reading import fetch_states
from worker.storage.workers import CallsNow
from worker.storage.writer import GroupWriter
from worker.upkeep.batch_facts import BatchFacts
from worker.upkeep.drain import Drain
from worker.upkeep.heartbeat import Heartbeat
from worker.upkeep.presence import Presence
from worker.upkeep.relay import Relay
from worker.upkeep.spool import SpoolFile

log = structlog.get_logger(__name__)


class WorkerRuntime:
    """What a worker process runs beside Celery. `start` once, `begin_shutdown` once or more."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        *,
        publish_due: Callable[[Sequence[Due]], None] | None = None,
        drains: bool = False,
    ) -> None:
        """`drains`: the worker ends when nothing is left to do."""
        clock = SystemClock()
        self.worker_id = new_id()
        self._settings = settings
        self._ledger = ledger
        broker = open_client(broker_address(settings))
        endpoint = settings.endpoint
        self._pool: Any = None  # Celery's, once it hands over a message
        self._writer = GroupWriter(
            ledger,
            worker_id=self.worker_id,
            endpoint=endpoint,
            clock=clock,
            window_s=settings.group_window_s,
            on_death=lambda exc: self._end_by_force("antrean-writer", exc),
            find_price=lambda model: self._endpoints.routes.find_price(model),
        )
        self._spool = SpoolFile(settings.spool_folder, self.worker_id)
        self._presence = Presence(settings.home / "workers", self.worker_id)
        with ledger.read() as connection:
            identity = fetch_identity(connection)
        self.queues = queues_of(identity, endpoint)
        self._endpoints = Pool(
            Surroundings(
                settings,
                ledger,
                broker,
                self._writer,
                clock,
                self.worker_id,
                identity,
                poke_relay=lambda: self._relay.poke(),
            )
        )
        self._slots = self._endpoints.slots
        self._drain = (
            Drain(
                ledger,
                clock,
                endpoint=endpoint,
                has_messages=lambda: count_messages(broker, (*self.queues.names, *SHARED_QUEUES.names)) > 0,
                is_busy=lambda: bool(state.reserved_requests) or self._slots.active > 0,
            )
            if drains
            else None
        )
        batch_facts = BatchFacts(clock, endpoint=endpoint)
        self._relay = Relay(
            ledger,
            publish_due or partial(publish, broker, queues=self.queues),
            BrokerEpoch(broker, endpoint, self.queues),
            self._endpoints.gates,
            clock,
            endpoint=endpoint,
            republish_after_s=settings.republish_after_s,
            in_hand=self._hinted_jobs,
            backoff_cap_s=settings.backoff_cap_s,
            # What an endpoint asks for is capped, and a tenth of the backoff is added; a probe waits a minute.
            longest_wait_s=max(settings.retry_after_cap_s, PROBE_CAP_S) + settings.backoff_cap_s,
            may_probe=self._endpoints.may_call_a_job,
            spread=self._endpoints.spread,
            facts=batch_facts,
        )
        self._executor = Executor(
            routes=self._endpoints.routes,
            writer=self._writer,
            spool=self._spool,
            clock=clock,
            is_stopping=lambda: self._slots.is_stopping,
            is_paused=lambda: self._relay.is_paused,
            note_tokens=batch_facts.note_answer,
        )
        self._dispatcher = Dispatcher(
            self._executor,
            self._slots,
            writer=self._writer,
            spool=self._spool,
            clock=clock,
            spawn=self._run_in_pool,
            ahead_limit=max(1, settings.staged_count // 2),
            on_ahead=self._stage,
            on_lack=self._endpoints.poke_limiters,
        )
        self._endpoints.begin(self._dispatcher)
        self._receiver = Receiver(self._dispatcher, self._writer, settings, clock, spawn=self._run_in_pool)
        self._heartbeat = Heartbeat(
            ledger,
            self._writer,
            self._spool,
            self._presence,
            clock,
            endpoint=endpoint,
            slots=lambda: int(self._slots.limit),
            lease_s=settings.lease_s,
            beat_s=settings.beat_interval_s,
            spool_folder=settings.spool_folder,
            find_price=self._endpoints.routes.find_past_price,
            max_solo_losses=settings.max_solo_losses,
            on_dead=self._endpoints.forget_worker,
            keep_told=self._endpoints.keep_told,
            look_at_calls=partial(_look_at_calls, self._endpoints.routes, clock),
        )
        spare = self._endpoints.spare_messages
        self._reserved = Reserved(
            limit=sum(settings.first_slots) + count_staged(self._slots.bulk_limit) + spare,
            # Until it is known how long a claim and a call take.
            bulk_limit=self._slots.bulk_limit + 1 + spare,
            refill_at=1,
            give_back=self._give_hint_back,
            on_broker_lost=self._relay.broker_lost,
            max_message_bytes=self._settings.max_message_bytes,
            most_now=self._endpoints.routes.room_to_fetch,
        )
        self._shutdown = Shutdown(
            grace_s=settings.grace_s,
            # A draining worker that is stopped before all jobs have ended was interrupted. Other workers never end by
            # themselves, so a stop is their normal end.
            exit_code=ExitCode.INTERRUPTED if drains else ExitCode.OK,
            routes=self._endpoints.routes,
            dispatcher=self._dispatcher,
            slots=self._slots,
            executor=self._executor,
            writer=self._writer,
            spool=self._spool,
            heartbeat=self._heartbeat,
            relay=self._relay,
            limiters=self._endpoints.limiters,
            hinted_jobs=lambda: self._reserved.hinted_jobs,
        )

    def start(self) -> None:
        """Beats once, replays the spool, and only then takes work. Raises DatabaseAway, and Unreachable."""
        Consumer.fetcher = build_fetcher(self._settings, self._reserved)
        self._presence.begin()
        with threads_needed():
            self._writer.start()
            self._heartbeat.beat()
            self._shutdown.heartbeat_thread = self._thread(
                "antrean-heartbeat", self._heartbeat.run, self._shutdown.is_leaving
            )
            self._shutdown.limiter_threads = begin_limiters(
                self._endpoints, self._thread, self._shutdown.is_leaving
            )
            interval_s = self._settings.relay_interval_s
            self._thread(
                "antrean-relay", lambda: self._relay.run(self._shutdown.is_stopping, interval_s=interval_s)
            )

    def ready(self, pool: Any) -> None:
        """Celery takes messages from now on: a worker that drains begins to look for its end.

        Two threads are begun in Celery's `pool`, so that each job is called in the end, however few follow: one may be
        with a job that waits to run alone until the other has made all calls. Raises Unreachable where one of
        them does not begin.
        """
        self._pool = pool
        with threads_needed():
            self._begin_in_pool(2)
            if self._drain is not None:
                self._thread("antrean-drain", self._end_when_drained, self._drain)

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def exit_code(self) -> ExitCode:
        """What this worker ends with, were it to end now."""
        return self._shutdown.exit_code

    def receive(self, request: BlankRequest, pool: Any) -> None:
        """Takes on the job of a received message; calls are made in Celery's `pool`. Does not block."""
        self._pool = pool
        self._relay.message_taken()
        self._receiver.receive(request)

    def _run_in_pool(self, work: Callable[[], object]) -> None:
        self._pool.apply_async(work, callback=_ignore)

    def _begin_in_pool(self, threads: int) -> None:
        have_begun = threading.Event()
        try:
            for _ in range(threads):
                self._run_in_pool(have_begun.wait)
        finally:
            have_begun.set()

    def _stage(self, ahead: int) -> None:
        """Holds as many bulk messages as are claimed ahead, and as are recorded meanwhile: about as many."""
        bulk, most = self._slots.bulk_limit, count_staged(self._slots.bulk_limit)
        spare = self._endpoints.spare_messages
        self._reserved.limit = int(self._slots.limit) + most + spare
        self._reserved.bulk_limit = bulk + min(2 * ahead, most) + spare
        self._reserved.refill_at = max(1, ahead // 2)

    def end_job(self, job_id: str | None, adopted: NewJob | None) -> None:
        """Ends the row of a revoked message (`job_id`), and writes down one that ended before it was a row.

        Does not wait: Celery's hub calls it.
        """

        def work(connection: Transaction) -> None:
            now_ms = SystemClock().now_ms()
            if adopted is not None:
                adopt_jobs(connection, [adopted], now_ms=now_ms)
            if job_id is not None:
                cancel_jobs(connection, [job_id], now_ms=now_ms)

        self._begin(work)

    def cancel_jobs(self, job_ids: Sequence[str]) -> None:
        """Cancels jobs that somebody revoked, and lets Celery forget it: a retry must not be discarded.

        Does not wait: Celery's hub calls it.
        """

        def work(connection: Transaction) -> None:
            known = fetch_states(connection, job_ids)
            cancel_jobs(connection, list(known), now_ms=SystemClock().now_ms())
            for job_id in known:
                revoked.discard(job_id)

        self._begin(work)

    def _begin(self, work: Callable[[Transaction], None]) -> None:
        with suppress(WriterStopped):  # the worker ends: the message, or whoever revokes, comes again
            self._writer.begin(work)

    def _hinted_jobs(self) -> Sequence[str]:
        """Jobs whose hints are reserved here. None while no answer can be kept: others may take them meanwhile."""
        return self._reserved.hinted_jobs if self._spool.is_writable else ()

    def _give_hint_back(self, job_id: str) -> None:
        with suppress(WriterStopped):  # then the end of this worker has said it of all that was in hand
            self._writer.give_message_back(job_id)

    def begin_shutdown(self, *, hurry: bool = False) -> None:
        """Starts the shutdown. `hurry`, also in a later call, cuts the calls. May be called from a signal handler."""
        self._shutdown.begin(hurry=hurry)

    def _end_by_force(self, name: str, exc: BaseException) -> None:
        """Ends this worker because one of its threads did: within the grace, as a signal would, but not with 0.

        A worker without its heartbeat, its relay or its writer is worse than none, and its supervisor starts another.
        But its calls are paid for: they end first, and what they bring is recorded, or spooled.
        """
        log.critical("worker.thread_died", thread=name, error=type(exc).__name__, exc_info=exc)
        self._shutdown.exit_code = ExitCode.INTERNAL
        state.should_stop = int(ExitCode.INTERNAL)  # Celery's hub takes no more messages
        self.begin_shutdown()

    def _end_when_drained(self, drain: Drain) -> None:
        drained = drain.run(self._shutdown.is_stopping)
        if drained is None:
            return
        drained.tell()
        self._shutdown.exit_code = ExitCode.FAILED_JOBS if drained.failed else ExitCode.OK
        state.should_stop = int(self._shutdown.exit_code)
        self.begin_shutdown()

    def _thread(self, name: str, target: Callable[..., None], *args: object) -> threading.Thread:
        def guarded() -> None:
            try:
                target(*args)
            except BaseException as exc:
                self._end_by_force(name, exc)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread


def _look_at_calls(routes: Routes, clock: Clock) -> CallsNow:
    age_s = routes.oldest_call_s
    return CallsNow(routes.calls_in_flight, None if age_s is None else clock.now_ms() - round(age_s * 1000))


def _ignore(_result: object) -> None:
    """What Celery's pool does with what a function of ours returns."""


def build_worker(settings: Settings, *, drains: bool = False) -> WorkerRuntime:
    """A worker of these settings whose database and broker answer. Raises AntreanError with a sentence."""
    ledger = prepare_ledger(settings)
    check_broker(open_client(broker_address(settings)))
    return WorkerRuntime(settings, ledger, drains=drains)
