"""Sums of usage: the tokens of all answered attempts, grouped by what somebody wants to know them by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, func, literal_column, select

from worker.storage.tables import batches, jobs, usage, wants

_DAY_MS = 86_400_000
_PAGE = 1_000


class UsageBy(StrEnum):
    """What usage is grouped by."""

    MODEL = "model"  # as the answer named it
    DAY = "day"  # of the answer, in UTC
    BATCH = "batch"
    CUSTOM = "custom"  # the producer's custom_id, over all batches


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The usage of one group. Unused are answers that were paid for and not used: those that came second to
    another one, and those in which no usable completion was.

    `key` is the model, the batch's id, the custom_id or the day's number since the epoch; None stands for jobs
    of no batch, or without a custom_id. `label` is a batch's label.
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

    @property
    def unused(self) -> int:
        return self.answered - self.used


def iterate_usage(
    connection: Connection, by: UsageBy, *, since_ms: int | None = None, batch_id: str | None = None
) -> Iterator[UsageSum]:
    """The groups of usage, most tokens first; days in their order. Memory stays flat however many there are.

    Only answers recorded at or after `since_ms`, and only those of jobs that `batch_id` wants, where given: under
    its own names, and also where another batch made them. Over all batches each answer counts once, with the batch
    that was its job's home.
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
        key, label, *sums = row
        # PostgreSQL sums to a decimal or a bigint, by the column's type.
        yield UsageSum(None if key == "" else key, label, *(int(one) for one in sums))


def _grouped(by: UsageBy, batch_id: str | None) -> Select[Any]:
    key: ColumnElement[Any]
    label: ColumnElement[Any] = literal_column("NULL")
    source: Any = usage
    if by is UsageBy.MODEL:
        key = usage.c.model
    elif by is UsageBy.DAY:
        # A literal: PostgreSQL must see that the grouped and the selected expression are the same.
        key = usage.c.created_at_ms // literal_column(str(_DAY_MS))
    elif by is UsageBy.BATCH:
        key, label = usage.c.batch_id, batches.c.label
        source = usage.outerjoin(batches, batches.c.id == usage.c.batch_id)
    else:
        key = jobs.c.custom_id
        source = usage.outerjoin(jobs, jobs.c.id == usage.c.job_id)
        if batch_id is not None:
            # A job that it wants at two places is one answer, under one of its names.
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
        )
        .select_from(source)
        .group_by(key, *([label] if by is UsageBy.BATCH else []))
    )
    return statement.order_by(*([key] if by is UsageBy.DAY else [total.desc(), key]))
