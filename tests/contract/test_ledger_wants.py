"""Who wants a job, on both databases: the invariant of its home, through any order of what runs and people do."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import exists, select, text

from schemas.job import JobState
from tests.contract.test_ledger_window import _plans as plans_of
from tests.support.ledger import ENDPOINT, NOW, a_job, at_once, claim, put, record, rows, setback, success
from worker.storage.batches import (
    count_states,
    fetch_held,
    finish_submission,
    hold_batch,
    make_batch,
    resume_batch,
)
from worker.storage.engine import Ledger
from worker.storage.intake import KnownJob
from worker.storage.moves import cancel_batch, retry_batch, retry_jobs
from worker.storage.prune_survey import survey
from worker.storage.pruning import OfAge, prune
from worker.storage.reading import _mixed_page_of, iterate_batch_outcomes, iterate_outcomes
from worker.storage.story import fetch_story
from worker.storage.tables import batches, jobs, wants
from worker.storage.unwanted import remove_wants
from worker.storage.usage_sums import UsageBy, iterate_usage
from worker.storage.wants import OPEN, Wanted, bring_home, fetch_places, needs_bringing_home

_OPEN = tuple(one.value for one in OPEN)


def a_batch(ledger: Ledger, id_: str, *, kind: str = "run", is_held: bool = False) -> str:
    ledger.run(
        partial(
            make_batch,
            batch_id=id_,
            kind=kind,
            label=f"label of {id_}",
            endpoint=ENDPOINT,
            idempotency_key=id_,
            now_ms=NOW,
        )
    )
    ledger.run(partial(finish_submission, batch_id=id_, now_ms=NOW))
    if is_held:
        ledger.run(partial(hold_batch, batch_id=id_, now_ms=NOW))
    return id_


def want(ledger: Ledger, batch_id: str, *keys: str, first: int = 1) -> list[KnownJob]:
    """The batch wants jobs by their keys, at the places from `first` on, named after the batch."""
    return put(
        ledger,
        *(
            a_job(
                batch_id=batch_id,
                position=place,
                custom_id=f"{batch_id}/{key}",
                idempotency_key=key,
                is_bulk=True,
            )
            for place, key in enumerate(keys, start=first)
        ),
    )


def names(ledger: Ledger, batch_id: str) -> list[str | None]:
    return [one.custom_id for one in iterate_batch_outcomes(ledger, batch_id)]


class Model:
    """Batches over the same few keys, held, resumed, cancelled, retried at random; a worker in between."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger = ledger
        self.rng = random.Random(seed)
        self.batches = [a_batch(ledger, f"b{i}") for i in range(4)]
        self.keys = [f"k{i}" for i in range(6)]
        self.wanted: dict[str, list[str]] = {}
        self.claims = 0

    def step(self) -> None:
        batch = self.rng.choice(self.batches)
        moves = (
            self.begin,
            self.begin,
            self.hold,
            self.resume,
            self.cancel,
            self.retry,
            self.work,
            self.work,
        )
        self.rng.choice(moves)(batch)
        self.look()

    def begin(self, batch: str) -> None:
        """As `antrean run` does: some keys, one of them perhaps at two places; what is no longer there is let go."""
        keys = self.rng.choices(self.keys, k=self.rng.randint(1, 4))
        self.wanted[batch] = keys
        self.resume(batch)
        known = want(self.ledger, batch, *keys)
        ended = [job.id for job in known if job.state.is_final and job.state is not JobState.SUCCEEDED]
        self.ledger.run(partial(retry_jobs, ids=ended, now_ms=NOW))
        self.ledger.run(partial(bring_home, batch_id=batch))
        now = {(place, job.id) for place, job in enumerate(known, start=1)}
        places = {(row.position, row.id) for row in rows(self.ledger, "jobs", batch_id=batch)}
        places |= {(row.position, row.job_id) for row in rows(self.ledger, "wants", batch_id=batch)}
        gone = sorted(places - now)
        if gone:
            self.ledger.run(partial(remove_wants, batch_id=batch, places=gone, now_ms=NOW))

    def hold(self, batch: str) -> None:
        self.ledger.run(partial(hold_batch, batch_id=batch, now_ms=NOW))

    def resume(self, batch: str) -> None:
        self.ledger.run(partial(resume_batch, batch_id=batch))

    def cancel(self, batch: str) -> None:
        while any(self.ledger.run(partial(_cancel, batch_id=batch))):
            pass

    def retry(self, batch: str) -> None:
        states = [JobState.FAILED, JobState.CANCELLED]
        self.ledger.run(partial(retry_batch, batch_id=batch, states=states, now_ms=NOW))

    def work(self, _: str) -> None:
        """Claims some, and records what their calls came to. Only what a batch wants that is not held is to be had."""
        self.claims += 1
        ids = [row.id for row in rows(self.ledger, "jobs", state="queued")]
        wanted = {id_: self.is_wanted_by_the_living(id_) for id_ in ids}
        got = claim(self.ledger, *ids, token=f"t{self.claims}")
        assert set(got) == {id_ for id_ in ids if wanted[id_]}
        for job in got.values():
            record(self.ledger, success(job) if self.rng.random() < 0.3 else setback(job))

    def is_wanted_by_the_living(self, job_id: str) -> bool:
        with self.ledger.read() as connection:
            home = select(jobs.c.id).where(
                jobs.c.id == job_id,
                exists().where(batches.c.id == jobs.c.batch_id, batches.c.held_at_ms.is_(None)),
            )
            beside = select(wants.c.job_id).where(
                wants.c.job_id == job_id,
                wants.c.is_given_up.is_(False),
                exists().where(batches.c.id == wants.c.batch_id, batches.c.held_at_ms.is_(None)),
            )
            return any(connection.execute(one).first() is not None for one in (home, beside))

    def look(self) -> None:
        living = {row.id for row in rows(self.ledger, "batches") if row.held_at_ms is None}
        by_id = {row.id: row for row in rows(self.ledger, "jobs")}
        for row in by_id.values():
            if row.state in _OPEN and self.is_wanted_by_the_living(row.id):
                assert row.batch_id in living, (
                    f"{row.idempotency_key} waits for {row.batch_id}, which is held"
                )
        homes = {(row.batch_id, row.position, row.id) for row in by_id.values()}
        beside = {(row.batch_id, row.position, row.job_id) for row in rows(self.ledger, "wants")}
        assert not homes & beside, "a want is in one place only"
        for row in rows(self.ledger, "usage"):
            if by_id[row.job_id].batch_id:
                assert row.batch_id == by_id[row.job_id].batch_id, "usage is counted with the home"
        keys = {row.id: row.idempotency_key for row in by_id.values()}
        for batch, wanted in self.wanted.items():
            places = sorted((place, keys[id_]) for of, place, id_ in homes | beside if of == batch)
            assert places == list(enumerate(wanted, start=1)), f"{batch} wants {wanted}"
            ended = {row.idempotency_key for row in by_id.values() if row.state not in _OPEN}
            assert names(self.ledger, batch) == [f"{batch}/{key}" for key in wanted if key in ended]


