"""`antrean check`, `models` and `migrate`: whether all that is needed is there, and what to do where it is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from schemas.address import parse_address
from worker.broker.client import broker_address, check_broker, open_client
from worker.cli.console import note, out, print_json
from worker.cli.destination import announce_endpoint, warn_of_left_jobs
from worker.clock import SystemClock
from worker.errors import AntreanError, ExitCode, SettingsError, Unreachable
from worker.operations.capacity import make_room
from worker.operations.database import check_database, migrate_database, name_database
from worker.operations.gates import GateWatch, describe_gate, describe_key, gate_facts, key_facts
from worker.operations.preflight import (
    NOT_ASKED,
    EndpointFacts,
    ask_endpoint,
    check_models,
    choose_model,
    list_models,
)
from worker.prices.book import open_price_book
from worker.reports.summary import format_count
from worker.settings import Settings, load_settings
from worker.settings.sources import unknown_names
from worker.stack.attachment import Stack
from worker.storage.engine import open_ledger
from worker.throttle.store import KeyState


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("check", epilog="Example: antrean check --json")(check)
    app.command("models", epilog="Example: antrean models")(models)
    app.command("migrate", epilog="Example: antrean migrate")(migrate)


def check(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Check all that is needed, and say what to do about each problem.

    It checks settings, slots, broker, database, endpoint, key and model. The endpoint is asked for its models, and
    its chat address gets a request without messages, which is refused and costs nothing. It says whether jobs wait
    at a shut gate, and until when, and which keys of live workers are set aside. If the endpoint answers, waiting
    jobs are tried again at once. The exit code is 0 if all is well, else that of the worst problem: 3 settings, 4
    something is unreachable, 5 the endpoint refuses the key or the model.
    """
    findings: list[tuple[str, str, AntreanError | None]] = []

    def attempt(name: str, probe: Callable[[], str]) -> bool:
        try:
            findings.append((name, probe(), None))
        except AntreanError as exc:
            findings.append((name, str(exc), exc))
            return False
        return True

    settings: Settings | None = None
    gate: dict[str, Any] | None = None
    keys: list[KeyState] = []
    try:
        settings = load_settings()
        announce_endpoint(settings)
        findings.append(("settings", f"home {settings.home}, endpoint {settings.endpoint}", None))
    except SettingsError as exc:
        findings += [("settings", problem, exc) for problem in exc.problems]
    if settings is not None:
        known = settings
        attempt("slots", lambda: _check_slots(known))
        if known.prices_file is not None:
            attempt("prices", lambda: _check_prices(known))
        has_broker = attempt("broker", lambda: _check_broker(known))
        attempt("database", lambda: _check_database(known))
        facts: list[EndpointFacts] = []
        if attempt("endpoint and key", lambda: _check_endpoint(known, facts)):
            attempt("model", lambda: _check_model(known.model, facts[0]))
        if has_broker:
            text, gate, keys = _check_gate(known, facts[0] if facts else NOT_ASKED)
            if text is not None:
                findings.append(("gate", text, None))
            now_ms = SystemClock().now_ms()
            aside = [sentence for one in keys if (sentence := describe_key(one, now_ms=now_ms)) is not None]
            findings += [("key", sentence.removeprefix("key "), None) for sentence in aside]
    odd = unknown_names(os.environ, Settings.model_fields)
    _print_findings(findings, odd, gate, keys, as_json=as_json)
    worst = max((exc.exit_code for _, _, exc in findings if exc is not None), default=ExitCode.OK)
    if worst:
        raise typer.Exit(worst)


def models(as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
    """List the models that the endpoint runs now."""
    facts = ask_endpoint(load_settings(), with_chat=False)
    if facts.models is None:
        sentence = f"the endpoint answers, but lists no models ({facts.why_unlisted})"
        if facts.models_failure is not None and facts.models_failure.http_status not in (404, 405):
            raise Unreachable(sentence)
        note(sentence)
    if as_json:
        print_json({"models": facts.models})
        return
    for model in facts.models or ():
        out.say(model)


def migrate() -> None:
    """Bring the database to this version's schema.

    It may be repeated, and workers may run meanwhile. Only a database of ANTREAN_DATABASE_URL needs it: each
    command migrates the ledger in the home folder by itself.
    """
    settings = load_settings()
    done = migrate_database(settings)
    if done.before == done.after:
        out.print(f"the database is at revision {done.after} already")
    else:
        out.print(f"the database went from {done.before or 'nothing'} to revision {done.after}")


def _check_slots(settings: Settings) -> str:
    return f"{make_room(settings).call_count} of them fit in this machine's open files and threads"


def _check_prices(settings: Settings) -> str:
    open_price_book(settings)
    return f"{settings.prices_file} can be read"


def _check_broker(settings: Settings) -> str:
    if not settings.is_broker_embedded:
        return check_broker(open_client(broker_address(settings)))
    with Stack.attach(settings.home) as stack:
        return f"embedded {check_broker(open_client(stack.ensure_broker()))}"


def _check_database(settings: Settings) -> str:
    ledger = check_database(settings)
    warn_of_left_jobs(ledger, settings)
    return f"{name_database(ledger)}, schema up to date"


def _check_endpoint(settings: Settings, facts: list[EndpointFacts]) -> str:
    found = ask_endpoint(settings)
    facts.append(found)
    listed = (
        f"lists no models ({found.why_unlisted})"
        if found.models is None
        else f"runs {list_models(found.models) or 'no model'}"
    )
    refused = f"; it refuses {', '.join(found.refused_keys)}" if found.refused_keys else ""
    return f"{settings.base_url} {listed}; {parse_address(settings.base_url).chat_url} {found.chat}{refused}"


def _check_model(wanted: str | None, facts: EndpointFacts) -> str:
    chosen = choose_model(wanted, facts)
    return "; ".join([chosen, *check_models([chosen], facts)])


def _check_gate(
    settings: Settings, facts: EndpointFacts
) -> tuple[str | None, dict[str, Any] | None, list[KeyState]]:
    """The shared gate as text and as JSON facts, None where it is open; and the keys in use.

    Wakes waiting jobs if the endpoint answers.
    """
    watch = GateWatch(settings)
    (gate, keys), now_ms = watch.fetch_all(), SystemClock().now_ms()
    text = None if gate is None else describe_gate(gate, now_ms=now_ms)
    if facts.is_up:
        try:
            woken = watch.wake(open_ledger(settings), facts.accepted)
        except AntreanError:  # said already, of the database
            woken = 0
        if gate is not None and gate.needs_probe:
            text = f"{text}; the endpoint answers, so it is tried again now"
        elif woken:
            text = f"{format_count(woken, 'job')} waited for the endpoint, and are tried again now"
    return text, gate_facts(settings.endpoint, gate, now_ms=now_ms), keys


def _print_findings(
    findings: list[tuple[str, str, AntreanError | None]],
    odd: list[str],
    gate: dict[str, Any] | None,
    keys: list[KeyState],
    *,
    as_json: bool,
) -> None:
    if as_json:
        print_json(
            {
                "ok": all(exc is None for _, _, exc in findings),
                "checks": [{"name": name, "ok": exc is None, "detail": text} for name, text, exc in findings],
                "unknown_settings": odd,
                "gate": gate,
                "keys": [key_facts(one, now_ms=SystemClock().now_ms()) for one in keys],
            }
        )
        return
    for name, text, exc in findings:
        out.say(("ok", "green") if exc is None else ("no", "bold red"), f"  {name}: {text}", hang=4)
