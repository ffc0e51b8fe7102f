"""Budgets of batches: their limits, what was spent of them, and what is reserved for the calls in flight.

Only batches with a budget have a row here. It is locked last, after the rows of jobs: two transactions that balance the
same budget wait for each other here and nowhere else. What a claim reserves is a row of its own. It counts only while
its job runs under that claim, so that the reservations of a dead worker come back when its jobs are rescued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, and_, delete, func, select, tuple_, update

from schemas.job import JobState
from worker.policy.budgets import Amount, Limit, estimate, find_usual, goes_on
from worker.policy.cost import LARGEST_COST_NANO, LARGEST_COUNT, Price
from worker.storage.cost_sums import join_nano, sum_nano
from worker.storage.outcomes import Claim, ClaimedJob, Usage
from worker.storage.tables import (
    AnyRow,
    batches,
    budgets,
    insert_or_ignore,
    is_in,
    jobs,
    requests,
    reservations,
    upsert,
    usage,
)
from worker.storage.wants import OPEN

FindPrice = Callable[[str], Price | None]
_REMEMBERED = 256  # answers
_TRIED_AGAIN_MS = 60_000  # a price that was not known may be by now


@dataclass(frozen=True, slots=True)
class Settled:
    """A claim that has ended, and the tokens of its answer, if it had one. `batch_id`: its job's home batch."""

    claim: Claim
    batch_id: str
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Budget:
    """A batch's budget. `waits_since_ms`: since when it lacks the room for `wanted`, the smallest job refused."""

    batch_id: str
    limit: Limit
    spent: Amount
    reserved: Amount
    waits_since_ms: int | None
    wanted: Amount

    @property
    def lacks_price(self) -> bool:
        """Whether the batch waits because a worker does not know the price of a model."""
        return self.waits_since_ms is not None and self.limit.nano is not None and self.wanted.nano is None


