"""Corrects retry times that were written by a clock that was ahead: the jobs get the wait that was meant."""

from __future__ import annotations

from sqlalchemy import BindParameter, Connection, bindparam, literal_column, select, update

from schemas.job import JobState
from worker.storage.tables import MAX_ROWS, attempts, is_in, jobs

SKEW_MS = 30_000  # how far synchronised clocks may be apart

_id: BindParameter[str] = bindparam("job_id")
# Only jobs that were called before. The others wait for a time that their producer asked for, even weeks from now.
_FAR_AHEAD = (
    select(jobs.c.id, jobs.c.not_before_ms, attempts.c.ended_at_ms)
    .select_from(
        jobs.outerjoin(attempts, (attempts.c.job_id == jobs.c.id) & (attempts.c.number == jobs.c.claims))
    )
    .where(
        is_in(JobState.WAITING),
        jobs.c.claims > literal_column("0"),  # a literal, as in the condition of the partial index
        jobs.c.endpoint == bindparam("of_endpoint"),
        jobs.c.not_before_ms > bindparam("after_ms"),
    )
    .order_by(jobs.c.not_before_ms.desc())
    .limit(MAX_ROWS)
    .with_for_update(of=jobs, skip_locked=True)
)
_SET = (
    update(jobs)
    .where(jobs.c.id == _id, is_in(JobState.WAITING))
    .values(not_before_ms=bindparam("new_not_before_ms"))
)


def cap_waits(
    connection: Connection, endpoint: str, *, now_ms: int, usual_ms: int, longest_ms: int
) -> tuple[int, bool]:
    """How many retries were corrected (at most 500), and whether there may be more.

    The end of an attempt and the time of its retry were written by the same clock, so their difference is the wait
    that was meant. If it is not known, and the retry would wait longer than `longest_ms`, it waits `usual_ms` instead.
    """
    query = {"of_endpoint": endpoint, "after_ms": now_ms + usual_ms}
    rows = connection.execute(_FAR_AHEAD, query).all()
    changed = []
    for row in sorted(rows, key=lambda row: row.id):
        meant_ms = None if row.ended_at_ms is None else row.not_before_ms - row.ended_at_ms
        if meant_ms is not None and meant_ms < 0 and row.not_before_ms <= now_ms + longest_ms:
            continue  # corrected before: by the fast clock, the attempt ended after the retry is due
        if row.ended_at_ms is not None and row.ended_at_ms > now_ms + SKEW_MS:
            wait_ms = meant_ms if meant_ms is not None and 0 <= meant_ms <= longest_ms else usual_ms
        elif row.not_before_ms > now_ms + longest_ms:
            wait_ms = usual_ms
        else:
            continue
        changed.append({"job_id": row.id, "new_not_before_ms": now_ms + wait_ms})
    if changed:
        connection.execute(_SET, changed)
    return len(changed), len(changed) == MAX_ROWS