def _cancel(connection: Any, *, batch_id: str) -> tuple[int, int, int]:
    done = cancel_batch(connection, batch_id, now_ms=NOW)
    return done.ended, done.asked, done.kept


@pytest.mark.parametrize("seed", range(3))
def test_an_open_job_is_at_home_with_a_batch_at_work_while_one_wants_it(ledger: Ledger, seed: int) -> None:
    model = Model(ledger, seed)
    for _ in range(40):
        model.step()


def test_a_bulk_submission_and_its_repetition_write_no_wants(ledger: Ledger) -> None:
    a_batch(ledger, "b1", kind="submit")
    for _ in range(2):
        want(ledger, "b1", "x", "y")
    assert rows(ledger, "wants") == []


def test_a_message_that_comes_again_wants_nothing_of_its_own(ledger: Ledger) -> None:
    for batch in ("b1", "b2"):
        put(ledger, a_job(id="task", idempotency_key="task:task", batch_id=batch))
    assert rows(ledger, "wants") == []


def test_many_jobs_come_home_and_are_handed_over_in_steps(ledger: Ledger) -> None:
    keys = [f"k{i:04}" for i in range(1100)]
    a_batch(ledger, "b1")
    a_batch(ledger, "b2")
    want(ledger, "b1", *keys)
    want(ledger, "b2", *keys)
    assert ledger.run(partial(hold_batch, batch_id="b1", now_ms=NOW)) == 500
    with ledger.read() as connection:
        assert needs_bringing_home(connection, "b2")
    assert [ledger.run(partial(bring_home, batch_id="b2")) for _ in range(3)] == [500, 100, 0]
    with ledger.read() as connection:
        assert not needs_bringing_home(connection, "b2")
        assert fetch_held(connection, ENDPOINT) == [], (
            "a held batch without jobs to be done is nobody's to pass over"
        )
    assert {row.batch_id for row in rows(ledger, "jobs")} == {"b2"}
    assert len(rows(ledger, "wants", batch_id="b1")) == 1100


