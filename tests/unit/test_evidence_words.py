"""Refusals in the same words: the endpoint's state when nobody else is answered, the jobs' own when others are."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Callable

import pytest

from schemas.failure import Failure, FailureKind
from tests.unit.test_evidence import Told
from worker.policy.outages import likeness, refusals_of_an_endpoint
from worker.policy.retry import Attribution

K = FailureKind
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
Words = Callable[[random.Random], str]
WORDS: dict[str, Words] = {
    "the same": lambda rng: "You have reached the limit of your plan. Ask your administrator.",
    "a date": lambda rng: (
        f"Access ends. You will regain it on {rng.choice(['Mon', 'Tuesday', 'Fri'])}, {rng.randint(1, 28)} "
        f"{rng.choice(['January', 'Feb', 'May', 'Sept'])} 2026 at 1{rng.randint(0, 9)}:00 UTC."
    ),
    "counts": lambda rng: f"Plan spent: {rng.randint(1, 9_999_999):,} of 1000 tokens, requested ~{rng.randint(1, 9**5)}",
    "a share": lambda rng: f"Plan spent: {rng.random() * 300:.2f}% ({rng.randint(1, 50)}k tokens)",
    "a uuid": lambda rng: f"Closed ({uuid.UUID(int=rng.getrandbits(128))})",
    "an id in hex": lambda rng: f"Closed. request id: req_{rng.getrandbits(96):x}",
    "an id of letters and digits": lambda rng: "Closed, req_011" + "".join(rng.choices(LETTERS + "0123456789-_", k=21)),
    "an id of letters alone": lambda rng: f"Closed (trace {''.join(rng.choices(LETTERS, k=24))})",
    "a model in quotes": lambda rng: f"The model `m-{rng.randint(1, 9)}` is gone, see 'https://e.test/{rng.random()}'",
    "a field in another place": lambda rng: f"messages.{rng.randint(0, 40)}.content: closed",
    "another script": lambda rng: f"账户已停用,请求编号{rng.getrandbits(64):x},请联系管理员",
}  # fmt: skip


def refused(words: str, status: int = 400) -> Failure:
    return Failure(K.REJECTED, words, http_status=status, body=b"{}")


@pytest.fixture
def told() -> Told:
    told = Told()
    for n in range(100):
        told.succeeds(f"before{n}")
    return told


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize("name", WORDS)
def test_what_differs_from_job_to_job_does_not_hide_the_same_words(
    told: Told, name: str, status: int
) -> None:
    rng, handful = random.Random(3), 5 if status == 400 else 3
    found = [told.fails(f"job{n}", refused(WORDS[name](rng), status)) for n in range(handful)]
    assert found[-1] is Attribution.ENDPOINT and Attribution.ENDPOINT not in found[:-1]


def test_other_words_are_not_the_same() -> None:
    words = ["no such field", "no such model", "too long", "temperature must be above 0", "messages is empty"]
    assert len({likeness(refused(one), "m") for one in words}) == len(words)
    assert likeness(refused("no such field"), "m") != likeness(refused("no such field"), "n")


@pytest.mark.parametrize("status", [400, 404])
def test_refusals_beside_answers_are_the_jobs_own_even_if_only_one_of_ten_is_answered(
    told: Told, status: int
) -> None:
    rng, found = random.Random(5), list[Attribution]()
    for n in range(20_000):
        if rng.random() < 0.1:
            told.succeeds(f"good{n}")
        else:
            found.append(told.fails(f"bad{n}", refused("no such field", status)))
    closed = [n for n, one in enumerate(found) if one is Attribution.ENDPOINT]
    # Nothing tells the first run of a mix from an outage. The first answers after it do.
    assert len(closed) <= 20 and all(n < 100 for n in closed)
    if status == 400:
        assert Counter(found[100:]) == {Attribution.UNKNOWN: len(found) - 100}, "each fails at once"


def test_a_refused_job_of_a_mix_is_known_by_its_second_refusal(told: Told) -> None:
    for n in range(20):
        told.fails(f"bad{n}", refused("gone", 404))
        told.succeeds(f"good{n}")
    told.fails("a", refused("gone", 404))
    told.fails("b", refused("gone", 404))
    told.succeeds("c")
    assert told.fails("a", refused("gone", 404)) is told.fails("b", refused("gone", 404)) is Attribution.JOB


def test_an_outage_in_a_mixs_words_is_still_found_and_one_in_other_words_at_once(told: Told) -> None:
    for n in range(200):
        told.fails(f"bad{n}", refused("no such field"))
        told.succeeds(f"good{n}")
    found = [told.fails(f"capped{n}", refused("plan spent")) for n in range(5)]
    assert found[-1] is Attribution.ENDPOINT
    found = [told.fails(f"worse{n}", refused("no such field")) for n in range(30)]
    assert found.index(Attribution.ENDPOINT) == 19


def test_answers_to_calls_from_before_the_outage_do_not_make_it_a_mix(told: Told) -> None:
    started = [told.begin() for _ in range(10)]
    first = told.order
    for n in range(10):
        told.fails(f"capped{n}", refused("plan spent", 404))
        told.evidence.succeeded(f"late{n}", "m", began=first - len(started), now_s=told.now_s)
    found = [told.fails(f"next{n}", refused("plan spent", 404)) for n in range(3)]
    assert found[-1] is Attribution.ENDPOINT


def test_an_outage_that_is_long_over_is_forgotten(told: Told) -> None:
    for n in range(12):
        told.fails(f"capped{n}", refused("plan spent"))
    told.evidence.reopened(told.now_s)
    for n in range(300):
        told.succeeds(f"between{n}")
    found = [told.fails(f"again{n}", refused("plan spent")) for n in range(5)]
    assert found[-1] is Attribution.ENDPOINT


@pytest.mark.parametrize(
    ("share", "jobs"), [(0.0, (3, 5)), (0.05, (3, 5)), (0.5, (20, 20)), (0.9, (132, 132)), (1.0, (200, 200))]
)
def test_the_more_often_words_come_beside_answers_the_longer_a_run_of_them_must_be(
    share: float, jobs: tuple[int, int]
) -> None:
    both = refused("x", 404), refused("x", 400)
    assert tuple(refusals_of_an_endpoint(failure, share) for failure in both) == jobs
