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
    """A job. Its row is small, as it is rewritten often: the request and the result are in other tables."""

    __tablename__ = "jobs"
    __table_args__ = (
        # One index for each frequent query: its cost must not grow with the number of jobs.
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
    # The job's home batch, with which it is scheduled. Further batches that want it are in WantRow.
    batch_id: str = ""  # "" without a batch: NULL could not be used in GROUP BY keys
    position: int = 0  # in its home batch: line or document number, 1-based
    custom_id: str | None = None  # in its home batch
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

    worker_id: str | None = None  # the worker that has the claim
    claim_token: str | None = None  # unique to each claim of the job; writes are fenced by it
    claims: int = 0  # number of claims so far; it numbers the attempts
    attempts: int = 0  # burnt in this generation; the name is kept for workers of older versions
    bad_responses: int = 0  # those of them that brought an answer without a completion
    max_attempts: int | None = None
    losses: int = 0  # how often its worker died while it ran
    solo_losses: int = 0  # how often its worker died while it ran alone
    blocked_since_ms: int | None = Field(default=None, sa_type=BigInteger)  # first refusal by a shut gate
    # When its wait at the gate was to end. Of the time after it, only 15 minutes count against its patience.
    blocked_until_ms: int | None = Field(default=None, sa_type=BigInteger)

    failure_kind: str | None = None
    http_status: int | None = None
    request_id: str | None = None
    failure_message: str | None = Field(default=None, sa_column=Column(Text))

    created_at_ms: int = Field(sa_type=BigInteger)
    claimed_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class WantRow(SQLModel, table=True):
    """A batch that wants a job of another home batch, or that wants its own job at a second position.

    The home batch's own want is in the job's row, so that a bulk submission writes one row less for each line.
    """

    __tablename__ = "wants"
    __table_args__ = (Index("ix_wants_job", "job_id"),)
    batch_id: str = Field(primary_key=True)
    position: int = Field(primary_key=True)
    job_id: str = Field(primary_key=True)
    custom_id: str | None = None
    # The batch was cancelled. It gets the result that other batches wait for, but does not keep the job open.
    is_given_up: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=false())
    )


class RequestRow(SQLModel, table=True):
    """A job's request body: the JSON that is sent, written once."""

    __tablename__ = "requests"
    job_id: str = Field(primary_key=True)
    body: str = Field(sa_column=Column(Text, nullable=False))


class DetailRow(SQLModel, table=True):
    """Data that a producer sent with the request: metadata, and the callbacks of its Celery message."""

    __tablename__ = "details"
    job_id: str = Field(primary_key=True)
    user_metadata: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))
    # link, errbacks, chain, chord, group, root, parent, reply_to: a hint does not have them
    envelope: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))


class AttemptRow(SQLModel, table=True):
    """One attempt of a job that has ended, and its outcome."""

    __tablename__ = "attempts"
    job_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)  # the job's `claims` at the time of the claim
    generation: int
    worker_id: str
    claim_token: str
    endpoint: str | None = None  # the one that was called, where jobs go to several; None: that of the job
    outcome: str  # succeeded, unused (a second success), released, lost, or the failure's kind
    http_status: int | None = None
    request_id: str | None = None
    message: str | None = Field(default=None, sa_column=Column(Text))
    started_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    ended_at_ms: int = Field(sa_type=BigInteger)
    latency_ms: int | None = None


class ResultRow(SQLModel, table=True):
    """The result of a job. `raw`: the body as it came; for an event stream, the completion that was put together from
    it. `answer` and `reasoning` are split from it."""

    __tablename__ = "results"
    job_id: str = Field(primary_key=True)
    number: int  # of the attempt that brought it
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
    """The tokens of one answered attempt. They were paid for, whether the answer was used or not."""

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
    # The unusual finish reason of a used answer: length, content_filter … These are few, so that counting them is
    # cheap in a batch of any size.
    odd_finish_reason: str | None = None
    cost_nano: int | None = Field(
        default=None, sa_type=BigInteger
    )  # nanodollars; None: the price is not known
    created_at_ms: int = Field(sa_type=BigInteger)


