"""Claims jobs. Only a claimed job is called (invariant 4)."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BindParameter, Connection, Update, bindparam, case, exists, func, or_, select, update

from schemas.job import TARGETS, JobState, Move
from worker.policy.patience import waiting_since_ms
from worker.storage.outcomes import Claim, ClaimedJob
from worker.storage.prepared import Prepared, is_among, pack_ids
from worker.storage.tables import batches, budgets, is_in, jobs, requests, usage

SOLO_AFTER_LOSSES = 2
_ANY_LOSSES = 2**31 - 1

_now: BindParameter[int] = bindparam("now_ms")
_token: BindParameter[str] = bindparam("token")
_HAS_BUDGET = exists().where(budgets.c.batch_id == jobs.c.batch_id).correlate(jobs)


def _claim(dialect: str) -> Update:
    mine_already = (jobs.c.state == "running") & (jobs.c.claim_token == _token)
    claimable = (
        select(jobs.c.id)
        .where(
            is_among(dialect, jobs.c.id),
            jobs.c.endpoint == bindparam("of_endpoint"),
            jobs.c.losses < bindparam("losses_below"),
            or_(
                (jobs.c.state == "queued") & or_(jobs.c.expires_at_ms.is_(None), jobs.c.expires_at_ms > _now),
                mine_already,
            ),
            ~exists().where(batches.c.id == jobs.c.batch_id, batches.c.held_at_ms.is_not(None)),
        )
        .order_by(jobs.c.id)
        .with_for_update()
    )
    # A producer may use an id again after its job was pruned. The usage of that job stays, so numbers go on from there.
    paid_before = select(func.max(usage.c.number)).where(usage.c.job_id == jobs.c.id).correlate(jobs)
    return (
        update(jobs)
        .where(jobs.c.id.in_(claimable.scalar_subquery()))
        .values(
            state=TARGETS[Move.CLAIM].value,
            claims=case(
                (jobs.c.state == "running", jobs.c.claims),
                (jobs.c.claims == 0, func.coalesce(paid_before.scalar_subquery(), 0) + 1),
                else_=jobs.c.claims + 1,
            ),
            claimed_at_ms=_now,
            worker_id=bindparam("new_worker_id"),
            claim_token=_token,
            published_at_ms=None,
        )
        .returning(
            jobs.c.id,
            jobs.c.claims,
            jobs.c.generation,
            jobs.c.attempts,
            jobs.c.bad_responses,
            jobs.c.max_attempts,
            jobs.c.blocked_since_ms,
            jobs.c.blocked_until_ms,
            jobs.c.is_bulk,
            jobs.c.model,
            jobs.c.expires_at_ms,
            jobs.c.batch_id,
            jobs.c.priority,
            case((_HAS_BUDGET, jobs.c.batch_id)).label("budget_of"),
        )
    )


_CLAIM = Prepared(_claim)
_BODIES = Prepared(
    lambda dialect: select(requests.c.job_id, requests.c.body).where(is_among(dialect, requests.c.job_id))
)

_SOLO_JOBS = Prepared(
    lambda dialect: select(jobs.c.id).where(
        is_among(dialect, jobs.c.id), jobs.c.state == "queued", jobs.c.losses >= bindparam("losses_from")
    )
)

_WANTED = (
    select(jobs.c.is_cancel_requested, jobs.c.expires_at_ms, batches.c.held_at_ms)
    .select_from(jobs.outerjoin(batches, batches.c.id == jobs.c.batch_id))
    .where(jobs.c.id == bindparam("job"), is_in(JobState.RUNNING), jobs.c.claim_token == bindparam("token"))
)


def claim_jobs(
    connection: Connection,
    ids: Sequence[str],
    *,
    worker_id: str,
    token: str,
    endpoint: str,
    now_ms: int,
    are_alone: bool = False,
) -> dict[str, ClaimedJob]:
    """Claims jobs for a worker. Returns the claimed ones by id; an id that is absent could not be claimed.

    A solo job is claimed only with `are_alone`: beside other jobs, a crash that they cause would count as its own.
    One guarded UPDATE. A repeated claim with the same token succeeds, so that a COMMIT whose answer was lost can be
    run again.
    """
    if not ids:
        return {}
    rows = _CLAIM.run(
        connection,
        {
            "ids": pack_ids(connection, ids),
            "of_endpoint": endpoint,
            "now_ms": now_ms,
            "losses_below": _ANY_LOSSES if are_alone else SOLO_AFTER_LOSSES,
            "token": token,
            "new_worker_id": worker_id,
        },
    ).all()
    if not rows:
        return {}
    found = _BODIES.run(connection, {"ids": pack_ids(connection, [row.id for row in rows])}).all()
    bodies: dict[str, str] = {row.job_id: row.body for row in found}
    return {
        row.id: ClaimedJob(
            claim=Claim(row.id, token, row.claims, row.generation, worker_id),
            body=bodies[row.id],
            model=row.model,
            burnt=row.attempts,
            bad_responses=row.bad_responses,
            max_attempts=row.max_attempts,
            blocked_since_ms=(
                None
                if row.blocked_since_ms is None
                else waiting_since_ms(row.blocked_since_ms, row.blocked_until_ms, now_ms=now_ms)
            ),
            claimed_at_ms=now_ms,
            is_bulk=bool(row.is_bulk),
            expires_at_ms=row.expires_at_ms,
            budget_of=row.budget_of,
            batch_id=row.batch_id,
            priority=row.priority,
        )
        for row in rows
    }


def is_unwanted(connection: Connection, claim: Claim, *, now_ms: int) -> bool:
    """Whether a claimed job must not be called any more.

    It was cancelled, its batch is held, it has expired, or the claim is lost: this worker was taken for dead.
    """
    row = connection.execute(_WANTED, {"job": claim.job_id, "token": claim.token}).one_or_none()
    return (
        row is None
        or bool(row.is_cancel_requested)
        or row.held_at_ms is not None
        or (row.expires_at_ms is not None and row.expires_at_ms <= now_ms)
    )


def fetch_solo_jobs(connection: Connection, ids: Sequence[str]) -> set[str]:
    """The ids among `ids` of queued solo jobs."""
    if not ids:
        return set()
    rows = _SOLO_JOBS.run(connection, {"ids": pack_ids(connection, ids), "losses_from": SOLO_AFTER_LOSSES})
    return set(rows.scalars())
