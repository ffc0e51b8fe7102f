"""Explains why open jobs are not called just now, and what they wait for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from worker.clock import describe_moment, iso_ms
from worker.policy.gates import Gate
from worker.reports.summary import format_count, format_seconds
from worker.storage.open_jobs import OldestCall, OpenJobs, Waits
from worker.storage.pauses import Pause
from worker.storage.workers import WorkerFacts
from worker.text.printable import printable

_MOST_NAMED = 5


class Why(StrEnum):
    """What jobs wait for."""

    PAUSED = "paused"  # for an operator's `antrean resume`
    HELD = "held"  # for their run to go on
    BUDGET = "budget"  # for their batch's budget to be raised, or for calls of the batch to end
    NO_ENDPOINT = "no_endpoint"  # for an endpoint that serves their model
    NO_WORKER = "no_worker"  # for a worker of their endpoint
    GATE = "gate"  # for the gate to open
    SLOT = "slot"  # for a free slot
    LIMIT = "limit"  # for the limit of calls or tokens a minute to allow one more
    RETRY = "retry"  # for the time of their next attempt
    LATER = "later"  # for the time that their producer asked for


@dataclass(frozen=True, slots=True)
class Reason:
    """Jobs of one endpoint that wait for one thing."""

    why: Why
    endpoint: str
    jobs: int
    sentence: str
    kind: str | None = None  # the kind of the failure after which they wait
    next_ms: int | None = None  # when the first of them may be called, if that is known


def explain_waiting(
    open_jobs: OpenJobs,
    *,
    workers: Sequence[WorkerFacts],
    pauses: Sequence[Pause],
    gates: Mapping[str, Gate],
    now_ms: int,
    unserved: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
    rates: Mapping[str, str] = MappingProxyType({}),
) -> list[Reason]:
    """Why queued and waiting jobs wait, sorted by endpoint; empty if all of them are about to be called.

    Each job has one reason: the strongest one, which would still apply if the others were gone. `gates`: the shut gates
    by endpoint, as far as they are known. The reason of a shut gate comes before the other reasons of its endpoint.
    `unserved`: how many of the queued jobs have a model that nothing serves, by endpoint and model. `rates`: the
    limits of a minute, by endpoint, as a person reads them.
    """
    reasons: list[Reason] = []
    paused = {one.endpoint for one in pauses}
    endpoints = {
        *open_jobs.queued,
        *open_jobs.held,
        *open_jobs.at_budget,
        *(one.endpoint for one in open_jobs.waits),
    }
    for endpoint in sorted(endpoints):
        queued = open_jobs.queued.get(endpoint, 0)
        waits = [one for one in open_jobs.waits if one.endpoint == endpoint]
        due = queued + sum(one.jobs for one in waits)
        of_it = [one for one in workers if one.endpoint == endpoint]
        living = [one for one in of_it if not one.is_silent(now_ms)]
        found: list[Reason] = []
        if endpoint in unserved and endpoint not in paused:
            lacking = _unserved(endpoint, queued, unserved[endpoint])
            found.append(lacking)
            queued, due = queued - lacking.jobs, due - lacking.jobs
        if endpoint in open_jobs.held:
            found.append(_held(endpoint, open_jobs.held[endpoint]))
        if endpoint in open_jobs.at_budget:
            found.append(_at_budget(endpoint, open_jobs.at_budget[endpoint]))
        if due and endpoint in paused:
            found.append(_paused(endpoint, due))
        elif due and not living:
            found.append(_no_worker(endpoint, due, of_it, now_ms))
        elif due:
            gate = gates.get(endpoint)
            found += _queued(endpoint, queued, living, gate, rates.get(endpoint))
            found += (_waiting(one, gate, now_ms) for one in waits)
            if gate is not None:
                found.sort(key=lambda one: one.why is not Why.GATE)
        reasons += found
    return reasons


def describe_oldest_call(call: OldestCall, *, now_ms: int) -> str:
    """`oldest call: 4 min 05 s, job 0193…, by host:4711`. The time compares this machine's clock with the worker's."""
    by = "" if call.hostname is None else f", by {call.hostname}:{call.pid}"
    return f"oldest call: {format_seconds(_age_s(call.started_at_ms, now_ms))}, job {call.job_id}{by}"


def reason_facts(one: Reason) -> dict[str, Any]:
    """The reason for `--json`."""
    return {
        "why": one.why.value,
        "endpoint": one.endpoint,
        "jobs": one.jobs,
        "kind": one.kind,
        "next_at": None if one.next_ms is None else iso_ms(one.next_ms),
    }


def oldest_call_facts(call: OldestCall | None, *, now_ms: int) -> dict[str, Any] | None:
    """The oldest call for `--json`; None if no call is in flight."""
    if call is None:
        return None
    return {
        "job_id": call.job_id,
        "endpoint": call.endpoint,
        "started_at": iso_ms(call.started_at_ms),
        "age_s": round(_age_s(call.started_at_ms, now_ms), 1),
        "hostname": call.hostname,
        "pid": call.pid,
    }


def _held(endpoint: str, count: int) -> Reason:
    said = f"{format_count(count, 'job')} held since their run was stopped: the same `antrean run` goes on"
    return Reason(Why.HELD, endpoint, count, said)


def _at_budget(endpoint: str, count: int) -> Reason:
    said = (
        f"{format_count(count, 'job')} at the budget of their batch: `antrean batches` names it, and "
        "`antrean budget BATCH AMOUNT` raises it"
    )
    return Reason(Why.BUDGET, endpoint, count, said)


def _paused(endpoint: str, count: int) -> Reason:
    said = f"{format_count(count, 'job')} for {endpoint}, which is paused: `antrean resume` goes on"
    return Reason(Why.PAUSED, endpoint, count, said)


def _unserved(endpoint: str, queued: int, by_model: Mapping[str, int]) -> Reason:
    count = min(queued, sum(by_model.values()))
    names = [printable(model) for model in sorted(by_model)]
    named = ", ".join(names[:_MOST_NAMED]) + (" …" if len(names) > _MOST_NAMED else "")
    said = (
        f"{format_count(count, 'job')} for an endpoint that serves {named}: no table has it in its `models`"
    )
    return Reason(Why.NO_ENDPOINT, endpoint, count, said)


def _no_worker(endpoint: str, count: int, silent: Sequence[WorkerFacts], now_ms: int) -> Reason:
    heard_ms = max((one.beat_at_ms for one in silent), default=None)
    if heard_ms is None:
        ending = "`antrean worker` with its settings starts one"
    else:
        ending = f"the last was heard {format_seconds(_age_s(heard_ms, now_ms))} ago"
    said = f"{format_count(count, 'job')}: no worker lives for {endpoint}; {ending}"
    return Reason(Why.NO_WORKER, endpoint, count, said)


def _queued(
    endpoint: str, count: int, living: Sequence[WorkerFacts], gate: Gate | None, rate: str | None
) -> Iterator[Reason]:
    if not count:
        return
    slots = sum(one.slots for one in living)
    if gate is not None:
        said = f"{format_count(count, 'job')} behind the shut gate of {endpoint} ({gate.kind.value})"
        yield Reason(Why.GATE, endpoint, count, said, gate.kind.value, gate.until_ms)
    elif sum(one.slots_in_use for one in living) >= slots:
        said = f"{format_count(count, 'job')} for a free slot: {_all(slots)} of {endpoint} in use"
        yield Reason(Why.SLOT, endpoint, count, said)
    elif rate is not None and any(one.in_hand for one in living):
        said = f"{format_count(count, 'job')} for their turn at {endpoint}, which is limited to {rate}"
        yield Reason(Why.LIMIT, endpoint, count, said)


def _waiting(one: Waits, gate: Gate | None, now_ms: int) -> Reason:
    number, kind = format_count(one.jobs, "job"), one.kind
    is_due = one.next_ms <= now_ms
    first = "the first is due" if is_due else f"the first {describe_moment(one.next_ms, now_ms)}"
    if one.is_at_gate and gate is not None and gate.kind != one.kind:
        # Their own failure no longer keeps them back. They wait because the gate is shut for another reason.
        kind = gate.kind.value
        said, why = f"{number} behind the shut gate of {one.endpoint} ({kind}): {first}", Why.GATE
    elif one.is_at_gate:
        said, why = f"{number} at the gate after {one.kind}: {first}", Why.GATE
    elif one.kind is not None:
        said, why = f"{number} for the next attempt after {one.kind}: {first}", Why.RETRY
    else:
        said, why = f"{number} for the time that was asked for: {first}", Why.LATER
    return Reason(why, one.endpoint, one.jobs, said, kind, one.next_ms)


def _all(slots: int) -> str:
    return "the slot" if slots == 1 else f"all {format_count(slots)} slots"


def _age_s(at_ms: int, now_ms: int) -> float:
    return max(0, now_ms - at_ms) / 1000
