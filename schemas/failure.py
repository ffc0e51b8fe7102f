"""Why a call or a job did not succeed: one vocabulary for client, policy, ledger and reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FailureKind(StrEnum):
    """The kinds that docs/answers.md tells of, and what follows each."""

    BAD_RESPONSE = "bad_response"  # 200 without a completion in it
    UNAUTHORIZED = "unauthorized"  # 401
    QUOTA = "quota"  # 402, or 429 insufficient_quota
    RATE_LIMITED = "rate_limited"  # 425, 429
    SERVER_ERROR = "server_error"  # 408, 409, 5xx
    UNREACHABLE = "unreachable"  # refused, reset, TLS, DNS
    TIMEOUT = "timeout"  # connect, read or total deadline
    REJECTED = "rejected"  # 400 403 404 405 413 415 422 and other 4xx
    INVALID_REQUEST = "invalid_request"  # never sent
    WORKER_LOST = "worker_lost"  # its worker died with it, alone, too often
    INTERNAL_ERROR = "internal_error"  # a defect of ours, recorded rather than raised
    INTERRUPTED = "interrupted"  # we cut the call ourselves (shutdown); never stored on a job


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens that were paid for an answer without use. `model` is the one that the answer named."""

    model: str | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Facts of one failed call; policy draws the conclusions.

    `message` is for people: the endpoint's own words where it had any, never a key or a prompt of ours.
    `retry_after_s` is what the endpoint asked for, in seconds; `should_retry` is its `x-should-retry`.
    `was_sent` is False where nothing of the request was sent: the endpoint could not be reached.
    `http_status` is that of the answer, or of an error inside a 2xx that names one.
    `spent` are the tokens that the answer reports although it failed.
    `is_local`: this machine had no descriptor, thread or memory for the call. It says nothing of the endpoint.
    `body` holds the raw error body (bytes, cut at 64 KiB) for the batch error file.
    """

    kind: FailureKind
    message: str
    http_status: int | None = None
    request_id: str | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None
    body: bytes | None = None
    was_sent: bool = True
    spent: Spent | None = None
    is_local: bool = False
