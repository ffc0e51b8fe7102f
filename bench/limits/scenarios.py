"""The scenarios: an endpoint, the jobs, and the figures that show how well it was used. Figures are pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.limits import figures
from bench.limits.figures import Rows

Figures = dict[str, float | None]

SECONDS, PERCENT, COUNT, PER_S = "s", "%", "", "/s"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a figure is called, its unit, and between which values it should be. A percentage is kept as a share."""

    label: str
    unit: str
    low: float | None = None
    high: float | None = None

    def is_met(self, value: float | None) -> bool:
        """Whether the value is as wanted. None is not, where anything is wanted."""
        if value is None:
            return self.low is None and self.high is None
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


@dataclass(frozen=True, slots=True)
class Scenario:
    """`endpoint`: the simulator's options. `steps`: its timetable, in seconds from the first call.

    `length_s` None: it ends when all jobs are done. `told`: limits that antrean is told, as options of `antrean limits
    set`. `right`: the number that a user would set who knows the endpoint. `max_tokens`: of each request.
    """

    name: str
    title: str
    endpoint: Mapping[str, Any]
    jobs: int
    length_s: float | None
    judge: Callable[[Rows], Figures]
    wanted: Mapping[str, Wanted]
    steps: tuple[Mapping[str, Any], ...] = ()
    told: Mapping[str, int] = field(default_factory=dict)
    workers: int = 1
    right: int = 16
    contenders: tuple[str, ...] = ("simulation", "fixed-16", "fixed-100", "auto", "openai")
    max_tokens: int | None = 64


def refuses_above(*, is_quick: bool) -> Scenario:
    limit, latency_s, jobs = 40, 0.5, 320 if is_quick else 1500
    ideal_s = jobs * latency_s / limit

    def judge(rows: Rows) -> Figures:
        last_s, p99_s = (figures.end_of_share_s(rows, share) for share in (1.0, 0.99))
        done = figures.total(rows, "paid") / jobs
        return {
            "seconds": last_s,
            "of_ideal": done * ideal_s / last_s,
            "done": done,
            "refused": figures.share_refused(rows),
            "refused_settled": figures.share_refused(rows, 0.4 * ideal_s),
            "tail": last_s - p99_s,
        }

    return Scenario(
        name="refuses-above",
        title=f"refuses above {limit}, {jobs:,} jobs of {latency_s:g} s",
        endpoint={"latency_s": latency_s, "refuse_above": limit},
        jobs=jobs,
        length_s=None,
        judge=judge,
        wanted={
            "seconds": Wanted("seconds", SECONDS, high=22.0),
            "of_ideal": Wanted("of the ideal", PERCENT, low=0.9),
            "done": Wanted("jobs done", PERCENT, low=1.0),
            "refused": Wanted("calls refused", PERCENT),
            "refused_settled": Wanted("refused once settled", PERCENT, high=0.02),
            "tail": Wanted("last job after the 99th of 100", SECONDS, high=2 * latency_s),
        },
        right=limit,
    )


def has_a_knee(*, is_quick: bool) -> Scenario:
    knee, call_tokens, answer = 24, 100.0, 100
    settled_s, end_s = (12.0, 20.0) if is_quick else (60.0, 90.0)
    best = knee * call_tokens

    def judge(rows: Rows) -> Figures:
        reached = figures.reached_after_s(rows, "completion_tokens", 0.95 * best, from_s=0.0, width_s=5.0)
        return {
            "of_best": figures.rate(rows, "completion_tokens", settled_s, end_s) / best,
            "reached": reached,
            "highest": figures.highest_in_flight(rows, settled_s, end_s),
            "mean": figures.mean_in_flight(rows, settled_s, end_s),
        }

    return Scenario(
        name="knee",
        title=f"at {knee}, never refuses, {best:,.0f} tokens/s",
        endpoint={
            "latency_s": 0.05,
            "call_tokens_per_s": call_tokens,
            "knee": knee,
            "answer_tokens": answer,
            "answer_spread": 0.5,
        },
        jobs=round(1.5 * best / answer * end_s),
        length_s=end_s,
        judge=judge,
        wanted={
            "of_best": Wanted(f"of the best tokens/s after {settled_s:.0f} s", PERCENT, low=0.95),
            "reached": Wanted("95 % reached after", SECONDS, high=settled_s),
            "highest": Wanted("most in flight then", COUNT, high=1.5 * knee),
            "mean": Wanted("in flight then", COUNT),
        },
        right=knee,
        max_tokens=None,
    )


