"""Finds the owners of the lines of a results file: the lines' jobs, and the batches that want these jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, func, select

from schemas.job import JobState
from worker.storage.tables import jobs, wants

_UUID_LENGTH = 36


@dataclass(frozen=True, slots=True)
class LineOwner:
    """The job of an output line. `names`: pairs of a batch that wants it, and that batch's custom_id for it."""

    is_succeeded: bool
    is_lone: bool = False
    names: list[tuple[str, str | None]] = field(default_factory=list)


def fetch_owners(connection: Connection, ids: Sequence[str]) -> dict[str, LineOwner]:
    """The owners for those of `ids` (at most 500) that the ledger has, by id."""
    wanted = sorted(set(ids))
    found: dict[str, LineOwner] = {}
    own_names: dict[str, str | None] = {}
    for row in connection.execute(
        select(
            jobs.c.id, jobs.c.state, jobs.c.batch_id, jobs.c.custom_id, jobs.c.source_key, jobs.c.is_bulk
        ).where(jobs.c.id.in_(wanted))
    ):
        owner = found[row.id] = LineOwner(
            row.state == JobState.SUCCEEDED.value, is_lone=not row.batch_id and not row.is_bulk
        )
        own_names[row.id] = row.source_key
        if row.batch_id:
            owner.names.append((row.batch_id, row.source_key if row.custom_id is None else row.custom_id))
    elsewhere = select(wants.c.job_id, wants.c.batch_id, wants.c.custom_id)
    for want in connection.execute(elsewhere.where(wants.c.job_id.in_(wanted))):
        if want.job_id in found:
            name = own_names[want.job_id] if want.custom_id is None else want.custom_id
            found[want.job_id].names.append((want.batch_id, name))
    return found


def fetch_undashed(connection: Connection, batch_id: str) -> dict[str, str]:
    """Ids with dashes that producers chose for a batch's jobs, by the same ids without dashes.

    The id of an output line has no dashes. Those of a UUID can be put back; those of other ids need this table.
    """
    odd = select(jobs.c.id).where(
        jobs.c.batch_id == batch_id, jobs.c.id.contains("-"), func.length(jobs.c.id) != _UUID_LENGTH
    )
    return {id_.replace("-", ""): id_ for id_ in connection.execute(odd).scalars()}
