"""The adaptive limit, decision by decision. What comes of them is in `test_adaptive_limit_simulated`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.limits import CAP, FIRST, NOW, SETTLED, after, refused, seen
from worker.policy.concurrency import (
    FRESH_MS,
    Limit,
    Phase,
    allow_more,
    cut,
    parse_limit,
    refused_wait_ms,
    reopen,
    start,
    step,
    wake,
)
from worker.policy.flow import NOTHING, Flow


def test_an_unknown_endpoint_begins_with_sixteen() -> None:
    assert (FIRST.value, FIRST.phase) == (16, Phase.STARTING)
    assert start(None, cap=4, now_ms=NOW).value == 4


@pytest.mark.parametrize(
    ("remembered", "age_ms", "cap", "value", "phase"),
    [
        (SETTLED, 60_000, CAP, 40, Phase.HOLDING),
        (SETTLED, FRESH_MS, CAP, 40, Phase.HOLDING),
        (SETTLED, FRESH_MS + 1, CAP, 20, Phase.STARTING),
        (SETTLED, 60_000, 8, 8, Phase.HOLDING),
        (replace(SETTLED, good=20, value=20), FRESH_MS + 1, CAP, 16, Phase.STARTING),
        (replace(SETTLED, good=4, value=4), FRESH_MS + 1, CAP, 4, Phase.STARTING),
        (
            replace(SETTLED, value=50, phase=Phase.CLIMBING),
            60_000,
            CAP,
            40,
            Phase.HOLDING,
        ),  # 50 was only tried
        (replace(SETTLED, value=1, phase=Phase.REFUSED), 60_000, CAP, 40, Phase.HOLDING),
        (step(SETTLED, NOTHING, cap=10, now_ms=NOW), 60_000, CAP, 10, Phase.STARTING),  # more is allowed now
        (step(SETTLED, NOTHING, cap=10, now_ms=NOW), 60_000, 10, 10, Phase.HOLDING),
        (FIRST, 60_000, CAP, 16, Phase.STARTING),
        (replace(FIRST, value=128), 60_000, CAP, 16, Phase.STARTING),  # nothing was found
    ],
)
def test_a_run_begins_with_what_an_earlier_one_found(
    remembered: Limit, age_ms: int, cap: int, value: int, phase: Phase
) -> None:
    begun = start(remembered, cap=cap, now_ms=remembered.since_ms + age_ms)
    assert (begun.value, begun.phase) == (value, phase)
    assert begun.epoch > remembered.epoch
    assert not begun.counts_answer(remembered.epoch)


@pytest.mark.parametrize(
    ("answers", "seconds", "reached", "value"),
    [
        (16, 0.5, 1.0, 32),  # a round trip with evidence
        (8, 0.5, 1.0, 32),
        (7, 0.5, 1.0, 16),  # too few answers
        (16, 0.4, 1.0, 16),  # no round trip yet
        (16, 0.5, 0.4, 16),  # the limit was not reached
    ],
)
def test_it_doubles_after_a_round_trip_in_which_it_was_reached(
    answers: int, seconds: float, reached: float, value: int
) -> None:
    assert after(FIRST, answers, seconds=seconds, reached=reached).value == value


def test_it_doubles_up_to_the_most_allowed() -> None:
    assert after(FIRST, 16, seconds=0.5, cap=20).value == 20
    assert after(start(None, cap=16, now_ms=NOW), 16, seconds=0.5, cap=16).value == 16


@pytest.mark.parametrize(
    ("ms", "value", "phase"),
    [
        (500, 64, Phase.STARTING),  # twice the calls, twice the work
        (550, 64, Phase.STARTING),
        (667, 24, Phase.HOLDING),  # one and a half times the work: a knee at 24
        (1000, 16, Phase.HOLDING),  # no more work
        (1500, 16, Phase.HOLDING),  # less
    ],
)
def test_it_stops_doubling_where_the_work_does_not_double(ms: int, value: int, phase: Phase) -> None:
    twice = after(FIRST, 16, seconds=0.5)
    then = after(twice, 32, seconds=ms * 1.05 / 1000, ms=ms)
    assert (then.value, then.phase) == (value, phase)


# ── refusals ──


def test_a_refusal_cuts_to_three_quarters_and_is_remembered() -> None:
    new = refused(replace(FIRST, value=64))
    assert (new.value, new.ceiling, new.phase) == (48, 64, Phase.CLIMBING)


def test_a_refusal_of_a_call_from_before_the_cut_cuts_nothing() -> None:
    first = refused(replace(FIRST, value=64))
    assert refused(first, epoch=FIRST.epoch) is first
    assert refused(first, epoch=first.epoch).value == 36


def test_a_new_window_or_a_higher_value_does_not_hide_a_refusal() -> None:
    higher = after(FIRST, 16, seconds=0.5)
    assert refused(higher, epoch=FIRST.epoch).value < higher.value


def test_a_higher_value_that_is_refused_gives_way_to_the_good_one() -> None:
    tried = replace(SETTLED, value=41, phase=Phase.CLIMBING)
    new = refused(tried)
    assert (new.value, new.phase, new.ceiling, new.is_ceiling_firm) == (40, Phase.HOLDING, 41, True)


def test_after_that_one_more_refusal_is_one_of_those_that_come_at_any_limit() -> None:
    back = refused(replace(SETTLED, value=41, phase=Phase.CLIMBING))
    assert refused(back) is back
    assert cut(back, Flow(refusals=2), epoch=back.epoch, cap=CAP, now_ms=NOW).value == 38


def test_a_good_value_that_is_refused_is_cut_and_its_ceiling_is_lower_after_a_round_without_refusals() -> (
    None
):
    lower = refused(SETTLED)
    assert (lower.value, lower.ceiling) == (30, 41)
    then = after(lower, 30, seconds=0.6)
    assert (then.good, then.ceiling, then.phase) == (30, 40, Phase.CLIMBING)


@pytest.mark.parametrize(
    ("answers", "refusals", "is_cut"),
    [(0, 1, True), (49, 1, True), (50, 1, False), (99, 2, True), (100, 2, False)],
)
def test_one_refusal_among_fifty_answers_cuts_no_limit_that_is_good(
    answers: int, refusals: int, is_cut: bool
) -> None:
    flow = seen(answers, limit=SETTLED, seconds=1, refusals=refusals)
    new = cut(SETTLED, flow, epoch=SETTLED.epoch, cap=CAP, now_ms=NOW + 1000)
    assert (new is not SETTLED) == is_cut


def test_a_higher_value_that_is_only_tried_is_cut_by_a_second_refusal_among_many_answers() -> None:
    tried = after(replace(SETTLED, ceiling=None), 1700, seconds=21)
    assert tried.value == 48
    flow = seen(200, limit=tried, seconds=2, refusals=1)
    assert cut(tried, flow, epoch=tried.epoch, cap=CAP, now_ms=NOW) is tried
    flow = seen(200, limit=tried, seconds=2, refusals=2)
    assert cut(tried, flow, epoch=tried.epoch, cap=CAP, now_ms=NOW).value == 40


def test_the_successes_of_a_round_with_a_refusal_raise_nothing() -> None:
    flow = seen(16, limit=FIRST, seconds=0.5, refusals=1)
    assert step(FIRST, flow, cap=CAP, now_ms=NOW + 500).value < FIRST.value


@pytest.mark.parametrize(
    ("value", "ceiling", "is_firm", "next_value"),
    [
        (36, 48, False, 42),  # half of the way
        (36, 40, False, 38),
        (39, 40, False, 40),  # not known to be a ceiling: it is tried
        (39, 40, True, 39),
        (40, 40, False, 48),  # it is none
        (36, 100, False, 43),
    ],
)
def test_a_ceiling_is_approached_slowly(value: int, ceiling: int, is_firm: bool, next_value: int) -> None:
    limit = replace(
        SETTLED,
        phase=Phase.CLIMBING,
        value=value,
        good=value,
        measured=value,
        ceiling=ceiling,
        is_ceiling_firm=is_firm,
    )
    assert after(limit, value, seconds=0.6).value == next_value


def test_a_value_that_is_refused_right_after_the_one_above_it_is_lowered_by_a_small_step_once() -> None:
    """It was not refused before only because its slots were not all in use. Three quarters would take seconds to make up for."""
    edge = replace(SETTLED, value=43, good=43, ceiling=44, is_ceiling_firm=True, steady_epoch=9, cut_epoch=9)
    lower = refused(edge)
    assert (lower.value, lower.good, lower.ceiling, lower.phase) == (41, 41, 43, Phase.HOLDING)
    assert refused(lower).value == 30
    assert refused(replace(edge, steady_epoch=7)).value == 32, (
        "it was good for a while: the endpoint has changed"
    )
    assert refused(replace(edge, is_ceiling_firm=False)).value == 32


def test_a_ceiling_is_tried_again_now_and_then() -> None:
    assert after(SETTLED, 1500, seconds=19).value == 40
    assert after(SETTLED, 1600, seconds=20).value == 41


def test_where_everything_is_refused_one_call_at_a_time_is_made_with_longer_and_longer_pauses() -> None:
    limit, values, pauses = SETTLED, [], []
    for _ in range(80):
        limit = refused(replace(limit, since_ms=max(limit.since_ms, limit.resume_ms)))
        values.append(limit.value)
        pauses.append(max(0, limit.resume_ms - limit.since_ms))
    assert values[:13] == [30, 22, 16, 12, 9, 6, 4, 3, 2, 1, 1, 1, 1]
    assert limit.phase is Phase.REFUSED
    assert pauses[9] == 0 < pauses[10] == 500
    assert pauses[10:] == sorted(pauses[10:])
    assert pauses[-1] > 500
    assert refused_wait_ms(limit) == pauses[-1]
    lasted_ms = limit.since_ms - limit.all_refused_ms
    assert pauses[-1] == lasted_ms // 32


def test_one_answer_after_all_the_refusals_brings_half_of_what_was_good_and_then_all_of_it() -> None:
    limit = replace(SETTLED, value=1, phase=Phase.REFUSED, all_refused_ms=NOW - 20_000)
    assert step(limit, NOTHING, cap=CAP, now_ms=NOW + 100) is limit
    half = after(limit, 1, seconds=0.5)
    assert (half.value, half.phase) == (20, Phase.STARTING)
    whole = after(half, 20, seconds=0.6)
    assert whole.value == 40
    back = after(whole, 40, seconds=0.6)
    assert (back.phase, back.all_refused_ms) == (Phase.HOLDING, 0)


def test_a_long_call_that_is_not_refused_is_as_good_as_an_answer_after_all_the_refusals() -> None:
    """With calls of a minute, the first answer would come a minute late, and all of the work another one later."""
    limit = replace(
        SETTLED,
        value=1,
        phase=Phase.REFUSED,
        round_ms=60_000,
        all_refused_ms=NOW - 20_000,
        resume_ms=NOW + 600,
    )
    waits = replace(NOTHING, full_ms=1100)
    assert step(limit, waits, cap=CAP, now_ms=NOW + 1500) is limit, "the call began at 0.6 s"
    half = step(limit, waits, cap=CAP, now_ms=NOW + 1700)
    assert (half.value, half.phase) == (20, Phase.STARTING)
    assert step(half, replace(NOTHING, full_ms=20 * 900), cap=CAP, now_ms=NOW + 2600) is half
    assert step(half, replace(NOTHING, full_ms=20 * 100), cap=CAP, now_ms=NOW + 2700) is half, "no jobs"
    whole = step(half, replace(NOTHING, full_ms=20 * 1000), cap=CAP, now_ms=NOW + 2700)
    assert (whole.value, whole.phase) == (40, Phase.STARTING)
    lower = refused(whole)
    assert lower.value == 30
    assert lower.all_refused_ms == limit.all_refused_ms, "no call was answered: it is the same trouble"
    assert refused(whole, seen(5, limit=whole, seconds=1)).all_refused_ms == 0


def test_the_time_before_the_first_jobs_does_not_count() -> None:
    """Else a worker that had waited for jobs would climb a second later than one that had not."""
    woken = wake(FIRST, NOTHING, now_ms=NOW + 900)
    assert (woken.value, woken.phase, woken.since_ms) == (16, Phase.STARTING, NOW + 900)
    assert woken.counts_answer(FIRST.epoch)
    assert after(woken, 16, seconds=0.5).value == 32
    few, many = (replace(NOTHING, ended=count) for count in (7, 8))
    assert wake(FIRST, few, now_ms=NOW + 900) == woken
    for busy in (many, replace(NOTHING, full_ms=1), replace(NOTHING, refusals=1)):
        assert wake(FIRST, busy, now_ms=NOW + 900) is FIRST
    assert wake(SETTLED, NOTHING, now_ms=NOW + 900) is SETTLED, "it is measured for seconds anyway"


@pytest.mark.parametrize(
    ("limit", "value"),
    [(SETTLED, 20), (FIRST, 8), (replace(FIRST, value=64), 8), (replace(SETTLED, good=1), 1)],
)
def test_a_gate_that_opens_is_followed_by_a_slow_start(limit: Limit, value: int) -> None:
    opened = reopen(limit, cap=CAP, now_ms=NOW)
    assert (opened.value, opened.phase) == (value, Phase.STARTING)
    assert not opened.counts_refusal(limit.epoch)


def test_a_limit_under_which_nothing_is_answered_in_time_is_halved_by_each_gate_that_opens() -> None:
    limit, values = FIRST, []
    for _ in range(6):
        limit = reopen(limit, cap=CAP, now_ms=NOW)
        values.append(limit.value)
    assert values == [8, 4, 2, 1, 1, 1]


def test_a_refused_job_waits_for_about_a_round_trip() -> None:
    assert refused_wait_ms(SETTLED) == 500
    assert refused_wait_ms(replace(SETTLED, round_ms=20)) == 250
    assert refused_wait_ms(replace(SETTLED, round_ms=90_000)) == 10_000


def test_a_limit_goes_to_json_and_back_also_from_another_version() -> None:
    stored = json.loads(json.dumps(asdict(SETTLED)))
    assert parse_limit(stored) == SETTLED
    assert parse_limit({**stored, "not known yet": 1}) == SETTLED
    del stored["floor"]
    assert parse_limit(stored) == replace(SETTLED, floor=0)


@pytest.mark.parametrize("wrong", [{}, {"phase": "holding"}, {**asdict(SETTLED), "phase": "asleep"}])
def test_what_is_no_limit_is_not_read_as_one(wrong: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        parse_limit(wrong)


def test_a_lower_cap_holds_at_once() -> None:
    new = step(SETTLED, NOTHING, cap=10, now_ms=NOW + 1)
    assert (new.value, new.good) == (10, 10)


@pytest.mark.parametrize(
    ("value", "phase", "before", "is_slow_start"),
    [
        (10, Phase.HOLDING, 10, True),
        (5, Phase.EASING, 10, True),  # a lower one was tried
        (10, Phase.HOLDING, 11, False),  # that did not keep it low
        (10, Phase.REFUSED, 10, False),
        (10, Phase.CLIMBING, 10, False),
        (CAP, Phase.HOLDING, 10, False),
    ],
)
def test_more_that_is_allowed_is_tried_at_once_where_only_that_was_in_the_way(
    value: int, phase: Phase, before: int, is_slow_start: bool
) -> None:
    limit = replace(step(SETTLED, NOTHING, cap=10, now_ms=NOW), value=value, phase=phase)
    new = allow_more(limit, before=before, cap=CAP, now_ms=NOW + 1)
    assert (new is not limit) == is_slow_start
    assert new.value == value
    if is_slow_start:
        assert after(new, value, seconds=0.5).value > value


@pytest.mark.parametrize("tried_ms", [0, NOW, NOW + 30_000])
def test_a_limit_from_before_the_clock_was_set_back_does_not_wait_for_that_time(tried_ms: int) -> None:
    now_ms = NOW - 3_600_000
    limit = replace(SETTLED, resume_ms=NOW + 5000, tried_ms=tried_ms)
    new = step(limit, NOTHING, cap=CAP, now_ms=now_ms)
    assert (new.value, new.phase, new.reason) == (limit.value, limit.phase, limit.reason)
    assert (new.since_ms, new.resume_ms) == (now_ms, now_ms + 5000)
    assert new.tried_ms == (tried_ms and tried_ms - 3_600_000)
    assert step(new, NOTHING, cap=CAP, now_ms=now_ms + 1) is new


EVENTS = st.tuples(
    st.sampled_from(["step", "step", "step", "cut", "reopen", "start"]),
    st.integers(0, 60_000),  # ms
    st.integers(0, 3000),  # answers
    st.integers(0, 20_000),  # ms a call
    st.integers(0, 2000),  # tokens
    st.integers(0, 3),  # refusals
    st.floats(0, 1),  # reached
    st.sampled_from([1, 3, 16, 64, 256]),  # cap
)


@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_the_limit_is_from_one_to_the_cap_and_each_change_is_a_new_epoch(
    events: list[tuple[str, int, int, int, int, int, float, int]],
) -> None:
    limit, now_ms = FIRST, NOW
    for what, wait_ms, answers, ms, tokens, refusals, reached, cap in events:
        now_ms += wait_ms
        flow = seen(
            answers,
            limit=limit,
            ms=ms,
            seconds=wait_ms / 1000,
            refusals=refusals,
            reached=reached,
            tokens=tokens,
        )
        if what == "step":
            new = step(limit, flow, cap=cap, now_ms=now_ms)
        elif what == "cut":
            new = cut(limit, flow, epoch=limit.epoch, cap=cap, now_ms=now_ms)
        elif what == "reopen":
            new = reopen(limit, cap=cap, now_ms=now_ms)
        else:
            new = start(limit, cap=cap, now_ms=now_ms)
        if new is limit:
            continue
        assert 1 <= new.value <= cap
        assert new.epoch == limit.epoch + 1
        assert (
            new.cut_epoch <= new.steady_epoch <= new.epoch or new.steady_epoch <= new.cut_epoch <= new.epoch
        )
        assert new.reason
        assert parse_limit(json.loads(json.dumps(asdict(new)))) == new
        limit = new
