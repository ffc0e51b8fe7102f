"""The simulator's options: its address, its latency, its limits, and its faults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from api_client.simulator.timetable import Step, as_timetable

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
REFUSE_STATUSES = (402, 429, 503)
RATE_SHAPES = ("sliding", "window", "bucket")
_FIXED_AT_START = {"host", "port", "seed", "log_calls_path"}


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """The options of one simulator. Raises ValueError with one sentence if a value is not valid.

    `key` None: no credential is asked for. `fault_rate`: a share of calls in [0, 1], split evenly over `MIXED_FAULTS`;
    each `rate_*` adds its own share. `rpm`: most admitted calls of a key in any 60 seconds. `outage_status`: while it
    is set, every call gets this status, as from a proxy whose endpoint is gone. `latency_jitter`: a share of the
    latency by which it varies, up and down.

    `key` may name several, with commas between them; so may `spent_keys`, which are answered with 402, and
    `revoked_keys`, which are not accepted any more. `refuse_above`: most calls at once; more get `refuse_status`, and
    `refuse_code` in the body. `refuse_keys_above`: the same for each key of `key`, in their order, with commas between.
    `slope_per_s`: how fast calls at once may rise. `tpm`: most tokens of a key in any `rate_window_s`, as `rpm` of
    calls; `rate_shape`: of both, a window that slides, one that ends at fixed times, or a bucket;
    `tells_wait`: whether their 429s say `Retry-After`. `call_tokens_per_s`: a call takes its answer's tokens
    divided by this, after the latency; beyond `knee` calls the sum stays flat. `answer_tokens`: how long answers are,
    in the mean if `answer_spread`, a lognormal's sigma, is above 0. `capacity`: a factor on `refuse_above` and `knee`.
    `is_dead`: connections are refused. `models_status`: what the list of models answers instead.
    """

    host: str = "127.0.0.1"
    port: int = 0
    key: str | None = field(default=None, repr=False)
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
    spent_keys: str = field(default="", repr=False)
    revoked_keys: str = field(default="", repr=False)
    refuse_above: int | None = None
    refuse_keys_above: str = ""
    refuse_status: int = 429
    refuse_retry_after_s: float | None = None
    refuse_code: str | None = None
    slope_per_s: float | None = None
    tpm: int | None = None
    rate_window_s: float = 60.0
    rate_shape: str = "sliding"
    rate_headers: bool = False
    tells_wait: bool = True
    call_tokens_per_s: float | None = None
    knee: int | None = None
    answer_tokens: int | None = None
    answer_spread: float = 0.0
    capacity: float = 1.0
    is_dead: bool = False
    models_status: int | None = None
    timetable: tuple[Step, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        _whole("port", self.port, low=0, high=65535)
        if self.key is not None and (not isinstance(self.key, str) or not self.key.strip(", ")):
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
        for name in ("rpm", "tpm", "knee", "answer_tokens"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), low=1)
        for name in ("outage_status", "models_status"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), low=400, high=599)
        self._check_limits()
        self._check_timetable()
        if self.auth_header not in get_args(AuthHeader):
            raise ValueError(f"auth_header must be one of {', '.join(get_args(AuthHeader))}")

    def changed(self, changes: Mapping[str, Any]) -> SimulatorConfig:
        """This configuration with `changes`. Raises ValueError for an option that is unknown, fixed or not valid."""
        changeable = {option.name for option in dataclasses.fields(self)} - _FIXED_AT_START
        for name in changes:
            if name not in changeable:
                raise ValueError(f"{name} cannot be changed: choose from {', '.join(sorted(changeable))}")
        lists = {name: tuple(value) for name, value in changes.items() if isinstance(value, list)}
        values = {"timetable": ()} | dict(changes) | lists
        return dataclasses.replace(self, **values)

    def _check_limits(self) -> None:
        for name in ("spent_keys", "revoked_keys"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text: keys with commas between them")
        if self.refuse_above is not None:
            _whole("refuse_above", self.refuse_above, low=0)
        numbers = self.refuse_keys_above.split(",") if isinstance(self.refuse_keys_above, str) else ["?"]
        if numbers != [""] and not all(one.strip().isdecimal() for one in numbers):
            raise ValueError("refuse_keys_above must be whole numbers with commas between them, as in 4,20")
        if self.refuse_status not in REFUSE_STATUSES:
            raise ValueError(f"refuse_status must be one of {', '.join(map(str, REFUSE_STATUSES))}")
        if self.rate_shape not in RATE_SHAPES:
            raise ValueError(f"rate_shape must be one of {', '.join(RATE_SHAPES)}")
        if self.refuse_code is not None and (not isinstance(self.refuse_code, str) or not self.refuse_code):
            raise ValueError("refuse_code must be a word that is not empty")
        for name in ("capacity", "answer_spread"):
            _number(name, getattr(self, name), high=math.inf)
        if self.refuse_retry_after_s is not None:
            _number("refuse_retry_after_s", self.refuse_retry_after_s, high=math.inf)
        for name in ("slope_per_s", "rate_window_s", "call_tokens_per_s"):
            value = getattr(self, name)
            if value is not None:
                _number(name, value, high=math.inf)
                if not value:
                    raise ValueError(f"{name} must be above 0")
        if self.knee is not None and self.call_tokens_per_s is None:
            raise ValueError("knee needs call_tokens_per_s, the tokens a second of one call")
        for name in ("rate_headers", "tells_wait", "is_dead"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false")

    def _check_timetable(self) -> None:
        """Tries all steps in their order, so that a timetable cannot fail while it runs."""
        object.__setattr__(self, "timetable", as_timetable(self.timetable))
        played = None
        for step in self.timetable:
            if "timetable" in step.changes:
                raise ValueError("a timetable cannot change the timetable")
            played = (played or dataclasses.replace(self, timetable=())).changed(step.changes)


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
