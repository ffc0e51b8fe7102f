"""Which limits that answers tell are known to be of a minute: as OpenAI, Groq and gateways write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from schemas.rates import Allowance, RateHints
from worker.policy.told_limits import ENOUGH, Told, note_told
from worker.throttle.told import ToldLimits

Seen = Iterable[tuple[int, Allowance]]
DAY_S = 86_400.0


def evenly(limit: int, window_s: float, *, answers: int = 60, every_ms: int = 500) -> Seen:
    """A limit that comes back evenly: the reset is when all of it is back, to the millisecond."""
    for n in range(answers):
        used = 1 + n % 17
        yield n * every_ms, Allowance(limit, limit - used, round(used * window_s / limit, 3))


def at_once(limit: int, window_s: float, *, answers: int = 400, every_ms: int = 500) -> Seen:
    """A limit that comes back as a whole at the end of each window, told in whole seconds."""
    for n in range(answers):
        now_s = n * every_ms / 1000
        yield n * every_ms, Allowance(limit, limit - 1 - n % 13, float(round(window_s - now_s % window_s)))


def told_of(seen: Seen) -> int | None:
    told: Told | None = None
    for now_ms, allowance in seen:
        told = note_told(told, allowance, now_ms=now_ms)
    return None if told is None else told.per_minute


def in_turn(*several: Callable[[], Seen]) -> Seen:
    for some in zip(*(one() for one in several), strict=True):
        yield from some


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(evenly(60, 60), 60, id="OpenAI, requests"),
        pytest.param(evenly(160_000, 60), 160_000, id="OpenAI, tokens"),
        pytest.param(evenly(10_000_000, 60), None, id="resets below 5 ms say nothing"),
        pytest.param(((n * 60_000, Allowance(60, 59, 60.0)) for n in range(99)), None, id="60 an hour"),
        pytest.param(
            ((n * 60_000, Allowance(24, 23, 60.0)) for n in range(99)),
            None,
            id="24 an hour",
        ),
        pytest.param(evenly(2_000, 60), 2_000, id="more of them"),
        pytest.param(evenly(14_400, DAY_S), None, id="Groq, requests a day"),
        pytest.param(evenly(200, DAY_S), None, id="OpenAI, requests a day"),
        pytest.param(evenly(60, 1), None, id="a second's"),
        pytest.param(evenly(60, 3600), None, id="an hour's"),
        pytest.param(at_once(500, 60), 500, id="a fixed minute"),
        pytest.param(at_once(500, 60, answers=110), None, id="of which one end was seen"),
        pytest.param(at_once(500, 3600), None, id="a fixed hour"),
        pytest.param(at_once(500, DAY_S), None, id="a fixed day"),
        pytest.param(at_once(5, 1), None, id="a fixed second"),
        pytest.param(at_once(5, 1, every_ms=60_000), None, id="a fixed second, once a minute"),
        pytest.param(at_once(100, 30), None, id="half a minute"),
        pytest.param(
            in_turn(lambda: evenly(60, 60), lambda: evenly(500, 60)), None, id="two models with limits each"
        ),
        pytest.param(((n * 500, Allowance(60)) for n in range(99)), None, id="no reset"),
        pytest.param(((n * 500, Allowance(60, 60, 0.0)) for n in range(99)), None, id="never used"),
        pytest.param(((n * 500, Allowance(None, 5, 1.0)) for n in range(99)), None, id="-1 is no limit"),
        pytest.param(evenly(10**9, 60), None, id="absurd"),
    ],
)
def test_a_limit_is_one_of_a_minute_only_where_its_return_says_so(seen: Seen, expected: int | None) -> None:
    assert told_of(seen) == expected


def test_a_header_that_names_the_minute_is_believed_once_all_answers_say_so() -> None:
    told: Told | None = None
    for _ in range(ENOUGH - 1):
        told = note_told(told, Allowance(14_400, 9_000, 40_000.0), named=30, now_ms=0)
    assert told is not None and told.per_minute is None
    told = note_told(told, Allowance(14_400, 9_000, 40_000.0), named=30, now_ms=0)
    assert told is not None and told.per_minute == 30
    told = note_told(told, Allowance(14_400, 9_000, 40_000.0), named=60, now_ms=0)
    assert told is not None and told.per_minute is None, "another limit, which begins anew"


def test_what_does_not_fit_any_more_is_not_known_any_more() -> None:
    told: Told | None = None
    for now_ms, allowance in evenly(60, 60):
        told = note_told(told, allowance, now_ms=now_ms)
    for now_ms, allowance in evenly(60, 3600, answers=4):
        told = note_told(told, allowance, now_ms=now_ms)
    assert told is not None and told.per_minute is None


def test_a_process_keeps_what_it_was_told_by_key() -> None:
    told = ToldLimits()
    told.note(None, "a", now_ms=0)
    assert told.known() == {}
    for now_ms, allowance in evenly(60, 60):
        told.note(RateHints(requests=allowance), "a", now_ms=now_ms)
        told.note(RateHints(tokens=allowance, requests_per_minute=7), "b", now_ms=now_ms)
    assert told.known() == {("a", "requests"): 60, ("b", "requests"): 7, ("b", "tokens"): 60}
    for n in range(100):
        told.note(RateHints(requests_per_minute=7), f"key {n}", now_ms=0)
    assert len(told.known()) == 64, "those of keys that are long gone are forgotten"
