"""Failures: why a call or a job did not succeed. The same kinds in client, policy, ledger and reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.rates import RateHints


class FailureKind(StrEnum):
    """The kinds of failures. What follows each is in docs/answers.md."""

    BAD_RESPONSE = "bad_response"  # 200 without a completion in it
    UNAUTHORIZED = "unauthorized"  # 401
    QUOTA = "quota"  # 402; 400, 403, 412, 429 that tell of an empty account
    RATE_LIMITED = "rate_limited"  # 425, 429; a 402 that asks for less at a time
    SERVER_ERROR = "server_error"  # 408, 409, 5xx
    UNREACHABLE = "unreachable"  # refused, reset, TLS, DNS
    TIMEOUT = "timeout"  # connect, read or total deadline
    REJECTED = "rejected"  # 400 403 404 405 413 415 422 and other 4xx
    INVALID_REQUEST = "invalid_request"  # never sent
    WORKER_LOST = "worker_lost"  # its worker died too often while it ran alone
    INTERNAL_ERROR = "internal_error"  # a defect of antrean, which is recorded and not raised
    INTERRUPTED = "interrupted"  # the worker cut the call at its shutdown; never stored on a job


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens that were paid for an unusable answer. `model`: the one that the answer named."""

    model: str | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """The facts of one failed call. `worker/policy` decides what follows.

    `message`: for people; the endpoint's message if there was one, never a key or a prompt.
    `retry_after_s`: the seconds that the endpoint asked to wait. `should_retry`: its header `x-should-retry`.
    `was_sent` False: nothing of the request was sent, as the endpoint could not be reached.
    `http_status`: that of the answer, or the one that an error in a 2xx names.
    `spent`: the tokens that the answer reports although it failed.
    `is_local`: this machine had no file descriptor, thread, port or memory for the call; the endpoint is not at fault.
    `body`: the raw error body (bytes, cut at 64 KiB) for the batch error file.
    `rate_hints`: what the headers say of rate limits; None if they say nothing.
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
    rate_hints: RateHints | None = None
