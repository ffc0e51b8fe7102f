"""Where the requests of a command go, said before any of them does: documents and key must not go to a wrong host."""

from __future__ import annotations

from schemas.address import parse_address
from worker.cli.console import note
from worker.errors import AntreanError
from worker.operations.served import find_left_jobs
from worker.reports.summary import format_count
from worker.settings import Settings
from worker.storage.engine import Ledger


def announce_endpoint(settings: Settings) -> None:
    """One line on standard error: where requests go, and whether somebody chose that."""
    chat_url = parse_address(settings.base_url).chat_url
    chosen = "" if "base_url" in settings.model_fields_set else ", the default: ANTREAN_BASE_URL is not set"
    note(f"requests go to {chat_url}{chosen}")


def warn_of_left_jobs(ledger: Ledger, settings: Settings) -> None:
    """Names the endpoints whose jobs wait in this ledger while nobody works on them."""
    try:
        left_jobs = find_left_jobs(ledger, settings)
    except AntreanError:  # whoever goes on says it, of the database
        return
    for endpoint, left in left_jobs.items():
        jobs = f"{'at least ' * left.is_cut}{format_count(left.count, 'job')}"
        note(
            f"warning: {jobs} in this ledger {'waits' if left.count == 1 else 'wait'} for {endpoint}, which no "
            "worker calls: is ANTREAN_BASE_URL right?"
        )
