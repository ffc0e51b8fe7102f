"""What is left to do, and when a draining worker ends, on both databases."""

from __future__ import annotations

from functools import partial
from threading import Event

import pytest
from structlog.testing import capture_logs

from schemas.failure import FailureKind
from tests.contract.test_ledger_wants import a_batch, want
from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    claim,
    claim_one,
    put,
    put_one,
    record,
    setback,
    success,
)
from worker.errors import BrokerAway
from worker.storage.batches import hold_batch
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_jobs
from worker.storage.pauses import pause, resume
from worker.storage.work_left import count_failed_since, has_work
from worker.upkeep.drain import Drain, Drained


def is_left(ledger: Ledger) -> bool:
    with ledger.read() as connection:
        return has_work(connection, ENDPOINT)


def test_a_job_is_left_until_it_has_ended(ledger: Ledger) -> None:
    assert not is_left(ledger)
    id_ = put_one(ledger)
    assert is_left(ledger), "it is ready"
    job = claim_one(ledger, id_)
    assert is_left(ledger), "it runs"
    record(ledger, setback(job, not_before_ms=NOW + 3_600_000))
    assert is_left(ledger), "it is tried again in an hour"
    ledger.run(partial(cancel_jobs, ids=[id_], now_ms=NOW))
    assert not is_left(ledger)
    put_one(ledger, endpoint="https://another.test")
    assert not is_left(ledger), "another endpoint's is another worker's"


def test_what_was_handed_to_the_broker_is_left(ledger: Ledger) -> None:
    put(ledger, a_job(), published_at_ms=NOW)
    assert is_left(ledger)


def test_a_run_that_was_stopped_keeps_no_worker(ledger: Ledger) -> None:
    jobs = want(ledger, a_batch(ledger, "b"), "x", "y")
    got = claim(ledger, jobs[0].id)
    ledger.run(partial(hold_batch, batch_id="b", now_ms=NOW))
    assert is_left(ledger), "a call of it is in flight"
    record(ledger, success(got[jobs[0].id]))
    assert not is_left(ledger)


def test_held_jobs_are_told_at_the_end_with_the_reason(ledger: Ledger) -> None:
    jobs = want(ledger, a_batch(ledger, "b"), "x", "y", "z")
    record(ledger, success(claim(ledger, jobs[0].id)[jobs[0].id]))
    want(ledger, a_batch(ledger, "c"), "w")
    for batch_id in "bc":
        ledger.run(partial(hold_batch, batch_id=batch_id, now_ms=NOW))
    drained = drain(ledger).run(Event())
    assert drained == Drained(0, {"b": 2, "c": 1})
    with capture_logs() as told:
        drained.tell()
    [held] = [entry for entry in told if entry["event"] == "worker.left_held_jobs"]
    assert (held["jobs"], held["batches"]) == (3, "b, c")
    words = " ".join(str(value) for value in held.values())
    assert "their run was stopped" in words
    assert "antrean cancel BATCH" in words
    with capture_logs() as told:
        Drained(1, {}).tell()
    assert [entry["event"] for entry in told] == ["worker.drained"]


def test_failures_are_counted_from_the_beginning_on(ledger: Ledger) -> None:
    for ended_at_ms, kind in ((NOW + 1, FailureKind.REJECTED), (NOW + 5, FailureKind.TIMEOUT)):
        record(ledger, setback(claim_one(ledger, put_one(ledger)), ended_at_ms=ended_at_ms, kind=kind))
    record(ledger, success(claim_one(ledger, put_one(ledger)), ended_at_ms=NOW + 6))
    ledger.run(partial(cancel_jobs, ids=[put_one(ledger)], now_ms=NOW + 7))
    with ledger.read() as connection:
        found = [count_failed_since(connection, ENDPOINT, since_ms=NOW + n) for n in (0, 2, 6)]
        assert found == [2, 1, 0]
        assert count_failed_since(connection, "https://another.test", since_ms=0) == 0


class Broker:
    """Answers what it was told to, one question after the other; then that nothing is there."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else False
        if isinstance(answer, Exception):
            raise answer
        return answer


def drain(ledger: Ledger, *, messages: Broker | None = None, in_hand: Broker | None = None) -> Drain:
    return Drain(
        ledger,
        FakeClock(NOW),
        endpoint=ENDPOINT,
        has_messages=messages or Broker(),
        is_busy=in_hand or Broker(),
        look_every_s=0.001,
    )


@pytest.mark.parametrize("kind", ["messages", "in_hand"])
def test_one_quiet_look_is_not_enough_and_a_busy_one_begins_anew(ledger: Ledger, kind: str) -> None:
    source = Broker(True, False, True, False, False, True)
    assert drain(ledger, **{kind: source}).run(Event()) == Drained(0, {})
    assert source.answers == [True], "it ended after two quiet looks in a row"


def test_a_broker_that_does_not_answer_keeps_the_worker(ledger: Ledger) -> None:
    messages = Broker(False, BrokerAway("away"), False, False)
    assert drain(ledger, messages=messages).run(Event()) == Drained(0, {})
    assert messages.asked == 4


def test_it_tells_how_many_failed_meanwhile(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))

    class Ends(Broker):
        def __call__(self) -> bool:
            if self.asked == 3:
                record(ledger, setback(job))
            return super().__call__()

    messages = Ends()
    assert drain(ledger, messages=messages).run(Event()) == Drained(1, {})
    assert messages.asked == 5, "the job was left for three looks"


def test_a_worker_that_is_stopped_is_not_drained(ledger: Ledger) -> None:
    put_one(ledger)
    stopping = Event()
    stopping.set()
    assert drain(ledger).run(stopping) is None


def test_a_pause_is_waited_out_and_told_once(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    job = claim_one(ledger, put_one(ledger))
    ledger.run(partial(pause, endpoint=ENDPOINT, reason=None, now_ms=NOW))

    class Resumes(Broker):
        def __call__(self) -> bool:
            if self.asked == 5:
                ledger.run(partial(resume, endpoint=ENDPOINT))
                record(ledger, success(job))
            return super().__call__()

    assert drain(ledger, messages=Resumes()).run(Event()) == Drained(0, {})
    told = capsys.readouterr()
    assert (told.out + told.err).count("drain.waits_for_resume") == 1
