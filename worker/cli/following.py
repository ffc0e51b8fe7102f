"""Follows a run: its progress, its deadline and its patience, and the services that it has started."""

from __future__ import annotations

import time

from worker.cli.console import note
from worker.cli.expected import DeadlineWatch
from worker.cli.progress import Display
from worker.errors import GateShut, Unreachable
from worker.files.disk import describe_full_disk
from worker.files.home import last_line, log_of_service
from worker.operations.budgets import describe_budget_wait, fetch_batch_budget
from worker.operations.gates import GateWatch
from worker.operations.run_holding import tend
from worker.operations.run_patience import RunPatience
from worker.operations.run_work import Work, sum_run_calls
from worker.operations.tracking import Progress, Tracker
from worker.reports.growing import GrowingResults
from worker.reports.summary import format_seconds
from worker.settings import Settings
from worker.stack.attachment import Stack, describe_death
from worker.storage.engine import Ledger

_REFRESH_S = 0.25
_TEND_S = 3.0
_MOST_DEATHS = 3


def follow_run(
    ledger: Ledger,
    stack: Stack,
    settings: Settings,
    work: Work,
    progress: Progress,
    growing: GrowingResults,
    gate: GateWatch,
    patience_s: float | None,
    watch: DeadlineWatch,
    antrean: str,
) -> None:
    """Shows the progress of a run until all of its jobs have ended. `antrean`: the command as it must be typed.

    Raises GateShut where its patience is spent, and Unreachable where a service of its stack does not stay up.
    """
    written = [settings.home, *([ledger.folder] if ledger.folder else [])]
    tracker = Tracker(
        ledger,
        work.open,
        progress,
        endpoint=settings.endpoint,
        find_gate=gate.fetch_cached,
        find_trouble=lambda: (
            describe_full_disk(written)
            or describe_budget_wait(
                ledger, settings, fetch_batch_budget(ledger, work.batch_id), antrean=antrean
            )
        ),
    )
    display = Display()
    deaths = 0
    tended_s = time.monotonic()
    patience = RunPatience(patience_s, now_s=tended_s)
    with display.shown():
        while True:
            display.update(tracker.refresh())
            if warning := watch.look(progress, now_s=time.monotonic()):
                note(warning)
            growing.advance(tracker.is_open)
            if tracker.is_done:
                progress.calls = sum_run_calls(ledger, work)
                return
            is_shut = gate.is_a_model_shut()
            if patience.is_spent(done=progress.done, is_shut=is_shut, now_s=time.monotonic()):
                raise _out_of_patience(patience_s, progress)
            if time.monotonic() - tended_s >= _TEND_S:
                tend(ledger, work.batch_id)
                tended_s = time.monotonic()
            time.sleep(_REFRESH_S)
            for event in stack.poll_events():
                if event.get("event") != "service_died":
                    continue
                deaths += 1
                service = event["service"]
                log = log_of_service(settings.home, service)
                if not event.get("is_restarted", True):
                    raise Unreachable(
                        f"the {service} {describe_death(event)}: type the same command again; "
                        f"{log} ends with: {last_line(log)}"
                    )
                if deaths >= _MOST_DEATHS and progress.succeeded == work.done:
                    raise Unreachable(f"the {service} does not stay up; {log} ends with: {last_line(log)}")
                note(f"the {service} {describe_death(event)}; it is started again, see {log}")


def _out_of_patience(patience_s: float | None, progress: Progress) -> GateShut:
    waited_s = patience_s or 0.0
    waited = f"{waited_s:g} s" if waited_s < 60 else format_seconds(waited_s)
    why = progress.trouble or "the gate is shut"
    return GateShut(
        f"no job has ended for {waited} ({why}): nothing is lost, the same command goes on from here"
    )
