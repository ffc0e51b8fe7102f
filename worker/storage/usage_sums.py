"""Sums of usage: the tokens of all answered attempts, in groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, func, literal_column, or_, select

from worker.policy.cost import LARGEST_COST_NANO, LARGEST_COUNT, CostSum
from worker.storage.cost_sums import join_nano, sum_nano
from worker.storage.tables import batches, jobs, usage, wants

_DAY_MS = 86_400_000
_PAGE = 1_000


class UsageBy(StrEnum):
    """What usage is grouped by."""

    MODEL = "model"  # the model that the answer named
    DAY = "day"  # the day of the answer, in UTC
    BATCH = "batch"
    CUSTOM = "custom"  # the producer's custom_id, over all batches


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The usage of one group.

    `key`: the model, the batch id, the custom_id, or the day as a number of days since 1970-01-01; None: jobs of no
    batch, or without a custom_id. `label`: a batch's label. Unused answers were paid for, but are no results: second
    answers of a job, and answers without a usable completion. `cost_nano`: nanodollars, without the `unpriced` ones.
    `absurd`: answers that told more tokens than the ledger keeps of one, or cost more.
    """

    key: str | int | None
    label: str | None
    answered: int
    used: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    unused_tokens: int
    cost_nano: int = 0
    unpriced: int = 0
    absurd: int = 0

    @property
    def unused(self) -> int:
        return self.answered - self.used

    @property
    def cost(self) -> CostSum:
        return CostSum(self.cost_nano, self.unpriced, self.answered)


def iterate_usage(
    connection: Connection, by: UsageBy, *, since_ms: int | None = None, batch_id: str | None = None
) -> Iterator[UsageSum]:
    """The groups of usage, most tokens first; days in order of time. Memory stays flat however many there are.

    With `since_ms`, only answers recorded at that time or later. With `batch_id`, only answers for jobs that the batch
    wants, with its names for them, whichever their home batch. Without it each answer counts once, for the home batch
    of its job.
    """
    statement = _grouped(by, batch_id)
    if since_ms is not None:
        statement = statement.where(usage.c.created_at_ms >= since_ms)
    if batch_id is not None:
        elsewhere = select(wants.c.job_id).where(wants.c.batch_id == batch_id)
        is_of_batch = usage.c.batch_id == batch_id
        if connection.execute(elsewhere.limit(1)).first() is not None:
            is_of_batch |= usage.c.job_id.in_(elsewhere)
        statement = statement.where(is_of_batch)
    for row in connection.execute(statement.execution_options(yield_per=_PAGE)):
        # PostgreSQL's sums are decimal or bigint, by the type of the column.
        key, label, *counts = row
        *tokens, dollars, rest, unpriced, absurd = (int(one) for one in counts)
        figures = (*tokens, join_nano(dollars, rest), unpriced, absurd)
        yield UsageSum(None if key == "" else key, label, *figures)


_IS_ABSURD = or_(
    *(
        column >= LARGEST_COUNT
        for column in (usage.c.prompt_tokens, usage.c.completion_tokens, usage.c.total_tokens)
    ),
    func.coalesce(usage.c.cost_nano, 0) >= LARGEST_COST_NANO,
)


def _grouped(by: UsageBy, batch_id: str | None) -> Select[Any]:
    key: ColumnElement[Any]
    label: ColumnElement[Any] = literal_column("NULL")
    source: Any = usage
    if by is UsageBy.MODEL:
        key = usage.c.model
    elif by is UsageBy.DAY:
        # A literal, so that PostgreSQL sees that the grouped and the selected expressions are the same.
        key = usage.c.created_at_ms // literal_column(str(_DAY_MS))
    elif by is UsageBy.BATCH:
        key, label = usage.c.batch_id, batches.c.label
        source = usage.outerjoin(batches, batches.c.id == usage.c.batch_id)
    else:
        key = jobs.c.custom_id
        source = usage.outerjoin(jobs, jobs.c.id == usage.c.job_id)
        if batch_id is not None:
            # A job that the batch wants at two places is one answer, with one of its names.
            own = (
                select(wants.c.job_id, func.min(wants.c.custom_id).label("name"))
                .where(wants.c.batch_id == batch_id)
                .group_by(wants.c.job_id)
                .subquery()
            )
            source = source.outerjoin(own, own.c.job_id == usage.c.job_id)
            key = func.coalesce(own.c.name, jobs.c.custom_id)
    total = func.sum(usage.c.total_tokens)
    statement = (
        select(
            key.label("key"),
            label.label("label"),
            func.count(),
            func.sum(case((usage.c.is_used, 1), else_=0)),
            func.sum(usage.c.prompt_tokens),
            func.sum(usage.c.completion_tokens),
            total,
            func.sum(usage.c.cached_tokens),
            func.sum(usage.c.reasoning_tokens),
            func.sum(case((usage.c.is_used, 0), else_=usage.c.total_tokens)),
            *sum_nano(usage.c.cost_nano),
            func.count() - func.count(usage.c.cost_nano),
            func.sum(case((_IS_ABSURD, 1), else_=0)),
        )
        .select_from(source)
        .group_by(key, *([label] if by is UsageBy.BATCH else []))
    )
    return statement.order_by(*([key] if by is UsageBy.DAY else [total.desc(), key]))
