"""Describes the calls of a run, for people and for programs. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from worker.reports.summary import format_count, format_seconds
from worker.storage.calls import CallSums

_PERCENTS = (50, 95, 99)


def find_percentile(counts: Mapping[int, int], percent: float) -> int | None:
    """The smallest value that at least `percent` of all values do not exceed; None where there are no values.

    `counts` says how often each value occurs.
    """
    total = sum(counts.values())
    if not total:
        return None
    rank = max(1, math.ceil(total * percent / 100))
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= rank:
            return value
    raise AssertionError("unreachable")


def call_facts(sums: CallSums) -> dict[str, Any]:
    """For `--json`: `latency_s` (`p50`, `p95`, `p99`, `max`; None without a result), and by failure kind `failed_calls`
    and `retried_calls`."""
    latencies: dict[str, float] | None = None
    if sums.latencies_ms:
        shares = {f"p{percent}": find_percentile(sums.latencies_ms, percent) or 0 for percent in _PERCENTS}
        latencies = {name: ms / 1000 for name, ms in (shares | {"max": max(sums.latencies_ms)}).items()}
    return {
        "latency_s": latencies,
        "failed_calls": dict(sums.failed.most_common()),
        "retried_calls": dict(sums.retried.most_common()),
    }


def describe_latencies(sums: CallSums) -> str | None:
    """`p50 0.51 s · p95 0.90 s · p99 1.20 s`; None where no call brought a result."""
    facts = call_facts(sums)["latency_s"]
    if facts is None:
        return None
    return " · ".join(f"p{percent} {format_seconds(facts[f'p{percent}'])}" for percent in _PERCENTS)


def describe_failed_calls(sums: CallSums) -> str | None:
    """`42 calls failed: 40 × rate_limited, 2 × timeout; 41 of them were tried again`; None where none failed."""
    failed, retried = sums.failed.total(), sums.retried.total()
    if not failed:
        return None
    if failed == 1:
        again = "it was tried again" if retried else "it was not tried again"
    elif retried == failed:
        again = "all of them were tried again"
    else:
        some = format_count(retried) if retried else "none"
        again = f"{some} of them {'was' if retried <= 1 else 'were'} tried again"
    return f"{format_count(failed, 'call')} failed: {_kinds(sums.failed)}; {again}"


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{format_count(count)} × {kind}" for kind, count in counts.most_common())
