"""A producer waits for its broker 0.2 s at most, and once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from schemas.job import Due
from worker.broker.publishing import PromptPublisher
from worker.errors import BrokerAway

PATIENT_S = 30.0  # for a broker that answers: on a busy machine its thread may take its time
JOB = Due("a", 0, is_bulk=False)


class Broker:
    """Takes jobs while it is there; hangs, or refuses, while it is not."""

    def __init__(self) -> None:
        self.is_there = threading.Event()
        self.is_there.set()
        self.refuses = False
        self.taken: list[Due] = []
        self.asked = 0

    def take(self, due: Sequence[Due]) -> None:
        self.asked += 1
        self.is_there.wait(30)
        if self.refuses:
            raise BrokerAway("it is away")
        self.taken += due


def wait_until_it_is_back(publisher: PromptPublisher) -> None:
    end_s = time.monotonic() + 10
    while publisher.is_away():
        assert time.monotonic() < end_s
        threading.Event().wait(0.01)


def test_a_broker_that_answers_has_the_job_when_the_producer_goes_on() -> None:
    broker = Broker()
    publisher = PromptPublisher(broker.take, within_s=PATIENT_S)
    publisher.publish([JOB])
    assert broker.taken == [JOB]
    assert not publisher.is_away()


def test_a_broker_that_hangs_costs_one_caller_a_fifth_of_a_second_and_the_next_nothing() -> None:
    broker = Broker()
    broker.is_there.clear()
    publisher = PromptPublisher(broker.take)
    began_s = time.monotonic()
    with pytest.raises(BrokerAway, match=r"within 0\.2 s"):
        publisher.publish([JOB])
    assert 0.15 < time.monotonic() - began_s < 10, "it hangs for thirty"
    began_s = time.monotonic()
    assert all(publisher.is_away() for _ in range(100))
    assert time.monotonic() - began_s < 10, "a hundred waits would take twenty"
    broker.is_there.set()
    wait_until_it_is_back(publisher)
    publisher.publish([JOB])
    assert broker.taken == [JOB, JOB], "the first arrived late; its claim sorts that out"


def test_a_broker_that_refuses_is_away_until_it_was_asked_again() -> None:
    broker = Broker()
    broker.refuses = True
    publisher = PromptPublisher(broker.take, within_s=PATIENT_S)
    with pytest.raises(BrokerAway, match="it is away"):
        publisher.publish([JOB])
    assert publisher.is_away()
    broker.refuses = False
    wait_until_it_is_back(publisher)
    assert broker.taken == []
    assert broker.asked == 2, "nobody was asked but once a second"


def test_callers_of_many_threads_wait_at_the_same_time() -> None:
    broker = Broker()
    broker.is_there.clear()
    publisher = PromptPublisher(broker.take, within_s=1.0)
    failures = []

    def call() -> None:
        try:
            publisher.publish([JOB])
        except BrokerAway as exc:
            failures.append(exc)

    threads = [threading.Thread(target=call) for _ in range(8)]
    began_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert time.monotonic() - began_s < 5, "one after the other they would take eight"
    assert len(failures) == 8
    broker.is_there.set()


def test_a_defect_is_told_to_who_waits_and_the_next_one_is_served() -> None:
    broker = Broker()

    def take(due: Sequence[Due]) -> None:
        if not broker.asked:
            broker.asked += 1
            raise ValueError("of an option")
        broker.take(due)

    publisher = PromptPublisher(take, within_s=PATIENT_S)
    with pytest.raises(BrokerAway, match="ValueError"):
        publisher.publish([JOB])
    wait_until_it_is_back(publisher)
    publisher.publish([JOB])
    assert broker.taken == [JOB]
