"""Slots whose limits change while jobs are in them."""

from __future__ import annotations

import threading

from tests.support.slots import Desk, Job, Solo, eventually, waits
from worker.attempt.slots import Slots


def test_jobs_that_wait_begin_at_once_when_the_limit_is_raised() -> None:
    desk = Desk(Slots(1, 0))
    jobs = [Job() for _ in range(6)]
    desk.take(*jobs)
    assert desk.calling == jobs[:1]
    assert desk.slots.set_limit(4, 0) == []
    desk.go_on()
    assert desk.calling == jobs[:4]
    assert (desk.slots.bulk_limit, desk.slots.limit, desk.slots.in_flight) == (4, 4, 4)


def test_calls_in_flight_go_on_above_a_lower_limit_and_no_new_one_begins_before_there_are_fewer() -> None:
    desk = Desk(Slots(4, 0))
    jobs = [Job() for _ in range(8)]
    desk.take(*jobs)
    assert desk.slots.set_limit(2, 0) == []
    desk.go_on()
    assert desk.calling == jobs[:4]
    desk.end(jobs[0], jobs[1])
    assert desk.calling == jobs[2:4], "two in flight are the limit"
    desk.end(jobs[2])
    assert desk.calling == [jobs[3], jobs[4]]
    desk.end(jobs[3], jobs[4], jobs[5], jobs[6], jobs[7])
    assert desk.slots.active == desk.slots.demand == 0


def test_lone_jobs_keep_their_part_of_a_new_limit() -> None:
    desk = Desk(Slots(16, 0))
    bulk, lone = [Job() for _ in range(20)], [Job(is_bulk=False) for _ in range(3)]
    assert desk.slots.set_limit(15, 1) == []
    desk.take(*bulk)
    assert desk.calling == bulk[:15]
    desk.take(*lone)
    assert desk.calling == [*bulk[:15], lone[0]]
    desk.end(bulk[0])
    assert desk.calling[-1] is lone[1], "lone jobs first"


def test_without_a_slot_nothing_is_claimed_and_what_was_claimed_ahead_is_handed_out() -> None:
    desk = Desk(Slots(1, 0, ahead=2))
    jobs = [Job() for _ in range(5)]
    desk.take(*jobs)
    assert desk.claimed == jobs[:3]
    surplus = desk.slots.set_limit(0, 0)
    assert surplus == jobs[1:3]
    for job in surplus:
        desk.slots.leave(job, has_slot=False)
        desk.slots.end()
    desk.end(jobs[0])
    assert desk.claimed == jobs[:3], "no more was claimed"
    assert not desk.slots.add_claimed(Job()), "a claim that is answered now goes back"
    assert (desk.slots.active, desk.slots.demand) == (0, 2)
    desk.slots.set_limit(1, 0)
    desk.go_on()
    assert desk.calling == [jobs[3]]


def test_a_job_that_runs_alone_waits_for_a_slot_to_exist() -> None:
    slots: Slots[Job] = Slots(2, 0)
    solo_job = Job()
    assert slots.add(solo_job)
    assert slots.take_claimable() == [solo_job]
    slots.set_limit(0, 0)
    solo = Solo(slots, solo_job)
    eventually(lambda: waits(slots))
    assert solo.is_kept_out()
    slots.set_limit(1, 0)
    assert solo.is_inside()
    assert slots.in_flight == 1
    solo.go()


def test_any_number_of_threads_may_change_the_limit_and_none_is_exceeded_after() -> None:
    slots: Slots[Job] = Slots(8, 0)
    for _ in range(200):
        assert slots.add(Job())
    changes = [threading.Thread(target=lambda n=n: slots.set_limit(n, 0)) for n in (3, 9, 1, 5)]
    for change in changes:
        change.start()
    for change in changes:
        change.join(10)
    slots.set_limit(6, 0)
    for job in slots.take_claimable():
        slots.add_claimed(job)
    assert slots.take_slots() == slots.in_flight == 6
