"""The place of a probe is given back on every way out of an attempt: until then no other probe may begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from schemas.failure import FailureKind
from tests.support.house import House
from tests.support.ledger import NOW
from worker.attempt.report import Verdict
from worker.errors import Stopping
from worker.storage.errors import WriterStopped
from worker.storage.tables import jobs


def raising(exc: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise exc

    return fail


def claim_breaks(house: House, id_: str) -> None:
    def answer(_id: str, reply: Any, **_options: Any) -> None:
        reply.set_exception(KeyError("a defect"))

    house.writer.begin_claim = answer  # type: ignore[method-assign]


def writer_has_stopped(house: House, id_: str) -> None:
    house.writer.begin_claim = raising(WriterStopped())  # type: ignore[method-assign]


def worker_stops_before_the_call(house: House, id_: str) -> None:
    attempt = house.executor.attempt

    def stop_and_attempt(*args: Any, **options: Any) -> Any:
        house.dispatcher.stop()
        return attempt(*args, **options)

    house.executor.attempt = stop_and_attempt  # type: ignore[method-assign]


def worker_stops_in_the_call(house: House, id_: str) -> None:
    house.client.complete = raising(Stopping())  # type: ignore[method-assign]


def call_is_cut(house: House, id_: str) -> None:
    house.client.cut_all_calls()


def call_breaks(house: House, id_: str) -> None:
    house.client.complete = raising(KeyError("a defect"))  # type: ignore[method-assign]


def nothing_is_to_be_had(house: House, id_: str) -> None:
    with house.ledger.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == id_).values(state="succeeded"))


def answer_is_not_read(house: House, id_: str) -> None:
    house.client.complete = lambda *_, **__: None  # type: ignore[method-assign,assignment]


def success_is_not_noted(house: House, id_: str) -> None:
    house.gates.succeeded = raising(KeyError("a defect"))  # type: ignore[method-assign]


def failure_is_not_judged(house: House, id_: str) -> None:
    house.simulator.set_faults(outage_status=500)
    house.route.judge._whose = raising(KeyError("a defect"))  # type: ignore[method-assign]


def gate_is_not_told(house: House, id_: str) -> None:
    house.simulator.set_faults(outage_status=500)
    house.gates.shut = raising(KeyError("a defect"))  # type: ignore[method-assign]


def answer_is_not_recorded(house: House, id_: str) -> None:
    house.writer.record = raising(KeyError("a defect"))  # type: ignore[method-assign]


def runs_alone(house: House, id_: str) -> None:
    with house.ledger.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == id_).values(losses=2, published_at_ms=NOW))


def runs_alone_after_another(house: House, id_: str) -> None:
    runs_alone(house, id_)
    assert house.dispatcher._turns.begin("another")


def runs_alone_and_its_claim_breaks(house: House, id_: str) -> None:
    runs_alone(house, id_)
    claim = house.writer.claim

    def claim_beside_others(job_id: str, **options: Any) -> Any:
        if options.get("is_alone"):
            raise WriterStopped
        return claim(job_id, **options)

    house.writer.claim = claim_beside_others  # type: ignore[method-assign]


def runs_alone_and_the_worker_stops(house: House, id_: str) -> None:
    runs_alone(house, id_)
    house.slots.alone = raising(Stopping())  # type: ignore[method-assign]


EXITS = (
    claim_breaks,
    writer_has_stopped,
    worker_stops_before_the_call,
    worker_stops_in_the_call,
    call_is_cut,
    call_breaks,
    nothing_is_to_be_had,
    answer_is_not_read,
    success_is_not_noted,
    failure_is_not_judged,
    gate_is_not_told,
    answer_is_not_recorded,
    runs_alone,
    runs_alone_after_another,
    runs_alone_and_its_claim_breaks,
    runs_alone_and_the_worker_stops,
)


@pytest.mark.parametrize("leave_by", EXITS)
def test_a_probe_leaves_its_place_free_whatever_ends_its_attempt(
    build: Callable[..., House], leave_by: Callable[[House, str], None]
) -> None:
    house = build()
    id_ = house.put()
    house.gates.shut(FailureKind.SERVER_ERROR, asked_s=None)
    house.clock.advance(1.0)
    leave_by(house, id_)
    house.execute(id_)
    assert house.store.take_probe(ttl_s=60, token="the next", now_ms=house.clock.now_ms())


def test_a_probe_has_its_place_while_its_call_lasts(build: Callable[..., House]) -> None:
    house = build()
    house.gates.shut(FailureKind.SERVER_ERROR, asked_s=None)
    house.clock.advance(1.0)
    complete, taken = house.client.complete, []

    def look(*args: Any, **options: Any) -> Any:
        taken.append(house.store.take_probe(ttl_s=60, token="another", now_ms=house.clock.now_ms()))
        return complete(*args, **options)

    house.client.complete = look  # type: ignore[method-assign]
    assert house.execute(house.put()) is Verdict.SUCCEEDED
    assert taken == [False]
    assert house.fetch_gate() is None


def test_a_permit_is_left_once_and_only_where_nothing_settled_it(build: Callable[..., House]) -> None:
    house = build()
    for settle in (
        house.gates.succeeded,
        house.gates.decided_nothing,
        lambda permit: house.gates.shut(FailureKind.TIMEOUT, asked_s=None, permit=permit),
    ):
        house.gates.shut(FailureKind.SERVER_ERROR, asked_s=None)
        house.clock.advance(600.0)
        with house.gates.admit("a") as permit:
            assert permit.is_probe
            settle(permit)
            house.clock.advance(600.0)
            # Somebody else's by now, and under the very same token: leaving once more would take it from them.
            assert house.store.take_probe(ttl_s=60, token=str(permit.token), now_ms=house.clock.now_ms())
        assert not house.store.take_probe(ttl_s=60, token="the next", now_ms=house.clock.now_ms())
        house.store.clear()
        house.clock.advance(1.0)
