"""`antrean limits`: shows, sets and clears the limits of an endpoint, and tells how they changed."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from worker.cli.console import note, out, print_json
from worker.cli.shared_options import EndpointName
from worker.clock import iso_ms
from worker.errors import InputError
from worker.operations.endpoint_choice import choose_endpoints
from worker.operations.limits import (
    LimitsView,
    change_facts,
    describe_change,
    describe_limit,
    describe_table_limit,
    fetch_history,
    fetch_limits_view,
    set_limits,
)
from worker.reports.summary import format_count
from worker.settings import EndpointSettings, Settings, load_settings
from worker.storage.engine import Ledger
from worker.storage.limits import LimitChange, LimitKind
from worker.storage.migrating import prepare_ledger

_MOST_SHOWN = 100


class _Action(StrEnum):
    SHOW = "show"
    SET = "set"
    CLEAR = "clear"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "limits",
        epilog="Example: antrean limits set --in-flight 60 --requests-per-minute 600\n\n"
        "Example: antrean limits --history",
    )(limits)


def limits(
    action: Annotated[
        _Action, typer.Argument(help="What to do: show them, set some, or clear those that are set.")
    ] = _Action.SHOW,
    in_flight: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Calls in flight of all workers together.", show_default=False),
    ] = None,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Calls that begin in a minute.", show_default=False),
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000_000,
            help="Tokens of prompts and completions in a minute.",
            show_default=False,
        ),
    ] = None,
    endpoint: EndpointName = None,
    history: Annotated[
        bool, typer.Option("--history", help="Show how they changed, and why; the newest first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show, set or clear how much the endpoint is asked for.

    Limits are of all workers of ANTREAN_BASE_URL (or ANTREAN_ENDPOINT_NAME)
    together, on all machines. What is set holds for running workers within a
    second, until it is cleared. Calls in flight are never cut. With
    ANTREAN_CONCURRENCY=auto the workers find the best number of calls in flight
    by themselves, up to the one that is set; it is shown, too.

    `set` changes the limits that are named, and leaves the others. `clear` ends
    all that are set.

    Of several endpoints each has limits of its own: all are shown, unless
    --endpoint names one; `set` and `clear` need it.
    """
    given = {
        LimitKind.IN_FLIGHT: in_flight,
        LimitKind.REQUESTS: requests_per_minute,
        LimitKind.TOKENS: tokens_per_minute,
    }
    named = {kind: value for kind, value in given.items() if value is not None}
    if bool(named) != (action is _Action.SET):
        raise InputError(
            "limits set: name a limit: --in-flight, --requests-per-minute or --tokens-per-minute"
            if action is _Action.SET
            else "a limit is changed by `antrean limits set`"
        )
    if history and action is not _Action.SHOW:
        raise InputError(f"limits {action.value}: --history only shows how they changed: leave it out")
    settings = load_settings()
    chosen = choose_endpoints(settings, endpoint)
    if len(chosen) > 1 and action is not _Action.SHOW:
        names = ", ".join(one.name for one in chosen)
        raise InputError(f"limits {action}: name one of the endpoints with --endpoint: {names}")
    ledger = prepare_ledger(settings)
    if history:
        _print_history(ledger, settings, chosen, as_json=as_json)
        return
    wanted = dict.fromkeys(given) if action is _Action.CLEAR else named
    changes = set_limits(ledger, chosen[0].identity, wanted) if wanted else []
    views = [fetch_limits_view(ledger, settings, one) for one in chosen]
    if as_json:
        facts = [_view_facts(one, changes) for one in views]
        print_json(facts[0] if len(facts) == 1 else {"endpoints": facts})
        return
    for one in changes:
        out.say(describe_change(one))
    if action is not _Action.SHOW:
        if not changes:
            note("nothing changed")
        return
    for view in views:
        _print_view(view, f"{view.held.endpoint.name}: " if settings.endpoint_tables else "")


def _print_view(view: LimitsView, name: str) -> None:
    for limit in view.held.stored:
        why = f": {limit.reason}" if limit.reason else ""
        out.say(f"{name}{describe_limit(limit)} since {iso_ms(limit.since_ms)}{why}")
    for told in view.held.table:
        out.say(f"{name}{describe_table_limit(told)}")
    if not view.held.described:
        out.say(f"{name}no limit is set, and none was found")
    if view.use is not None:
        out.say(f"{name}{view.use.in_flight:,} in flight now, of {format_count(view.use.workers, 'worker')}")


def _view_facts(view: LimitsView, changes: Sequence[LimitChange]) -> dict[str, Any]:
    return {
        "endpoint": view.held.endpoint.identity,
        "limits": view.held.facts,
        "in_flight": None if view.use is None else view.use.in_flight,
        "workers": None if view.use is None else view.use.workers,
        "changed": [change_facts(one) for one in changes],
    }


def _print_history(
    ledger: Ledger, settings: Settings, chosen: Sequence[EndpointSettings], *, as_json: bool
) -> None:
    changes = [
        (one, change) for one in chosen for change in fetch_history(ledger, one.identity, at_most=_MOST_SHOWN)
    ]
    changes.sort(key=lambda pair: pair[1].at_ms, reverse=True)  # stable: the newest first, also of one moment
    if as_json:
        endpoint = chosen[0].identity if len(chosen) == 1 else settings.endpoint
        print_json({"endpoint": endpoint, "history": [change_facts(one) for _, one in changes]})
        return
    for one, change in changes[:_MOST_SHOWN]:
        name = f"{one.name}: " if settings.endpoint_tables else ""
        out.say(f"{iso_ms(change.at_ms)} {name}{describe_change(change)}")
    if not changes:
        out.say("no limit was set or found yet")
