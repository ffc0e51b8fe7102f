"""The ledger's rows. Times are UTC milliseconds since the epoch (`*_ms`). Only `worker/storage` touches them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Index, LargeBinary, Text, false, text
from sqlmodel import Field, SQLModel

_READY = "state = 'queued' AND published_at_ms IS NULL"
_PUBLISHED = "state = 'queued' AND published_at_ms IS NOT NULL"


def _partial(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class JobRow(SQLModel, table=True):
    """A job: small and often rewritten, so its request and its result live in tables of their own."""

    __tablename__ = "jobs"
    __table_args__ = (
        # One for each query that runs all the time: with a million jobs it costs what it costs with ten.
        _partial("ix_jobs_ready", "endpoint", "batch_id", "priority", "id", where=_READY),
        _partial("ix_jobs_ready_lone", "endpoint", "priority", "id", where=f"{_READY} AND NOT is_bulk"),
        _partial("ix_jobs_published", "endpoint", "published_at_ms", where=_PUBLISHED),
        _partial("ix_jobs_due", "endpoint", "not_before_ms", where="state = 'waiting'"),
        _partial("ix_jobs_due_lone", "endpoint", "not_before_ms", where="state = 'waiting' AND NOT is_bulk"),
        _partial("ix_jobs_due_batch", "endpoint", "batch_id", "not_before_ms", where="state = 'waiting'"),
        _partial("ix_jobs_retries", "endpoint", "not_before_ms", where="state = 'waiting' AND claims > 0"),
        _partial("ix_jobs_running", "worker_id", where="state = 'running'"),
        _partial(
            "ix_jobs_expiring",
            "expires_at_ms",
            where="expires_at_ms IS NOT NULL AND state IN ('queued', 'waiting')",
        ),
        Index("ix_jobs_batch", "batch_id", "state"),
        Index("ix_jobs_batch_order", "batch_id", "position", "id"),
        Index("ix_jobs_ended", "ended_at_ms"),
    )

    id: str = Field(primary_key=True)
    idempotency_key: str | None = Field(default=None, unique=True)
    # The job's home batch: it is scheduled with this one, the first that wanted it. Others are in WantRow.
    batch_id: str = ""  # "" where it has none: NULL would not group
    position: int = 0  # place in its home batch: line or document number, 1-based
    custom_id: str | None = None  # its name in the home batch
    source_key: str | None = None
    endpoint: str
    model: str
    request_hash: str

    state: str
    priority: int = 0  # 0 is served first
    is_bulk: bool = False
    not_before_ms: int | None = Field(default=None, sa_type=BigInteger)
    expires_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    published_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    is_cancel_requested: bool = False
    generation: int = 1

    worker_id: str | None = None  # who holds the claim
    claim_token: str | None = None  # the fence: no two claims of a job have the same
    claims: int = 0  # claims ever made; numbers the attempts
    attempts: int = 0  # burnt in this generation; the name is kept for older workers
    bad_responses: int = 0  # of them, answers without a completion in them
    max_attempts: int | None = None
    losses: int = 0  # times its worker died with it
    solo_losses: int = 0  # … while it ran alone
    blocked_since_ms: int | None = Field(default=None, sa_type=BigInteger)  # first refusal by a shut gate
    # When its wait at the gate was meant to end. Time after it counts as patience for 15 minutes only.
    blocked_until_ms: int | None = Field(default=None, sa_type=BigInteger)

    failure_kind: str | None = None
    http_status: int | None = None
    request_id: str | None = None
    failure_message: str | None = Field(default=None, sa_column=Column(Text))

    created_at_ms: int = Field(sa_type=BigInteger)
    claimed_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class WantRow(SQLModel, table=True):
    """A batch that wants a job of another home batch, or wants it at a second place.

    The home batch's own want is in the job's row, so that a bulk submission writes one row less for each line.
    """

    __tablename__ = "wants"
    __table_args__ = (Index("ix_wants_job", "job_id"),)
    batch_id: str = Field(primary_key=True)
    position: int = Field(primary_key=True)
    job_id: str = Field(primary_key=True)
    custom_id: str | None = None
    # The batch was cancelled: it shares a result that others wait for, and nobody works for it.
    is_given_up: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=false())
    )


class RequestRow(SQLModel, table=True):
    """A job's request body: the JSON that is sent, written once."""

    __tablename__ = "requests"
    job_id: str = Field(primary_key=True)
    body: str = Field(sa_column=Column(Text, nullable=False))


