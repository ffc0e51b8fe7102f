"""The calls of one attempt: with which key each is made, and whether it may still be made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from api_client.answers import Answer
from api_client.client import EndpointClient
from api_client.config import Credential
from api_client.errors import ApiError
from api_client.payload import put_priority, switch_stream_off
from schemas.failure import Failure, FailureKind
from worker.attempt.credentials import Credentials
from worker.attempt.report import EXPIRED, NOT_ADMITTED, Report
from worker.clock import Clock
from worker.errors import KeyUnavailable, Stopping
from worker.policy.fairness import choose_upstream_priority
from worker.policy.gates import is_of_a_key
from worker.storage.claims import is_unwanted
from worker.storage.errors import DatabaseAway, WriterStopped
from worker.storage.outcomes import ClaimedJob
from worker.storage.writer import GroupWriter
from worker.throttle.gatekeeper import Permit
from worker.throttle.key_gates import KeyGates

FRESH_S = 1.0  # a claim that waited longer since it was looked at is looked at once more before its call


class NotCalled(Exception):
    """The job must not be called any more. `was_called`: a call before was refused, and not paid for."""

    def __init__(self, report: Report, *, was_called: bool) -> None:
        super().__init__(report.summary)
        self.report = report
        self.was_called = was_called


def is_unwanted_now(writer: GroupWriter, job: ClaimedJob, clock: Clock) -> bool:
    """Whether the job must not be called any more, because of what happened while it waited for its slot.

    Also if the database cannot tell: this worker's lease may have run out by then, and the job may be another's.
    """
    try:
        return writer.call(partial(is_unwanted, claim=job.claim, now_ms=clock.now_ms()))
    except (DatabaseAway, WriterStopped):
        return True


class Caller:
    """Makes the calls of one worker process to one endpoint. The only place that calls it for a job. Thread-safe."""

    def __init__(
        self,
        client: EndpointClient,
        credentials: Credentials,
        gates: KeyGates,
        *,
        writer: GroupWriter,
        retry_after_cap_s: float,
        clock: Clock,
        is_stopping: Callable[[], bool],
        passes_priority: bool = False,
    ) -> None:
        """`passes_priority`: the endpoint is told which calls come first."""
        self._client = client
        self._credentials = credentials
        self._gates = gates
        self._writer = writer
        self._retry_after_cap_s = retry_after_cap_s
        self._clock = clock
        self._is_stopping = is_stopping
        self._passes_priority = passes_priority

    def call(self, job: ClaimedJob, permit: Permit) -> Answer:
        """The answer, trying the other header style, a changed key and other keys where the key was refused.

        Raises ApiError, NotCalled and Stopping.
        """
        body = switch_stream_off(job.body.encode())
        if self._passes_priority:
            body = put_priority(body, choose_upstream_priority(job.priority, is_bulk=job.is_bulk))
        since_s = self._clock.monotonic_s()
        credential = self._first_credential(permit)
        if (why_not := self._why_not(job, since_s)) is not None:
            raise NotCalled(why_not, was_called=False)
        tried = {credential}
        while True:
            since_s = self._clock.monotonic_s()
            try:
                answer = self._client.complete(body, credential=credential, job_id=job.id)
            except ApiError as exc:
                other = self._untried_credential(job, exc.failure, credential, tried, permit, since_s)
                if other is None:
                    raise
                if (why_not := self._why_not(job, since_s)) is not None:
                    raise NotCalled(why_not, was_called=True) from None
                credential = other
                tried.add(other)
                continue
            self._credentials.worked(credential)
            return answer

    def _why_not(self, job: ClaimedJob, since_s: float) -> Report | None:
        """Why the job must not be called any more; it was looked at `since_s` (monotonic).

        A command that is asked for the key may take longer than the job has time, or than its claim is surely kept.
        """
        if job.expires_at_ms is not None and job.expires_at_ms <= self._clock.now_ms():
            return EXPIRED
        is_fresh = self._clock.monotonic_s() - since_s <= FRESH_S
        return None if is_fresh or not is_unwanted_now(self._writer, job, self._clock) else NOT_ADMITTED

    def _first_credential(self, permit: Permit) -> Credential:
        """What to send with the permit's key, or with one that has replaced it. Raises ApiError where there is none."""
        try:
            self._credentials.fetch_names()
        except KeyUnavailable as exc:
            if self._is_stopping():
                raise Stopping from None
            # As a refused key: the gate shuts, and each probe asks for the key again.
            raise ApiError(Failure(FailureKind.UNAUTHORIZED, str(exc), was_sent=False)) from None
        found = self._credentials.get(permit.key)
        if found is None and self._gates.change_key(permit):
            found = self._credentials.get(permit.key)
        return found or self._credentials.fetch()[0]

    def _untried_credential(
        self,
        job: ClaimedJob,
        failure: Failure,
        refused: Credential,
        tried: set[Credential],
        permit: Permit,
        sent_s: float,
    ) -> Credential | None:
        """What to send after a refusal of the key, or None.

        The key in the other header style, a key that has replaced it, or another one; then this one is set aside.
        """
        if not is_of_a_key(failure.kind):
            return None
        if failure.kind is FailureKind.UNAUTHORIZED:
            other = self._credentials.other_style(refused)
            if other is not None and other not in tried:
                return other
            with suppress(KeyUnavailable):
                self._credentials.reread(sent_s=sent_s)
        asked_s = failure.retry_after_s
        is_changed = self._gates.change_key(
            permit,
            tried={one.key_id for one in tried},
            kind=failure.kind,
            asked_s=None if asked_s is None else min(asked_s, self._retry_after_cap_s),
            job_id=job.id,
            http_status=failure.http_status,
        )
        return self._credentials.get(permit.key) if is_changed else None