class BudgetGuard:
    """Keeps the budgets of one worker's claims. It remembers what the answers of each batch took lately."""

    def __init__(self, find_price: FindPrice = lambda model: None) -> None:
        self._find_price = find_price
        self._recent: dict[str, deque[int]] = {}

    def balance(
        self,
        connection: Connection,
        settled: Sequence[Settled],
        claimed: Iterable[ClaimedJob],
        *,
        now_ms: int,
    ) -> list[ClaimedJob]:
        """Settles claims that ended, and reserves for new ones. Returns those for which there is no room.

        These must be given back in this transaction. Call it last in the transaction.
        """
        new = [job for job in claimed if job.budget_of is not None]
        if not settled and not new:
            return []
        held = _fetch_reservations(connection, [one.claim.job_id for one in settled])
        # A job may have gone to another home batch since: its claim is settled where it was reserved.
        charged = [(_batch_of(one, held), one) for one in settled]
        batch_ids = sorted({batch_id for batch_id, _ in charged} | {job.budget_of or "" for job in new})
        rows = _lock(connection, batch_ids)
        _release(connection, [one.claim for one in settled])
        changes: dict[str, dict[str, Any]] = {
            batch_id: {"spent_tokens": row.spent_tokens, "spent_nano": row.spent_nano}
            for batch_id, row in rows.items()
        }
        for batch_id, one in charged:
            if batch_id in rows and one.usage is not None:
                spent = _spent_by(one, held.get(one.claim.job_id))
                changes[batch_id]["spent_tokens"] += spent.tokens
                nano = changes[batch_id]["spent_nano"] + (spent.nano or 0)
                changes[batch_id]["spent_nano"] = min(LARGEST_COST_NANO, nano)
                self._learn(batch_id, one.usage, changes[batch_id])
        reserved = _sum_reserved(connection, batch_ids, besides=[job.id for job in new])
        refused: list[ClaimedJob] = []
        kept: list[dict[str, Any]] = []
        for batch_id, row in rows.items():
            mine = [job for job in new if job.budget_of == batch_id]
            change = changes[batch_id]
            spent = Amount(change["spent_tokens"], change["spent_nano"])
            held_now, without_room = self._reserve(row, mine, spent, reserved.get(batch_id, Amount()), kept)
            refused += [job for job, _ in without_room]
            change |= _waits(row, spent, held_now, [amount for _, amount in without_room], now_ms)
        if kept:
            connection.execute(upsert(connection, reservations, "job_id"), kept)
        for batch_id, change in changes.items():
            connection.execute(update(budgets).where(budgets.c.batch_id == batch_id).values(change))
        return refused

    def _reserve(
        self, row: AnyRow, new: Sequence[ClaimedJob], spent: Amount, held: Amount, kept: list[dict[str, Any]]
    ) -> tuple[Amount, list[tuple[ClaimedJob, Amount]]]:
        """What is reserved with those jobs that have room, and the others with what they would take."""
        limit, refused = Limit(row.most_tokens, row.most_nano), []
        for job in sorted(new, key=lambda job: job.id):
            amount = self._estimate(job.body, job.model, row)
            if limit.fits(spent + held, amount):
                held += amount if limit.nano is not None else Amount(amount.tokens)
                kept.append(_reservation(job.id, row.batch_id, job.token, amount))
            else:
                refused.append((job, amount))
        return held, refused

    def _estimate(self, body: str, model: str, row: AnyRow) -> Amount:
        usual = find_usual(self._recent.get(row.batch_id, ()))
        known = [one for one in (usual, row.usual_tokens) if one is not None]
        return estimate(body, self._find_price(model), usual_tokens=max(known, default=None))

    def _learn(self, batch_id: str, tokens: Usage, change: dict[str, Any]) -> None:
        if tokens.completion_tokens <= 0:
            return
        recent = self._recent.setdefault(batch_id, deque(maxlen=_REMEMBERED))
        recent.append(tokens.completion_tokens)
        usual = find_usual(recent)
        if usual is not None:
            change["usual_tokens"] = usual

    def set_budget(self, connection: Connection, batch_id: str, limit: Limit, *, now_ms: int) -> Budget:
        """The batch's budget, new or changed: what its answers took before counts. A batch that waits goes on.

        Also reserves for the calls that are in flight already. Call it first in the transaction.
        """
        if (
            connection.execute(select(budgets.c.batch_id).where(budgets.c.batch_id == batch_id)).first()
            is None
        ):
            # Claims and records that are not committed have seen no budget: they are waited for, and counted here.
            _wait_for_writers(connection)
        connection.execute(
            insert_or_ignore(connection, budgets), {"batch_id": batch_id, "spent_tokens": 0, "spent_nano": 0}
        )
        row = _lock(connection, [batch_id])[batch_id]
        spent = connection.execute(
            select(
                func.coalesce(func.sum(usage.c.total_tokens), 0),
                *sum_nano(usage.c.cost_nano),
            ).where(usage.c.batch_id == batch_id)
        ).one()
        connection.execute(
            update(budgets)
            .where(budgets.c.batch_id == batch_id)
            .values(
                most_tokens=limit.tokens,
                most_nano=limit.nano,
                spent_tokens=max(row.spent_tokens, int(spent[0])),
                spent_nano=min(LARGEST_COST_NANO, max(row.spent_nano, join_nano(spent[1], spent[2]))),
                waits_since_ms=None,
            )
        )
        running = connection.execute(
            select(jobs.c.id, jobs.c.claim_token, jobs.c.model, requests.c.body)
            .select_from(
                jobs.join(requests, requests.c.job_id == jobs.c.id).outerjoin(reservations, _IS_FOR_CLAIM)
            )
            .where(
                jobs.c.batch_id == batch_id,
                is_in(JobState.RUNNING),
                jobs.c.claim_token.is_not(None),
                reservations.c.job_id.is_(None),
            )
        ).all()
        if running:
            kept = [
                _reservation(one.id, batch_id, one.claim_token, self._estimate(one.body, one.model, row))
                for one in running
            ]
            connection.execute(upsert(connection, reservations, "job_id"), kept)
        found = fetch_budget(connection, batch_id)
        assert found is not None
        return found


