"""Job states: only the legal moves exist, and a batch's status follows from its jobs'."""

from __future__ import annotations

import pytest

from schemas.job import (
    FINAL_STATES,
    LEGAL_MOVES,
    OPEN_STATES,
    JobState,
    Move,
    derive_batch_status,
    is_legal,
    states_open_to,
)

S = JobState


def test_each_state_is_open_or_final() -> None:
    assert set(JobState) == OPEN_STATES | FINAL_STATES
    assert not OPEN_STATES & FINAL_STATES
    assert all(state.is_final == (state in FINAL_STATES) for state in JobState)


def test_a_success_is_for_ever() -> None:
    assert not any(is_legal(S.SUCCEEDED, move) for move in Move)


def test_a_success_is_taken_from_everywhere_else() -> None:
    assert set(states_open_to(Move.SUCCEED)) == set(JobState) - {S.SUCCEEDED}


def test_only_a_queued_job_is_claimed() -> None:
    assert states_open_to(Move.CLAIM) == (S.QUEUED,)


def test_only_a_running_job_fails_waits_or_is_released() -> None:
    for move in (Move.FAIL, Move.WAIT, Move.RELEASE):
        assert states_open_to(move) == (S.RUNNING,)


def test_a_retry_is_for_what_ended_without_a_success() -> None:
    assert set(states_open_to(Move.RETRY)) == FINAL_STATES - {S.SUCCEEDED}
    assert all(LEGAL_MOVES[state, Move.RETRY] is S.QUEUED for state in states_open_to(Move.RETRY))


def test_every_state_can_be_reached_and_every_open_one_can_end() -> None:
    reached = {S.QUEUED}
    for _ in JobState:
        reached |= {after for (before, _), after in LEGAL_MOVES.items() if before in reached}
    assert reached == set(JobState)
    for state in OPEN_STATES:
        ends = {after for (before, _), after in LEGAL_MOVES.items() if before is state}
        assert ends & FINAL_STATES


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ({}, "completed"),
        ({S.SUCCEEDED: 2, S.FAILED: 1}, "completed"),
        ({S.SUCCEEDED: 2, S.QUEUED: 1}, "in_progress"),
        ({S.CANCELLED: 1, S.RUNNING: 1}, "in_progress"),
        ({S.WAITING: 1}, "in_progress"),
        ({S.SUCCEEDED: 2, S.CANCELLED: 1, S.EXPIRED: 1}, "cancelled"),
        ({S.SUCCEEDED: 2, S.EXPIRED: 1}, "expired"),
        ({S.SUCCEEDED: 2, S.QUEUED: 0}, "completed"),
    ],
)
def test_a_batchs_status_follows_from_its_jobs(counts: dict[JobState, int], status: str) -> None:
    assert derive_batch_status(counts, is_submitted=True) == status
    assert derive_batch_status(counts, is_submitted=False) == "validating"
