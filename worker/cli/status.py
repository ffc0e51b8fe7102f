"""`antrean status`: where a batch or the whole ledger stands, and why what is open is not being called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from schemas.job import JobState
from worker.cli.batches import find_named
from worker.cli.console import note, out, print_json
from worker.cli.listing import complete_batch_id, iso, worker_facts
from worker.cli.pausing import describe_pause
from worker.clock import SystemClock
from worker.operations.gates import GateWatch, describe_gate, describe_trouble, gate_facts
from worker.policy.gates import Gate
from worker.reports.summary import format_count, format_seconds
from worker.reports.waiting import (
    Reason,
    describe_oldest_call,
    explain_waiting,
    oldest_call_facts,
    reason_facts,
)
from worker.settings import Settings, load_settings
from worker.storage.batches import BatchStatus, count_states, fetch_batches, fetch_status
from worker.storage.identity import fetch_place
from worker.storage.migrating import prepare_ledger
from worker.storage.pauses import Pause, fetch_pauses
from worker.storage.reading import Trouble, fetch_trouble
from worker.storage.standing import Standing, fetch_standing
from worker.storage.workers import WorkerFacts, fetch_workers

_LATEST = 10


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("status", epilog="Example: antrean status\n\nExample: antrean status batch_0193… --json")(
        status
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at everything: what a batch, or a whole ledger, has open, and what could work on it."""

    place: str
    standing: Standing
    workers: Sequence[WorkerFacts]
    pauses: Sequence[Pause]
    trouble: Trouble | None  # of a ledger
    now_ms: int
    gate: Gate | None = None  # of `endpoint`, that of these settings: no other is known
    endpoint: str = ""

    def concerns(self, endpoint: str) -> bool:
        """Whether something open is to be called there."""
        return endpoint in self.standing.queued or any(
            one.endpoint == endpoint for one in self.standing.waits
        )

    @property
    def waits_for(self) -> str | None:
        """What concerns all jobs of the ledger, in a sentence."""
        return None if self.trouble is None else describe_trouble(self.trouble, self.gate, now_ms=self.now_ms)

    @property
    def reasons(self) -> list[Reason]:
        return explain_waiting(
            self.standing,
            workers=self.workers,
            pauses=self.pauses,
            gates={} if self.gate is None else {self.endpoint: self.gate},
            now_ms=self.now_ms,
        )


