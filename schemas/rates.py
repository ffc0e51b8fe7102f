"""What an endpoint says of its rate limits in the headers of an answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit. None: the endpoint does not say, or says nonsense.

    `limit`: how much a window allows. `remaining`: how much of it is left. `reset_s`: seconds until there is more.
    """

    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None

    @property
    def wait_s(self) -> float | None:
        """Seconds until a call is allowed, where nothing is left and the endpoint says until when; else None."""
        return self.reset_s if self.remaining == 0 and self.reset_s else None


@dataclass(frozen=True, slots=True)
class RateHints:
    """The limits on requests and on tokens. Of several windows (minute, day) the one that leaves the least.

    `requests_per_minute` and `tokens_per_minute`: of headers whose name says that they are of a minute.
    """

    requests: Allowance = Allowance()
    tokens: Allowance = Allowance()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @property
    def wait_s(self) -> float | None:
        """Seconds until a call is allowed; None where one is allowed now, as far as is known."""
        waits = [wait for wait in (self.requests.wait_s, self.tokens.wait_s) if wait is not None]
        return max(waits, default=None)
