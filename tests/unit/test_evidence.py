"""Attribution a failure is, told by what came of other jobs' calls."""

from __future__ import annotations

import random
from typing import Any

import pytest

from schemas.failure import Failure, FailureKind
from worker.policy.gates import Gate
from worker.policy.outages import is_trouble, shortest_outage
from worker.policy.retry import Attribution
from worker.throttle.evidence import Evidence, Verdict

K = FailureKind
DOWN = Failure(K.SERVER_ERROR, "HTTP 503", http_status=503)
GONE = Failure(K.REJECTED, "The model `m` does not exist", http_status=404)
PAGE = Failure(K.REJECTED, "an HTML page", http_status=403, body=b"<html>Just a moment</html>")
WRONG = Failure(K.REJECTED, "max_tokens must be at least 1, not 0", http_status=422, body=b"{}")
DENIED = Failure(K.UNAUTHORIZED, "key not allowed", http_status=401)
SHUT = Gate(K.SERVER_ERROR, 0, 1, needs_probe=True)


class Told:
    """An endpoint's answers, told to one process in order, a tenth of a second apart."""

    def __init__(self, *, is_proven: bool = True, has_others: bool = True) -> None:
        self.evidence = Evidence()
        self.now_s = 1000.0
        self.order = 1
        self.calls = 0
        self.is_proven = is_proven
        self.has_others = has_others
        self.was_asked_for_others = 0

    def succeeds(
        self, job: str, *, model: str = "m", took_s: float = 0.05, number: int | None = None
    ) -> None:
        self.now_s += 0.1
        if number is None:
            number = self.begin()
        else:
            self.order += 1
        began = self.order if took_s < 1 else self.order - 2  # a long call began before what came last
        self.evidence.succeeded(job, model, began=began, now_s=self.now_s, number=number)

    def begin(self) -> int:
        """A call begins: its number."""
        self.order += 1
        self.calls += 1
        return self.calls

    def fails(
        self,
        job: str,
        failure: Failure = DOWN,
        *,
        model: str = "m",
        gate: Gate | None = None,
        is_probe: bool = False,
        is_last: bool = False,
        after_s: float = 0.1,
        tries: int = 1,
        waited_s: float = 0.0,
    ) -> Attribution:
        return self.verdict(
            job, failure, model, gate, is_probe, is_last, after_s, tries=tries, waited_s=waited_s
        ).attribution

    def verdict(
        self,
        job: str,
        failure: Failure,
        model: str = "m",
        gate: Gate | None = None,
        is_probe: bool = False,
        is_last: bool = False,
        after_s: float = 0.1,
        is_only: bool = False,
        number: int | None = None,
        **known: Any,
    ) -> Verdict:
        def has_others() -> bool:
            self.was_asked_for_others += 1
            return self.has_others

        self.now_s += after_s
        number = self.begin() if number is None else number
        self.order += 1
        return self.evidence.judge(
            job,
            model,
            failure,
            gate=gate,
            is_probe=is_probe,
            is_proven=self.is_proven,
            is_last=is_last,
            is_only=is_only,
            has_others=has_others,
            number=number,
            calls=self.calls,
            order=self.order,
            now_s=self.now_s,
            **known,
        )


@pytest.fixture
def told() -> Told:
    told = Told()
    for n in range(100):
        told.succeeds(f"before{n}")
    return told


def test_three_different_jobs_that_fail_in_a_row_are_the_endpoints_trouble(told: Told) -> None:
    assert [told.fails(job) for job in "abc"] == [
        Attribution.UNKNOWN,
        Attribution.UNKNOWN,
        Attribution.ENDPOINT,
    ]


@pytest.mark.parametrize(
    "failure",
    [
        Failure(K.TIMEOUT, "no byte for 300 s"),
        Failure(K.UNREACHABLE, "connection reset"),
        Failure(K.BAD_RESPONSE, "an HTML page", http_status=200, body=b" <html>"),
        Failure(K.BAD_RESPONSE, "the body is empty", http_status=200),
        Failure(K.SERVER_ERROR, "overloaded", http_status=529),
    ],
)
def test_kinds_of_trouble_mix(told: Told, failure: Failure) -> None:
    assert [told.fails("a"), told.fails("b", failure), told.fails("c")][-1] is Attribution.ENDPOINT


