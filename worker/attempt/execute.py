"""One attempt at a claimed job: admit, call, decide, record."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Protocol

import structlog

from api_client.errors import ApiError
from schemas.failure import Failure, FailureKind
from worker.attempt.calling import FRESH_S, NotCalled, is_unwanted_now
from worker.attempt.key_slots import KeyHold
from worker.attempt.outcomes import make_setback, make_success, report_setback, report_success
from worker.attempt.report import GIVEN_BACK, NOT_ADMITTED, Report
from worker.attempt.route import Route
from worker.attempt.routes import Routes
from worker.clock import Clock
from worker.errors import Stopping
from worker.policy.refusals import asks_for_less
from worker.policy.routing import ANY
from worker.storage.errors import DatabaseAway, WriterStopped
from worker.storage.outcomes import ClaimedJob, GiveBack, Recorded, Setback, Success
from worker.storage.reply import OnceAnswer
from worker.storage.writer import GroupWriter
from worker.throttle.gatekeeper import Permit

log = structlog.get_logger(__name__)
_RECORD_WITHIN_S = 5.0  # a database that takes longer over a paid answer counts as away: it goes to the spool


class Spool(Protocol):
    """Where paid answers wait while the database is away."""

    @property
    def is_writable(self) -> bool:
        """False stops new claims (invariant 5)."""

    def keep(self, success: Success) -> bool:
        """Writes and syncs the answer; False if it cannot be written."""

    def reject(self, success: Success) -> bool:
        """Puts an answer aside that the ledger can never store; False if it cannot be written."""

    def wait_until_writable(self) -> None:
        """Returns when claims may be made again. Raises Stopping during a shutdown."""


class NoteTokens(Protocol):
    """Is told what an answer to a job of a batch took; 0 where the endpoint does not tell."""

    def __call__(self, batch_id: str, *, tokens: int, completion_tokens: int) -> None: ...


class Executor:
    """Makes the attempts of one worker process. Thread-safe."""

    def __init__(
        self,
        *,
        routes: Routes,
        writer: GroupWriter,
        spool: Spool,
        clock: Clock,
        is_stopping: Callable[[], bool],
        is_paused: Callable[[], bool],
        note_tokens: NoteTokens = lambda batch_id, *, tokens, completion_tokens: None,
    ) -> None:
        """`is_stopping`: no call begins any more. `is_paused`: somebody paused the endpoint.

        `note_tokens` is told what each answer took, by the job's batch.
        """
        self.routes = routes
        self._writer = writer
        self._spool = spool
        self._clock = clock
        self._is_stopping = is_stopping
        self._is_paused = is_paused
        self._note_tokens = note_tokens
        self._at_stake: set[str] = set()  # jobs with a call in flight, or an answer in memory alone
        self._shortages = 0  # calls that this machine had no descriptor, thread or memory for

    @property
    def has_answers_at_stake(self) -> bool:
        """Whether a call is in flight, or an answer is neither recorded nor spooled yet."""
        return bool(self._at_stake)

    def refuse(self, job_id: str, routes: int = ANY) -> Report | None:
        """Why the job is not to be claimed now, as far as is known without asking. Its message is the relay's then.

        `routes`: the endpoints that it may go to.
        """
        if not self._is_paused() and not self.routes.are_shut(routes, job_id):
            return None
        try:
            self._writer.give_message_back(job_id)
        except WriterStopped:
            return GIVEN_BACK
        return NOT_ADMITTED

    def attempt(
        self,
        job: ClaimedJob,
        *,
        route: int = 0,
        epoch: int | None = None,
        hold: KeyHold | None = None,
        waited_s: float = 0.0,
        leave_slot: Callable[[], None] = lambda: None,
    ) -> Report:
        """What the call of a claimed job came to, once that is written down. `route`: the endpoint that is called.

        `epoch`: that of the limit under which the job got its slot; None: the present one. `hold`: its slot at
        one of several keys. The claim has waited for its slot for `waited_s`. `leave_slot` is called as soon as the
        call has ended.
        """
        if self._is_stopping():
            return self._put_back(job, GIVEN_BACK)
        if self._is_paused() or (waited_s > FRESH_S and is_unwanted_now(self._writer, job, self._clock)):
            return self._put_back(job, NOT_ADMITTED)
        self._at_stake.add(job.id)
        try:
            outcome = self._make(job, self.routes[route], epoch, hold, leave_slot)
            if isinstance(outcome, Success):
                return self._record_answer(job, outcome, self.routes[route])
        finally:
            self._at_stake.discard(job.id)
        if isinstance(outcome, NotCalled):
            leave_slot()
            return self._put_back(job, outcome.report, was_called=outcome.was_called)
        self._record_or_forget(outcome)
        return GIVEN_BACK if isinstance(outcome, GiveBack) else self._tell_setback(outcome)

    def give_back_soon(self, job: ClaimedJob, then: Callable[[], None]) -> None:
        """Gives back a job whose call has not begun. Does not block; `then` is called once that is written, or cannot
        be."""

        def forget(_: BaseException) -> None:
            self._writer.forget(job.id)
            then()

        try:
            self._writer.begin_record(self._uncalled(job), OnceAnswer(lambda _: then(), forget))
        except WriterStopped as exc:
            forget(exc)

    def put_back(self, job: ClaimedJob) -> Report:
        """Gives back a claimed job that no endpoint may be called for now."""
        return self._put_back(job, NOT_ADMITTED)

    def _put_back(self, job: ClaimedJob, report: Report, *, was_called: bool = False) -> Report:
        self._record_or_forget(self._uncalled(job, was_called=was_called))
        return report

    def _uncalled(self, job: ClaimedJob, *, was_called: bool = False) -> GiveBack:
        now_ms = self._clock.now_ms()
        return GiveBack(claim=job.claim, started_at_ms=now_ms, ended_at_ms=now_ms, was_called=was_called)

    def _make(
        self,
        job: ClaimedJob,
        route: Route,
        epoch: int | None,
        hold: KeyHold | None,
        leave_slot: Callable[[], None],
    ) -> Success | Setback | GiveBack | NotCalled:
        with route.gates.admit(job.id, hold) as permit:
            if not permit.is_granted:
                return NotCalled(NOT_ADMITTED, was_called=False)
            route.meter.admit(permit, epoch=epoch if hold is None else hold.epoch)
            try:
                return self._decide(job, route, permit, leave_slot)
            except NotCalled as exc:
                route.note_failure(permit, is_refusal=False)
                return exc

    def _decide(
        self, job: ClaimedJob, route: Route, permit: Permit, leave_slot: Callable[[], None]
    ) -> Success | Setback | GiveBack:
        """Calls, and tells the gate. What comes of it is not written down yet. Raises NotCalled."""
        started_at_ms = self._clock.now_ms()
        try:
            try:
                answer = route.caller.call(job, permit)
            except ApiError as exc:
                self._note_failure(
                    job, route, permit, exc.failure
                )  # first: no call takes the slot of a refused one
                raise
            finally:
                leave_slot()  # the next call need not wait until this one is written down
            success = make_success(
                job,
                answer,
                started_at_ms=started_at_ms,
                ended_at_ms=self._clock.now_ms(),
                find_price=route.find_price,
                endpoint=route.noted_as,
            )
        except ApiError as exc:
            if exc.failure.kind is FailureKind.INTERRUPTED:
                return self._interrupted(job, route, started_at_ms)
            return self._set_back(job, route, exc.failure, permit, started_at_ms, exc.latency_s)
        except NotCalled:
            raise
        except Stopping:
            return self._interrupted(job, route, started_at_ms)
        except Exception as exc:
            # A defect of ours costs this job an attempt, not the worker its thread.
            return self._set_back(job, route, _defect(exc, job.id), permit, started_at_ms, None)
        route.note_answer(
            permit,
            latency_s=answer.latency_s,
            tokens=success.usage.total_tokens,
            tokens_out=success.usage.completion_tokens,
        )
        self._note_tokens(
            job.batch_id,
            tokens=success.usage.total_tokens,
            completion_tokens=success.usage.completion_tokens,
        )
        try:
            route.judge.note_success(job, permit, latency_s=answer.latency_s, hints=answer.rate_hints)
        except Exception as exc:  # a defect there must not cost the answer, which is paid for
            log.error("gate.not_told", job_id=job.id, error=type(exc).__name__)
        return success

    def _note_failure(self, job: ClaimedJob, route: Route, permit: Permit, failure: Failure) -> None:
        spent = failure.spent
        tokens = 0 if spent is None else spent.total_tokens
        route.note_failure(permit, is_refusal=asks_for_less(failure), tokens=tokens)
        if spent is not None:
            self._note_tokens(job.batch_id, tokens=tokens, completion_tokens=spent.completion_tokens)

    def _interrupted(self, job: ClaimedJob, route: Route, started_at_ms: int) -> GiveBack:
        return GiveBack(
            claim=job.claim,
            started_at_ms=started_at_ms,
            ended_at_ms=self._clock.now_ms(),
            endpoint=route.noted_as,
        )

    def _set_back(
        self,
        job: ClaimedJob,
        route: Route,
        failure: Failure,
        permit: Permit,
        started_at_ms: int,
        latency_s: float | None,
    ) -> Setback:
        now_ms = self._clock.now_ms()
        if failure.is_local:
            self._shortages += 1
            log.warning("call.local_shortage", job_id=job.id, lack=failure.message, count=self._shortages)
        try:
            judged = route.judge.judge(job, failure, permit, now_ms=now_ms)
        except Exception as exc:  # nor must it keep the job in this worker's hands for ever
            log.error("gate.not_asked", job_id=job.id, error=type(exc).__name__)
            judged = route.judge.judge_alone(job, failure, now_ms=now_ms)
        return make_setback(
            job,
            failure,
            judged,
            started_at_ms=started_at_ms,
            ended_at_ms=now_ms,
            latency_s=latency_s,
            find_price=route.find_price,
            endpoint=route.noted_as,
        )

    def _record_answer(self, job: ClaimedJob, success: Success, route: Route) -> Report:
        try:
            return report_success(success, self._record_success(success, is_urgent=not job.is_bulk))
        except Stopping:
            # Neither the ledger nor the spool took it, and the worker ends: no defect, and no attempt is burnt.
            log.error("result.lost", job_id=success.job_id)
            self._writer.forget(job.id)
            raise
        except Exception as exc:
            # The ledger cannot store this answer, whatever it is: the spool keeps it for a person, and the
            # job must not hang. What cannot be put aside now is spooled, and put aside by a later beat.
            if not self._spool.reject(success):
                self._spool.keep(success)
            failure, now_ms = _defect(exc, job.id), self._clock.now_ms()
            setback = make_setback(
                job,
                failure,
                route.judge.judge_alone(job, failure, now_ms=now_ms),
                started_at_ms=success.started_at_ms,
                ended_at_ms=now_ms,
                latency_s=success.latency_ms / 1000,
                find_price=route.find_price,
                endpoint=route.noted_as,
            )
            self._record_or_forget(setback)
            return self._tell_setback(setback)

    def _record_success(self, success: Success, *, is_urgent: bool) -> Recorded:
        """Recorded, or spooled: either way the answer outlives this process (invariant 5)."""
        is_last = False
        while True:
            try:
                return self._writer.record(success, is_urgent=is_urgent, within_s=_RECORD_WITHIN_S)
            except (DatabaseAway, WriterStopped):
                if self._spool.keep(success):
                    # Still open: the replay records it, and no beat may take it for an orphan before.
                    log.warning("result.spooled", job_id=success.job_id)
                    return Recorded.APPLIED
                if is_last:
                    raise Stopping from None
                # Neither the database nor the spool takes it: hold it in memory until one does.
                try:
                    self._spool.wait_until_writable()
                except Stopping:
                    is_last = True  # one may take it by now

    def _record_or_forget(self, outcome: Setback | GiveBack) -> None:
        try:
            self._writer.record(outcome)
        except (DatabaseAway, WriterStopped):
            # Nothing was paid for: the next beat, or a rescue, finds the claim without a holder.
            self._writer.forget(outcome.job_id)

    def _tell_setback(self, setback: Setback) -> Report:
        report, kind = report_setback(setback), setback.failure.kind.value
        if report.retry_in_s is None:
            log.info("job.failed", job_id=setback.job_id, kind=kind, http_status=setback.failure.http_status)
        else:
            log.info("job.waiting", job_id=setback.job_id, kind=kind, retry_in_s=round(report.retry_in_s, 3))
        return report


def _defect(exc: Exception, job_id: str) -> Failure:
    """A defect of ours as a failure. No text of the exception is kept: it may quote the prompt."""
    where = traceback.extract_tb(exc.__traceback__)[-1]
    log.error("job.defect", job_id=job_id, error=type(exc).__name__, file=where.filename, line=where.lineno)
    return Failure(FailureKind.INTERNAL_ERROR, f"antrean failed inside: {type(exc).__name__}")
