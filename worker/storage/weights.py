"""What decides a batch's share of the tokens: its weight, and requests that show what its jobs take."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, bindparam, select, update

from worker.storage.tables import MAX_ROWS, batches, is_ready, jobs, requests

_WEIGHTS = select(batches.c.id, batches.c.weight).where(
    batches.c.id.in_(bindparam("ids", expanding=True)), batches.c.weight.is_not(None)
)
_NEXT_BODIES = (
    select(requests.c.body)
    .where(
        requests.c.job_id.in_(
            select(jobs.c.id)
            .where(
                is_ready(),
                jobs.c.endpoint == bindparam("of_endpoint"),
                jobs.c.batch_id == bindparam("of_batch"),
            )
            .order_by(jobs.c.priority, jobs.c.id)
            .limit(bindparam("at_most"))
            .scalar_subquery()
        )
    )
    .order_by(requests.c.job_id)
)


def set_weight(connection: Connection, batch_id: str, weight: float) -> None:
    """Changes the weight of a batch: relays that run follow within seconds."""
    connection.execute(update(batches).where(batches.c.id == batch_id).values(weight=weight))


def fetch_weights(connection: Connection, batch_ids: Collection[str]) -> dict[str, float]:
    """The weights of those batches that have one of their own."""
    ids, found = sorted(batch_ids), dict[str, float]()
    for start in range(0, len(ids), MAX_ROWS):
        rows = connection.execute(_WEIGHTS, {"ids": ids[start : start + MAX_ROWS]})
        found |= {row.id: float(row.weight) for row in rows}
    return found


def fetch_next_bodies(connection: Connection, endpoint: str, batch_id: str, *, at_most: int) -> list[str]:
    """The requests of a batch's next jobs that were not published yet."""
    query = {"of_endpoint": endpoint, "of_batch": batch_id, "at_most": at_most}
    return list(connection.execute(_NEXT_BODIES, query).scalars())