def test_one_who_begins_to_want_and_one_who_is_held_at_the_same_moment_do_not_miss_each_other(
    ledger: Ledger,
) -> None:
    for i in range(20):
        a_batch(ledger, f"a{i}")
        a_batch(ledger, f"b{i}")
        want(ledger, f"a{i}", *(f"{i}-{n}" for n in range(5)))

    def move(who: int) -> None:
        for i in range(20):
            if who:
                want(ledger, f"b{i}", *(f"{i}-{n}" for n in range(5)))
            else:
                ledger.run(partial(hold_batch, batch_id=f"a{i}", now_ms=NOW))

    at_once(2, move)
    assert {row.batch_id[0] for row in rows(ledger, "jobs")} == {"b"}


def test_the_tokens_of_a_batch_are_those_of_all_jobs_that_it_wants_and_the_total_counts_each_once(
    ledger: Ledger,
) -> None:
    a_batch(ledger, "b1")
    a_batch(ledger, "b2")
    want(ledger, "b1", "x", "y")
    want(ledger, "b2", "y", "z", "y")
    got = claim(ledger, *(row.id for row in rows(ledger, "jobs")))
    record(ledger, *(success(job) for job in got.values()))

    def sums(by: UsageBy, batch: str | None = None) -> dict[Any, int]:
        with ledger.read() as connection:
            return {one.key: one.total_tokens for one in iterate_usage(connection, by, batch_id=batch)}

    assert sums(UsageBy.MODEL) == {"m": 21}
    assert sums(UsageBy.BATCH) == {"b1": 14, "b2": 7}
    assert sums(UsageBy.MODEL, "b1") == sums(UsageBy.MODEL, "b2") == {"m": 14}
    assert sums(UsageBy.CUSTOM, "b1") == {"b1/x": 7, "b1/y": 7}
    assert sums(UsageBy.CUSTOM, "b2") == {"b2/y": 7, "b2/z": 7}


def test_a_job_tells_of_every_batch_that_wants_it(ledger: Ledger) -> None:
    a_batch(ledger, "b1")
    a_batch(ledger, "b2")
    [job] = want(ledger, "b1", "x")
    want(ledger, "b2", "x", first=7)
    with ledger.read() as connection:
        story = fetch_story(connection, job.id)
    assert story is not None
    assert (story.batch_id, story.custom_id) == ("b1", "b1/x")
    [other] = story.wanted_by
    assert (other.batch_id, other.label, other.position, other.custom_id) == ("b2", "label of b2", 7, "b2/x")


def test_a_plain_id_has_the_jobs_own_name_and_a_wanted_one_its_own(ledger: Ledger) -> None:
    a_batch(ledger, "b1")
    [job] = want(ledger, "b1", "x")
    record(ledger, success(claim(ledger, job.id)[job.id]))
    ids = [job.id, Wanted(job.id, "other"), Wanted(job.id, None)]
    assert [one.custom_id for one in iterate_outcomes(ledger, ids)] == ["b1/x", "other", None]


def test_results_of_many_jobs_come_in_order_page_by_page_wherever_their_home_is(ledger: Ledger) -> None:
    keys = [f"k{i:04}" for i in range(1300)]
    a_batch(ledger, "b1")
    a_batch(ledger, "b2")
    want(ledger, "b1", *keys[::2])
    want(ledger, "b2", *keys)
    with ledger.write() as connection:
        connection.execute(text("UPDATE jobs SET state = 'succeeded', ended_at_ms = 1"))
    assert names(ledger, "b2") == [f"b2/{key}" for key in keys]
    with ledger.read() as connection:
        assert count_states(connection, "b2") == {JobState.SUCCEEDED: 1300}