def fetch_budget(connection: Connection, batch_id: str) -> Budget | None:
    """The batch's budget; None where it has none. A batch without open jobs waits for nothing."""
    row = connection.execute(select(budgets).where(budgets.c.batch_id == batch_id)).one_or_none()
    if row is None:
        return None
    found = _budget(row, _sum_reserved(connection, [batch_id], besides=()))
    if found.waits_since_ms is None or _has_open_jobs(connection, batch_id):
        return found
    return replace(found, waits_since_ms=None)


def fetch_open_models(connection: Connection, batch_id: str) -> list[str]:
    """The models of the open jobs with this home batch, sorted."""
    found = select(jobs.c.model).distinct().where(jobs.c.batch_id == batch_id, is_in(*OPEN))
    return list(connection.execute(found.order_by(jobs.c.model)).scalars())


def fetch_budgets_that_wait(connection: Connection, endpoint: str | None = None) -> list[str]:
    """Ids of the batches that wait at their budget, sorted; all, or those of an endpoint."""
    statement = select(budgets.c.batch_id).where(budgets.c.waits_since_ms.is_not(None))
    if endpoint is not None:
        statement = statement.join(batches, batches.c.id == budgets.c.batch_id).where(
            batches.c.endpoint == endpoint
        )
    return list(connection.execute(statement.order_by(budgets.c.batch_id)).scalars())


def wake_budgets(connection: Connection, *, now_ms: int) -> int:
    """Lets batches go on that wait at a budget which has room by now. Returns their number.

    A claim that ends does so itself. This is for claims that another version ended, and for prices that became known.
    """
    waiting = fetch_budgets_that_wait(connection)
    if not waiting:
        return 0
    rows = _lock(connection, waiting)
    reserved = _sum_reserved(connection, waiting, besides=())
    woken = 0
    for batch_id, row in rows.items():
        spent = Amount(row.spent_tokens, row.spent_nano)
        change = _waits(row, spent, reserved.get(batch_id, Amount()), [], now_ms)
        if row.waits_since_ms is not None and change["waits_since_ms"] is None:
            connection.execute(update(budgets).where(budgets.c.batch_id == batch_id).values(change))
            woken += 1
    return woken


_IS_FOR_CLAIM = and_(
    reservations.c.job_id == jobs.c.id,
    reservations.c.token == jobs.c.claim_token,
    jobs.c.state == JobState.RUNNING.value,
)


def _wait_for_writers(connection: Connection) -> None:
    """Waits for those who write jobs, and lets no other begin until this transaction ends. SQLite has one writer."""
    if connection.dialect.name == "postgresql":
        # Local: psycopg takes eight megabytes, which a worker on SQLite does not need.
        from worker.storage.postgresql import lock_out_writers

        lock_out_writers(connection, jobs)


def _has_open_jobs(connection: Connection, batch_id: str) -> bool:
    open_jobs = select(jobs.c.id).where(jobs.c.batch_id == batch_id, is_in(*OPEN)).limit(1)
    return connection.execute(open_jobs).first() is not None


def _lock(connection: Connection, batch_ids: Sequence[str]) -> dict[str, AnyRow]:
    """The rows of these budgets by batch, locked in ascending order; without those of batches that have none."""
    statement = (
        select(budgets)
        .where(budgets.c.batch_id.in_(batch_ids))
        .order_by(budgets.c.batch_id)
        .with_for_update()
    )
    return {row.batch_id: row for row in connection.execute(statement)}


def _fetch_reservations(connection: Connection, job_ids: Sequence[str]) -> Mapping[str, AnyRow]:
    if not job_ids:
        return {}
    found = connection.execute(select(reservations).where(reservations.c.job_id.in_(job_ids)))
    return {row.job_id: row for row in found}


