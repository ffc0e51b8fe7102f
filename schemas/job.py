"""Job states and their legal moves: the one table. See docs/states.md. `worker/storage/transitions.py` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"  # may be claimed now
    RUNNING = "running"  # claimed by a worker
    WAITING = "waiting"  # due again at not_before
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        return self in FINAL_STATES


# A result with another finish reason may be incomplete: cut off (length), withheld (content_filter) …
ORDINARY_FINISH_REASONS = frozenset({"stop", "tool_calls", "function_call"})


class Move(StrEnum):
    """A change of a job's state. All moves except CLAIM and RELAY are made in `worker/storage/transitions.py`."""

    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    WAIT = "wait"  # after a failure, or at a shut gate: due at not_before
    RELEASE = "release"  # shutdown or rescue gives the job back
    RELAY = "relay"  # due, published
    CANCEL = "cancel"
    EXPIRE = "expire"
    RETRY = "retry"  # by an operator; generation + 1


_S, _M = JobState, Move
FINAL_STATES = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED, _S.EXPIRED})
OPEN_STATES = frozenset({_S.QUEUED, _S.RUNNING, _S.WAITING})

LEGAL_MOVES: dict[tuple[JobState, Move], JobState] = {
    (_S.QUEUED, _M.CLAIM): _S.RUNNING,
    (_S.WAITING, _M.RELAY): _S.QUEUED,
    (_S.RUNNING, _M.SUCCEED): _S.SUCCEEDED,
    (_S.RUNNING, _M.FAIL): _S.FAILED,
    (_S.RUNNING, _M.WAIT): _S.WAITING,
    (_S.RUNNING, _M.RELEASE): _S.QUEUED,
    # A running job that is to be cancelled, or whose time is over, ends when its call ends.
    (_S.RUNNING, _M.CANCEL): _S.CANCELLED,
    (_S.RUNNING, _M.EXPIRE): _S.EXPIRED,
    (_S.QUEUED, _M.CANCEL): _S.CANCELLED,
    (_S.WAITING, _M.CANCEL): _S.CANCELLED,
    (_S.QUEUED, _M.EXPIRE): _S.EXPIRED,
    (_S.WAITING, _M.EXPIRE): _S.EXPIRED,
    (_S.FAILED, _M.RETRY): _S.QUEUED,
    (_S.CANCELLED, _M.RETRY): _S.QUEUED,
    (_S.EXPIRED, _M.RETRY): _S.QUEUED,
    # A late success is kept in every state, because it is paid for.
    (_S.QUEUED, _M.SUCCEED): _S.SUCCEEDED,
    (_S.WAITING, _M.SUCCEED): _S.SUCCEEDED,
    (_S.FAILED, _M.SUCCEED): _S.SUCCEEDED,
    (_S.CANCELLED, _M.SUCCEED): _S.SUCCEEDED,
    (_S.EXPIRED, _M.SUCCEED): _S.SUCCEEDED,
}


# The state after each move, which is the same for all states before it.
TARGETS: dict[Move, JobState] = {move: after for (_, move), after in LEGAL_MOVES.items()}
# The job of a message that is refused, revoked or expired has ended from the beginning.
FIRST_STATES = frozenset({_S.QUEUED, _S.WAITING, _S.FAILED, _S.CANCELLED, _S.EXPIRED})


def is_legal(state: JobState, move: Move) -> bool:
    """Whether `move` may be made from `state`."""
    return (state, move) in LEGAL_MOVES


def states_open_to(move: Move) -> tuple[JobState, ...]:
    """The states from which `move` may be made, in the order of the enum."""
    return tuple(state for state in JobState if (state, move) in LEGAL_MOVES)


def derive_batch_status(counts: dict[JobState, int], *, is_submitted: bool) -> str:
    """The OpenAI batch status of a batch with these job counts.

    `validating` while its jobs are still being written down; `in_progress` while a job is open; `cancelled` or
    `expired` if jobs ended so; else `completed`.
    """
    if not is_submitted:
        return "validating"
    if any(counts.get(state, 0) for state in OPEN_STATES):
        return "in_progress"
    if counts.get(JobState.CANCELLED, 0):
        return "cancelled"
    if counts.get(JobState.EXPIRED, 0):
        return "expired"
    return "completed"


@dataclass(frozen=True, slots=True)
class Due:
    """A job to publish: its id, and the facts that decide its priority in the broker.

    `model`: where jobs go to several endpoints, so that a worker knows before its claim which ones may serve it.
    """

    id: str
    priority: int
    is_bulk: bool
    model: str | None = None
