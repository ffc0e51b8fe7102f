"""Budgets in words and for JSON. Pure."""

from __future__ import annotations

from typing import Any

from worker.clock import iso_ms
from worker.policy.budgets import Amount, Limit
from worker.reports.summary import format_cost, format_count, to_usd
from worker.storage.budgets import Budget


def describe_budget(found: Budget) -> str:
    """`12,000 of 100,000 tokens spent, 800 reserved for calls in flight`; `no budget` without a limit."""
    limit = found.limit
    if limit == Limit():
        return f"no budget; {format_count(found.spent.tokens, 'token')} spent"
    spent, most = _amount(limit, found.spent), _limit(limit)
    text = f"{spent} of {most} spent"
    reserved = _amount(limit, found.reserved)
    return f"{text}, {reserved} reserved for calls in flight" if found.reserved.tokens else text


def describe_wait(
    found: Budget | None, *, antrean: str = "antrean", unpriced: str | None = None
) -> str | None:
    """Why the batch waits at its budget, and what to do; None where it does not.

    `antrean`: as it must be typed. `unpriced`: the models whose price is not known, with their endpoints.
    """
    if found is None or found.waits_since_ms is None:
        return None
    if found.lacks_price:
        return (
            f"the batch has a budget of {_limit(found.limit)}, and the price of {unpriced or 'a model'} is not known: "
            f"name it in ANTREAN_PRICES_FILE of the workers, or `{antrean} budget {found.batch_id}` sets one in tokens"
        )
    wanted = _amount(found.limit, found.wanted)
    return (
        f"the batch is at its budget: {describe_budget(found)}, and the next job may take {wanted}; "
        f"`{antrean} budget {found.batch_id} AMOUNT` raises it"
    )


def budget_facts(found: Budget | None) -> dict[str, Any] | None:
    """The same for `--json`; None where the batch never had a budget."""
    if found is None:
        return None
    return {
        "tokens": found.limit.tokens,
        "usd": to_usd(found.limit.nano),
        "spent_tokens": found.spent.tokens,
        "spent_usd": to_usd(found.spent.nano),
        "reserved_tokens": found.reserved.tokens,
        "reserved_usd": to_usd(found.reserved.nano),
        "waits_since": None if found.waits_since_ms is None else iso_ms(found.waits_since_ms),
    }


def _limit(limit: Limit) -> str:
    if limit.nano is not None:
        return format_cost(limit.nano)
    return format_count(limit.tokens or 0, "token")


def _amount(limit: Limit, amount: Amount) -> str:
    return format_cost(amount.nano or 0) if limit.nano is not None else format_count(amount.tokens)