def test_a_success_in_between_begins_the_count_anew(told: Told) -> None:
    for round_ in range(10):
        assert told.fails(f"a{round_}") is told.fails(f"b{round_}") is Attribution.UNKNOWN
        told.succeeds(f"c{round_}")


def test_an_answer_to_a_call_from_before_the_failed_ones_proves_nothing_of_them(told: Told) -> None:
    slow = [told.begin() for _ in range(8)]
    found = []
    for n, number in enumerate(slow):
        found.append(told.fails(f"quick{n}"))
        told.succeeds(f"slow{n}", number=number, took_s=60)
    assert Attribution.ENDPOINT in found
    assert told.evidence.failure_rate < 0.01, "nor is it the usual rate"


def test_one_job_that_fails_alone_is_nobodys_outage(told: Told) -> None:
    assert {told.fails("a", after_s=10) for _ in range(20)} == {Attribution.UNKNOWN}


def test_jobs_that_failed_before_while_others_were_answered_close_no_gate(told: Told) -> None:
    """Three documents that always crash the server are left at the end of a batch of thousands."""
    for job in "abc":
        told.fails(job)
        told.succeeds(f"beside {job}")
    assert {told.fails(job) for _ in range(5) for job in "abc"} == {Attribution.UNKNOWN}


def test_a_local_failure_is_not_the_endpoints() -> None:
    assert is_trouble(Failure(K.UNREACHABLE, "refused", was_sent=False))
    assert not is_trouble(Failure(K.UNREACHABLE, "Too many open files", was_sent=False, is_local=True))


def test_an_answer_without_choices_may_be_one_requests_and_closes_no_gate(told: Told) -> None:
    odd = Failure(K.BAD_RESPONSE, "no choices", http_status=200, body=b'{"choices": []}')
    assert {told.fails(f"job{n}", odd) for n in range(30)} == {Attribution.UNKNOWN}


def test_what_fails_while_the_gate_is_shut_is_the_outages(told: Told) -> None:
    assert told.fails("in flight", gate=SHUT) is Attribution.ENDPOINT
    assert told.fails("probe", gate=SHUT, is_probe=True) is Attribution.ENDPOINT
    assert told.fails("in flight too", GONE, gate=SHUT) is Attribution.ENDPOINT


def test_a_gate_that_is_shut_for_a_key_excuses_no_server_error(told: Told) -> None:
    assert told.fails("a", gate=Gate(K.UNAUTHORIZED, 0, 1, needs_probe=True)) is Attribution.UNKNOWN


def test_a_last_attempt_is_not_spent_while_others_fail_too(told: Told) -> None:
    assert told.fails("a", is_last=True) is Attribution.UNKNOWN
    assert told.fails("b", is_last=True) is Attribution.UNDECIDED
    told = Told()
    told.fails("a")
    asked = [told.verdict("b", DOWN, is_last=True) for _ in range(5)]
    assert [one.asked for one in asked[:3]] == [0, 1, 2], "and not for ever"
    assert asked[3].attribution is Attribution.UNKNOWN


REFUSED = Failure(K.UNREACHABLE, "connection refused", was_sent=False)


def test_an_endpoint_that_was_not_even_reached_is_the_tables_matter() -> None:
    told = Told()
    assert {told.fails(f"job{n}", REFUSED, is_last=True) for n in range(2)} == {Attribution.UNKNOWN}
    told.succeeds("answered")
    assert told.fails("much later", REFUSED, is_last=True, after_s=5) is Attribution.UNKNOWN


def test_connections_that_are_refused_while_others_are_answered_are_an_outage_once_nobody_is(
    told: Told,
) -> None:
    for n in range(20):
        assert told.fails(f"one backend of several {n}", REFUSED) is Attribution.UNDECIDED
        for beside in range(50):
            told.succeeds(f"beside {n} {beside}")
    found = [told.fails(f"all {n}", REFUSED, is_last=True) for n in range(9)]
    assert found[0] is Attribution.UNDECIDED, "and no attempt is burnt"
    assert Attribution.ENDPOINT in found[:6]
    assert {found[n] for n in range(6, 9)} == {Attribution.ENDPOINT}


