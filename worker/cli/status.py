"""`antrean status`: where a batch or the whole ledger stands, and why what is open is not being called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from schemas.job import JobState
from worker.cli.console import note, out, print_json
from worker.cli.listing import complete_batch_id, describe_in_hand, iso, worker_facts
from worker.cli.pausing import describe_pause
from worker.operations.batches import find_named_batch
from worker.operations.gates import (
    describe_gate,
    describe_key,
    endpoint_gate_facts,
    gate_facts,
    key_facts,
)
from worker.operations.status import Snapshot, fetch_snapshot
from worker.policy.budgets import Limit
from worker.policy.fairness import USUAL_WEIGHT
from worker.reports.budgets import budget_facts, describe_budget, describe_wait
from worker.reports.summary import cost_facts, describe_cost, format_count, format_seconds
from worker.reports.waiting import (
    Why,
    describe_oldest_call,
    oldest_call_facts,
    reason_facts,
)
from worker.settings import EndpointSettings, Settings, load_settings
from worker.storage.batch_status import BatchStatus
from worker.storage.migrating import prepare_ledger


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("status", epilog="Example: antrean status\n\nExample: antrean status batch_0193… --json")(
        status
    )


def status(
    batch: Annotated[
        str | None,
        typer.Argument(help="A batch's id. Without it the whole ledger.", autocompletion=complete_batch_id),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show the status of a batch, or of the whole ledger.

    Of a batch: its status, its jobs by state, its failures by kind, its results with an unusual finish_reason
    (length: cut off; content_filter), its tokens and what they cost. Without a batch: where the ledger is, all jobs
    by state, the latest batches, the workers, what is paused, until when a shut gate keeps jobs waiting, and which
    keys are set aside.

    Of both: why jobs wait (a pause, a shut gate, a stopped run, a budget, no live worker for their endpoint, no free
    slot, a limit of a minute, or a next attempt that is not due yet), and the age of the oldest call.
    """
    settings = load_settings()
    ledger = prepare_ledger(settings)
    named = None if batch is None else find_named_batch(ledger, batch)
    found = fetch_snapshot(ledger, settings, named)
    if named is not None:
        [one] = found.batches
        print_json(_batch_facts(one) | _open_facts(found)) if as_json else _print_batch(one, found, settings)
    elif as_json:
        print_json(_ledger_facts(settings, found))
    else:
        _print_ledger(found, settings)


def _print_ledger(found: Snapshot, settings: Settings) -> None:
    out.say((f"ledger {found.place}", "dim"))
    if not found.counts:
        note("the ledger is empty: `antrean run` or `antrean submit` fills it")
    out.say(_states_line(found.counts))
    for one in found.batches:
        done, failed, open_ = _sums(one)
        # The id stands alone on its line: nothing cuts it, however narrow the terminal.
        out.say((one.batch.id, "bold"), f" {one.status}{_stops(one)}")
        out.say(
            f"  {one.batch.label} · {format_count(done)} done · {format_count(failed)} failed · "
            f"{format_count(open_)} open · {format_count(one.total_tokens)} tokens · {describe_cost(one.cost)}"
        )
    for worker in found.workers:
        age_s = max(0, found.now_ms - worker.beat_at_ms) / 1000
        out.say(
            f"worker {worker.hostname}:{worker.pid} · {worker.slots_in_use} of {worker.slots} slots"
            f"{describe_in_hand(worker)} · last beat {format_seconds(age_s)} ago"
        )
        if worker.is_silent(found.now_ms):
            out.say(("  silent for longer than its lease: it counts as dead", "yellow"))
    for held in found.limits:
        if held.described:
            out.say(f"limits {_of(held.endpoint, settings)}{', '.join(held.described)}")
    for pause in found.pauses:
        out.say((describe_pause(pause), "yellow"), ": `antrean resume` goes on")
    _print_trouble(found, settings)
    _print_open(found)


def _print_batch(one: BatchStatus, found: Snapshot, settings: Settings) -> None:
    batch = one.batch
    out.say((f"ledger {found.place}", "dim"))
    out.say(
        (batch.id, "bold"),
        f" {one.status}{_stops(one)} · {batch.kind} of {batch.label} · {iso(batch.created_at_ms)}",
    )
    if _held(one):
        note("held since its run was stopped: the same `antrean run` goes on with it")
    if one.budget is not None and one.budget.limit != Limit():
        out.say(f"budget {describe_budget(one.budget)}")
    if batch.weight != USUAL_WEIGHT:
        out.say(f"weight {batch.weight:g}")
    if batch.deadline_ms is not None:
        out.say(f"deadline {iso(batch.deadline_ms)}")
    if batch.submitted_at_ms is None:
        note("not all of it is written down: submit the same input again to complete it")
    out.say(_states_line(one.counts))
    for kind, count in one.failures.items():
        out.say(f"  failed: {format_count(count)} × {kind}")
    for reason, count in one.finish_reasons.items():
        out.say(f"  finish reason: {format_count(count)} × {reason}")
    out.say(
        f"{format_count(one.prompt_tokens)} prompt + {format_count(one.completion_tokens)} completion "
        f"= {format_count(one.total_tokens)} tokens · {describe_cost(one.cost)}"
    )
    if found.concerns(batch.endpoint):
        _print_trouble(found, settings)
    if waits := found.budget_wait:
        _print_reason("waiting", waits)
    _print_open(found, without=Why.BUDGET if waits else None)


