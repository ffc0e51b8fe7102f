"""Pure arithmetic on what an endpoint saw: rows of counts, one for each tenth of a second."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

STEP_S = 0.1
_COUNTS = ("calls", "paid", "refused", "tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class Row:
    """A tenth of a second: calls that came, that were answered and that were refused, and tokens of the answered.

    `tokens` are those of prompts and answers, `completion_tokens` those of answers alone.
    """

    calls: int = 0
    paid: int = 0
    refused: int = 0
    tokens: int = 0
    completion_tokens: int = 0
    max_in_flight: int = 0
    mean_in_flight: float = 0.0


Rows = Sequence[Row]


def rows_of(told: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The simulator's series as rows, from the first call on. Empty if there was none."""
    rows = [
        Row(
            **{name: one[name] for name in _COUNTS},
            max_in_flight=one["max_in_flight"],
            mean_in_flight=one["mean_in_flight"],
        )
        for one in told
    ]
    first = next((number for number, row in enumerate(rows) if row.calls), len(rows))
    return rows[first:]


def rows_of_events(
    begun_s: Iterable[float],
    answered: Iterable[tuple[float, int]],
    refused_s: Iterable[float],
    *,
    length_s: float,
) -> list[Row]:
    """The same from moments in seconds: calls begun; calls answered, with the tokens of each; calls refused."""
    size = math.ceil(length_s / STEP_S - 1e-9)
    counts = [dict.fromkeys((*_COUNTS, "ended"), 0) for _ in range(size)]

    def at(moment_s: float) -> dict[str, int] | None:
        number = int(moment_s / STEP_S + 1e-9)
        return counts[number] if 0 <= number < size else None

    for moment_s in begun_s:
        if (count := at(moment_s)) is not None:
            count["calls"] += 1
    for moment_s, tokens in answered:
        if (count := at(moment_s)) is not None:
            count["paid"] += 1
            count["ended"] += 1
            count["tokens"] += tokens
            count["completion_tokens"] += tokens
    for moment_s in refused_s:
        if (count := at(moment_s)) is not None:
            count["refused"] += 1
            count["ended"] += 1
    levels = [0, *accumulate(count["calls"] - count["ended"] for count in counts)]
    return [
        Row(
            **{name: count[name] for name in _COUNTS},
            max_in_flight=max(before, after),
            mean_in_flight=(before + after) / 2,
        )
        for count, before, after in zip(counts, levels, levels[1:], strict=False)
    ]


def part(rows: Rows, from_s: float, until_s: float = math.inf) -> Rows:
    """The rows from one moment to another."""
    until = len(rows) if until_s == math.inf else round(until_s / STEP_S)
    return rows[round(from_s / STEP_S) : until]


def total(rows: Rows, name: str) -> int:
    return sum(getattr(row, name) for row in rows)


def rate(rows: Rows, name: str, from_s: float, until_s: float) -> float:
    """So many a second from one moment to another. What was not reached counts as nothing."""
    return total(part(rows, from_s, until_s), name) / (until_s - from_s)


def share_refused(rows: Rows, from_s: float = 0.0) -> float:
    """Refused calls among all calls, from a moment on; 0 if there were none."""
    rest = part(rows, from_s)
    calls = total(rest, "calls")
    return total(rest, "refused") / calls if calls else 0.0


def end_of_share_s(rows: Rows, share: float) -> float:
    """Seconds until this share of all answers was given. Raises ValueError if there was none."""
    answers = total(rows, "paid")
    if not answers:
        raise ValueError("nothing was answered")
    wanted = share * answers - 1e-9
    return next(
        (number + 1) * STEP_S
        for number, so_far in enumerate(accumulate(row.paid for row in rows))
        if so_far >= wanted
    )


def windows(rows: Rows, name: str, width_s: float, from_s: float, until_s: float) -> list[float]:
    """The sum of each window of this width between two moments, a tenth of a second apart.

    Raises ValueError if not a single window fits.
    """
    width = round(width_s / STEP_S)
    values = [getattr(row, name) for row in part(rows, from_s, until_s)]
    if len(values) < width:
        raise ValueError(
            f"it took {len(values) * STEP_S:.0f} s, which is less than a window of {width_s:g} s"
        )
    sums = [0.0, *accumulate(values)]
    return [sums[end] - sums[end - width] for end in range(width, len(sums))]


def reached_after_s(
    rows: Rows, name: str, wanted_per_s: float, *, from_s: float, width_s: float
) -> float | None:
    """Seconds from `from_s` until a window begins in which the rate is reached; None if it never is."""
    width = round(width_s / STEP_S)
    values = [getattr(row, name) for row in part(rows, from_s)]
    sums = [0, *accumulate(values)]
    for begin in range(len(values) - width + 1):
        if sums[begin + width] - sums[begin] >= wanted_per_s * width_s - 1e-9:
            return begin * STEP_S
    return None


def highest_in_flight(rows: Rows, from_s: float, until_s: float) -> int:
    return max((row.max_in_flight for row in part(rows, from_s, until_s)), default=0)


def mean_in_flight(rows: Rows, from_s: float, until_s: float) -> float:
    found = part(rows, from_s, until_s)
    return sum(row.mean_in_flight for row in found) / len(found) if found else 0.0