class BatchRow(SQLModel, table=True):
    """A batch of jobs. It has no counters: every worker would have to lock this row."""

    __tablename__ = "batches"
    __table_args__ = (
        Index("ix_batches_created", "created_at_ms"),
        _partial("ix_batches_held", "endpoint", where="held_at_ms IS NOT NULL"),
    )
    id: str = Field(primary_key=True)
    idempotency_key: str | None = Field(default=None, unique=True)
    kind: str  # run, submit: made from a folder or a file, closed; tasks: named by messages, any may join it
    label: str  # the input that it was made from, for people
    endpoint: str
    total: int = 0  # set once, when all its jobs are written down
    created_at_ms: int = Field(sa_type=BigInteger)
    submitted_at_ms: int | None = Field(default=None, sa_type=BigInteger)  # None: still being written down
    # Set while the batch is held: its run was stopped, and its jobs are not called.
    held_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    weight: float | None = None  # its share of the endpoint's tokens beside other batches; None: 1
    details: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class BudgetRow(SQLModel, table=True):
    """The budget of a batch: what its answers may take at most. Batches without one have no row."""

    __tablename__ = "budgets"
    __table_args__ = (_partial("ix_budgets_waiting", "batch_id", where="waits_since_ms IS NOT NULL"),)
    batch_id: str = Field(primary_key=True)
    most_tokens: int | None = Field(default=None, sa_type=BigInteger)
    most_nano: int | None = Field(default=None, sa_type=BigInteger)  # nanodollars
    spent_tokens: int = Field(sa_type=BigInteger)
    spent_nano: int = Field(sa_type=BigInteger)
    usual_tokens: int | None = None  # what most completions of the batch took lately
    # Since when a job was refused for want of room, and what the smallest such job would have reserved.
    waits_since_ms: int | None = Field(default=None, sa_type=BigInteger)
    wanted_tokens: int | None = Field(default=None, sa_type=BigInteger)
    wanted_nano: int | None = Field(default=None, sa_type=BigInteger)


class ReservationRow(SQLModel, table=True):
    """What a claim may take of its batch's budget. It counts while the job runs under that claim."""

    __tablename__ = "reservations"
    __table_args__ = (Index("ix_reservations_batch", "batch_id"),)
    job_id: str = Field(primary_key=True)
    batch_id: str
    token: str  # of the claim
    tokens: int = Field(sa_type=BigInteger)
    cost_nano: int | None = Field(default=None, sa_type=BigInteger)


class WorkerRow(SQLModel, table=True):
    """One worker process. `sequence` rises with each beat. Rescue compares it, and never a clock of another machine."""

    __tablename__ = "workers"
    id: str = Field(primary_key=True)
    endpoint: str
    hostname: str
    pid: int
    slots: int
    lease_ms: int
    sequence: int = 0
    started_at_ms: int = Field(sa_type=BigInteger)
    beat_at_ms: int = Field(sa_type=BigInteger)  # for people; no decision uses it
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    end_reason: str | None = None  # stopped, lost
    # For people, as it told last; both NULL for a worker of an older version.
    calls: int | None = None  # in flight
    oldest_call_ms: int | None = Field(default=None, sa_type=BigInteger)  # when the oldest of them began


class PauseRow(SQLModel, table=True):
    """A paused endpoint: its jobs are not claimed until an operator resumes it."""

    __tablename__ = "pauses"
    endpoint: str = Field(primary_key=True)
    reason: str | None = Field(default=None, sa_column=Column(Text))
    paused_at_ms: int = Field(sa_type=BigInteger)


class LimitRow(SQLModel, table=True):
    """A limit of an endpoint. A limit that was set and cleared stays, without a value: the newest row counts."""

    __tablename__ = "limits"
    endpoint: str = Field(primary_key=True)
    key_id: str = Field(primary_key=True)
    kind: str = Field(primary_key=True)  # in_flight, requests_per_min, tokens_per_min
    source: str = Field(primary_key=True)  # set, found, header
    value: int | None = Field(default=None, sa_type=BigInteger)
    facts: str | None = Field(
        default=None, sa_column=Column(Text)
    )  # JSON: what the next decision needs to know
    reason: str | None = Field(default=None, sa_column=Column(Text))
    since_ms: int = Field(sa_type=BigInteger)  # when it got this value
    updated_ms: int = Field(sa_type=BigInteger)  # when it was written; of a limit that is set, this rises


class LimitChangeRow(SQLModel, table=True):
    """A change of a limit. Only the newest ones are kept."""

    __tablename__ = "limit_changes"
    __table_args__ = (Index("ix_limit_changes_endpoint", "endpoint", "id"),)
    id: str = Field(primary_key=True)  # sorts by time
    endpoint: str
    key_id: str
    kind: str
    source: str
    at_ms: int = Field(sa_type=BigInteger)
    old: int | None = Field(default=None, sa_type=BigInteger)
    new: int | None = Field(default=None, sa_type=BigInteger)
    reason: str | None = Field(default=None, sa_column=Column(Text))
    worker_id: str | None = None  # None: a command


class IdentityRow(SQLModel, table=True):
    """The ledger's random id, in one row, which the migration made. It distinguishes this ledger from others."""

    __tablename__ = "identity"
    id: str = Field(primary_key=True)
