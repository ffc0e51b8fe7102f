"""Parts of statements about the jobs of a batch, shared by the modules that list, write or remove them.

A place is a job in a batch: the job's id, its position in the batch, and the batch's custom_id for it. A batch has the
places of the jobs whose home batch it is, and those of its further wants. Sorted by position and id they are in the
order of its input.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select

from worker.storage.tables import failure_bodies, jobs, results, usage, wants

# The columns of a place.
AT_HOME = select(jobs.c.id, jobs.c.position, jobs.c.custom_id)
# Arguments of joins. Each has at most one row for a job.
RESULT = (results, results.c.job_id == jobs.c.id)
RESULT_OF_SUCCESS = (results, RESULT[1] & (jobs.c.state == "succeeded"))
USAGE_OF_RESULT = (usage, (usage.c.job_id == results.c.job_id) & (usage.c.number == results.c.number))
FAILURE_BODY = (failure_bodies, (failure_bodies.c.job_id == jobs.c.id) & (jobs.c.state == "failed"))
# Of the answer that is the result; without a result, of the last failure.
HTTP_STATUS = func.coalesce(results.c.http_status, jobs.c.http_status).label("http_status")
REQUEST_ID = func.coalesce(results.c.request_id, jobs.c.request_id).label("request_id")


def at_home(batch_id: str) -> Select[Any]:
    """The places of the jobs whose home batch this is."""
    return AT_HOME.where(jobs.c.batch_id == batch_id)


def elsewhere(batch_id: str) -> Select[Any]:
    """The places of jobs that this batch wants and that have another home batch."""
    return select(wants.c.job_id.label("id"), wants.c.position, wants.c.custom_id).where(
        wants.c.batch_id == batch_id
    )
