"""The simulator's models of endpoints: pure arithmetic, with the time as an argument."""

from __future__ import annotations

import math
from typing import Any

import pytest

from api_client.simulator import SimulatorConfig, count_tokens
from api_client.simulator.batching import Sharing
from api_client.simulator.completion import compose_completion
from api_client.simulator.lengths import draw_length
from api_client.simulator.limits import format_duration
from api_client.simulator.rate_shapes import Bucket, FixedWindow
from api_client.simulator.rate_window import RateWindow
from api_client.simulator.series import Series
from api_client.simulator.slope import Slope
from api_client.simulator.timetable import parse_step


def test_a_call_alone_gets_its_whole_rate() -> None:
    sharing = Sharing(rate=10.0, knee=2, now=0.0)
    ticket = sharing.enter(30, now=0.0)
    assert sharing.next_end_in_s() == pytest.approx(3.0)
    assert sharing.pop_done(2.9) == []
    assert sharing.pop_done(3.0) == [ticket]
    assert (sharing.in_flight, sharing.next_end_in_s()) == (0, None)


def test_calls_beyond_the_knee_share_what_the_knee_gets() -> None:
    sharing = Sharing(rate=10.0, knee=2, now=0.0)
    tickets = [sharing.enter(10, now=0.0) for _ in range(4)]
    assert sharing.next_end_in_s() == pytest.approx(2.0), "40 tokens at 20 a second"
    assert sharing.pop_done(2.0) == tickets


def test_a_call_that_comes_later_ends_later_and_slows_the_first() -> None:
    sharing = Sharing(rate=10.0, knee=1, now=0.0)
    first = sharing.enter(10, now=0.0)
    second = sharing.enter(10, now=0.5)
    assert sharing.pop_done(1.4) == []
    assert sharing.pop_done(1.5) == [first], "5 alone, and 5 at half the rate"
    assert sharing.pop_done(2.0) == [second]


def test_what_leaves_early_frees_its_share() -> None:
    sharing = Sharing(rate=10.0, knee=1, now=0.0)
    first, second = sharing.enter(10, now=0.0), sharing.enter(10, now=0.0)
    sharing.leave(first, now=1.0)
    assert sharing.next_end_in_s() == pytest.approx(0.5)
    assert sharing.pop_done(1.5) == [second]


def test_a_call_that_is_looked_at_late_takes_no_share_after_its_end() -> None:
    sharing = Sharing(rate=10.0, knee=1, now=0.0)
    tickets = [sharing.enter(tokens, now=0.0) for tokens in (10, 30)]
    assert sharing.pop_done(4.0) == tickets, "2 s for the first, then 2 s for the other's last 20 alone"
    late = Sharing(rate=10.0, knee=1, now=0.0)
    first, _ = (late.enter(tokens, now=0.0) for tokens in (10, 30))
    late.leave(first, now=3.0)
    assert late.next_end_in_s() == pytest.approx(1.0)


def test_a_change_of_the_knee_counts_for_what_is_in_flight() -> None:
    sharing = Sharing(rate=10.0, knee=0, now=0.0)
    ticket = sharing.enter(10, now=0.0)
    assert sharing.next_end_in_s() is None
    sharing.configure(rate=10.0, knee=1, now=5.0)
    assert sharing.pop_done(6.0) == [ticket]


def test_the_window_counts_amounts_and_says_when_enough_has_left() -> None:
    window = RateWindow()
    for now in (0.0, 10.0):
        assert window.admit(b"k", limit=100, amount=40, now=now) == 0.0
    assert window.admit(b"k", limit=100, amount=40, now=20.0) == 40.0
    assert window.admit(b"k", limit=100, amount=70, now=20.0) == 50.0
    assert window.admit(b"k", limit=100, amount=101, now=20.0) == math.inf
    assert window.used(b"k", now=20.0) == (80, 50.0)
    assert window.used(b"k", now=65.0) == (40, 5.0)
    assert window.used(b"other", now=65.0) == (0, 0.0)


def test_a_fixed_window_gives_all_of_it_back_at_its_end() -> None:
    window = FixedWindow()
    assert [window.admit(b"k", limit=2, now=now) for now in (110.0, 119.0)] == [0.0, 0.0]
    assert window.admit(b"k", limit=2, now=119.5) == 0.5
    assert window.used(b"k", now=119.5) == (2, 0.5)
    assert window.admit(b"other", limit=2, now=119.5) == 0.0
    assert window.admit(b"k", limit=2, now=120.0) == 0.0
    assert window.used(b"k", now=121.0) == (1, 59.0)
    assert window.admit(b"k", limit=2, now=121.0, amount=3) == float("inf")


def test_a_bucket_gives_it_back_evenly() -> None:
    bucket = Bucket()
    assert [bucket.admit(b"k", limit=60, now=100.0, amount=amount) for amount in (59, 1, 1)] == [
        0.0,
        0.0,
        1.0,
    ]
    assert bucket.used(b"k", limit=60, now=101.5) == (59, 58.5)
    assert bucket.admit(b"k", limit=60, now=101.5) == 0.0
    assert bucket.used(b"k", limit=60, now=300.0) == (0, 0.0)
    assert bucket.admit(b"k", limit=60, now=300.0, amount=61) == float("inf")


def test_calls_at_once_rise_as_fast_as_the_slope_and_no_faster() -> None:
    slope = Slope()
    in_flight, refused = 0, 0
    for tick in range(100):  # ten seconds
        while slope.admits(in_flight + 1, per_s=4.0, now=tick / 10):
            in_flight += 1
        refused += 1
    assert 40 <= in_flight <= 44
    assert refused == 100