def test_jobs_of_one_attempt_fail_by_it_and_say_nothing_of_the_endpoint(told: Told) -> None:
    found = [told.verdict(f"job{n}", DOWN, is_last=True, is_only=True).attribution for n in range(20)]
    assert set(found) == {Attribution.UNKNOWN}


@pytest.mark.parametrize(
    ("rate", "length"), [(0.0, 3), (0.01, 3), (0.05, 5), (0.2, 10), (0.3, 13), (0.5, 20), (0.95, 20)]
)
def test_a_run_has_to_be_longer_the_flakier_the_endpoint_is(rate: float, length: int) -> None:
    assert shortest_outage(rate) == length


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_a_flaky_endpoint_is_taken_for_an_outage_hardly_ever(rate: float) -> None:
    told, rng, closed = Told(), random.Random(3), 0
    for n in range(20_000):
        if rng.random() < rate:
            closed += told.fails(f"job{n}") is Attribution.ENDPOINT
        else:
            told.succeeds(f"job{n}")
    assert closed <= 4
    assert abs(told.evidence.failure_rate - rate) < 0.2


def test_failures_that_come_sooner_than_answers_are_no_outage() -> None:
    told = Told()
    for n in range(300):
        told.fails(f"f{n}") if n % 4 == 0 else told.succeeds(f"s{n}")
    # Of five hundred calls that begin together, a quarter fails before the first of the others is answered.
    wave = [told.begin() for _ in range(500)]
    found = {told.verdict(f"w{n}", DOWN, number=began).attribution for n, began in enumerate(wave[::4])}
    assert found == {Attribution.UNKNOWN}
    rest = [told.verdict(f"v{n}", DOWN, number=began).attribution for n, began in enumerate(wave[1::4])]
    assert rest[-1] is Attribution.ENDPOINT, "so many more than usual are no accident"


def test_answers_to_calls_from_before_the_gate_closed_teach_that_the_endpoint_is_flaky(told: Told) -> None:
    for n in range(3):
        told.fails(f"job{n}")
    for n in range(100):
        told.fails(f"late{n}", gate=SHUT)
    told.succeeds("late", took_s=60)
    assert told.evidence.failure_rate > 0.4
    told = Told()
    for n in range(100):
        told.fails(f"late{n}", gate=SHUT)
    told.evidence.reopened(told.now_s)  # by a probe: it was an outage
    told.succeeds("probe")
    assert told.evidence.failure_rate < 0.1


@pytest.mark.parametrize("failure", [GONE, PAGE, Failure(K.REJECTED, "HTTP 405", http_status=405)])
def test_a_refusal_is_left_open_until_another_answer_tells(told: Told, failure: Failure) -> None:
    assert told.fails("a", failure) is Attribution.UNDECIDED
    told.succeeds("b")
    assert told.fails("a", failure) is Attribution.JOB


def test_the_same_refusal_of_three_jobs_in_a_row_is_the_endpoints(told: Told) -> None:
    assert [told.fails(job, GONE) for job in "abc"] == [
        Attribution.UNDECIDED,
        Attribution.UNDECIDED,
        Attribution.ENDPOINT,
    ]
    assert told.fails("a", GONE, gate=Gate(K.REJECTED, 0, 1, needs_probe=True)) is Attribution.ENDPOINT


def test_a_job_refused_in_two_outages_is_not_taken_for_the_cause_of_the_second(told: Told) -> None:
    for job in "abc":
        told.fails(job, PAGE)
    told.evidence.reopened(told.now_s)
    told.succeeds("d")
    assert told.fails("e", PAGE) is Attribution.UNDECIDED
    assert told.fails("a", PAGE) is Attribution.UNDECIDED
    assert told.fails("b", PAGE) is Attribution.ENDPOINT