@pytest.mark.parametrize(
    "why", ["being written down", "an open job", "an open job elsewhere", "a living run"]
)
def test_pruning_spares_what_an_unfinished_batch_wants(ledger: Ledger, why: str) -> None:
    a_batch(ledger, "done", is_held=True)
    a_batch(ledger, "other", kind="submit")
    kind = "run" if why == "a living run" else "submit"
    ledger.run(
        partial(
            make_batch,
            batch_id="b1",
            kind=kind,
            label="x",
            endpoint=ENDPOINT,
            idempotency_key="b1",
            now_ms=NOW,
        )
    )
    ids = [job.id for job in [*want(ledger, "b1", "x", "y"), *want(ledger, "done", "z")]]
    want(ledger, "b1", "z", first=3)
    if why == "an open job":
        want(ledger, "b1", "open", first=4)
    if why == "an open job elsewhere":
        want(ledger, "other", "open")
        want(ledger, "b1", "open", first=4)
    if why != "being written down":
        ledger.run(partial(finish_submission, batch_id="b1", now_ms=NOW))
    ledger.run(partial(resume_batch, batch_id="done"))
    record(ledger, *(success(job) for job in claim(ledger, *ids).values()))
    ledger.run(partial(hold_batch, batch_id="done", now_ms=NOW))
    found = survey(ledger, OfAge(NOW * 2))
    assert (found.total.total, found.spared) == (0, 3)

    assert prune(ledger, OfAge(NOW * 2), with_usage=False).removed == 0

    assert {row.id for row in rows(ledger, "jobs", state="succeeded")} == set(ids)
    ledger.run(partial(finish_submission, batch_id="b1", now_ms=NOW))
    ledger.run(partial(hold_batch, batch_id="b1", now_ms=NOW))
    for batch in ("b1", "other"):
        while any(ledger.run(partial(_cancel, batch_id=batch))):
            pass
    assert prune(ledger, OfAge(NOW * 2), with_usage=False).removed >= 3
    assert not set(ids) & {row.id for row in rows(ledger, "jobs")}


def test_pruning_goes_past_what_it_spares(ledger: Ledger) -> None:
    a_batch(ledger, "b1", kind="submit")
    spared = want(ledger, "b1", *(f"k{i}" for i in range(90)))
    free = put(ledger, *(a_job() for _ in range(90)))
    with ledger.write() as connection:
        connection.execute(text("UPDATE jobs SET state = 'succeeded', created_at_ms = 4, ended_at_ms = 5"))
    want(ledger, "b1", "open", first=91)
    assert prune(ledger, OfAge(10), with_usage=False).removed == len(free)
    assert {row.id for row in rows(ledger, "jobs", state="succeeded")} == {job.id for job in spared}


def test_an_open_batch_of_producers_is_never_done_and_spares_nothing(ledger: Ledger) -> None:
    a_batch(ledger, "b1", kind="tasks")
    [job, _] = want(ledger, "b1", "x", "open")
    record(ledger, success(claim(ledger, job.id)[job.id]))
    assert prune(ledger, OfAge(NOW * 2), with_usage=False).removed == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda c: count_states(c, "b2"),
        lambda c: bring_home(c, "b2"),
        lambda c: hold_batch(c, "b2", now_ms=NOW),
        lambda c: cancel_batch(c, "b2", now_ms=NOW),
        lambda c: retry_batch(c, "b2", states=[JobState.FAILED], now_ms=NOW),
        lambda c: fetch_places(c, "b2", after=(0, "")),
        lambda c: c.execute(_mixed_page_of("b2", (0, ""))).all(),
    ],
)
def test_what_is_asked_of_a_batch_costs_what_the_batch_has(
    ledger: Ledger, analyze: Callable[[Ledger], None], work: Callable[[Any], Any]
) -> None:
    """Not what the ledger has: thousands of jobs of other batches are not looked through."""
    a_batch(ledger, "b2")
    for n in range(40):
        want(ledger, a_batch(ledger, f"c{n}"), *(f"k{n}-{i}" for i in range(100)))
    want(ledger, "b2", *(f"k0-{i}" for i in range(0, 40, 2)), "other")
    analyze(ledger)
    plans = plans_of(ledger, work)
    assert "Seq Scan on jobs" not in plans, plans
    assert "SCAN jobs\n" not in plans, plans