def _print_trouble(found: Snapshot, settings: Settings) -> None:
    """The shut gates, the keys that are set aside, and the endpoint's words for it."""
    shut = None if found.gate is None else describe_gate(found.gate, now_ms=found.now_ms)
    for one in found.gates:
        name = _of(one.endpoint, settings)
        if one.gate is not None:
            _print_reason("gate", f"{name}{describe_gate(one.gate, now_ms=found.now_ms)}")
        for key in one.keys:
            sentence = describe_key(key, now_ms=found.now_ms)
            if sentence is not None:
                _print_reason("key", f"{name}{sentence.removeprefix('key ')}")
    if found.waits_for not in (None, shut) and not found.pauses:
        _print_reason("waiting", str(found.waits_for))


def _of(endpoint: EndpointSettings, settings: Settings) -> str:
    """The beginning of a line about one endpoint of several."""
    return f"of {endpoint.name}: " if settings.endpoint_tables else ""


def _print_open(found: Snapshot, *, without: Why | None = None) -> None:
    for one in found.reasons:
        if one.why is not without:
            _print_reason("waiting", one.sentence)
    if found.open_jobs.oldest_call is not None:
        out.say(describe_oldest_call(found.open_jobs.oldest_call, now_ms=found.now_ms))


def _print_reason(word: str, sentence: str) -> None:
    out.say((word, "yellow"), f" {sentence}")


def _ledger_facts(settings: Settings, found: Snapshot) -> dict[str, Any]:
    return {
        "jobs": _named(found.counts),
        "batches": [_batch_facts(one) for one in found.batches],
        "limits": [facts for one in found.limits for facts in one.facts],
        "paused": [
            {"endpoint": one.endpoint, "paused_at": iso(one.paused_at_ms), "reason": one.reason}
            for one in found.pauses
        ],
        "gate": gate_facts(settings.endpoint, found.gate, now_ms=found.now_ms),
        "keys": [key_facts(key, now_ms=found.now_ms) for one in found.gates for key in one.keys],
        **(
            {"endpoints": [endpoint_gate_facts(one, now_ms=found.now_ms) for one in found.gates]}
            if settings.endpoint_tables
            else {}
        ),
        "waiting_for": found.waits_for,
        **_open_facts(found),
    }


def _open_facts(found: Snapshot) -> dict[str, Any]:
    return {
        "ledger": found.place,
        "workers": [worker_facts(one, found.now_ms) for one in found.workers],
        "waiting": [reason_facts(one) for one in found.reasons],
        "oldest_call": oldest_call_facts(found.open_jobs.oldest_call, now_ms=found.now_ms),
    }


def _held(found: BatchStatus) -> str:
    is_open = any(not state.is_final for state in found.counts)
    return ", held" if found.batch.held_at_ms is not None and is_open else ""


def _stops(found: BatchStatus) -> str:
    """What keeps the whole batch back, behind its status."""
    return _held(found) + (", at its budget" if describe_wait(found.budget) is not None else "")


def _batch_facts(found: BatchStatus) -> dict[str, Any]:
    batch = found.batch
    return {
        "batch_id": batch.id,
        "kind": batch.kind,
        "label": batch.label,
        "endpoint": batch.endpoint,
        "status": found.status,
        "held": bool(_held(found)),
        "total": sum(found.counts.values()),
        "jobs": _named(found.counts),
        "failures": dict(found.failures),
        "finish_reasons": dict(found.finish_reasons),
        "usage": {
            "prompt_tokens": found.prompt_tokens,
            "completion_tokens": found.completion_tokens,
            "total_tokens": found.total_tokens,
            **cost_facts(found.cost),
        },
        "weight": batch.weight,
        "budget": budget_facts(found.budget),
        "deadline": None if batch.deadline_ms is None else iso(batch.deadline_ms),
        "created_at": iso(batch.created_at_ms),
        "submitted_at": None if batch.submitted_at_ms is None else iso(batch.submitted_at_ms),
    }


def _named(counts: Mapping[JobState, int]) -> dict[str, int]:
    return {state.value: counts.get(state, 0) for state in JobState}


def _states_line(counts: Mapping[JobState, int]) -> str:
    shown = [f"{format_count(counts[state])} {state.value}" for state in JobState if counts.get(state)]
    return " · ".join(shown) or "no jobs"


def _sums(found: BatchStatus) -> tuple[int, int, int]:
    done = found.counts.get(JobState.SUCCEEDED, 0)
    open_ = sum(count for state, count in found.counts.items() if not state.is_final)
    return done, sum(found.counts.values()) - done - open_, open_
