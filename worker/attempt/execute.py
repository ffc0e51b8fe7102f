"""One attempt at a job: admit, claim, call, decide, record. The only place that calls the endpoint."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Protocol

import structlog

from api_client.answers import Answer
from api_client.client import EndpointClient
from api_client.config import Credential
from api_client.errors import ApiError
from api_client.payload import switch_stream_off
from api_client.reasoning import split_reasoning
from schemas.completion import Usage as Tokens
from schemas.failure import Failure, FailureKind, Spent
from worker.attempt.credentials import Credentials
from worker.attempt.judge import Judge
from worker.attempt.slots import Place, Slots
from worker.attempt.suspects import Suspects
from worker.clock import Clock
from worker.errors import Stopping
from worker.policy.retry import RetryRules
from worker.storage.errors import DatabaseAway
from worker.storage.group import GroupWriter, RunsAlone, WriterStopped
from worker.storage.intake import NewJob, adopt_jobs, make_bare
from worker.storage.outcomes import ClaimedJob, GiveBack, Recorded, Setback, Success, Usage
from worker.throttle.gatekeeper import Gatekeeper, Permit

log = structlog.get_logger(__name__)


class Verdict(StrEnum):
    """What came of a delivery."""

    SUCCEEDED = "succeeded"
    WAITING = "waiting"
    FAILED = "failed"
    NO_CLAIM = "no_claim"  # somebody else's, ended, or a duplicate delivery: no call was made
    NOT_ADMITTED = "not_admitted"  # the gate is shut: the job is the relay's again
    GIVEN_BACK = "given_back"  # shutdown: unburnt


@dataclass(frozen=True, slots=True)
class Report:
    """What a delivery came to, for Flower and logs: never a prompt, a completion or a key."""

    verdict: Verdict
    summary: str
    retry_in_s: float | None = None
    failure: FailureKind | None = None
    retries: int | None = None  # tries before the one that this delivery made, or is to be waited for


_RECORD_WITHIN_S = (
    5.0  # a database that takes longer over a paid answer counts as away: the spool has it then
)
_PUT_OFF = Report(Verdict.NOT_ADMITTED, "waits: it runs alone, after another")


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


class Executor:
    """Makes the attempts of one worker process. Thread-safe; one call of `execute` is one slot in use."""

    def __init__(
        self,
        *,
        client: EndpointClient,
        credentials: Credentials,
        writer: GroupWriter,
        gatekeeper: Gatekeeper,
        slots: Slots,
        spool: Spool,
        rules: RetryRules,
        clock: Clock,
        is_proven: bool,
        is_paused: Callable[[], bool] = lambda: False,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._credentials = credentials
        self._writer = writer
        self._gatekeeper = gatekeeper
        self._slots = slots
        self._suspects = Suspects()
        self._spool = spool
        self._clock = clock
        self._is_paused = is_paused
        self._shortages = 0  # calls that this machine had no descriptor, thread or memory for
        self._judge = Judge(
            gatekeeper,
            writer,
            rules=rules,
            clock=clock,
            rng=rng or random.Random(),
            is_proven=is_proven,
        )

    def execute(self, job_id: str, *, is_bulk: bool, adopt: NewJob | None = None) -> Report:
        """What this delivery of the job came to. Raises nothing of its own making.

        `adopt` is the job of a message that carries its own request: it becomes a row when it is claimed.
        """
        if adopt is not None and adopt.ended_as is not None:
            return self._refuse(adopt)
        if self._suspects.puts_off(job_id):
            return _PUT_OFF
        try:
            with self._slots.enter(is_bulk=is_bulk) as place:
                return self._admit(job_id, adopt, place)
        except (Stopping, WriterStopped):
            return Report(Verdict.GIVEN_BACK, "given back: the worker is shutting down")

    def _admit(self, job_id: str, adopt: NewJob | None, place: Place) -> Report:
        while not self._spool.is_writable:
            self._spool.wait_until_writable()
        if not self._is_paused():
            with self._gatekeeper.admit(job_id) as permit:
                if permit.is_granted:
                    return self._claim(job_id, adopt, permit, place)
        self._leave_to_the_relay(job_id, adopt)
        return Report(Verdict.NOT_ADMITTED, "waits: the gate is shut, or somebody paused the endpoint")

    def _claim(self, job_id: str, adopt: NewJob | None, permit: Permit, place: Place) -> Report:
        try:
            job = self._writer.claim(job_id, adopt=adopt, is_urgent=not place.is_bulk)
        except RunsAlone:
            return self._attempt_alone(job_id, permit, place)
        except (Stopping, WriterStopped):
            raise
        except Exception as exc:
            if adopt is None:
                raise
            return self._refuse(_bare(adopt, exc))
        if job is None and adopt is not None and adopt.not_before_ms is not None:
            wait_s = max(0.0, (adopt.not_before_ms - self._clock.now_ms()) / 1000)
            return Report(Verdict.WAITING, "waits for its time", wait_s)
        return self._attempt(job, permit, place)

    def _refuse(self, job: NewJob) -> Report:
        """Writes down a message that cannot become a call: it must neither vanish nor poison the queue."""
        try:
            self._write_down(job)
        except WriterStopped:
            return Report(Verdict.GIVEN_BACK, "given back: the worker is shutting down")
        return Report(Verdict.FAILED, "failed: invalid_request", failure=FailureKind.INVALID_REQUEST)

    def _leave_to_the_relay(self, job_id: str, adopt: NewJob | None) -> None:
        if adopt is None:
            self._writer.give_message_back(job_id)
        else:
            self._write_down(adopt)

    def _write_down(self, job: NewJob) -> None:
        """The row of a message's own request. Waits while the database is away: the message is its only copy."""
        while True:
            try:
                self._writer.call(partial(adopt_jobs, new=[job], now_ms=self._clock.now_ms()))
            except DatabaseAway:
                self._spool.wait_until_writable()  # a second, or the end of the worker
                continue
            except WriterStopped:
                raise
            except Exception as exc:
                if job == make_bare(job):
                    log.error("message.lost", task_id=job.id, error=type(exc).__name__)
                    return
                job = _bare(job, exc)
                continue
            return

    def _attempt_alone(self, job_id: str, permit: Permit, place: Place) -> Report:
        """Claims once nobody else is in a call: whoever only waits must not be lost with the one inside."""
        if not self._suspects.begin_turn(job_id):
            return _PUT_OFF
        try:
            with self._slots.alone():
                job = self._writer.claim(job_id, is_urgent=True, is_alone=True)
                return self._attempt(job, permit, place)
        finally:
            with suppress(WriterStopped):  # then this worker's window is published again by the next
                for other in self._suspects.end_turn():
                    self._writer.give_message_back(other)

    def _attempt(self, job: ClaimedJob | None, permit: Permit, place: Place) -> Report:
        if job is None:
            return Report(Verdict.NO_CLAIM, "nothing to do")
        try:
            if self._slots.is_stopping:
                raise Stopping
            try:
                answer = self._call(job)
            finally:
                place.leave()  # the next call need not wait until this one is written down
        except ApiError as exc:
            if exc.failure.kind is FailureKind.INTERRUPTED:
                return self._give_back(job)
            return self._set_back(job, exc.failure, permit, latency_s=exc.latency_s)
        except Stopping:
            return self._give_back(job)
        except Exception as exc:
            # A defect of ours costs this job an attempt, not the worker its thread.
            return self._set_back(job, _defect(exc, job.id), permit, latency_s=None)
        try:
            self._judge.note_success(job, permit)
        except Exception as exc:  # a defect there must not cost the answer, which is paid for
            log.error("gate.not_told", job_id=job.id, error=type(exc).__name__)
        return self._succeed(job, answer, permit)

    def _call(self, job: ClaimedJob) -> Answer:
        """The answer, trying the other header style and a changed key where the key was refused."""
        body = switch_stream_off(job.body.encode())
        credential = self._credentials.current()
        tried = {credential}
        while True:
            try:
                answer = self._client.complete(body, credential=credential, job_id=job.id)
            except ApiError as exc:
                if exc.failure.kind is not FailureKind.UNAUTHORIZED:
                    raise
                other = self._untried_credential(credential, tried)
                if other is None:
                    raise
                credential = other
                tried.add(other)
                continue
            self._credentials.worked(credential)
            return answer

    def _untried_credential(self, refused: Credential, tried: set[Credential]) -> Credential | None:
        """The other header style, what another slot has learned, or a key that was changed; else None."""
        for candidate in (self._credentials.other_style(refused), self._credentials.current()):
            if candidate is not None and candidate not in tried:
                return candidate
        return self._credentials.current() if self._credentials.reread(refused) else None

    def _succeed(self, job: ClaimedJob, answer: Answer, permit: Permit) -> Report:
        completion = answer.completion
        choice = completion.choices[0]
        reasoned = split_reasoning(choice.message)
        now_ms = self._clock.now_ms()
        success = Success(
            claim=job.claim,
            started_at_ms=job.claimed_at_ms,
            ended_at_ms=now_ms,
            latency_ms=round(answer.latency_s * 1000),
            http_status=answer.http_status,
            request_id=answer.request_id,
            finish_reason=choice.finish_reason,
            answer=reasoned.answer,
            reasoning=reasoned.reasoning,
            is_reasoning_unclosed=reasoned.is_unclosed,
            raw=answer.raw,
            usage=_usage_of(completion.usage, job, completion.model) or Usage(completion.model or job.model),
        )
        tokens = success.usage.total_tokens
        summary = f"{tokens} tokens · {choice.finish_reason or 'no finish reason'} · {answer.latency_s:.1f} s"
        try:
            recorded = self._record_success(success, is_urgent=not job.is_bulk)
        except Exception as exc:
            # The ledger cannot store this answer, whatever it is: the spool keeps it for a person, and the
            # job must not hang. What cannot be put aside now is spooled, and put aside by a later beat.
            if not self._spool.reject(success):
                self._spool.keep(success)
            return self._set_back(job, _defect(exc, job.id), permit, latency_s=answer.latency_s)
        if recorded is Recorded.UNUSED:
            summary += " · came second, kept as usage only"
        return Report(Verdict.SUCCEEDED, summary, retries=job.number - 1)

    def _record_success(self, success: Success, *, is_urgent: bool) -> Recorded:
        """Recorded, or spooled: either way the answer outlives this process (invariant 5)."""
        while True:
            try:
                return self._writer.record(success, is_urgent=is_urgent, within_s=_RECORD_WITHIN_S)
            except (DatabaseAway, WriterStopped):
                if self._spool.keep(success):
                    # Still held: the replay records it, and no beat may take it for an orphan before.
                    log.warning("result.spooled", job_id=success.job_id)
                    return Recorded.APPLIED
                # Neither the database nor the spool takes it: hold it in memory until one does.
                self._spool.wait_until_writable()

    def _set_back(
        self, job: ClaimedJob, failure: Failure, permit: Permit, *, latency_s: float | None
    ) -> Report:
        now_ms = self._clock.now_ms()
        if failure.is_local:
            self._shortages += 1
            log.warning("call.local_shortage", job_id=job.id, lack=failure.message, count=self._shortages)
        try:
            judged = self._judge.judge(job, failure, permit, now_ms=now_ms)
        except Exception as exc:  # nor must it keep the job in this worker's hands for ever
            log.error("gate.not_asked", job_id=job.id, error=type(exc).__name__)
            judged = self._judge.judge_alone(job, failure, now_ms=now_ms)
        not_before_ms = judged.not_before_ms
        setback = Setback(
            claim=job.claim,
            started_at_ms=job.claimed_at_ms,
            ended_at_ms=now_ms,
            latency_ms=None if latency_s is None else round(latency_s * 1000),
            failure=failure,
            not_before_ms=not_before_ms,
            burns=judged.burns,
            is_blocked=judged.is_blocked,
            usage=_usage_of(failure.spent, job),
        )
        self._record_or_forget(setback)
        if not_before_ms is None:
            log.info("job.failed", job_id=job.id, kind=failure.kind.value, http_status=failure.http_status)
            return Report(
                Verdict.FAILED,
                f"failed: {failure.kind.value}",
                failure=failure.kind,
                retries=job.number - 1,
            )
        wait_s = max(0.0, (not_before_ms - now_ms) / 1000)
        log.info("job.waiting", job_id=job.id, kind=failure.kind.value, retry_in_s=round(wait_s, 3))
        return Report(Verdict.WAITING, f"waits: {failure.kind.value}", wait_s, failure.kind, job.number)

    def _give_back(self, job: ClaimedJob) -> Report:
        give_back = GiveBack(
            claim=job.claim,
            started_at_ms=job.claimed_at_ms,
            ended_at_ms=self._clock.now_ms(),
        )
        self._record_or_forget(give_back)
        return Report(Verdict.GIVEN_BACK, "given back: the worker is shutting down")

    def _record_or_forget(self, outcome: Setback | GiveBack) -> None:
        try:
            self._writer.record(outcome)
        except (DatabaseAway, WriterStopped):
            # Nothing was paid for: the next beat, or a rescue, finds the claim without a holder.
            self._writer.forget(outcome.job_id)


def _usage_of(tokens: Tokens | Spent | None, job: ClaimedJob, model: str | None = None) -> Usage | None:
    """What an answer cost, as the ledger keeps it; None where it did not say."""
    if tokens is None:
        return None
    return Usage(
        model=model or getattr(tokens, "model", None) or job.model,
        prompt_tokens=tokens.prompt_tokens,
        completion_tokens=tokens.completion_tokens,
        total_tokens=tokens.total_tokens,
        cached_tokens=tokens.cached_tokens,
        reasoning_tokens=tokens.reasoning_tokens,
    )


def _bare(job: NewJob, exc: Exception) -> NewJob:
    """The last resort for a message that the database does not take as it is: it must not vanish."""
    log.error("message.unstorable", task_id=job.id, error=type(exc).__name__)
    return make_bare(job)


def _defect(exc: Exception, job_id: str) -> Failure:
    """A defect of ours as a failure. No text of the exception is kept: it may quote the prompt."""
    where = traceback.extract_tb(exc.__traceback__)[-1]
    log.error("job.defect", job_id=job_id, error=type(exc).__name__, file=where.filename, line=where.lineno)
    return Failure(FailureKind.INTERNAL_ERROR, f"antrean failed inside: {type(exc).__name__}")
