"""The adaptive limit, decision by decision. What comes of them is in `test_adaptive_limit_simulated`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.concurrency import (
    FRESH_MS,
    Limit,
    Phase,
    cut,
    parse_limit,
    refused_wait_ms,
    reopen,
    start,
    step,
)
from worker.policy.flow import NOTHING, Flow

NOW = 10_000_000
CAP = 256
FIRST = start(None, cap=CAP, now_ms=NOW)
# 40 at once work, and 41 were refused; a call of 100 tokens takes half a second.
SETTLED = Limit(
    40,
    9,
    Phase.HOLDING,
    NOW,
    "below the ceiling",
    steady_epoch=7,
    cut_epoch=7,
    good=40,
    round_ms=500,
    ceiling=41,
    is_ceiling_firm=True,
    measured=40,
    length=100.0,
    call_ms=500.0,
    call_noise=0.004,
    best_unit_ms=5.0,
    floor=20,
    tried_ms=NOW,
)
KNEE = replace(SETTLED, value=24, good=24, measured=24, ceiling=None, is_ceiling_firm=False, floor=16)


def seen(
    answers: int,
    *,
    limit: Limit,
    ms: int = 500,
    seconds: float,
    refusals: int = 0,
    reached: float = 1.0,
    tokens: int = 100,
) -> Flow:
    """So many calls, of about `ms` each, at this limit."""
    half, odd = divmod(answers, 2)
    times = [round(ms * 0.98)] * half + [round(ms * 1.02)] * half + [ms] * odd
    return Flow(
        answers=answers,
        tokens=tokens * answers,
        tokens_out=tokens * answers,
        call_ms=sum(times),
        out_out=tokens * tokens * answers,
        out_ms=tokens * sum(times),
        ms_ms=sum(one * one for one in times),
        refusals=refusals,
        full_ms=round(limit.value * seconds * 1000 * reached),
        ended=answers,
    )


def after(
    limit: Limit, answers: int, *, seconds: float, ms: int = 500, reached: float = 1.0, cap: int = CAP
) -> Limit:
    flow = seen(answers, limit=limit, ms=ms, seconds=seconds, reached=reached)
    return step(limit, flow, cap=cap, now_ms=limit.since_ms + round(seconds * 1000))


def refused(limit: Limit, flow: Flow = NOTHING, *, epoch: int | None = None, cap: int = CAP) -> Limit:
    epoch = limit.epoch if epoch is None else epoch
    return cut(limit, flow + Flow(refusals=1), epoch=epoch, cap=cap, now_ms=limit.since_ms + 100)


# ── the start ──


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
    assert tried.value == 50
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
        (36, 48, False, 39),  # a quarter of the way
        (36, 40, False, 37),
        (39, 40, False, 40),  # not known to be a ceiling: it is tried
        (39, 40, True, 39),
        (40, 40, False, 50),  # it is none
        (36, 100, False, 45),
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


def test_a_ceiling_is_tried_again_now_and_then() -> None:
    assert after(SETTLED, 1500, seconds=19).value == 40
    assert after(SETTLED, 1600, seconds=20).value == 41


def test_where_everything_is_refused_one_call_at_a_time_is_made_with_longer_and_longer_pauses() -> None:
    limit, values, pauses = SETTLED, [], []
    for _ in range(40):
        limit = refused(replace(limit, since_ms=max(limit.since_ms, limit.resume_ms)))
        values.append(limit.value)
        pauses.append(max(0, limit.resume_ms - limit.since_ms))
    assert values[:13] == [30, 22, 16, 12, 9, 6, 4, 3, 2, 1, 1, 1, 1]
    assert limit.phase is Phase.REFUSED
    assert pauses[9] == 0 < pauses[10] == 500
    assert pauses[10:] == sorted(pauses[10:])
    assert pauses[-1] > 2000
    assert refused_wait_ms(limit) == pauses[-1]


def test_one_answer_after_all_the_refusals_brings_half_of_what_was_good_and_then_all_of_it() -> None:
    limit = replace(SETTLED, value=1, phase=Phase.REFUSED, all_refused_ms=NOW - 20_000)
    assert step(limit, NOTHING, cap=CAP, now_ms=NOW + 100) is limit
    half = after(limit, 1, seconds=0.5)
    assert (half.value, half.phase) == (20, Phase.STARTING)
    whole = after(half, 20, seconds=0.6)
    assert whole.value == 40
    assert after(whole, 40, seconds=0.6).phase is Phase.HOLDING


@pytest.mark.parametrize(
    ("limit", "value"),
    [(SETTLED, 20), (FIRST, 16), (replace(FIRST, value=64), 16), (replace(SETTLED, good=1), 1)],
)
def test_a_gate_that_opens_is_followed_by_a_slow_start(limit: Limit, value: int) -> None:
    opened = reopen(limit, cap=CAP, now_ms=NOW)
    assert (opened.value, opened.phase) == (value, Phase.STARTING)
    assert not opened.counts_refusal(limit.epoch)


def test_a_refused_job_waits_for_about_a_round_trip() -> None:
    assert refused_wait_ms(SETTLED) == 500
    assert refused_wait_ms(replace(SETTLED, round_ms=20)) == 250
    assert refused_wait_ms(replace(SETTLED, round_ms=90_000)) == 10_000


# ── work done ──


def trial(base: Limit, value: int, *, phase: Phase = Phase.CLIMBING) -> Limit:
    return replace(base, value=value, phase=phase, is_warm=True)


@pytest.mark.parametrize(
    ("ms", "value", "phase"),
    [
        (500, 45, Phase.CLIMBING),  # a quarter more calls, a quarter more work: a bold step follows
        (570, 38, Phase.CLIMBING),  # 9 % more: a careful one
        (610, 24, Phase.HOLDING),  # 2 % more
        (625, 24, Phase.HOLDING),
        (900, 24, Phase.HOLDING),
    ],
)
def test_a_higher_value_stays_only_if_it_does_five_per_cent_more_work(
    ms: int, value: int, phase: Phase
) -> None:
    then = after(trial(KNEE, 30), 60, seconds=1.5, ms=ms)
    assert (then.value, then.phase) == (value, phase)


def test_longer_answers_alone_are_no_less_work() -> None:
    flow = seen(60, limit=trial(KNEE, 30), ms=1000, seconds=2.5, tokens=200)
    short = seen(20, limit=trial(KNEE, 30), ms=500, seconds=0, tokens=100)
    assert step(trial(KNEE, 30), flow + short, cap=CAP, now_ms=NOW + 2500).value == 45


def test_the_calls_of_the_value_before_are_waited_for() -> None:
    begun = replace(trial(KNEE, 30), is_warm=False)
    warm = after(begun, 30, seconds=0.6)
    assert (warm.value, warm.phase, warm.is_warm) == (30, Phase.CLIMBING, True)
    assert warm.epoch == begun.epoch + 1
    assert warm.counts_answer(begun.steady_epoch)


def test_nothing_grows_that_was_not_reached() -> None:
    assert after(KNEE, 500, seconds=21, reached=0.7).value == KNEE.value
    assert after(trial(KNEE, 30), 60, seconds=1.5, reached=0.7).value == 30


def test_a_window_that_was_not_reached_ends() -> None:
    """Else an idle hour would stand against the minute in which the limit is reached."""
    new = after(KNEE, 500, seconds=3600, reached=0.1)
    assert (new.value, new.phase, new.epoch, new.since_ms) == (
        24,
        Phase.HOLDING,
        KNEE.epoch + 1,
        NOW + 3_600_000,
    )


def test_a_step_that_is_unsure_takes_more_answers_and_then_a_higher_gain() -> None:
    noisy = replace(trial(KNEE, 30), call_noise=0.2)
    assert after(noisy, 60, seconds=1.5, ms=570) is noisy
    assert after(noisy, 180, seconds=3.5, ms=570).value == 24
    assert after(noisy, 180, seconds=3.5, ms=480).value > 30


@pytest.mark.parametrize(
    ("ms", "value", "phase"),
    [
        (500, 24, Phase.HOLDING),  # half the calls, half the work
        (270, 12, Phase.HOLDING),  # 93 % of the work … of 12 calls
        (250, 12, Phase.HOLDING),  # the same work
    ],
)
def test_a_lower_value_stays_if_it_does_the_same_work(ms: int, value: int, phase: Phase) -> None:
    then = after(trial(KNEE, 12, phase=Phase.EASING), 60, seconds=2, ms=ms)
    expected = 24 if ms == 270 else value
    assert (then.value, then.phase) == (expected, phase)


def test_calls_that_became_slow_are_measured_anew_and_then_fewer_are_tried() -> None:
    changed = after(KNEE, 200, seconds=5.1, ms=1000)
    assert (changed.value, changed.phase, changed.measured) == (24, Phase.HOLDING, 0)
    assert not changed.counts_answer(KNEE.epoch)
    fewer = after(changed, 120, seconds=5.1, ms=1000)
    assert (fewer.value, fewer.phase) == (13, Phase.EASING)


def test_where_no_lower_value_is_known_to_do_less_half_is_tried_once_a_higher_one_failed() -> None:
    unknown = replace(KNEE, floor=0)
    assert after(unknown, 240, seconds=5.1).value == 12
    assert after(replace(unknown, tried_ms=0), 240, seconds=5.1).value != 12
    assert after(replace(unknown, ceiling=30), 240, seconds=5.1).value == 24


def test_no_more_calls_are_made_where_each_token_takes_four_times_as_long() -> None:
    slow = replace(trial(KNEE, 30), best_unit_ms=1.0)
    then = after(slow, 60, seconds=1.5, ms=500)
    assert (then.value, then.phase, then.reason) == (30, Phase.HOLDING, "each token takes too long")


def test_without_usage_answers_are_counted() -> None:
    base = replace(KNEE, length=0.0, best_unit_ms=500.0)
    limit = trial(base, 30)
    flow = seen(60, limit=limit, ms=500, seconds=1.5, tokens=0)
    assert step(limit, flow, cap=CAP, now_ms=NOW + 1500).value == 45
    flow = seen(60, limit=limit, ms=625, seconds=1.5, tokens=0)
    assert step(limit, flow, cap=CAP, now_ms=NOW + 1500).value == 24


# ── all of it ──


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
