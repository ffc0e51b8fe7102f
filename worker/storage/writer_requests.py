"""What the group writer can be asked for: a small value for each request, with where its answer goes.

A group is a list of them, in the order in which they were asked for. `group_commit.py` writes them, kind by kind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import Connection

from worker.storage.intake import KnownJob, NewJob
from worker.storage.outcomes import ClaimedJob, Outcome, Recorded
from worker.storage.reply import Answer, Reply


@dataclass(frozen=True, slots=True, eq=False)
class ClaimJob:
    """Claim a job. At most one for each job in a group."""

    job_id: str
    reply: Answer[ClaimedJob | None]
    waits_for_database: ClassVar[bool] = True  # nothing may be called meanwhile


@dataclass(frozen=True, slots=True, eq=False)
class RecordOutcome:
    """Record what a call came to. At most one for each job in a group."""

    outcome: Outcome
    reply: Answer[Recorded]
    waits_for_database: ClassVar[bool] = False  # a paid answer has the spool


@dataclass(frozen=True, slots=True, eq=False)
class WriteDownJob:
    """Write the row of a message that carries its own request."""

    job: NewJob
    reply: Reply[KnownJob]
    waits_for_database: ClassVar[bool] = True  # the message is the only copy


@dataclass(frozen=True, slots=True, eq=False)
class GiveHintBack:
    """Mark an unclaimed job as not published. Nobody waits for it."""

    job_id: str
    reply: ClassVar[None] = None
    waits_for_database: ClassVar[bool] = True  # it is asked for only once


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Run a function in the transaction, for a caller who waits."""

    work: Callable[[Connection], Any]
    reply: Reply[Any]
    waits_for_database: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, eq=False)
class OwedWork:
    """Run a function in the transaction, for a caller who does not wait."""

    work: Callable[[Connection], Any]
    reply: Reply[Any]
    waits_for_database: ClassVar[bool] = True  # it is asked for only once


Request = ClaimJob | RecordOutcome | WriteDownJob | GiveHintBack | Work | OwedWork


def fail(request: Request, exc: Exception) -> None:
    """Tells the caller of `request`, if it has one, that it came to `exc`."""
    if request.reply is not None:
        request.reply.set_exception(exc)


def take_group(pending: deque[Request], group: list[Request], *, at_most: int) -> None:
    """Moves the next group out of `pending`, in the order asked for, with one claim and one outcome a job.

    What repeats stays in line for the next group.
    """
    repeated: list[Request] = []
    claimed: set[str] = set()
    recorded: set[str] = set()
    try:
        while pending and len(group) < at_most:
            request = pending[0]
            if isinstance(request, ClaimJob):
                is_new = request.job_id not in claimed
                claimed.add(request.job_id)
            elif isinstance(request, RecordOutcome):
                is_new = request.outcome.job_id not in recorded
                recorded.add(request.outcome.job_id)
            else:
                is_new = True
            (group if is_new else repeated).append(pending.popleft())
    finally:
        pending.extendleft(reversed(repeated))
