"""What a received job came to, for Celery, Flower and logs: never a prompt, a completion or a key."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.failure import FailureKind


class Verdict(StrEnum):
    """What came of a message."""

    SUCCEEDED = "succeeded"
    WAITING = "waiting"
    FAILED = "failed"
    NO_CLAIM = "no_claim"  # somebody else's, ended, or a duplicate message: no call was made
    NOT_ADMITTED = "not_admitted"  # the gate is shut: the job is the relay's again
    GIVEN_BACK = "given_back"  # shutdown: unburnt
    BROKE = "broke"  # a defect of ours: the job is what the ledger says


@dataclass(frozen=True, slots=True)
class Report:
    """What a message came to."""

    verdict: Verdict
    summary: str
    retry_in_s: float | None = None
    failure: FailureKind | None = None
    retries: int | None = None  # tries before the one that this message made, or is to be waited for


NOTHING_TO_DO = Report(Verdict.NO_CLAIM, "nothing to do")
NOT_ADMITTED = Report(Verdict.NOT_ADMITTED, "waits: the gate is shut, or somebody paused the endpoint")
EXPIRED = Report(Verdict.NOT_ADMITTED, "its time was over before a slot was free for it")
PUT_OFF = Report(Verdict.NOT_ADMITTED, "waits: it runs alone, after another")
GIVEN_BACK = Report(Verdict.GIVEN_BACK, "given back: the worker is shutting down")