def test_the_refusals_of_a_model_that_is_not_there_end_while_another_model_is_served(told: Told) -> None:
    found: dict[str, Attribution] = {}
    for round_ in range(4):
        for n in range(6):
            found[f"x{n}"] = told.fails(f"x{n}", GONE, model="x")
        told.succeeds(f"y{round_}", model="y")
    assert set(found.values()) == {Attribution.JOB}
    assert told.fails("x new", GONE, model="x") is Attribution.JOB, "known by now"
    told.succeeds("x again", model="x")
    assert told.fails("x newer", GONE, model="x") is Attribution.UNDECIDED, "and served since"


def test_a_request_that_is_wrong_fails_at_once_and_many_with_the_same_words_are_the_endpoints(
    told: Told,
) -> None:
    found = [told.fails(f"job{n}", WRONG) for n in range(5)]
    assert found == [Attribution.UNKNOWN, *[Attribution.UNDECIDED] * 3, Attribution.ENDPOINT]
    told.succeeds("fine")
    assert told.fails("one more", WRONG) is Attribution.UNKNOWN


def test_a_refused_job_that_is_alone_fails_at_once(told: Told) -> None:
    told.has_others = False
    assert told.fails("a", GONE) is Attribution.UNKNOWN
    assert told.was_asked_for_others == 1


def test_a_refusal_that_nothing_tells_about_is_not_left_open_for_ever(told: Told) -> None:
    found = [told.fails("a", GONE, after_s=8) for _ in range(6)]
    assert found == [*[Attribution.UNDECIDED] * 5, Attribution.JOB]


def test_an_endpoint_that_never_worked_is_judged_by_the_table_alone() -> None:
    told = Told(is_proven=False)
    assert told.fails("a", GONE) is Attribution.UNKNOWN


@pytest.mark.parametrize("failure", [DENIED, Failure(K.QUOTA, "more credits", http_status=402)])
def test_a_refused_key_is_the_jobs_own_once_another_was_served_with_it(told: Told, failure: Failure) -> None:
    assert told.fails("a", failure) is Attribution.UNKNOWN
    told.succeeds("in flight before", took_s=5)
    assert told.fails("a", failure) is Attribution.UNKNOWN, "that call began while the key was good for all"
    told.succeeds("after")
    assert told.fails("a", failure) is Attribution.JOB
    assert told.fails("b", failure) is Attribution.UNDECIDED, "known by now: nobody else has to wait for it"


def test_a_refused_key_with_nobody_else_to_ask_ends_its_job_where_it_worked_a_moment_ago(told: Told) -> None:
    told.has_others = False
    gate = Gate(K.UNAUTHORIZED, 0, 1, needs_probe=True, jobs=("a",))
    assert told.fails("a", DENIED) is Attribution.UNKNOWN
    assert told.fails("a", DENIED, gate=gate, after_s=3, tries=2, waited_s=3) is Attribution.UNKNOWN
    assert told.fails("a", DENIED, gate=gate, after_s=4, tries=3, waited_s=7) is Attribution.JOB


def test_a_key_that_a_command_has_just_found_taken_is_known_to_work_in_a_new_process() -> None:
    told = Told(has_others=False)
    gate = Gate(K.UNAUTHORIZED, 0, 1, needs_probe=True, jobs=("a",))
    known: dict[str, Any] = {"tries": 3, "waited_s": 7.0}
    assert told.verdict("a", DENIED, gate=gate, **known).attribution is Attribution.UNKNOWN
    assert (
        told.verdict("a", DENIED, gate=gate, was_accepted=lambda: True, **known).attribution
        is Attribution.JOB
    )
    told.has_others = True
    assert (
        told.verdict("a", DENIED, gate=gate, was_accepted=lambda: True, **known).attribution
        is not Attribution.JOB
    )


@pytest.mark.parametrize("what", ["others wait", "others are refused", "never worked"])
def test_a_refused_key_is_waited_for_where_it_may_be_everybodys(what: str) -> None:
    told = Told(has_others=what == "others wait")
    if what != "never worked":
        told.succeeds("before")
    jobs = ("a", "b") if what == "others are refused" else ("a",)
    gate = Gate(K.UNAUTHORIZED, 0, 1, needs_probe=True, jobs=jobs)
    found = {told.fails("a", DENIED, gate=gate, after_s=3, tries=n, waited_s=3.0 * n) for n in range(1, 9)}
    assert found == {Attribution.UNKNOWN}
