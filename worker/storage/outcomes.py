"""What passes between a slot and the ledger: claims in, outcomes back. Frozen values, no SQL."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.failure import Failure


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this worker alone may call the endpoint for, fenced by `token`."""

    id: str
    token: str
    number: int  # the claim's ordinal among all of the job's
    generation: int
    body: str  # the JSON to send
    model: str
    attempts: int  # burnt so far
    bad_responses: int  # of them
    max_attempts: int | None
    blocked_since_ms: int | None  # without the time in which nobody tried
    claimed_at_ms: int
    is_bulk: bool


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
class Success:
    """A paid answer. Counts whoever brings it, unless another success came first (invariant 3)."""

    job_id: str
    token: str
    number: int
    generation: int
    worker_id: str
    started_at_ms: int
    ended_at_ms: int
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
class Setback:
    """A call or an admission that did not end in a success. Counts only from the holder of the claim.

    `not_before_ms` None means the job fails for good. `burns` says whether an attempt is spent.
    `is_blocked` marks a wait at a shut gate, whose beginning is kept for the job's patience. `usage` is what an
    answer of no use cost: it is kept whoever brings it.
    """

    job_id: str
    token: str
    number: int
    generation: int
    worker_id: str
    started_at_ms: int
    ended_at_ms: int
    latency_ms: int | None
    failure: Failure
    not_before_ms: int | None
    burns: bool
    is_blocked: bool = False
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class GiveBack:
    """A claim returned unburnt (shutdown): the job is queued again as if it had not been claimed."""

    job_id: str
    token: str
    number: int
    generation: int
    worker_id: str
    started_at_ms: int
    ended_at_ms: int


Outcome = Success | Setback | GiveBack


class Recorded(StrEnum):
    """What the ledger did with an outcome."""

    APPLIED = "applied"  # the job moved
    REPEATED = "repeated"  # the same outcome was recorded before (a COMMIT whose answer was lost)
    UNUSED = "unused"  # a success that came second: usage kept, result not
    CLAIM_LOST = "claim_lost"  # no longer ours: nothing was written
