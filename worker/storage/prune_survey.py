"""Counts what a prune would remove: jobs by batch and state, their size, and the tokens that were paid for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, LargeBinary, cast, func, select

from schemas.job import JobState
from worker.policy.cost import NO_COST, CostSum
from worker.storage.cost_sums import join_nano, sum_nano
from worker.storage.engine import Ledger
from worker.storage.pruning import START, OfAge, OfBatch, Page, find_page
from worker.storage.tables import MAX_ROWS, failure_bodies, jobs, requests, results, usage

MOST_BATCHES = 1_000
_BULKY = (
    requests.c.body,
    results.c.raw,
    results.c.answer,
    results.c.reasoning,
    failure_bodies.c.raw,
)


@dataclass(slots=True)
class Share:
    """The jobs of one batch that would be removed: their number by state, the bytes of their texts, their tokens.

    `cost`: of these.
    """

    counts: Counter[JobState] = field(default_factory=Counter)
    size_bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: CostSum = NO_COST

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, other: Share) -> None:
        self.counts += other.counts
        self.size_bytes += other.size_bytes
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cost += other.cost


@dataclass(slots=True)
class Survey:
    """The jobs that would be removed, and how many would stay: `spared`, as others want them, and `open`.

    `shares`: by batch id ("" for jobs of no batch), for the first 1,000 batches. `rest`: all other batches together.
    """

    shares: dict[str, Share] = field(default_factory=dict)
    rest: Share = field(default_factory=Share)
    spared: int = 0
    open: int = 0

    @property
    def total(self) -> Share:
        total = Share()
        for share in (*self.shares.values(), self.rest):
            total.add(share)
        return total


def survey(ledger: Ledger, what: OfAge | OfBatch) -> Survey:
    """Reads the same jobs that `prune` would read now, and changes nothing. Raises DatabaseAway.

    Each page of 500 jobs has its own transaction: no other writer waits for long.
    """
    found, after = Survey(), START
    while True:
        with ledger.read() as connection:
            page = find_page(connection, what, after=after, at_most=MAX_ROWS)
            _sum_up(connection, page, found, octets=partial(_octets, is_postgresql=ledger.is_postgresql))
        found.spared += page.spared
        found.open += page.open
        after = page.after
        if page.met < MAX_ROWS:
            return found


def _sum_up(connection: Connection, page: Page, found: Survey, *, octets: Any) -> None:
    if not page.ids:
        return
    sizes = [func.coalesce(func.sum(octets(column)), 0).label(f"size_{i}") for i, column in enumerate(_BULKY)]
    by_state = (
        select(jobs.c.batch_id, jobs.c.state, func.count().label("count"), *sizes)
        .select_from(
            jobs.outerjoin(requests, requests.c.job_id == jobs.c.id)
            .outerjoin(results, results.c.job_id == jobs.c.id)
            .outerjoin(failure_bodies, failure_bodies.c.job_id == jobs.c.id)
        )
        .where(jobs.c.id.in_(page.ids))
        .group_by(jobs.c.batch_id, jobs.c.state)
    )
    for row in connection.execute(by_state):
        share = _share_of(found, row.batch_id)
        share.counts[JobState(row.state)] += row._mapping["count"]
        share.size_bytes += sum(int(row._mapping[size.name]) for size in sizes)
    dollars, rest = sum_nano(usage.c.cost_nano)
    tokens = (
        select(
            jobs.c.batch_id,
            func.sum(usage.c.prompt_tokens).label("prompt"),
            func.sum(usage.c.completion_tokens).label("completion"),
            dollars.label("dollars"),
            rest.label("rest"),
            func.count(usage.c.cost_nano).label("priced"),
            func.count().label("answered"),
        )
        .select_from(usage.join(jobs, jobs.c.id == usage.c.job_id))
        .where(jobs.c.id.in_(page.ids))
        .group_by(jobs.c.batch_id)
    )
    for row in connection.execute(tokens):
        share = _share_of(found, row.batch_id)
        share.prompt_tokens += int(row.prompt)
        share.completion_tokens += int(row.completion)
        share.cost += CostSum(join_nano(row.dollars, row.rest), row.answered - row.priced, row.answered)


def _share_of(found: Survey, batch_id: str) -> Share:
    if batch_id not in found.shares and len(found.shares) >= MOST_BATCHES:
        return found.rest
    return found.shares.setdefault(batch_id, Share())


def _octets(column: Column[Any], *, is_postgresql: bool) -> ColumnElement[int]:
    if is_postgresql:
        return func.octet_length(column)
    return func.length(cast(column, LargeBinary))  # for text, SQLite's length() counts characters