def _batch_of(one: Settled, held: Mapping[str, AnyRow]) -> str:
    row = held.get(one.claim.job_id)
    return str(row.batch_id) if row is not None and row.token == one.claim.token else one.batch_id


def _spent_by(one: Settled, held: AnyRow | None) -> Amount:
    """What an answer took. One that does not say it took what was reserved for it."""
    tokens = one.usage
    assert tokens is not None
    is_its_own = held is not None and held.token == one.claim.token
    told = min(LARGEST_COUNT, max(tokens.total_tokens, tokens.prompt_tokens + tokens.completion_tokens))
    nano = tokens.cost_nano
    if is_its_own and held is not None:
        return Amount(told or held.tokens, (held.cost_nano or 0) if nano is None else nano)
    return Amount(told, nano or 0)


def _release(connection: Connection, claims: Sequence[Claim]) -> None:
    pairs = sorted((claim.job_id, claim.token) for claim in claims)
    if pairs:
        connection.execute(
            delete(reservations).where(tuple_(reservations.c.job_id, reservations.c.token).in_(pairs))
        )


def _sum_reserved(
    connection: Connection, batch_ids: Sequence[str], *, besides: Sequence[str]
) -> dict[str, Amount]:
    """What is reserved for calls in flight, by batch, without the jobs `besides`."""
    statement = (
        select(
            reservations.c.batch_id,
            func.sum(reservations.c.tokens),
            *sum_nano(reservations.c.cost_nano),
        )
        .select_from(reservations.join(jobs, _IS_FOR_CLAIM))
        .where(reservations.c.batch_id.in_(batch_ids), reservations.c.job_id.not_in(list(besides)))
        .group_by(reservations.c.batch_id)
    )
    return {
        batch_id: Amount(int(tokens), join_nano(dollars, rest))
        for batch_id, tokens, dollars, rest in connection.execute(statement)
    }


def _reservation(job_id: str, batch_id: str, token: str, amount: Amount) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "batch_id": batch_id,
        "token": token,
        "tokens": amount.tokens,
        "cost_nano": amount.nano,
    }


def _waits(
    row: AnyRow, spent: Amount, reserved: Amount, refused: Sequence[Amount], now_ms: int
) -> dict[str, Any]:
    """The columns that say whether the batch waits at its budget, after some jobs were refused, or none was."""
    if refused:
        least = min(refused, key=lambda one: (one.nano is None, one.tokens))
        since_ms = now_ms if row.waits_since_ms is None else row.waits_since_ms
        return {"waits_since_ms": since_ms, "wanted_tokens": least.tokens, "wanted_nano": least.nano}
    as_it_was = {
        "waits_since_ms": row.waits_since_ms,
        "wanted_tokens": row.wanted_tokens,
        "wanted_nano": row.wanted_nano,
    }
    if row.waits_since_ms is None:
        return as_it_was
    wanted = Amount(row.wanted_tokens or 0, row.wanted_nano)
    limit = Limit(row.most_tokens, row.most_nano)
    is_unpriced = limit.nano is not None and wanted.nano is None
    if is_unpriced:
        is_over = abs(now_ms - row.waits_since_ms) >= _TRIED_AGAIN_MS
    else:
        is_over = goes_on(limit, spent=spent, reserved=reserved, wanted=wanted)
    return as_it_was | {"waits_since_ms": None} if is_over else as_it_was


def _budget(row: AnyRow, reserved: Mapping[str, Amount]) -> Budget:
    return Budget(
        batch_id=row.batch_id,
        limit=Limit(row.most_tokens, row.most_nano),
        spent=Amount(row.spent_tokens, row.spent_nano),
        reserved=reserved.get(row.batch_id, Amount()),
        waits_since_ms=row.waits_since_ms,
        wanted=Amount(row.wanted_tokens or 0, row.wanted_nano),
    )
