"""The places of a batch, and what there is to be read of a job: said once for all who list, write or remove them.

A batch's places are those of the jobs whose home it is, and those of its wants. In the order of position and id they
are the order of its input.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select

from worker.storage.tables import failure_bodies, jobs, results, usage, wants

# A place: the job, where the batch has it, and the batch's name for it.
AT_HOME = select(jobs.c.id, jobs.c.position, jobs.c.custom_id)
# What a join takes: each has at most one row of a job.
RESULT = (results, results.c.job_id == jobs.c.id)
RESULT_OF_SUCCESS = (results, RESULT[1] & (jobs.c.state == "succeeded"))
USAGE_OF_RESULT = (usage, (usage.c.job_id == results.c.job_id) & (usage.c.number == results.c.number))
FAILURE_BODY = (failure_bodies, (failure_bodies.c.job_id == jobs.c.id) & (jobs.c.state == "failed"))
# Of the answer that is the result, else of the last failure.
HTTP_STATUS = func.coalesce(results.c.http_status, jobs.c.http_status).label("http_status")
REQUEST_ID = func.coalesce(results.c.request_id, jobs.c.request_id).label("request_id")


def at_home(batch_id: str) -> Select[Any]:
    """The places of the jobs whose home this batch is."""
    return AT_HOME.where(jobs.c.batch_id == batch_id)


def elsewhere(batch_id: str) -> Select[Any]:
    """The places of jobs that this batch wants and whose home is another's."""
    return select(wants.c.job_id.label("id"), wants.c.position, wants.c.custom_id).where(
        wants.c.batch_id == batch_id
    )
