"""The errors of a call: one root class, and a class for each kind of failure."""

from __future__ import annotations

from typing import Any

from schemas.failure import Failure, FailureKind


class ApiError(Exception):
    """A call without a completion. `failure` holds the facts; `worker/policy` decides what follows.

    `latency_s`: the duration of the call. `raw`: the decoded body as far as it was received, or None. The error's text
    has the kind and the status only: never a key, a prompt or a completion.
    """

    def __init__(self, failure: Failure, *, latency_s: float = 0.0, raw: bytes | None = None) -> None:
        status = "" if failure.http_status is None else f" (HTTP {failure.http_status})"
        super().__init__(f"{failure.kind.value}{status}")
        self.failure = failure
        self.latency_s = latency_s
        self.raw = raw

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.failure, self.latency_s, self.raw)


class BadResponse(ApiError):
    """2xx without a usable completion."""


class Unauthorized(ApiError):
    """401, or a key that cannot be sent in a header."""


class QuotaSpent(ApiError):
    """The account is empty: mostly a 402."""


class RateLimited(ApiError):
    """Too much is asked at once: mostly a 429."""


class ServerError(ApiError):
    """408, 409 or 5xx."""


class Unreachable(ApiError):
    """Refused, reset, TLS or DNS."""


class TimedOut(ApiError):
    """Connect timeout, read timeout or total deadline."""


class Rejected(ApiError):
    """Any other 4xx, and redirects."""


class Interrupted(ApiError):
    """The client cut the call itself."""


_CLASSES: dict[FailureKind, type[ApiError]] = {
    FailureKind.BAD_RESPONSE: BadResponse,
    FailureKind.UNAUTHORIZED: Unauthorized,
    FailureKind.QUOTA: QuotaSpent,
    FailureKind.RATE_LIMITED: RateLimited,
    FailureKind.SERVER_ERROR: ServerError,
    FailureKind.UNREACHABLE: Unreachable,
    FailureKind.TIMEOUT: TimedOut,
    FailureKind.REJECTED: Rejected,
    FailureKind.INTERRUPTED: Interrupted,
}


def error_for(failure: Failure, *, latency_s: float, raw: bytes | None = None) -> ApiError:
    """The error for a failure, of the class of its kind."""
    return _CLASSES.get(failure.kind, ApiError)(failure, latency_s=latency_s, raw=raw)


def _rebuild(cls: type[ApiError], failure: Failure, latency_s: float, raw: bytes | None) -> ApiError:
    return cls(failure, latency_s=latency_s, raw=raw)
