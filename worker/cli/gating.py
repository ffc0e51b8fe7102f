"""`antrean gate`: shows the endpoint's shut gate, and opens it by hand."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from worker.broker.client import broker_address, check_broker, open_client
from worker.cli.console import note, out, print_json
from worker.clock import SystemClock
from worker.errors import BrokerAway
from worker.operations.gates import GateWatch, describe_key, explain_gate, gate_facts, key_facts
from worker.operations.served import why_nobody_works
from worker.reports.summary import format_count
from worker.settings import load_settings
from worker.storage.migrating import prepare_ledger


class _Action(StrEnum):
    SHOW = "show"
    OPEN = "open"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("gate", epilog="Example: antrean gate\n\nExample: antrean gate open")(gate)


def gate(
    action: Annotated[_Action, typer.Argument(help="What to do: show it, or open it.")] = _Action.SHOW,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show why no job is called, or have the jobs called again at once.

    A gate is shut for all workers of ANTREAN_BASE_URL (or ANTREAN_ENDPOINT_NAME)
    when the endpoint refuses all of them: a key, a quota, an outage, the same
    words for job after job. A probe that is answered opens it by itself. A key that
    is refused or spent has a gate of its own: it is set aside while others are used.

    `open` ends all of them without a probe, a cooldown too, and makes the jobs due
    that waited. Where the endpoint still refuses, the gate shuts again.
    """
    settings = load_settings()
    ledger = prepare_ledger(settings)
    if not settings.is_broker_embedded:
        check_broker(open_client(broker_address(settings)))  # else nobody knows whether it is open
    watch = GateWatch(settings)
    (found, keys), now_ms = watch.fetch_all(), SystemClock().now_ms()
    said = "the gate is open" if found is None else explain_gate(ledger, settings, found)
    woken = watch.open_gate(ledger) if action is _Action.OPEN else 0
    was_shut = found is not None or any(one.gate is not None for one in keys)
    if action is _Action.OPEN and was_shut and watch.fetch_all() == (found, keys):
        raise BrokerAway("the broker takes no change (is it a read-only copy?): the gate is shut as before")
    if as_json:
        facts = gate_facts(settings.endpoint, found, now_ms=now_ms)
        print_json(
            {
                "endpoint": settings.endpoint,
                "gate": facts,
                "keys": [key_facts(one, now_ms=now_ms) for one in keys],
                "opened": action is _Action.OPEN,
                "woken": woken,
            }
        )
        return
    out.say(said)
    aside = [sentence for one in keys if (sentence := describe_key(one, now_ms=now_ms)) is not None]
    for sentence in aside:
        out.say(sentence)
    if action is _Action.OPEN:
        if found is not None:
            out.say("it is open now")
        if aside:
            out.say("the keys are used again now")
        if woken:
            out.say(f"{format_count(woken, 'job')} waited at it, and may be called at once")
        if why_nobody := why_nobody_works(ledger, settings, settings.endpoint):
            note(why_nobody)
