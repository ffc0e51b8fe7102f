"""An outage, or an endpoint that has just become flaky: what a process makes of failures beside other calls."""

from __future__ import annotations

import pytest

from tests.unit.test_evidence import DOWN, REFUSED, SHUT, Told
from worker.policy.retry import Attribution


@pytest.fixture
def told() -> Told:
    told = Told()
    for n in range(100):
        told.succeeds(f"before{n}")
    return told


@pytest.mark.parametrize(("in_flight", "asked"), [(2, 3), (4, 4), (16, 8), (500, 8)])
def test_beside_others_more_must_fail_and_those_after_the_first_burn_nothing(
    told: Told, in_flight: int, asked: int
) -> None:
    found = [told.verdict(f"job{n}", DOWN, in_flight=in_flight).attribution for n in range(asked)]
    burnt = 2 if asked == 3 else 1
    assert found == [
        *[Attribution.UNKNOWN] * burnt,
        *[Attribution.UNDECIDED] * (asked - burnt - 1),
        Attribution.ENDPOINT,
    ]


def test_two_jobs_that_fail_alone_are_not_put_off_for_ever(told: Told) -> None:
    found = [[told.verdict(job, DOWN, in_flight=8).attribution for job in "ab"] for _ in range(6)]
    assert Attribution.UNDECIDED in found[0]
    assert found[3:] == [[Attribution.UNKNOWN] * 2] * 3


def test_calls_that_fail_at_the_same_moment_count_as_calls_at_once(told: Told) -> None:
    found = [told.verdict(f"job{n}", DOWN, in_flight=8 - n).attribution for n in range(8)]
    assert Attribution.ENDPOINT not in found[:5]


def test_an_endpoint_that_has_just_become_flaky_is_known_to_be_after_a_few_answers(told: Told) -> None:
    for n in range(1000):
        told.succeeds(f"healthy{n}")
    for n in range(12):
        told.succeeds(f"answered{n}") if n % 3 else told.fails(f"flaky{n}")
    found = [told.fails(f"in a row{n}") for n in range(15)]
    assert Attribution.ENDPOINT not in found[:7], "three in a row were enough before"
    assert Attribution.ENDPOINT in found


def test_connections_that_are_refused_where_nobody_is_answered_are_no_matter_of_doubt(told: Told) -> None:
    found = [told.verdict(f"job{n}", REFUSED, after_s=5, in_flight=16).attribution for n in range(5)]
    assert found == [Attribution.UNKNOWN] * 5, "and the table shuts the gate"


@pytest.mark.parametrize(("shut_for_s", "is_learnt"), [(2.0, True), (4.0, False)])
def test_failures_before_a_gate_that_the_first_probe_opened_count_towards_the_usual_rate(
    told: Told, shut_for_s: float, is_learnt: bool
) -> None:
    before = told.evidence.failure_rate
    assert [told.fails(job) for job in "abc"][-1] is Attribution.ENDPOINT
    for n in range(500):
        told.fails(f"in flight{n}", gate=SHUT, after_s=0.0)
    told.evidence.reopened(told.now_s + shut_for_s)
    after = told.evidence.failure_rate
    assert (after > before) is is_learnt
    assert after < 0.2, "what failed at the shut gate tells nothing"
