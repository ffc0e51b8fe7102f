"""Workers on both databases: beats, orphans, and the rescue of what a dead worker held."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update

from tests.support.ledger import (
    NOW,
    a_job,
    claim,
    claim_one,
    job_row,
    put,
    put_one,
    rows,
    state,
)
from worker.storage.claims import fetch_solo_jobs
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_jobs
from worker.storage.reading import count_running
from worker.storage.tables import jobs
from worker.storage.workers import (
    beat,
    end_worker,
    fetch_beats,
    fetch_workers,
    register_worker,
    release_orphans,
    rescue_jobs,
)


def register(ledger: Ledger, id_: str, **facts: Any) -> None:
    values = {
        "endpoint": "e",
        "hostname": "h",
        "pid": 1,
        "slots": 4,
        "lease_ms": 30_000,
        "now_ms": NOW,
    } | facts
    ledger.run(lambda c: register_worker(c, id_, **values))


def rescue(ledger: Ledger, worker: str, *, max_solo_losses: int = 3) -> list[str]:
    return ledger.run(lambda c: rescue_jobs(c, worker, max_solo_losses=max_solo_losses, now_ms=NOW + 77))


def beats_of(ledger: Ledger) -> dict[str, tuple[int, int]]:
    with ledger.read() as connection:
        return {b.worker_id: (b.sequence, b.lease_ms) for b in fetch_beats(connection)}


def test_each_beat_raises_the_sequence(ledger: Ledger) -> None:
    register(ledger, "w1")
    assert beats_of(ledger) == {"w1": (1, 30_000)}
    assert ledger.run(lambda c: beat(c, "w1", now_ms=NOW))
    assert beats_of(ledger) == {"w1": (2, 30_000)}


def test_a_beat_without_a_row_says_so(ledger: Ledger) -> None:
    assert not ledger.run(lambda c: beat(c, "w1", now_ms=NOW))


def test_an_ended_worker_is_watched_for_as_long_as_it_holds_jobs(ledger: Ledger) -> None:
    register(ledger, "w1")
    id_ = put_one(ledger)
    claim_one(ledger, id_)
    ledger.run(lambda c: end_worker(c, "w1", reason="stopped", now_ms=NOW))
    assert beats_of(ledger) == {"w1": (1, 30_000)}
    rescue(ledger, "w1")
    assert beats_of(ledger) == {}


def test_a_holder_without_a_row_is_watched_as_well(ledger: Ledger) -> None:
    claim_one(ledger, put_one(ledger), worker="ghost")
    assert beats_of(ledger) == {"ghost": (-1, 0)}


def test_a_worker_taken_for_lost_is_live_again_with_its_next_beat(ledger: Ledger) -> None:
    register(ledger, "w1")
    ledger.run(lambda c: end_worker(c, "w1", reason="lost", now_ms=NOW))
    assert beats_of(ledger) == {}
    ledger.run(lambda c: beat(c, "w1", now_ms=NOW))
    assert beats_of(ledger) == {"w1": (2, 30_000)}
    [row] = rows(ledger, "workers")
    assert (row.ended_at_ms, row.end_reason) == (None, None)


def test_the_first_end_of_a_worker_is_kept(ledger: Ledger) -> None:
    register(ledger, "w1")
    ledger.run(lambda c: end_worker(c, "w1", reason="stopped", now_ms=NOW))
    ledger.run(lambda c: end_worker(c, "w1", reason="lost", now_ms=NOW + 5))
    [row] = rows(ledger, "workers")
    assert (row.end_reason, row.ended_at_ms) == ("stopped", NOW)


def test_workers_are_listed_with_what_they_run(ledger: Ledger) -> None:
    register(ledger, "w2", now_ms=NOW + 1)
    register(ledger, "w1")
    claim(ledger, put_one(ledger), put_one(ledger))
    with ledger.read() as connection:
        found = fetch_workers(connection)
        assert count_running(connection) == 2
    assert [(w.id, w.running, w.slots) for w in found] == [("w1", 2, 4), ("w2", 0, 4)]


def test_what_a_dead_worker_held_is_queued_again_and_its_loss_counted(ledger: Ledger) -> None:
    mine, other = put_one(ledger), put_one(ledger)
    claim_one(ledger, mine)
    claim_one(ledger, other, worker="w2", token="t2")
    assert rescue(ledger, "w1") == [mine]
    row = job_row(ledger, mine)
    assert (row.state, row.losses, row.solo_losses, row.attempts, row.worker_id, row.claim_token) == (
        "queued",
        1,
        0,
        0,
        None,
        None,
    )
    assert state(ledger, other) == "running"
    [attempt] = rows(ledger, "attempts")
    assert (attempt.outcome, attempt.number, attempt.claim_token, attempt.started_at_ms) == (
        "lost",
        1,
        "t1",
        NOW,
    )
    assert attempt.ended_at_ms == NOW + 77
    assert rescue(ledger, "w1") == []


def test_a_job_that_is_lost_each_time_it_is_only_claimed_ahead_is_not_given_up(ledger: Ledger) -> None:
    """Nobody knows whether it was called. So two losses beside others do no more than have it run alone."""
    id_, other = put_one(ledger), put_one(ledger)
    for _ in range(10):
        claim(ledger, id_, other)
        rescue(ledger, "w1", max_solo_losses=1)
    for row in (job_row(ledger, id_), job_row(ledger, other)):
        assert (row.state, row.losses, row.solo_losses) == ("queued", 2, 0)
    assert claim(ledger, id_, other) == {}, "what is lost beside others is claimed beside others no more"
    assert claim_one(ledger, id_, are_alone=True).id == id_


def test_after_two_losses_a_job_runs_alone_and_only_then_do_losses_count(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    seen = []
    for i in range(5):
        in_company = claim(ledger, id_, token=f"t{i}")
        runs_alone = ledger.run(lambda c: fetch_solo_jobs(c, [id_])) == {id_}
        assert runs_alone is (not in_company), "a claim is one, or says that it has to be alone"
        if runs_alone:
            claim_one(ledger, id_, token=f"t{i}", are_alone=True)
        seen.append(runs_alone)
        rescue(ledger, "w1", max_solo_losses=3)
        row = job_row(ledger, id_)
        seen.append((row.state, row.losses, row.solo_losses))
    assert seen == [
        False,
        ("queued", 1, 0),
        False,
        ("queued", 2, 0),
        True,
        ("queued", 3, 1),
        True,
        ("queued", 4, 2),
        True,
        ("failed", 5, 3),
    ]
    row = job_row(ledger, id_)
    assert (row.failure_kind, row.ended_at_ms) == ("worker_lost", NOW + 77)
    assert "5 times" in row.failure_message
    assert [a.outcome for a in rows(ledger, "attempts")] == ["lost"] * 5


def test_a_lost_job_that_was_asked_to_stop_is_cancelled(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    claim_one(ledger, id_)
    ledger.run(lambda c: cancel_jobs(c, [id_], now_ms=NOW))
    rescue(ledger, "w1")
    assert state(ledger, id_) == "cancelled"


def test_orphans_are_released_unburnt_and_what_is_held_stays(ledger: Ledger) -> None:
    orphan, held, foreign = (put_one(ledger) for _ in range(3))
    claim(ledger, orphan, held)
    claim_one(ledger, foreign, worker="w2", token="t2")
    released = ledger.run(lambda c: release_orphans(c, "w1", open_claims={held: "t1"}, now_ms=NOW + 5))
    assert released == [orphan]
    assert [state(ledger, id_) for id_ in (orphan, held, foreign)] == ["queued", "running", "running"]
    row = job_row(ledger, orphan)
    assert (row.losses, row.attempts) == (0, 0)
    assert [a.outcome for a in rows(ledger, "attempts")] == ["released"]


def test_a_large_estate_is_rescued_five_hundred_at_a_time(ledger: Ledger) -> None:
    ids = [job.id for job in put(ledger, *[a_job() for _ in range(501)])]
    claim(ledger, *ids)
    assert [len(rescue(ledger, "w1")) for _ in range(3)] == [500, 1, 0]


def test_half_a_claim_is_passed_over_and_does_not_keep_the_others_from_their_rescue(ledger: Ledger) -> None:
    whole, tokenless, nobody_s, ended_s = (put_one(ledger) for _ in range(4))
    for id_ in (whole, tokenless, nobody_s):
        claim(ledger, id_, token=id_, worker="w1")
    claim(ledger, ended_s, token="t", worker="w2")

    def lose(id_: str, **values: None) -> None:
        ledger.run(lambda c: c.execute(update(jobs).where(jobs.c.id == id_).values(**values)))

    lose(tokenless, claim_token=None)
    lose(nobody_s, worker_id=None)
    lose(ended_s, claim_token=None)
    register(ledger, "w1")
    with ledger.read() as connection:
        assert [one.worker_id for one in fetch_beats(connection)] == ["w1"]
    assert ledger.run(lambda c: release_orphans(c, "w1", open_claims=[whole], now_ms=NOW)) == []
    assert ledger.run(lambda c: rescue_jobs(c, "w1", max_solo_losses=3, now_ms=NOW)) == [whole]
    assert ledger.run(lambda c: rescue_jobs(c, "w1", max_solo_losses=3, now_ms=NOW)) == []
    assert [state(ledger, id_) for id_ in (whole, tokenless, nobody_s)] == ["queued", "running", "running"]
