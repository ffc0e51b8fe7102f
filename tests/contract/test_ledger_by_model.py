"""Due jobs are chosen by their models, page by page: what nobody wants hides nothing, and is not read each time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import update

from schemas.job import Due
from tests.support.clock import FakeClock
from tests.support.ledger import ENDPOINT, NOW, a_job, put
from worker.storage.by_model import PAGE, ModelChoice, count_published_by_model
from worker.storage.due import take_due, take_lone_due
from worker.storage.engine import Ledger
from worker.storage.tables import jobs


def fill(ledger: Ledger, model: str, count: int, *, batch: str = "b", is_bulk: bool = True) -> list[str]:
    made = [a_job(model=model, batch_id=batch, is_bulk=is_bulk) for _ in range(count)]
    return [one.id for one in put(ledger, *made)]


def only(*models: str) -> Callable[[Due], bool]:
    return lambda job: job.model in models


def take(ledger: Ledger, choice: ModelChoice, *, room: int = 100) -> list[str]:
    due, _ = ledger.run(lambda c: take_due(c, ENDPOINT, room=room, now_ms=NOW, only=choice))
    assert all(job.model is not None for job in due), "the hint tells it"
    return [job.id for job in due]


def test_only_jobs_that_are_wanted_are_taken_and_marked(ledger: Ledger) -> None:
    fill(ledger, "a", 5)
    wanted = fill(ledger, "b", 3)
    assert take(ledger, ModelChoice(only("b"))) == wanted
    with ledger.read() as connection:
        assert count_published_by_model(connection, ENDPOINT) == {(True, "b"): 3}


def test_jobs_that_nobody_wants_hide_none_behind_them(ledger: Ledger) -> None:
    fill(ledger, "a", 2 * PAGE + 10)
    wanted = fill(ledger, "b", 4)
    choice = ModelChoice(only("b"))
    taken: list[str] = []
    looks = 0
    while len(taken) < 4:
        taken += take(ledger, choice, room=3)
        looks += 1
        assert looks < 6, "a page or two each time"
    assert taken == wanted


def test_what_is_wanted_again_is_found_at_the_beginning_though_there_are_others_behind(
    ledger: Ledger,
) -> None:
    first = fill(ledger, "a", PAGE + 10)
    fill(ledger, "b", 50)
    models = ["b"]
    choice = ModelChoice(lambda job: job.model in models)
    while not take(ledger, choice, room=10):
        pass
    models.append("a")
    assert take(ledger, choice, room=10) == first[:10]


def test_a_batch_of_which_no_job_can_be_called_is_not_read_for_a_second(
    ledger: Ledger, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ledger, "a", 5)
    read: list[str] = []

    def wants(job: Due) -> bool:
        read.append(job.id)
        return False

    choice = ModelChoice(wants, is_hopeless=lambda model: model == "a", monotonic_s=clock.monotonic_s)
    for _ in range(3):
        assert take(ledger, choice) == []
    assert len(read) == 5
    clock.advance(1.1)
    take(ledger, choice)
    assert len(read) == 10
    choice.forget()
    take(ledger, choice)
    assert len(read) == 15, "at once, where it is open again"
    fill(ledger, "b", 1)
    clock.advance(1.1)
    for _ in range(2):
        take(ledger, choice)
    assert len(read) == 27, "one that only waits for room is looked for each time"


def test_lone_jobs_are_chosen_alike_and_never_wait_for_that(ledger: Ledger, clock: FakeClock) -> None:
    fill(ledger, "a", 3, batch="", is_bulk=False)
    choice = ModelChoice(only("b"), is_hopeless=lambda model: model == "a", monotonic_s=clock.monotonic_s)

    def take_lone() -> list[str]:
        due = ledger.run(lambda c: take_lone_due(c, ENDPOINT, window=64, now_ms=NOW, only=choice))
        return [job.id for job in due]

    assert take_lone() == []
    wanted = fill(ledger, "b", 2, batch="", is_bulk=False)
    assert take_lone() == wanted


def make_due(ledger: Ledger, model: str, *, at_ms: int) -> None:
    """All jobs of the model wait for their next attempt, which is due at that time."""
    values = {"state": "waiting", "not_before_ms": at_ms, "claims": 1}
    ledger.run(lambda c: c.execute(update(jobs).where(jobs.c.model == model).values(values)))


@pytest.mark.parametrize("is_bulk", [True, False])
def test_due_retries_of_a_shut_endpoint_hold_up_none_of_another(ledger: Ledger, is_bulk: bool) -> None:
    batch = "b" if is_bulk else ""
    fill(ledger, "shut", 4 * PAGE, batch=batch, is_bulk=is_bulk)
    wanted = fill(ledger, "open", 10, batch=batch, is_bulk=is_bulk)
    make_due(ledger, "shut", at_ms=NOW - 1000)
    make_due(ledger, "open", at_ms=NOW - 1)
    choice = ModelChoice(only("open"), is_hopeless=lambda model: model == "shut")
    taken: list[str] = []
    looks = 0
    while len(taken) < 10:
        if is_bulk:
            taken += take(ledger, choice, room=64)
        else:
            due = ledger.run(lambda c: take_lone_due(c, ENDPOINT, window=64, now_ms=NOW, only=choice))
            taken += [job.id for job in due]
        looks += 1
        assert looks < 2, "the first look finds them"
    assert sorted(taken) == sorted(wanted)


def test_more_due_retries_than_one_look_reads_are_read_on_by_the_next(ledger: Ledger) -> None:
    fill(ledger, "shut", 7 * PAGE)
    wanted = fill(ledger, "open", 3)
    make_due(ledger, "shut", at_ms=NOW - 1000)
    make_due(ledger, "open", at_ms=NOW - 1)
    choice = ModelChoice(only("open"), is_hopeless=lambda model: model == "shut")
    assert take(ledger, choice) == []
    assert sorted(take(ledger, choice)) == sorted(wanted)


def test_due_retries_that_cannot_be_called_are_not_read_for_a_second(
    ledger: Ledger, clock: FakeClock
) -> None:
    fill(ledger, "shut", 2 * PAGE + 5)
    make_due(ledger, "shut", at_ms=NOW - 1000)
    read: list[str] = []

    def wants(job: Due) -> bool:
        read.append(job.id)
        return False

    choice = ModelChoice(wants, is_hopeless=lambda model: True, monotonic_s=clock.monotonic_s)
    for _ in range(3):
        assert take(ledger, choice) == []
    assert len(read) == len(set(read)) == 2 * PAGE + 5
    clock.advance(1.1)
    take(ledger, choice)
    assert len(read) == 2 * (2 * PAGE + 5)
