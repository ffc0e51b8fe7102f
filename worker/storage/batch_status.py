"""Where a batch stands: its jobs by state, why some failed, and what its answers took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, union_all

from schemas.job import JobState, derive_batch_status
from worker.policy.cost import CostSum
from worker.storage.batches import WANTED_ELSEWHERE, Batch, count_states
from worker.storage.budgets import Budget, fetch_budget
from worker.storage.cost_sums import join_nano, sum_nano
from worker.storage.tables import jobs, usage, wants


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """A batch with the counts of its jobs and the tokens of all its answered attempts."""

    batch: Batch
    counts: Mapping[JobState, int]
    failures: Mapping[str, int]  # failed jobs by kind
    finish_reasons: Mapping[str, int]  # results by finish_reason, unusual ones only
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: CostSum
    budget: Budget | None

    @property
    def status(self) -> str:
        return derive_batch_status(dict(self.counts), is_submitted=self.batch.submitted_at_ms is not None)


def fetch_status(connection: Connection, batch: Batch) -> BatchStatus:
    """The batch's status: counts of jobs, failures, finish reasons, tokens and their cost."""
    of_home = select(jobs.c.failure_kind, func.count()).where(jobs.c.state == "failed")
    failures: Counter[str] = Counter()
    for kind, count in connection.execute(
        union_all(
            of_home.where(jobs.c.batch_id == batch.id).group_by(jobs.c.failure_kind),
            of_home.select_from(WANTED_ELSEWHERE)
            .where(wants.c.batch_id == batch.id)
            .group_by(jobs.c.failure_kind),
        )
    ):
        failures[kind or "unknown"] += count
    sums = select(
        *(
            func.coalesce(func.sum(column), 0)
            for column in (
                usage.c.prompt_tokens,
                usage.c.completion_tokens,
                usage.c.total_tokens,
            )
        ),
        *sum_nano(usage.c.cost_nano),
        func.count() - func.count(usage.c.cost_nano),
        func.count(),
    )
    elsewhere = select(wants.c.job_id).where(wants.c.batch_id == batch.id)
    tokens = connection.execute(
        union_all(
            sums.where(usage.c.batch_id == batch.id),
            sums.where(usage.c.job_id.in_(elsewhere), usage.c.batch_id != batch.id),
        )
    ).all()
    prompt, completion, total, dollars, rest, unpriced, answered = (
        sum(int(row[i]) for row in tokens) for i in range(7)
    )
    odd_ends = (
        select(usage.c.odd_finish_reason, func.count())
        .where(usage.c.odd_finish_reason.is_not(None))
        .group_by(usage.c.odd_finish_reason)
    )
    finish_reasons: Counter[str] = Counter()
    for reason, count in connection.execute(
        union_all(
            odd_ends.where(usage.c.batch_id == batch.id),
            odd_ends.where(usage.c.job_id.in_(elsewhere), usage.c.batch_id != batch.id),
        )
    ):
        finish_reasons[str(reason)] += count
    return BatchStatus(
        batch=batch,
        counts=count_states(connection, batch.id),
        failures=dict(failures.most_common()),
        finish_reasons=dict(finish_reasons.most_common()),
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cost=CostSum(join_nano(dollars, rest), unpriced, answered),
        budget=fetch_budget(connection, batch.id),
    )
