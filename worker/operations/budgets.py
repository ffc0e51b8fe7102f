"""A batch's budget: the most that its answers may take, in tokens or in dollars.

At its budget a batch waits; it goes on when the budget is raised.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from worker.clock import SystemClock
from worker.errors import InputError, SettingsError
from worker.policy.budgets import Limit, parse_budget
from worker.prices.book import open_prices
from worker.reports.budgets import describe_wait
from worker.settings import Settings
from worker.storage.batches import Batch
from worker.storage.budgets import Budget, BudgetGuard, fetch_budget, fetch_open_models
from worker.storage.engine import Ledger
from worker.text.printable import printable

NO_LIMIT = "none"
_MOST_NAMED = 5


def read_budget(text: str) -> Limit:
    """The limit that `text` names; `none` is one without a bound. Raises InputError."""
    if text.strip().lower() == NO_LIMIT:
        return Limit()
    try:
        return parse_budget(text)
    except ValueError as exc:
        raise InputError(f"the budget {printable(text)} {exc}") from None


def check_prices(limit: Limit, models: Iterable[str], settings: Settings) -> None:
    """Raises InputError for a budget in dollars where the price of a model is not known: nothing would be called."""
    if unpriced := _name_unpriced(limit, models, settings):
        raise InputError(
            f"a budget in dollars needs the price of {unpriced}: name it in {_where_named(settings)}, or set "
            "the budget in tokens"
        )


def describe_unpriced(ledger: Ledger, settings: Settings, batch: Batch, limit: Limit) -> str | None:
    """The warning for a budget in dollars where the price of a model of an open job is not known here."""
    unpriced = _name_unpriced(limit, _fetch_models(ledger, batch.id), settings)
    if unpriced is None:
        return None
    return (
        f"the price of {unpriced} is not known here: a worker that does not know it either calls nothing of the "
        f"batch; name it in {_where_named(settings)}, or set the budget in tokens"
    )


def describe_budget_wait(
    ledger: Ledger, settings: Settings, found: Budget | None, *, antrean: str = "antrean"
) -> str | None:
    """Why the batch waits at its budget, and what to do; None where it does not. See `describe_wait`."""
    unpriced = None
    if found is not None and found.lacks_price:
        with suppress(SettingsError):  # of a file of prices that was changed since it was checked
            unpriced = _name_unpriced(found.limit, _fetch_models(ledger, found.batch_id), settings)
    return describe_wait(found, antrean=antrean, unpriced=unpriced)


def set_budget(ledger: Ledger, settings: Settings, batch: Batch, limit: Limit | None) -> Budget | None:
    """Sets the batch's budget, or changes it. What its answers took before counts. None changes nothing."""
    if limit is None:
        return None
    prices, now_ms = open_prices(settings), SystemClock().now_ms()
    guard = BudgetGuard(lambda model: prices.find(model, now_ms=now_ms))
    return ledger.run(partial(guard.set_budget, batch_id=batch.id, limit=limit, now_ms=now_ms))


def fetch_batch_budget(ledger: Ledger, batch_id: str) -> Budget | None:
    """The batch's budget; None where it never had one."""
    with ledger.read() as connection:
        return fetch_budget(connection, batch_id)


def _fetch_models(ledger: Ledger, batch_id: str) -> list[str]:
    with ledger.read() as connection:
        return fetch_open_models(connection, batch_id)


def _name_unpriced(limit: Limit, models: Iterable[str], settings: Settings) -> str | None:
    """`m at east and west, n at west`: the models without a known price, and where that is; None: all have one."""
    if limit.nano is None:
        return None
    prices, now_ms = open_prices(settings), SystemClock().now_ms()
    unknown = sorted({model for model in models if prices.find(model, now_ms=now_ms) is None})
    named = []
    for model in unknown[:_MOST_NAMED]:
        places = [printable(one.name) for one in prices.find_lacking(model, now_ms=now_ms)]
        if len(places) > _MOST_NAMED:
            places[_MOST_NAMED:] = [f"{len(places) - _MOST_NAMED:,} more"]
        where = " and ".join(filter(None, (", ".join(places[:-1]), *places[-1:])))
        named.append(
            f"{printable(model)} at {where}" if places else f"{printable(model)}, which no table serves"
        )
    return ", ".join(named) + (" …" if len(unknown) > _MOST_NAMED else "") or None


def _where_named(settings: Settings) -> str:
    return "ANTREAN_PRICES_FILE" + (" or in `prices` of that table" if settings.endpoint_tables else "")
