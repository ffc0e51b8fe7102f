"""`antrean check`, `models` and `migrate`: whether all that is needed is there, and what to do where it is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from schemas.address import parse_address
from worker.broker.client import broker_address, check_broker, open_client
from worker.cli.console import note, out, print_json
from worker.cli.destination import announce_endpoints, warn_of_left_jobs
from worker.clock import SystemClock
from worker.errors import AntreanError, ExitCode, SettingsError, Unreachable
from worker.operations.capacity import make_room
from worker.operations.database import check_database, migrate_database, name_database
from worker.operations.endpoints import Answers, AskedEndpoint, ask_endpoints, try_endpoints
from worker.operations.gates import (
    EndpointGate,
    GateWatch,
    describe_gate,
    describe_key,
    endpoint_gate_facts,
    find_shut,
    gate_facts,
    key_facts,
)
from worker.operations.preflight import ask_endpoint, list_models
from worker.prices.book import open_prices
from worker.reports.summary import format_count
from worker.settings import Settings, load_settings
from worker.settings.sources import unknown_names
from worker.stack.attachment import Stack
from worker.storage.engine import open_ledger

_Finding = tuple[
    str, str, AntreanError | None
]  # what was checked, what was found, and the problem if it is one


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("check", epilog="Example: antrean check --json")(check)
    app.command("models", epilog="Example: antrean models")(models)
    app.command("migrate", epilog="Example: antrean migrate")(migrate)


def check(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Check all that is needed, and say what to do about each problem.

    It checks settings, slots, broker, database, endpoint, key and model; of several endpoints each. The endpoint is
    asked for its models, and its chat address gets a request without messages, which is refused and costs nothing. It
    says whether jobs wait at a shut gate, and until when, and which keys of live workers are set aside. If the endpoint
    answers, waiting jobs are tried again at once. The exit code is 0 if all is well, else that of the worst problem: 3
    settings, 4 something is unreachable, 5 the endpoint refuses the key or the model.
    """
    findings: list[_Finding] = []

    def attempt(name: str, probe: Callable[[], str]) -> bool:
        try:
            findings.append((name, probe(), None))
        except AntreanError as exc:
            findings.append((name, str(exc), exc))
            return False
        return True

    settings: Settings | None = None
    gates: list[EndpointGate] = []
    try:
        settings = load_settings()
        announce_endpoints(settings)
        filed = "jobs are filed under" if settings.endpoint_tables else "endpoint"
        findings.append(("settings", f"home {settings.home}, {filed} {settings.endpoint}", None))
    except SettingsError as exc:
        findings += [("settings", problem, exc) for problem in exc.problems]
    if settings is not None:
        known = settings
        attempt("slots", lambda: _check_slots(known))
        if known.prices_file is not None:
            attempt("prices", lambda: _check_prices(known))
        has_broker = attempt("broker", lambda: _check_broker(known))
        attempt("database", lambda: _check_database(known))
        answers = try_endpoints(known)
        for one in answers.asked:
            of_one = known.for_endpoint(one.endpoint)
            name = f"endpoint {one.endpoint.name}" if known.endpoint_tables else "endpoint and key"
            attempt(name, partial(_check_endpoint, of_one, one))
        if any(one.problem is None for one in answers.asked):
            attempt("model", lambda: _check_model(known, answers))
        if has_broker:
            texts, gates = _check_gates(known, answers)
            findings += texts
    odd = unknown_names(os.environ, Settings.model_fields)
    if as_json:
        _print_json(findings, odd, settings, gates)
    else:
        for name, text, problem in findings:
            out.say(("ok", "green") if problem is None else ("no", "bold red"), f"  {name}: {text}", hang=4)
    worst = max((exc.exit_code for _, _, exc in findings if exc is not None), default=ExitCode.OK)
    if worst:
        raise typer.Exit(worst)


