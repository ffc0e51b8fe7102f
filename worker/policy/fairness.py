"""Which batches' jobs come next: deficit round robin by weight, measured in tokens. Pure.

Batches are visited in the order of their ids. A visit adds the same amount to each batch's deficit: what it is owed, in
tokens for each unit of weight. While a batch is owed something it sends jobs, and each takes away what it should cost.
So its last job may cost more than it is owed, and the batch waits until the visits have made up for it: a new batch
begins with a job of any size, and takes no more than its share from then on.

A batch that has nothing to send is owed nothing when it comes back. What it took too much is remembered meanwhile.

Source: Shreedhar and Varghese, "Efficient Fair Queueing Using Deficit Round Robin" (1995). Jobs on credit: the surplus
round robin of Adiseshu, Parulkar and Varghese (1996), which must not know what the next job costs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from worker.policy.budgets import estimate_prompt_tokens, read_completion_bound

USUAL_WEIGHT = 1.0
BULK_FROM = 10  # in what is passed upstream: lone jobs have 0 to 9
LEAST_WEIGHT = 0.01
MOST_WEIGHT = 100.0
_UNIT = 1000  # deficits are whole numbers: thousandths of a token for each unit of weight
_SHARERS = (
    64  # of more batches fewer send at a time, and each of them more: a batch costs one or two statements
)
_DEBTORS = 256  # most batches without jobs that are remembered
_BYTES_A_TOKEN = 4
_COMPLETION_TOKENS = 256  # of an answer, where none is known


@dataclass(frozen=True, slots=True)
class Waiting:
    """A batch with jobs to send: what one of them takes, and how many it has (None: not known, any number)."""

    batch_id: str
    tokens: int = 1
    weight: float = USUAL_WEIGHT
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """What batches are owed, or took too much (below 0), in thousandths of a token for each unit of weight.

    `after`: the batch that was visited last.
    """

    after: str = ""
    deficits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shares:
    """How many jobs of each batch come next, in the order of their turns, and the account after them."""

    jobs: Mapping[str, int]
    account: Account


def share_room(account: Account, waiting: Iterable[Waiting], *, room: int) -> Shares:
    """Shares out room for so many jobs among the batches that wait."""
    present = {one.batch_id: one for one in waiting if one.jobs != 0}
    prices = {batch_id: _price(one) for batch_id, one in present.items()}
    left = {batch_id: room if one.jobs is None else one.jobs for batch_id, one in present.items()}
    deficits = _carry_over(account, prices)
    # One round goes to every batch. Of very many batches the first ones fill the room, and the others have the next.
    at_once = math.ceil(room / _SHARERS) if len(present) > _SHARERS else 1
    sent: Counter[str] = Counter()
    active, after = set(present), account.after
    ring = _begin_after(after, deficits)
    while room > 0 and active:
        quantum = at_once * min(prices[batch_id] for batch_id in active)
        for batch_id in ring:
            deficit = deficits[batch_id]
            # What is left of a turn that the end of the room cut short is not added to.
            deficit = min(deficit, quantum) if deficit > 0 else deficit + quantum
            if batch_id in active and deficit > 0:
                count = min(left[batch_id], room, -(-deficit // prices[batch_id]))
                sent[batch_id] += count
                left[batch_id] -= count
                room -= count
                deficit -= count * prices[batch_id]
                if not left[batch_id]:
                    active.discard(batch_id)
            if batch_id not in active:
                deficit = min(deficit, 0)
            deficits[batch_id] = deficit
            if deficit > 0:
                break  # there is no room: its turn goes on with the next call
            after = batch_id
            if not room:
                break
    return Shares(dict(sent), Account(after, _without_paid(deficits)))


def give_back(account: Account, waiting: Iterable[Waiting], unsent: Mapping[str, int]) -> Account:
    """The account after batches had fewer jobs than they were given: `unsent` so many. They are owed nothing."""
    deficits = dict(account.deficits)
    for one in waiting:
        if one.batch_id in unsent:
            back = unsent[one.batch_id] * _price(one)
            deficits[one.batch_id] = min(0, deficits.get(one.batch_id, 0) + back)
    return Account(account.after, _without_paid(deficits))


def guess_tokens(bodies: Sequence[str], *, completion_tokens: int | None = None) -> int:
    """What an answer to one of these requests should take, before any is known.

    `completion_tokens`: what answers to other requests took lately. This is a guess, and not a bound as for a budget.
    """
    usual = _COMPLETION_TOKENS if completion_tokens is None else completion_tokens
    if not bodies:
        return max(1, usual)
    guesses = []
    for body in bodies:
        bound = read_completion_bound(body)
        completion = usual if bound is None else min(usual, bound)
        guesses.append(estimate_prompt_tokens(body) // _BYTES_A_TOKEN + completion)
    return max(1, sum(guesses) // len(guesses))


def parse_weight(text: str) -> float:
    """A batch's weight. Raises ValueError with the end of a sentence."""
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise ValueError(f"must be a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return weight


def choose_upstream_priority(priority: int, *, is_bulk: bool) -> int:
    """What is passed upstream as the priority of a job (0 is served first): all lone jobs come before bulk."""
    return priority + BULK_FROM if is_bulk else priority


def _price(one: Waiting) -> int:
    return max(1, round(max(1, one.tokens) * _UNIT / one.weight))


def _carry_over(account: Account, prices: Mapping[str, int]) -> dict[str, int]:
    """The deficits of the batches that wait, and the debts of others. No debt is larger than a job is now."""
    debts = sorted(
        (deficit, batch_id)
        for batch_id, deficit in account.deficits.items()
        if deficit < 0 and batch_id not in prices
    )
    deficits = {batch_id: deficit for deficit, batch_id in debts[:_DEBTORS]}
    for batch_id, price in prices.items():
        deficits[batch_id] = max(-price, account.deficits.get(batch_id, 0))
    return deficits


def _begin_after(after: str, batch_ids: Iterable[str]) -> list[str]:
    ids = sorted(batch_ids)
    return [id_ for id_ in ids if id_ > after] + [id_ for id_ in ids if id_ <= after]


def _without_paid(deficits: Mapping[str, int]) -> dict[str, int]:
    return {batch_id: deficit for batch_id, deficit in sorted(deficits.items()) if deficit}
