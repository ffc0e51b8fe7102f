"""The values that attempts and the ledger exchange: claims, and their outcomes. Frozen, without SQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from schemas.failure import Failure


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's exclusive right to call the endpoint for a job. Each outcome names its claim."""

    job_id: str
    token: str  # unique to each claim; writes are fenced by it
    number: int  # the claim's number among all of the job's claims
    generation: int
    worker_id: str


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job and a worker's claim on it."""

    claim: Claim
    body: str  # the JSON to send
    model: str
    burnt: int  # attempts so far that count against its budget
    bad_responses: int  # those of them that brought an answer without a completion
    max_attempts: int | None
    blocked_since_ms: int | None  # without the time in which it was not tried
    claimed_at_ms: int
    is_bulk: bool
    expires_at_ms: int | None = None  # it is not called after that
    budget_of: str | None = None  # its home batch, if that has a budget
    batch_id: str = ""  # its home batch
    priority: int = 0  # 0 is served first

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
    """The numbers of tokens of an answered call, as the ledger keeps them, and its cost (10⁻⁹ USD; None: unknown)."""

    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nano: int | None = None


@dataclass(frozen=True, slots=True)
class _Ended:
    """The end of a claim, and when its call began and ended.

    `endpoint`: the one that was called, where jobs may go to several; None: that of the job.
    """

    claim: Claim
    started_at_ms: int
    ended_at_ms: int
    endpoint: str | None = field(default=None, kw_only=True)

    @property
    def job_id(self) -> str:
        return self.claim.job_id


@dataclass(frozen=True, slots=True)
class Success(_Ended):
    """A paid answer. It is recorded even if the claim was lost, unless another success came first (invariant 3)."""

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
    """A call, or a refusal at the gate, without a success. It is recorded only if the claim was not lost.

    `not_before_ms` None: the job fails. `burns`: an attempt is burnt. `is_blocked`: the job waits at a shut gate; the
    beginning of the wait is kept for its patience. `usage`: the tokens of an answer without a usable completion; they
    are recorded even if the claim was lost.
    """

    latency_ms: int | None
    failure: Failure
    not_before_ms: int | None
    burns: bool
    is_blocked: bool = False
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class GiveBack(_Ended):
    """A claim that is given back unburnt: the job is queued again as if it had not been claimed.

    `was_called` False: no call was made. Then no attempt is kept, and the next claim has the same number.
    """

    was_called: bool = True


@dataclass(frozen=True, slots=True)
class Loss(_Ended):
    """A claim whose worker died. `losses` and `solo_losses` are the job's counts with this loss."""

    losses: int
    solo_losses: int  # those while it ran alone
    is_given_up: bool


Outcome = Success | Setback | GiveBack | Loss


class Recorded(StrEnum):
    """What the ledger did with an outcome."""

    APPLIED = "applied"  # the job changed its state
    REPEATED = "repeated"  # the same outcome was recorded before: the answer to that COMMIT was lost
    UNUSED = "unused"  # a second success: its usage is kept, its result is not
    CLAIM_LOST = "claim_lost"  # the claim is no longer the job's: of a failure only the usage was written