def burst(*, is_quick: bool) -> Scenario:
    limit, latency_s = 40, 0.5
    begin_s, length_s = (8.0, 4.0) if is_quick else (30.0, 20.0)
    after_s = begin_s + length_s
    end_s = after_s + 20.0

    def judge(rows: Rows) -> Figures:
        before = figures.rate(rows, "paid", begin_s / 2, begin_s)
        return {
            "before": before,
            "after": figures.rate(rows, "paid", after_s + 10.0, end_s) / before if before else None,
            "back": figures.reached_after_s(rows, "paid", 0.9 * before, from_s=after_s, width_s=2.0),
            "calls_meanwhile": figures.rate(rows, "calls", begin_s + 1.0, after_s),
        }

    return Scenario(
        name="burst",
        title=f"429 for {length_s:.0f} s, then {limit} at once again",
        endpoint={"latency_s": latency_s, "refuse_above": limit},
        steps=({"at_s": begin_s, "capacity": 0.0}, {"at_s": after_s, "capacity": 1.0}),
        jobs=round(limit / latency_s * end_s),
        length_s=end_s,
        judge=judge,
        wanted={
            "before": Wanted("jobs/s before", PER_S),
            "after": Wanted("of that, from 10 s after its end", PERCENT, low=0.9),
            "back": Wanted("90 % of that after", SECONDS, high=10.0),
            "calls_meanwhile": Wanted("calls/s meanwhile", PER_S),
        },
        right=limit,
        contenders=("simulation", "fixed-16", "right", "auto", "openai"),
    )


def doubles(*, is_quick: bool) -> Scenario:
    limit, latency_s = 40, 0.5
    step_s, length_s = (8.0, 12.0) if is_quick else (30.0, 70.0)
    end_s, ideal = step_s + length_s, 2 * limit / latency_s

    def judge(rows: Rows) -> Figures:
        return {
            "before": figures.rate(rows, "paid", step_s / 2, step_s) / (ideal / 2),
            "after": figures.rate(rows, "paid", end_s - 10.0, end_s) / ideal,
            "found": figures.reached_after_s(rows, "paid", 0.9 * ideal, from_s=step_s, width_s=5.0),
        }

    return Scenario(
        name="doubles",
        title=f"refuses above {limit}, after {step_s:.0f} s above {2 * limit}",
        endpoint={"latency_s": latency_s, "refuse_above": limit},
        steps=({"at_s": step_s, "capacity": 2.0},),
        jobs=round(ideal / 2 * step_s + ideal * length_s),
        length_s=end_s,
        judge=judge,
        wanted={
            "before": Wanted("of the ideal before", PERCENT),
            "after": Wanted("of the ideal at the end", PERCENT, low=0.9),
            "found": Wanted("found after", SECONDS, high=60.0),
        },
        right=limit,
        contenders=("simulation", "fixed-16", "right", "auto", "openai"),
    )


def two_workers(*, is_quick: bool) -> Scenario:
    limit, latency_s = 60, 2.0
    width_s, end_s = (6.0, 16.0) if is_quick else (60.0, 90.0)

    def judge(rows: Rows) -> Figures:
        from_s = 4 * latency_s
        means = figures.windows(rows, "mean_in_flight", width_s, from_s, end_s)
        steps = width_s / figures.STEP_S
        return {
            "highest": figures.highest_in_flight(rows, 0.0, end_s) / limit,
            "lowest": min(means) / steps / limit,
        }

    return Scenario(
        name="two-workers",
        title=f"{limit} in flight together, {latency_s:g} s",
        endpoint={"latency_s": latency_s},
        jobs=round(limit / latency_s * (end_s + 10)),
        length_s=end_s,
        judge=judge,
        wanted={
            "highest": Wanted("most in flight, of the limit", PERCENT, high=1.02),
            "lowest": Wanted(f"in flight in the worst {width_s:.0f} s, of the limit", PERCENT, low=0.95),
        },
        told={"in-flight": limit},
        workers=2,
        right=limit,
        contenders=("simulation", "right", "auto"),
    )


def minute(*, is_quick: bool) -> Scenario:
    limit, latency_s = 600, 0.2
    width_s, end_s = (10.0, 25.0) if is_quick else (60.0, 150.0)
    allowed = limit * width_s / 60

    def judge(rows: Rows) -> Figures:
        return {
            "above": max(figures.windows(rows, "calls", width_s, 0.0, end_s)) / allowed,
            "below": min(figures.windows(rows, "paid", width_s, 5.0, end_s)) / allowed,
            "refused": figures.share_refused(rows),
        }

    return Scenario(
        name="minute",
        title=f"{limit} requests a minute, {latency_s:g} s",
        # The endpoint itself allows two percent more: what it refuses is really too much.
        endpoint={"latency_s": latency_s, "rpm": round(1.02 * allowed), "rate_window_s": width_s},
        jobs=round(limit / 60 * (end_s + 10)),
        length_s=end_s,
        judge=judge,
        wanted={
            "above": Wanted(f"calls of the fullest {width_s:.0f} s, of the limit", PERCENT, high=1.02),
            "below": Wanted(f"answers of the emptiest {width_s:.0f} s, of the limit", PERCENT, low=0.95),
            "refused": Wanted("calls refused", PERCENT),
        },
        told={"requests-per-minute": limit},
        contenders=("simulation", "fixed-16", "auto", "openai"),
    )


SCENARIOS: Mapping[str, Callable[..., Scenario]] = {
    "refuses-above": refuses_above,
    "knee": has_a_knee,
    "burst": burst,
    "doubles": doubles,
    "two-workers": two_workers,
    "minute": minute,
}
