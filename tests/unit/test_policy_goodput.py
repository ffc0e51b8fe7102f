"""What the adaptive limit makes of the work that was done, decision by decision."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.limits import CAP, FIRST, KNEE, NOW, after, seen
from worker.policy.concurrency import Limit, Phase, step
from worker.policy.flow import Flow


def trial(base: Limit, value: int, *, phase: Phase = Phase.CLIMBING) -> Limit:
    return replace(base, value=value, phase=phase, is_warm=True)


@pytest.mark.parametrize(
    ("ms", "value", "phase"),
    [
        (500, 45, Phase.CLIMBING),  # a quarter more calls, a quarter more work: a bold step follows
        (570, 36, Phase.CLIMBING),  # 9 % more: a careful one
        (610, 24, Phase.HOLDING),  # 2 % more
        (625, 24, Phase.HOLDING),
        (900, 24, Phase.HOLDING),
    ],
)
def test_a_higher_value_stays_only_if_it_does_five_per_cent_more_work(
    ms: int, value: int, phase: Phase
) -> None:
    then = after(trial(KNEE, 30), 360, seconds=6, ms=ms)
    assert (then.value, then.phase) == (value, phase)


def test_a_step_up_that_surely_pays_or_surely_does_not_is_decided_at_once() -> None:
    """What all calls of a second share, as on a busy machine, is noise too: 9 % more in 1.5 s may be chance."""
    assert after(trial(KNEE, 30), 90, seconds=1.5, ms=500).value > 30
    assert after(trial(KNEE, 30), 60, seconds=1.5, ms=570) == trial(KNEE, 30)
    assert after(trial(KNEE, 30), 60, seconds=1.5, ms=625).value == 24
    cold = replace(trial(KNEE, 30), is_warm=False)
    assert after(cold, 60, seconds=1.5, ms=800).value == 24, "not even a second round is made"
    assert after(cold, 60, seconds=1.5, ms=625).value == 30


def test_where_a_higher_value_did_less_work_the_next_one_is_tried_later() -> None:
    same = after(trial(KNEE, 30), 60, seconds=1.5, ms=625)
    less = after(trial(KNEE, 30), 60, seconds=1.8, ms=800)
    assert after(same, 900, seconds=20).value > 24
    assert after(less, 900, seconds=20).value == 24
    assert after(less, 2300, seconds=50).value > 24


def test_work_is_that_of_the_calls_in_flight_where_a_part_of_the_limit_is_not_used() -> None:
    """Of 29, bulk jobs use 28, and of 35 only 33: that is not the same part, and would be a gain of 2 % for nothing."""
    base = replace(KNEE, value=29, good=29, measured=29, calls=28.0)
    tried = trial(base, 35)

    def then(calls: float) -> Limit:
        flow = replace(seen(360, limit=tried, ms=560, seconds=6), open_ms=round(calls * 6000))
        return step(tried, flow, cap=CAP, now_ms=NOW + 6000)

    assert then(35).value > 35  # 12 % more
    assert then(32).value == 29  # 2 % more
    assert then(35).calls == 35
    assert step(replace(tried, is_warm=False), Flow(), cap=CAP, now_ms=NOW + 6000).calls == 28


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


def test_of_fewer_than_six_answers_nothing_is_concluded() -> None:
    limit = trial(replace(KNEE, good=4, measured=4), 5)
    assert after(limit, 5, seconds=1.5) is limit
    assert after(limit, 6, seconds=1.5).value > 5


def test_what_is_gone_back_to_is_not_above_a_cap_that_became_lower() -> None:
    then = after(trial(KNEE, 12, phase=Phase.EASING), 60, seconds=3, cap=20)
    assert (then.value, then.good, then.phase) == (20, 20, Phase.HOLDING)


def test_without_usage_the_first_answers_which_are_short_do_not_say_how_fast_a_call_is() -> None:
    assert after(FIRST, 16, seconds=0.5).best_unit_ms == 5
    flow = seen(16, limit=FIRST, seconds=0.5, tokens=0)
    doubled = step(FIRST, flow, cap=CAP, now_ms=NOW + 500)
    assert (doubled.value, doubled.best_unit_ms) == (32, 0)


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
    assert after(noisy, 300, seconds=5.5, ms=570).value == 24
    assert after(noisy, 300, seconds=5.5, ms=480).value > 30


@pytest.mark.parametrize(
    ("ms", "value", "phase"),
    [
        (500, 24, Phase.HOLDING),  # half the calls, half the work
        (480, 24, Phase.HOLDING),  # in a straight line, 24 do what 23 could
        (400, 21, Phase.EASING),  # 20 could do it, and a few more are tried
        (270, 14, Phase.EASING),  # 7 % less
        (260, 12, Phase.HOLDING),  # 4 % less
        (250, 12, Phase.HOLDING),
    ],
)
def test_a_lower_value_stays_if_it_does_the_same_work(ms: int, value: int, phase: Phase) -> None:
    """If it does less, those are tried next that would do all the work in a straight line."""
    limit = trial(KNEE, 12, phase=Phase.EASING)
    then = after(limit, 240, seconds=6, ms=ms)
    assert (then.value, then.phase) == (value, phase)
    assert then.floor == (16 if value == 12 else 12)


def test_a_lower_value_is_tried_where_calls_became_slower_and_more_calls_did_no_more_work() -> None:
    """As after a first doubling beyond the knee, where a lower value seemed to do less by chance."""
    crowded = replace(KNEE, value=32, good=32, measured=32, floor=27, best_unit_ms=4.4)
    tried = trial(crowded, 38)
    lower = after(tried, 360, seconds=6, ms=594)
    assert (lower.value, lower.phase, lower.measured) == (29, Phase.EASING, 32)
    assert after(lower, 100, seconds=2, ms=453).is_warm
    then = after(replace(lower, is_warm=True), 360, seconds=6, ms=453)
    assert (then.value, then.phase) == (29, Phase.HOLDING)
    gained = after(tried, 360, seconds=6, ms=575)
    assert (gained.value, gained.phase) == (32, Phase.HOLDING), "3 % more: the knee is not below"


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


def test_without_usage_the_calls_above_a_lower_value_must_have_ended_before_it_is_measured() -> None:
    """Those that end now were begun when there were more: they would look like the work of fewer."""
    base = replace(KNEE, length=0.0, best_unit_ms=500.0)
    begun = replace(trial(base, 12, phase=Phase.EASING), is_warm=False)
    early, late = (seen(20, limit=begun, ms=400, seconds=at_s, tokens=0) for at_s in (0.9, 1.0))
    assert step(begun, early, cap=CAP, now_ms=NOW + 900) is begun
    assert step(begun, late, cap=CAP, now_ms=NOW + 1000).is_warm


def test_without_usage_and_with_lengths_that_differ_much_all_that_ended_are_counted() -> None:
    """Of the calls that began at this value the short ones ended first; in all that ended, there are long ones as ever."""
    base = replace(KNEE, length=0.0, best_unit_ms=500.0, call_noise=0.02)
    limit = trial(base, 30)
    short = Flow(answers=400, call_ms=40_000, ms_ms=40_000_000, full_ms=30 * 6000, ended=288)
    then = step(limit, short, cap=CAP, now_ms=NOW + 6000)
    assert (then.value, then.phase) == (24, Phase.HOLDING)  # 288 in 6 s are no more than 24 calls of 0.5 s
    more = replace(short, ended=400)
    assert step(limit, more, cap=CAP, now_ms=NOW + 6000).value > 30