def status(
    batch: Annotated[
        str | None,
        typer.Argument(help="A batch's id; all of the ledger without it.", autocompletion=complete_batch_id),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show where a batch stands, or the whole ledger.

    Of a batch: its status, its jobs by state, its failures by kind, its results that did not end in the ordinary
    way by finish_reason (length: cut off; content_filter), and its tokens. Without a batch: where the ledger is
    kept, all jobs by state, the latest batches, the workers, what is paused, and until when a shut gate keeps jobs
    waiting.

    Of both: why jobs wait, which is a pause, a shut gate, a run that was stopped, that no worker lives for their
    endpoint, that all slots are in use, or that their next try is not due yet; and the age of the oldest call.
    """
    settings = load_settings()
    ledger = prepare_ledger(settings)
    named = None if batch is None else find_named(ledger, batch)
    with ledger.read() as connection:
        now_ms = SystemClock().now_ms()
        chosen = fetch_batches(connection, limit=_LATEST) if named is None else [named]
        found = [fetch_status(connection, one) for one in chosen]
        counts = count_states(connection) if named is None else found[0].counts
        look = _Look(
            place=fetch_place(connection),
            standing=fetch_standing(connection, named),
            workers=fetch_workers(connection),
            pauses=fetch_pauses(connection),
            trouble=fetch_trouble(connection) if named is None else None,
            now_ms=now_ms,
        )
    # A broker that does not answer takes seconds to say so: no transaction waits for it.
    if named is None or look.concerns(settings.endpoint):
        look = replace(look, gate=GateWatch(settings).fetch(), endpoint=settings.endpoint)
    if named is not None:
        print_json(_batch_facts(found[0]) | _open_facts(look)) if as_json else _print_batch(found[0], look)
    elif as_json:
        print_json(_ledger_facts(settings, counts, found, look))
    else:
        _print_ledger(counts, found, look)


def _print_ledger(counts: Mapping[JobState, int], latest: Sequence[BatchStatus], look: _Look) -> None:
    out.say((f"ledger {look.place}", "dim"))
    if not counts:
        note("the ledger is empty: `antrean run` or `antrean submit` fills it")
    out.say(_states_line(counts))
    for one in latest:
        done, failed, open_ = _sums(one)
        # The id stands alone on its line: nothing cuts it, however narrow the terminal.
        out.say((one.batch.id, "bold"), f" {one.status}{_held(one)}")
        out.say(
            f"  {one.batch.label} · {format_count(done)} done · {format_count(failed)} failed · "
            f"{format_count(open_)} open · {format_count(one.total_tokens)} tokens"
        )
    for worker in look.workers:
        age_s = max(0, look.now_ms - worker.beat_at_ms) / 1000
        out.say(
            f"worker {worker.hostname}:{worker.pid} · {worker.slots_in_use} of {worker.slots} slots"
            f" · last beat {format_seconds(age_s)} ago"
        )
        if worker.is_silent(look.now_ms):
            out.say(("  silent for longer than its lease: it counts as dead", "yellow"))
    for pause in look.pauses:
        out.say((describe_pause(pause), "yellow"), ": `antrean resume` goes on")
    shut = None if look.gate is None else describe_gate(look.gate, now_ms=look.now_ms)
    if shut is not None:
        _print_reason("gate", shut)
    if look.waits_for not in (None, shut) and not look.pauses:
        _print_reason("waiting", str(look.waits_for))
    _print_open(look)


def _print_batch(found: BatchStatus, look: _Look) -> None:
    batch = found.batch
    out.say((f"ledger {look.place}", "dim"))
    out.say(
        (batch.id, "bold"),
        f" {found.status}{_held(found)} · {batch.kind} of {batch.label} · {iso(batch.created_at_ms)}",
    )
    if _held(found):
        note("held since its run was stopped: the same `antrean run` goes on with it")
    if batch.submitted_at_ms is None:
        note("not all of it is written down: submit the same input again to complete it")
    out.say(_states_line(found.counts))
    for kind, count in found.failures.items():
        out.say(f"  failed: {format_count(count)} × {kind}")
    for reason, count in found.finish_reasons.items():
        out.say(f"  finish reason: {format_count(count)} × {reason}")
    out.say(
        f"{format_count(found.prompt_tokens)} prompt + {format_count(found.completion_tokens)} completion "
        f"= {format_count(found.total_tokens)} tokens"
    )
    if look.gate is not None:
        _print_reason("gate", describe_gate(look.gate, now_ms=look.now_ms))
    _print_open(look)


def _print_open(look: _Look) -> None:
    for one in look.reasons:
        _print_reason("waiting", one.sentence)
    if look.standing.oldest_call is not None:
        out.say(describe_oldest_call(look.standing.oldest_call, now_ms=look.now_ms))


def _print_reason(word: str, sentence: str) -> None:
    out.say((word, "yellow"), f" {sentence}")


def _ledger_facts(
    settings: Settings, counts: Mapping[JobState, int], latest: Sequence[BatchStatus], look: _Look
) -> dict[str, Any]:
    return {
        "jobs": _named(counts),
        "batches": [_batch_facts(one) for one in latest],
        "paused": [
            {"endpoint": one.endpoint, "paused_at": iso(one.paused_at_ms), "reason": one.reason}
            for one in look.pauses
        ],
        "gate": gate_facts(settings.endpoint, look.gate, now_ms=look.now_ms),
        "waiting_for": look.waits_for,
        **_open_facts(look),
    }


def _open_facts(look: _Look) -> dict[str, Any]:
    return {
        "ledger": look.place,
        "workers": [worker_facts(one, look.now_ms) for one in look.workers],
        "waiting": [reason_facts(one) for one in look.reasons],
        "oldest_call": oldest_call_facts(look.standing.oldest_call, now_ms=look.now_ms),
    }


def _held(found: BatchStatus) -> str:
    is_open = any(not state.is_final for state in found.counts)
    return ", held" if found.batch.held_at_ms is not None and is_open else ""


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
        },
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