def test_the_slope_remembers_a_level_for_a_while_and_then_begins_again() -> None:
    slope = Slope()
    for level in range(1, 101):
        assert slope.admits(level, per_s=10.0, now=level / 10)
    assert slope.admits(100, per_s=10.0, now=14.0)
    assert not slope.admits(100, per_s=10.0, now=60.0)
    assert slope.admits(10, per_s=10.0, now=60.0)


def test_a_slope_below_one_a_second_still_admits_a_call() -> None:
    assert Slope().admits(1, per_s=0.1, now=0.0)


def test_lengths_have_the_mean_that_was_asked_for() -> None:
    drawn = [draw_length(300, 0.8, seed=1, text=str(number)) for number in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(300, rel=0.06)
    assert min(drawn) >= 1 and max(drawn) > 1500
    assert draw_length(300, 0.0, seed=1, text="x") == 300


@pytest.mark.parametrize("tokens", [1, 5, 30, 500])
def test_an_answer_has_as_many_tokens_as_were_asked_for(tokens: int) -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "One. Two. Three."}]}
    completion = compose_completion(request, completion_id="r", created=1, tokens=tokens)
    assert completion["usage"]["completion_tokens"] == tokens
    assert count_tokens(completion["choices"][0]["message"]["content"]) == tokens
    assert completion["choices"][0]["finish_reason"] == "stop"


def test_the_series_says_how_many_calls_were_in_flight_in_the_mean() -> None:
    series = Series(100.0, 0)
    series.note(100.0, 2, calls=2)
    series.note(100.5, 0, paid=2, tokens=20, completion_tokens=8)
    series.note(101.25, 4, calls=4)
    nothing = {"calls": 0, "paid": 0, "refused": 0, "tokens": 0, "completion_tokens": 0, "mean_in_flight": 0}
    assert series.rows(102.0) == [
        {"at_s": 0, "calls": 2, "paid": 2, "refused": 0, "tokens": 20, "completion_tokens": 8, "max_in_flight": 2, "mean_in_flight": 1.0},
        nothing | {"at_s": 1, "calls": 4, "max_in_flight": 4, "mean_in_flight": 3.0},
        nothing | {"at_s": 2, "max_in_flight": 4},
    ]  # fmt: skip
    assert series.max_calls_per_s == 4


def test_the_series_keeps_an_hour_and_bears_a_long_silence() -> None:
    series = Series(0.0, 0)
    series.note(0.0, 1, calls=1)
    series.note(10_000.0, 0, paid=1)
    rows = series.rows(10_000.0)
    assert 3_600 <= len(rows) <= 3_601
    assert (rows[0]["calls"], sum(row["paid"] for row in rows)) == (0, 1)
    assert rows[10]["mean_in_flight"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.012, "12ms"), (1.5, "1.5s"), (20, "20s"), (60, "1m0s"), (361, "6m1s"), (3601.25, "1h0m1.25s")],
)  # fmt: skip
def test_a_duration_is_told_as_go_writes_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_step_of_a_timetable_is_read_from_a_command_line() -> None:
    assert parse_step("30:capacity=0.5,latency-s=2") == (30.0, {"capacity": 0.5, "latency_s": 2})
    assert parse_step("0:outage_status=none") == (0.0, {"outage_status": None})
    assert parse_step("1:refuse_code=busy, is_dead=true") == (1.0, {"refuse_code": "busy", "is_dead": True})


@pytest.mark.parametrize("text", ["", "30", "soon:capacity=1", "30:", "30:capacity", "30:=1"])
def test_a_step_of_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"as in 30:capacity=0\.5"):
        parse_step(text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"refuse_above": -1}, "refuse_above must be a whole number, at least 0, not -1"),
        ({"refuse_status": 500}, "refuse_status must be one of 402, 429, 503"),
        ({"refuse_code": ""}, "refuse_code must be a word"),
        ({"knee": 4}, "knee needs call_tokens_per_s"),
        ({"call_tokens_per_s": 0}, "call_tokens_per_s must be above 0"),
        ({"rate_window_s": 0}, "rate_window_s must be above 0"),
        ({"rate_shape": "round"}, "rate_shape must be one of sliding, window, bucket"),
        ({"capacity": -1}, "capacity must be at least 0, not -1"),
        ({"spent_keys": ["sk"]}, "spent_keys must be text: keys with commas between them"),
        ({"is_dead": 1}, "is_dead must be true or false"),
        ({"timetable": "30:capacity=1"}, "timetable must be a list of steps"),
        ({"timetable": [(-1, {"capacity": 1})]}, "a timetable's step needs at_s"),
        ({"timetable": [(1, {"capacity": -1})]}, "capacity must be at least 0, not -1"),
        ({"timetable": [(1, {"knee": 4})]}, "knee needs call_tokens_per_s"),
        ({"timetable": [(1, {"port": 4})]}, "port cannot be changed"),
        ({"timetable": [(1, {"timetable": []})]}, "a timetable cannot change the timetable"),
    ],
)
def test_a_senseless_model_is_refused_with_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SimulatorConfig(**options)


def test_the_steps_of_a_timetable_build_on_each_other() -> None:
    steps = [(5, {"knee": 4}), (1, {"call_tokens_per_s": 10.0})]
    assert [step.at_s for step in SimulatorConfig(timetable=steps).timetable] == [1, 5]  # type: ignore[arg-type]


def test_no_key_is_in_the_text_of_the_configuration() -> None:
    config = SimulatorConfig(key="sk-1", spent_keys="sk-2", revoked_keys="sk-3")
    assert "sk-" not in repr(config)
