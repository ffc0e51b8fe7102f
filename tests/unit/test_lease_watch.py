"""Who is dead: a sequence that stands still for a whole lease, seen by one's own monotonic clock."""

from __future__ import annotations

from worker.storage.workers import Beat
from worker.upkeep.rescue import LeaseWatch


def watch() -> LeaseWatch:
    return LeaseWatch(own_id="me", lease_s=10.0)


def beat(sequence: int, *, id_: str = "w", lease_s: float = 10.0) -> list[Beat]:
    return [Beat(id_, sequence, round(lease_s * 1000))]


def test_a_sequence_that_stands_still_for_a_lease_is_dead() -> None:
    w = watch()
    assert [w.observe(beat(5), now_s=t) for t in (0, 5, 9.9, 10)] == [[], [], [], ["w"]]


def test_a_sequence_that_rises_is_alive() -> None:
    w = watch()
    assert all(w.observe(beat(n), now_s=n * 9.0) == [] for n in range(10))


def test_the_longer_lease_of_the_two_counts() -> None:
    w = watch()
    assert [w.observe(beat(5, lease_s=30), now_s=t) for t in (0, 9, 18, 27, 30)] == [[], [], [], [], ["w"]]


def test_nobody_is_dead_at_first_sight_or_by_ones_own_word() -> None:
    w = watch()
    assert w.observe(beat(-1, lease_s=0), now_s=1e9) == []
    assert [w.observe(beat(1, id_="me"), now_s=1e9 + t) for t in (0, 9, 18)] == [[], [], []]


def test_a_database_that_was_away_expires_nobody() -> None:
    w = watch()
    w.observe(beat(5), now_s=0)
    w.forget()
    assert [w.observe(beat(5), now_s=t) for t in (9, 12, 18.9, 19)] == [[], [], [], ["w"]]


def test_a_watcher_that_was_suspended_expires_nobody() -> None:
    w = watch()
    w.observe(beat(5), now_s=0)
    assert [w.observe(beat(5), now_s=t) for t in (1000, 1009, 1010)] == [[], [], ["w"]]


def test_one_that_comes_back_after_an_absence_is_watched_anew() -> None:
    w = watch()
    w.observe(beat(5), now_s=0)
    w.observe([], now_s=5)
    assert [w.observe(beat(5), now_s=t) for t in (9, 12, 19)] == [[], [], ["w"]]
