"""Says where a command's requests go before it sends one: documents and keys must not go to a wrong host."""

from __future__ import annotations

from schemas.address import parse_address
from worker.cli.console import note
from worker.errors import AntreanError
from worker.operations.preflight import list_models
from worker.operations.served import find_left_jobs
from worker.reports.summary import format_count
from worker.settings import EndpointSettings, Settings
from worker.storage.engine import Ledger

_MOST_NAMED = 3


def announce_endpoints(settings: Settings) -> None:
    """Prints one line on standard error: where requests go, and whether that was set or is the default."""
    if settings.endpoint_tables:
        count = len(settings.endpoint_tables)
        named = ", ".join(map(_describe, settings.endpoint_tables))
        note(f"requests go to {f'{count} endpoints: ' if count > 1 else ''}{named}")
        return
    chat_url = parse_address(settings.base_url).chat_url
    chosen = "" if "base_url" in settings.model_fields_set else ", the default: ANTREAN_BASE_URL is not set"
    unused = "" if settings.unused_tables is None else f"; {settings.unused_tables}"
    note(f"requests go to {chat_url}{chosen}{unused}")


def _describe(endpoint: EndpointSettings) -> str:
    """`east (http://10.0.0.2:8000/v1/chat/completions, for qwen3*)`."""
    models = endpoint.models
    served = f"{len(models)} models" if len(models) > _MOST_NAMED else list_models(models)
    return f"{endpoint.name} ({parse_address(endpoint.base_url).chat_url}{served and f', for {served}'})"


def warn_of_left_jobs(ledger: Ledger, settings: Settings) -> None:
    """Names other endpoints that have open jobs in this ledger and no live worker."""
    try:
        left_jobs = find_left_jobs(ledger, settings)
    except AntreanError:  # the command's next step says it of the database
        return
    for endpoint, left in left_jobs.items():
        jobs = f"{'at least ' * left.is_cut}{format_count(left.count, 'job')}"
        doubt = "is ANTREAN_BASE_URL right?"
        if settings.endpoint_tables:
            doubt = "was it the first table? ANTREAN_ENDPOINT_NAME says what jobs are filed under"
        note(
            f"warning: {jobs} in this ledger {'waits' if left.count == 1 else 'wait'} for {endpoint}, which no "
            f"worker calls: {doubt}"
        )
