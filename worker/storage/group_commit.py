"""What the group writer does in one transaction: all requests of a group, kind by kind."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from worker.storage.budgets import BudgetGuard, Settled
from worker.storage.claims import claim_jobs, fetch_solo_jobs
from worker.storage.due import unmark_published, unmark_strays
from worker.storage.intake import adopt_jobs
from worker.storage.outcomes import Claim, ClaimedJob, GiveBack
from worker.storage.reply import Answer
from worker.storage.transitions import record_outcomes
from worker.storage.writer_requests import (
    ClaimJob,
    GiveHintBack,
    OwedWork,
    RecordOutcome,
    Request,
    Work,
    WriteDownJob,
)


@dataclass(frozen=True, slots=True)
class Written:
    """What a group came to, to be told once it is committed."""

    claimed: dict[str, ClaimedJob]
    ended: list[Claim]  # of the outcomes
    answers: list[tuple[Answer[Any], Any]]
    refused: list[Answer[Any]]  # claims of jobs that have to run alone, and were not to


def write_group(
    connection: Connection,
    group: Sequence[Request],
    *,
    worker_id: str,
    endpoint: str,
    token: str,
    open_claims: Container[str],
    alone: Container[str],
    guard: BudgetGuard,
    now_ms: int,
) -> Written:
    """Writes the requests of a group. Nobody is told yet: the transaction may fail, and be run again.

    Jobs of `open_claims` are not claimed again: it is a second delivery. Those that are `alone` may run alone.
    """
    claims: list[ClaimJob] = []
    records: list[RecordOutcome] = []
    hints: list[str] = []
    messages: list[WriteDownJob] = []
    works: list[Work] = []
    owed: list[OwedWork] = []
    for request in group:  # in one pass, the most frequent first
        if isinstance(request, ClaimJob):
            claims.append(request)
        elif isinstance(request, RecordOutcome):
            records.append(request)
        elif isinstance(request, GiveHintBack):
            hints.append(request.job_id)
        elif isinstance(request, WriteDownJob):
            messages.append(request)
        elif isinstance(request, Work):
            works.append(request)
        else:
            owed.append(request)
    # Before the claims: a beat would take those of its own group, not in `open_claims` yet, for orphans.
    answers: list[tuple[Answer[Any], Any]] = [(one.reply, one.work(connection)) for one in works]
    answers += [(one.reply, one.work(connection)) for one in owed]
    settled: list[Settled] = []
    recorded = record_outcomes(connection, [one.outcome for one in records], settled=settled)
    unmark_published(connection, hints)
    new = [one.job for one in messages]
    known = adopt_jobs(connection, new, now_ms=now_ms, published_at_ms=now_ms)
    wanted = [one.job_id for one in claims if one.job_id not in open_claims]
    claim = partial(
        claim_jobs, connection, worker_id=worker_id, token=token, endpoint=endpoint, now_ms=now_ms
    )
    claimed = claim([job_id for job_id in wanted if job_id not in alone])
    claimed |= claim([job_id for job_id in wanted if job_id in alone], are_alone=True)
    without_room = guard.balance(connection, settled, claimed.values(), now_ms=now_ms)
    if without_room:
        given_back = [GiveBack(job.claim, now_ms, now_ms, was_called=False) for job in without_room]
        record_outcomes(connection, given_back, settled=[])
        for job in without_room:
            del claimed[job.id]
    # Most unclaimed ids are second deliveries; find those that must run alone.
    at_budget = {job.id for job in without_room}
    unclaimed = [job_id for job_id in wanted if job_id not in claimed and job_id not in at_budget]
    solo_jobs = fetch_solo_jobs(connection, unclaimed)
    if unclaimed:  # mostly not: then it costs nothing
        unmark_strays(connection, unclaimed, endpoint)
    answers += [(one.reply, what) for one, what in zip(records, recorded, strict=True)]
    answers += [(one.reply, job) for one, job in zip(messages, known, strict=True)]
    answers += [(one.reply, claimed.get(one.job_id)) for one in claims if one.job_id not in solo_jobs]
    return Written(
        claimed=claimed,
        ended=[one.outcome.claim for one in records],
        answers=answers,
        refused=[one.reply for one in claims if one.job_id in solo_jobs],
    )