def models(as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
    """List the models that the endpoint runs now.

    Of several endpoints they are those that jobs may name, with the names of the endpoints that serve each.
    """
    settings = load_settings()
    if settings.endpoint_tables:
        _list_offered(settings, as_json=as_json)
        return
    facts = ask_endpoint(settings, with_chat=False)
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


def _list_offered(settings: Settings, *, as_json: bool) -> None:
    """The models of each endpoint, by name. Raises the problem of one where none can be used."""
    asked = ask_endpoints(settings, with_chat=False).asked
    for one in asked:
        if one.problem is not None:
            note(f"{one.endpoint.name}: {one.problem}")
        elif one.offered is None:
            note(f"{one.endpoint.name} answers, but lists no models ({one.facts.why_unlisted})")
    offered = {one.endpoint.name: one.offered for one in asked if one.problem is None}
    names = sorted({model for some in offered.values() for model in some or ()})
    if as_json:
        print_json({"models": names, "endpoints": offered})
        return
    for model in names:
        where = ", ".join(name for name, some in offered.items() if model in (some or ()))
        out.say(model, (f" ({where})", "dim"))


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
    open_prices(settings)
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


def _check_endpoint(settings: Settings, asked: AskedEndpoint) -> str:
    """`settings` are those of this endpoint alone."""
    if asked.problem is not None:
        raise asked.problem
    found = asked.facts
    listed = (
        f"lists no models ({found.why_unlisted})"
        if found.models is None
        else f"runs {list_models(found.models) or 'no model'}"
    )
    refused = f"; it refuses {', '.join(found.refused_keys)}" if found.refused_keys else ""
    said = f"{settings.base_url} {listed}; {parse_address(settings.base_url).chat_url} {found.chat}{refused}"
    return "; ".join([said, *asked.check_table()])


def _check_model(settings: Settings, answers: Answers) -> str:
    if settings.endpoint_tables and settings.model is None and answers.models.only_model is None:
        return "each request names its own, as no default is set (ANTREAN_MODEL)"
    chosen = answers.models.choose_model(settings.model)
    return "; ".join([chosen, *answers.models.check_models([chosen])])


def _check_gates(settings: Settings, answers: Answers) -> tuple[list[_Finding], list[EndpointGate]]:
    """What is told of the gates and of keys that are set aside; and all of them.

    Wakes waiting jobs if an endpoint answers.
    """
    watch = GateWatch(settings)
    gates, now_ms = watch.fetch_each(), SystemClock().now_ms()
    woken = 0
    if answers.is_up:
        try:
            woken = watch.wake(open_ledger(settings), answers.accepted)
        except AntreanError:  # said already, of the database
            woken = 0
    found: list[_Finding] = []
    is_tried = False
    for one, asked in zip(gates, answers.asked, strict=True):
        if one.gate is None:
            continue
        name = f"gate of {one.endpoint.name}" if settings.endpoint_tables else "gate"
        text = describe_gate(one.gate, now_ms=now_ms)
        if asked.facts.is_up and one.gate.needs_probe:
            is_tried = True
            found.append((name, f"{text}; the endpoint answers, so it is tried again now", None))
        elif not (asked.facts.is_up and woken):
            found.append((name, text, None))
    if woken and not is_tried:
        waited = f"{format_count(woken, 'job')} waited for the endpoint, and are tried again now"
        found.append(("gate", waited, None))
    for one in gates:
        name = f"key of {one.endpoint.name}" if settings.endpoint_tables else "key"
        aside = [said for key in one.keys if (said := describe_key(key, now_ms=now_ms)) is not None]
        found += [(name, sentence.removeprefix("key "), None) for sentence in aside]
    return found, gates


def _print_json(
    findings: list[_Finding],
    odd: list[str],
    settings: Settings | None,
    gates: list[EndpointGate],
) -> None:
    now_ms = SystemClock().now_ms()
    has_tables = settings is not None and bool(settings.endpoint_tables)
    endpoint = "" if settings is None else settings.endpoint
    print_json(
        {
            "ok": all(exc is None for _, _, exc in findings),
            "checks": [{"name": name, "ok": exc is None, "detail": text} for name, text, exc in findings],
            "unknown_settings": odd,
            "gate": gate_facts(endpoint, find_shut(gates), now_ms=now_ms),
            "keys": [key_facts(key, now_ms=now_ms) for one in gates for key in one.keys],
            **(
                {"endpoints": [endpoint_gate_facts(one, now_ms=now_ms) for one in gates]}
                if has_tables
                else {}
            ),
        }
    )
