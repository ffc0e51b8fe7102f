"""What the simulated endpoint bears, and what it says of that: calls at once, their rise, calls and tokens a minute."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.rate_shapes import Shapes
from api_client.simulator.slope import Slope

_WORDS = {402: "Payment Required", 429: "Too Many Requests", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class OverLimit:
    """A call is refused. `kind`: the limit's name. `wait_s`: what `Retry-After` says; None for nothing."""

    kind: str
    status: int
    wait_s: float | None = None
    code: str | None = None

    @property
    def message(self) -> str:
        return _WORDS[self.status]


class Limits:
    """The limits of one simulator. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._calls = Shapes()
        self._tokens = Shapes()
        self._slope = Slope()

    def check_call(
        self, config: SimulatorConfig, key: bytes, *, in_flight: int, of_key: int, now: float
    ) -> OverLimit | None:
        """The first limit that this call is over, before its body is looked at.

        `in_flight` counts the call itself, and so does `of_key`, which are those with its key. A call that is refused
        for the calls at once does not count for the calls a minute.
        """
        if config.refuse_above is not None and in_flight > int(config.refuse_above * config.capacity):
            return self._busy("refuse_above", config)
        most_of_key = _list_by_key(config.key or "", config.refuse_keys_above).get(key)
        if most_of_key is not None and of_key > int(most_of_key * config.capacity):
            return self._busy("refuse_keys_above", config)
        if config.slope_per_s is not None and not self._slope.admits(
            in_flight, per_s=config.slope_per_s, now=now
        ):
            return self._busy("slope", config)
        if config.rpm is not None:
            window_s = config.rate_window_s
            rate = self._calls.of(config.rate_shape)
            wait_s = rate.admit(key, limit=config.rpm, now=now, window_s=window_s)
            if wait_s > 0:
                return _over_rate("rpm", config, wait_s)
        return None

    def check_tokens(
        self, config: SimulatorConfig, key: bytes, tokens: int, *, now: float
    ) -> OverLimit | None:
        """Whether a valid call is over the tokens a minute; `tokens`: those of its prompt and of its whole answer."""
        if config.tpm is None:
            return None
        window_s = config.rate_window_s
        rate = self._tokens.of(config.rate_shape)
        wait_s = rate.admit(key, limit=config.tpm, now=now, amount=tokens, window_s=window_s)
        return _over_rate("tpm", config, wait_s) if wait_s > 0 else None

    def headers(self, config: SimulatorConfig, key: bytes, *, now: float) -> bytes:
        """Whole lines of `x-ratelimit-*`, in OpenAI's form, for each rate that is limited; empty if not wanted."""
        if not config.rate_headers:
            return b""
        lines = b""
        for name, limit, window in (
            ("requests", config.rpm, self._calls),
            ("tokens", config.tpm, self._tokens),
        ):
            if limit is not None:
                used, reset_s = window.used(
                    config.rate_shape, key, limit=limit, now=now, window_s=config.rate_window_s
                )
                lines += (
                    f"x-ratelimit-limit-{name}: {limit}\r\n"
                    f"x-ratelimit-remaining-{name}: {max(0, limit - used)}\r\n"
                    f"x-ratelimit-reset-{name}: {format_duration(reset_s)}\r\n"
                ).encode()
        return lines

    def _busy(self, kind: str, config: SimulatorConfig) -> OverLimit:
        return OverLimit(kind, config.refuse_status, config.refuse_retry_after_s, config.refuse_code)


@lru_cache(maxsize=16)
def _list_by_key(keys: str, numbers: str) -> dict[bytes, int]:
    """The number of each key, where there is one."""
    if not numbers:
        return {}
    return {
        key.strip().encode(): int(number)
        for key, number in zip(keys.split(","), numbers.split(","), strict=False)
    }


def _over_rate(kind: str, config: SimulatorConfig, wait_s: float) -> OverLimit:
    is_told = config.tells_wait and math.isfinite(wait_s)
    return OverLimit(kind, 429, wait_s if is_told else None)


def format_duration(seconds: float) -> str:
    """The duration as Go writes it, to the millisecond: `0s`, `12ms`, `1.5s`, `6m0s`, `1h0m1s`."""
    ms = math.ceil(seconds * 1000)
    if ms <= 0:
        return "0s"
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + rest
