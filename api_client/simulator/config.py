"""The simulator's options: its address, its latency, and its faults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

AuthHeader = Literal["both", "bearer", "api-key"]

# `fault_rate` is split evenly over these.
MIXED_FAULTS = (
    "rate_429",
    "rate_429_bare",
    "rate_500",
    "rate_502_html",
    "rate_reset",
    "rate_cut_json",
    "rate_cut_body",
)
# Faults beyond these are drawn only if their own rate is set. The last three are completions, and are paid for.
FAULTS = (
    *MIXED_FAULTS,
    "rate_hang",
    "rate_drip",
    "rate_html",
    "rate_empty",
    "rate_large",
    "rate_nul",
    "rate_surrogate",
)
_FIXED_AT_START = {"host", "port", "seed", "log_calls_path"}


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """The options of one simulator. Raises ValueError with one sentence if a value is not valid.

    `key` None: no credential is asked for; it may name several, with commas between them. `spent_keys`: those of them
    whose accounts are empty, so that their calls get 402. `fault_rate`: a share of calls in [0, 1], split evenly over
    `MIXED_FAULTS`; each `rate_*` adds its own share. `rpm`: most admitted calls of a key in any 60 seconds.
    `outage_status`: while it is set, every call gets this status, as from a proxy whose endpoint is gone.
    `latency_jitter`: a share of the latency by which it varies, up and down.
    """

    host: str = "127.0.0.1"
    port: int = 0
    key: str | None = field(default=None, repr=False)
    spent_keys: str = field(default="", repr=False)
    models: tuple[str, ...] = ("DeepSeek-V3.1",)
    latency_s: float = 0.5
    latency_jitter: float = 0.0
    seed: int | None = None
    rpm: int | None = None
    fault_rate: float = 0.0
    rate_429: float = 0.0
    rate_429_bare: float = 0.0
    rate_500: float = 0.0
    rate_502_html: float = 0.0
    rate_reset: float = 0.0
    rate_hang: float = 0.0
    rate_cut_json: float = 0.0
    rate_cut_body: float = 0.0
    rate_drip: float = 0.0
    rate_html: float = 0.0
    rate_empty: float = 0.0
    rate_large: float = 0.0
    rate_nul: float = 0.0
    rate_surrogate: float = 0.0
    retry_after_s: float = 1.0
    unauthorized_for_s: float = 0.0
    outage_status: int | None = None
    auth_header: AuthHeader = "both"
    log_calls_path: Path | None = None

    def __post_init__(self) -> None:
        _whole("port", self.port, low=0, high=65535)
        if self.key is not None and (not isinstance(self.key, str) or not self.key.strip()):
            raise ValueError("key must not be empty: leave it out to ask for no credential")
        if not isinstance(self.models, tuple) or not self.models:
            raise ValueError("models must name at least one model")
        if not all(isinstance(model, str) and model for model in self.models):
            raise ValueError("models must be names that are not empty")
        for name in ("latency_s", "retry_after_s", "unauthorized_for_s"):
            _number(name, getattr(self, name), high=math.inf)
        for name in ("latency_jitter", "fault_rate", *FAULTS):
            _number(name, getattr(self, name), high=1.0)
        total = self.fault_rate + sum(getattr(self, name) for name in FAULTS)
        if total > 1.0 + 1e-9:
            raise ValueError(f"fault rates add up to {total:g}, and can be 1 at most")
        if self.rpm is not None:
            _whole("rpm", self.rpm, low=1)
        if self.outage_status is not None:
            _whole("outage_status", self.outage_status, low=400, high=599)
        if self.auth_header not in get_args(AuthHeader):
            raise ValueError(f"auth_header must be one of {', '.join(get_args(AuthHeader))}")

    def changed(self, changes: Mapping[str, Any]) -> SimulatorConfig:
        """This configuration with `changes`. Raises ValueError for an option that is unknown, fixed or not valid."""
        changeable = {option.name for option in dataclasses.fields(self)} - _FIXED_AT_START
        for name in changes:
            if name not in changeable:
                raise ValueError(f"{name} cannot be changed: choose from {', '.join(sorted(changeable))}")
        values = dict(changes)
        if isinstance(values.get("models"), list):
            values["models"] = tuple(values["models"])
        return dataclasses.replace(self, **values)


def _number(name: str, value: object, *, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, not {value!r}")
    if not 0.0 <= value <= high:
        bounds = "at least 0" if high == math.inf else f"from 0 to {high:g}"
        raise ValueError(f"{name} must be {bounds}, not {value:g}")


def _whole(name: str, value: object, *, low: int, high: int | None = None) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < low
        or (high is not None and value > high)
    ):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number, {bounds}, not {value!r}")
