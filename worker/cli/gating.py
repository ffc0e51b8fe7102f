"""`antrean gate`: shows the endpoint's shut gate, and opens it by hand."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from worker.broker.client import broker_address, check_broker, open_client
from worker.cli.console import note, out, print_json
from worker.cli.shared_options import EndpointName
from worker.clock import SystemClock
from worker.errors import BrokerAway
from worker.operations.endpoint_choice import choose_endpoints
from worker.operations.gates import (
    EndpointGate,
    GateWatch,
    describe_key,
    endpoint_gate_facts,
    explain_gate,
    find_shut,
    gate_facts,
    key_facts,
)
from worker.operations.served import why_nobody_works
from worker.reports.summary import format_count
from worker.settings import EndpointSettings, Settings, load_settings
from worker.storage.engine import Ledger
from worker.storage.migrating import prepare_ledger


class _Action(StrEnum):
    SHOW = "show"
    OPEN = "open"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("gate", epilog="Example: antrean gate\n\nExample: antrean gate open")(gate)


def gate(
    action: Annotated[_Action, typer.Argument(help="What to do: show it, or open it.")] = _Action.SHOW,
    endpoint: EndpointName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show why no job is called, or have the jobs called again at once.

    A gate is shut for all workers of ANTREAN_BASE_URL (or ANTREAN_ENDPOINT_NAME)
    when the endpoint refuses all of them: a key, a quota, an outage, the same
    words for job after job. A probe that is answered opens it by itself. A key that
    is refused or spent has a gate of its own: it is set aside while others are used.

    `open` ends all of them without a probe, a cooldown too, and makes the jobs due
    that waited. Where the endpoint still refuses, the gate shuts again.

    Of several endpoints each has a gate of its own: all are shown, or opened,
    unless --endpoint names one.
    """
    settings = load_settings()
    chosen = choose_endpoints(settings, endpoint)
    ledger = prepare_ledger(settings)
    if not settings.is_broker_embedded:
        check_broker(open_client(broker_address(settings)))  # else nobody knows whether it is open
    watch = GateWatch(settings)
    found, now_ms = _fetch(watch, chosen), SystemClock().now_ms()
    said = [_explain(ledger, settings, one, now_ms) for one in found]
    woken = watch.open_gates(ledger, chosen) if action is _Action.OPEN else 0
    was_shut = any(one.gate is not None or any(key.gate is not None for key in one.keys) for one in found)
    is_opened = action is not _Action.OPEN or not was_shut or _fetch(watch, chosen) != found
    if not is_opened:
        raise BrokerAway("the broker takes no change (is it a read-only copy?): the gate is shut as before")
    if as_json:
        has_tables = bool(settings.endpoint_tables)
        print_json(
            {
                "endpoint": settings.endpoint,
                **(
                    {"endpoints": [endpoint_gate_facts(one, now_ms=now_ms) for one in found]}
                    if has_tables
                    else {}
                ),
                "gate": gate_facts(settings.endpoint, find_shut(found), now_ms=now_ms),
                "keys": [key_facts(key, now_ms=now_ms) for one in found for key in one.keys],
                "opened": action is _Action.OPEN,
                "woken": woken,
            }
        )
        return
    for one, sentences in zip(found, said, strict=True):
        name = f"{one.endpoint.name}: " if settings.endpoint_tables else ""
        for sentence in sentences:
            out.say(f"{name}{sentence}")
    if action is _Action.OPEN:
        _say_opened(found, woken)
        if why_nobody := why_nobody_works(ledger, settings, settings.endpoint):
            note(why_nobody)


def _fetch(watch: GateWatch, chosen: Sequence[EndpointSettings]) -> list[EndpointGate]:
    return [one for one in watch.fetch_each() if one.endpoint in chosen]


def _explain(ledger: Ledger, settings: Settings, one: EndpointGate, now_ms: int) -> list[str]:
    """Whether the gate is open, and which keys are set aside, a sentence each."""
    gate = "the gate is open" if one.gate is None else explain_gate(ledger, settings, one.gate)
    return [gate, *(said for key in one.keys if (said := describe_key(key, now_ms=now_ms)) is not None)]


def _say_opened(found: Sequence[EndpointGate], woken: int) -> None:
    if any(one.gate is not None for one in found):
        out.say("it is open now" if len(found) == 1 else "all of them are open now")
    if any(key.gate is not None for one in found for key in one.keys):
        out.say("the keys are used again now")
    if woken:
        out.say(f"{format_count(woken, 'job')} waited at it, and may be called at once")
