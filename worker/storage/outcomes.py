"""What passes between an attempt and the ledger: claims in, outcomes back. Frozen values, no SQL."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.failure import Failure


@dataclass(frozen=True, slots=True)
class Claim:
    """That a worker alone may call the endpoint for a job. An outcome names the claim that it is of."""

    job_id: str
    token: str  # the fence: unique to each claim
    number: int  # the claim's ordinal among all of the job's
    generation: int
    worker_id: str


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job with the claim that a worker has on it."""

    claim: Claim
    body: str  # the JSON to send
    model: str
    burnt: int  # attempts that count against its budget
    bad_responses: int  # among them
    max_attempts: int | None
    blocked_since_ms: int | None  # without the time in which nobody tried
    claimed_at_ms: int
    is_bulk: bool

    @property
    def id(self) -> str:
        return self.claim.job_id

    @property
    def token(self) -> str:
        return self.claim.token

    @property
    def number(self) -> int:
        return self.claim.number


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of an answered call, as the ledger keeps them."""

    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Ended:
    """The end of a claim: of which one, and when its call began and ended."""

    claim: Claim
    started_at_ms: int
    ended_at_ms: int

    @property
    def job_id(self) -> str:
        return self.claim.job_id


@dataclass(frozen=True, slots=True)
class Success(_Ended):
    """A paid answer. It counts from anybody, unless another success came first (invariant 3)."""

    latency_ms: int
    http_status: int
    request_id: str | None
    finish_reason: str | None
    answer: str | None
    reasoning: str | None
    is_reasoning_unclosed: bool
    raw: bytes
    usage: Usage


@dataclass(frozen=True, slots=True)
class Setback(_Ended):
    """A call or an admission that did not end in a success. It counts only from the holder of the claim.

    `not_before_ms` None means the job fails for good. `burns` says whether an attempt is spent.
    `is_blocked` marks a wait at a shut gate, whose beginning is kept for the job's patience. `usage` is what an
    answer of no use cost: it is kept from anybody.
    """

    latency_ms: int | None
    failure: Failure
    not_before_ms: int | None
    burns: bool
    is_blocked: bool = False
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class GiveBack(_Ended):
    """A claim returned unburnt (shutdown): the job is queued again as if it had not been claimed.

    With `was_called` False no call was made for it: no attempt is kept, and the next claim has the same number.
    """

    was_called: bool = True


@dataclass(frozen=True, slots=True)
class Loss(_Ended):
    """A claim whose worker died. The counts are the job's, with this loss."""

    losses: int
    solo_losses: int  # of them, those while it ran alone
    is_given_up: bool


Outcome = Success | Setback | GiveBack | Loss


class Recorded(StrEnum):
    """What the ledger did with an outcome."""

    APPLIED = "applied"  # the job moved
    REPEATED = "repeated"  # the same outcome was recorded before (a COMMIT whose answer was lost)
    UNUSED = "unused"  # a success that came second: usage kept, result not
    CLAIM_LOST = "claim_lost"  # no longer ours: nothing was written