class DetailRow(SQLModel, table=True):
    """What a producer gave beside the request: metadata, and the callbacks of its Celery message."""

    __tablename__ = "details"
    job_id: str = Field(primary_key=True)
    user_metadata: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))
    # link, errbacks, chain, chord, group, root, parent, reply_to: a hint does not carry them
    envelope: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))


class AttemptRow(SQLModel, table=True):
    """One claim of a job that ended: what came of it."""

    __tablename__ = "attempts"
    job_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)  # the job's `claims` at the time of the claim
    generation: int
    worker_id: str
    claim_token: str
    outcome: str  # succeeded, unused (a success that came second), released, lost, or the failure's kind
    http_status: int | None = None
    request_id: str | None = None
    message: str | None = Field(default=None, sa_column=Column(Text))
    started_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    ended_at_ms: int = Field(sa_type=BigInteger)
    latency_ms: int | None = None


class ResultRow(SQLModel, table=True):
    """The one result of a job. `raw` is the body as it came, of an event stream the completion put together from
    it; `answer` and `reasoning` are split from it."""

    __tablename__ = "results"
    job_id: str = Field(primary_key=True)
    number: int  # the attempt that brought it
    http_status: int
    request_id: str | None = None
    finish_reason: str | None = None
    answer: str | None = Field(default=None, sa_column=Column(Text))
    reasoning: str | None = Field(default=None, sa_column=Column(Text))
    is_reasoning_unclosed: bool = False
    raw: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at_ms: int = Field(sa_type=BigInteger)


class FailureBodyRow(SQLModel, table=True):
    """The endpoint's last error body of a job that failed, for the batch error file."""

    __tablename__ = "failure_bodies"
    job_id: str = Field(primary_key=True)
    raw: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class UsageRow(SQLModel, table=True):
    """Tokens of one answered attempt, used or not: it was paid for either way."""

    __tablename__ = "usage"
    __table_args__ = (
        Index("ix_usage_batch", "batch_id"),
        _partial("ix_usage_odd_end", "batch_id", "odd_finish_reason", where="odd_finish_reason IS NOT NULL"),
    )
    job_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    batch_id: str = ""
    model: str
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    is_used: bool = True
    # Of an answer that was used and ended out of the ordinary: length, content_filter … They are few, so that
    # counting them is cheap in a batch of any size.
    odd_finish_reason: str | None = None
    created_at_ms: int = Field(sa_type=BigInteger)


class BatchRow(SQLModel, table=True):
    """A batch of jobs. No counters: they would be one row that every worker locks."""

    __tablename__ = "batches"
    __table_args__ = (
        Index("ix_batches_created", "created_at_ms"),
        _partial("ix_batches_held", "endpoint", where="held_at_ms IS NOT NULL"),
    )
    id: str = Field(primary_key=True)
    idempotency_key: str | None = Field(default=None, unique=True)
    kind: str  # run and submit: of a folder or a file, closed; tasks: named by messages, any may join it
    label: str  # what it was made from, for people
    endpoint: str
    total: int = 0  # set once, when all its rows are written down
    created_at_ms: int = Field(sa_type=BigInteger)
    submitted_at_ms: int | None = Field(default=None, sa_type=BigInteger)  # None: still being written down
    # Set while the run that made the batch is stopped: nobody works on its jobs, and nobody pays for them.
    held_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    details: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class WorkerRow(SQLModel, table=True):
    """One worker process. `sequence` rises with each beat; rescue watches it, never the clock."""

    __tablename__ = "workers"
    id: str = Field(primary_key=True)
    endpoint: str
    hostname: str
    pid: int
    slots: int
    lease_ms: int
    sequence: int = 0
    started_at_ms: int = Field(sa_type=BigInteger)
    beat_at_ms: int = Field(sa_type=BigInteger)  # for people; nothing is decided by it
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    end_reason: str | None = None  # stopped, lost


class PauseRow(SQLModel, table=True):
    """An endpoint whose jobs are not claimed until somebody resumes it."""

    __tablename__ = "pauses"
    endpoint: str = Field(primary_key=True)
    reason: str | None = Field(default=None, sa_column=Column(Text))
    paused_at_ms: int = Field(sa_type=BigInteger)


class IdentityRow(SQLModel, table=True):
    """The one row that tells this ledger from every other: its migration made it up."""

    __tablename__ = "identity"
    id: str = Field(primary_key=True)
