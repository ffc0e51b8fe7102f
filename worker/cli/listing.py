"""`antrean batches` and `workers`, and how ids, times and foreign text are shown and completed."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from schemas.job import JobState, derive_batch_status
from worker.cli.console import note, out, print_json
from worker.operations.batches import fetch_latest_batches, find_batches_at_budget, list_batches
from worker.operations.workers import list_workers
from worker.policy.fairness import USUAL_WEIGHT
from worker.reports.summary import format_count, format_seconds
from worker.settings import load_settings
from worker.storage.batches import Batch
from worker.storage.engine import open_ledger
from worker.storage.migrating import prepare_ledger
from worker.storage.workers import WorkerFacts
from worker.text.printable import printable

_PLAIN_ID = re.compile("[A-Za-z0-9_.-]+")  # a producer may name a batch as it likes; a shell must not run it
_COMPLETED = 200
_PATIENCE_S = 1.0


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(
        "batches",
        epilog="Example: antrean batches --limit 5\n\nExample: antrean batches --json | jq -r '.batches[0].batch_id'",
    )(batches)
    app.command("workers", epilog="Example: antrean workers --json")(workers)


def batches(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many to list at most.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the batches, the newest first.

    Each has its status, when it was made and from what, and its jobs by state. `antrean status BATCH` also shows
    the tokens of a batch. `held` beside the status: its run was stopped before all jobs had ended. The same
    `antrean run` goes on with it; `antrean cancel BATCH` cancels it.
    """
    ledger = prepare_ledger(load_settings())
    found, waiting = list_batches(ledger, limit=limit), find_batches_at_budget(ledger)
    at_budget = {batch.id for batch, counts in found if batch.id in waiting and _is_open(counts)}
    if as_json:
        print_json(
            {"batches": [_batch_facts(batch, counts, batch.id in at_budget) for batch, counts in found]}
        )
        return
    if not found:
        note("there are no batches yet: `antrean run` or `antrean submit` makes one")
    for batch, counts in found:
        status = derive_batch_status(counts, is_submitted=batch.submitted_at_ms is not None)
        states = [f"{format_count(counts[state])} {state.value}" for state in JobState if counts.get(state)]
        status += ", held" if _is_held(batch, counts) else ""
        status += ", at its budget" if batch.id in at_budget else ""
        status += f", weight {batch.weight:g}" if batch.weight != USUAL_WEIGHT else ""
        out.say(f"{batch.id}  {status:<11}  {iso(batch.created_at_ms)}")
        total = format_count(sum(counts.values()), "job")
        out.print(Text(f"  {printable(batch.label)} · {total}: {' · '.join(states) or 'none'}"))


def workers(as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
    """List the workers that have not ended, the oldest first.

    Each has its host and process, its slots and how many are in use, how many more jobs it has in hand, when it
    started and when its last heartbeat was. A worker that was silent for longer than its lease is marked: other
    workers take its jobs over. Ages are computed with this machine's clock and the worker's; no decision depends on
    them.
    """
    ledger = prepare_ledger(load_settings())
    found = list_workers(ledger)
    now_ms = time.time_ns() // 1_000_000
    if as_json:
        print_json({"workers": [worker_facts(one, now_ms) for one in found]})
        return
    if not found:
        note("no worker is running: `antrean worker` starts one")
    for one in found:
        age_s = max(0, now_ms - one.beat_at_ms) / 1000
        out.print(
            Text(
                f"{printable(one.hostname)}:{one.pid}  {one.slots_in_use} of {one.slots} slots in use"
                f"{describe_in_hand(one)} · last beat {format_seconds(age_s)} ago"
            )
        )
        out.print(Text(f"  id {one.id}\n  since {iso(one.started_at_ms)}, for {printable(one.endpoint)}"))
        if one.is_silent(now_ms):
            lease = f"its lease of {one.lease_ms / 1000:g} s"
            out.print(
                Text(
                    f"  silent for longer than {lease}: other workers take its jobs over",
                    style="yellow",
                )
            )


def iso(at_ms: int, timespec: str = "seconds") -> str:
    """A stored time in UTC, such as 2026-03-01T12:00:00+00:00."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec=timespec)


def complete_batch_id(incomplete: str) -> list[tuple[str, str]]:
    """Ids of the latest 200 batches that begin like this, for the shell, each with a description.

    The shell asks at each press of Tab. So this makes no ledger, prints nothing, and gives up after a second.
    """
    found: list[tuple[str, str]] = []
    # A thread, because a database that does not answer takes longer to fail than anybody waits for a Tab.
    thread = threading.Thread(target=_look_up, args=(incomplete, found), daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return list(found)


BatchId = Annotated[str, typer.Argument(help="The batch's id.", autocompletion=complete_batch_id)]


def _look_up(incomplete: str, found: list[tuple[str, str]]) -> None:
    try:
        settings = load_settings()
        if settings.database_url is None and not (settings.home / "antrean.db").is_file():
            return  # looking would make one
        latest = fetch_latest_batches(open_ledger(settings, pool_size=1), limit=_COMPLETED)
    except Exception:  # a completion is a courtesy: whatever is wrong, the command itself will say it
        return
    # The label goes through a shell's eval: only what means nothing to any shell is left of it.
    found += [
        (batch.id, f"{iso(batch.created_at_ms)[:10]} {re.sub(r'[^A-Za-z0-9_., -]+', ' ', batch.label)[:40]}")
        for batch in latest
        if batch.id.startswith(incomplete) and _PLAIN_ID.fullmatch(batch.id)
    ]


def _is_held(batch: Batch, counts: Mapping[JobState, int]) -> bool:
    return batch.held_at_ms is not None and _is_open(counts)


def _is_open(counts: Mapping[JobState, int]) -> bool:
    return any(not state.is_final for state in counts)


def _batch_facts(batch: Batch, counts: Mapping[JobState, int], is_at_budget: bool) -> dict[str, object]:
    return {
        "batch_id": batch.id,
        "kind": batch.kind,
        "label": batch.label,
        "endpoint": batch.endpoint,
        "status": derive_batch_status(dict(counts), is_submitted=batch.submitted_at_ms is not None),
        "held": _is_held(batch, counts),
        "at_budget": is_at_budget,
        "weight": batch.weight,
        "total": sum(counts.values()),
        "jobs": {state.value: counts.get(state, 0) for state in JobState},
        "created_at": iso(batch.created_at_ms),
        "submitted_at": None if batch.submitted_at_ms is None else iso(batch.submitted_at_ms),
    }


def describe_in_hand(one: WorkerFacts) -> str:
    """` · 8 more jobs in hand`, with a space before it; empty without one."""
    return f" · {format_count(one.in_hand, 'more job')} in hand" if one.in_hand else ""


def worker_facts(one: WorkerFacts, now_ms: int) -> dict[str, object]:
    """A worker as `--json` has it, times in ISO 8601; `now_ms` is this machine's time."""
    return {
        "id": one.id,
        "endpoint": one.endpoint,
        "hostname": one.hostname,
        "pid": one.pid,
        "slots": one.slots,
        "running": one.running,
        "calls": one.slots_in_use,
        "started_at": iso(one.started_at_ms),
        "beat_at": iso(one.beat_at_ms),
        "beat_age_s": max(0, now_ms - one.beat_at_ms) / 1000,
        "lease_s": one.lease_ms / 1000,
        "is_silent": one.is_silent(now_ms),
    }
