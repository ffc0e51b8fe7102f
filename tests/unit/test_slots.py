"""Slots: bulk within its limit, lone jobs beside it, claims ahead of both, and a job that runs alone."""

from __future__ import annotations

import threading

import pytest

from tests.support.slots import Desk, Job, Solo, eventually, waits
from worker.attempt.slots import Slots


def test_bulk_takes_no_more_than_its_slots_and_a_lone_job_passes_beside() -> None:
    desk = Desk(Slots(2))
    first, second, third, lone = Job(), Job(), Job(), Job(is_bulk=False)
    desk.take(first, second, third)
    desk.take(lone)
    assert desk.calling == [first, second, lone]
    desk.end(first)
    assert desk.calling == [second, lone, third]
    desk.end(second, third, lone)
    assert desk.slots.active == 0


def test_all_together_take_no_more_than_both_limits_and_a_lone_job_goes_first() -> None:
    desk = Desk(Slots(1, 1))
    bulk, lone = [Job() for _ in range(2)], [Job(is_bulk=False) for _ in range(3)]
    desk.take(*lone[:2], *bulk)
    assert desk.calling == lone[:2], "lone jobs may use all slots"
    desk.take(lone[2])
    desk.end(lone[0])
    assert desk.calling == [lone[1], lone[2]], "lone jobs first"
    desk.end(lone[1])
    assert desk.calling == [lone[2], bulk[0]]
    desk.end(lone[2])
    assert desk.calling == [bulk[0]], "the other slot is kept for lone jobs"
    desk.end(bulk[0])
    assert desk.calling == [bulk[1]]


def test_so_many_jobs_are_claimed_ahead_of_the_slots_and_no_more() -> None:
    desk = Desk(Slots(2, 1, ahead=3))
    jobs = [Job() for _ in range(9)]
    desk.take(*jobs)
    assert (desk.claimed, desk.calling) == (jobs[:5], jobs[:2])
    desk.end(jobs[0])
    assert (desk.claimed, desk.calling) == (jobs[:6], jobs[1:3])
    desk.slots.ahead = 1
    desk.end(jobs[1], jobs[2])
    assert (desk.claimed, desk.calling) == (jobs[:6], jobs[3:5])
    lone = [Job(is_bulk=False) for _ in range(9)]
    desk.take(*lone)
    assert desk.claimed == jobs[:6] + lone[:4], "those ahead are counted for each kind"
    assert desk.calling == [*jobs[3:5], lone[0]]


def test_one_that_was_not_to_be_had_makes_room_for_the_next() -> None:
    slots: Slots[Job] = Slots(1, ahead=0)
    gone, next_one = Job(), Job()
    assert slots.add(gone) and slots.add(next_one)
    assert slots.take_claimable() == [gone]
    assert slots.take_claimable() == []
    slots.leave(gone, has_slot=False)
    slots.end()
    assert slots.take_claimable() == [next_one]
    assert slots.active == 1


def test_one_that_runs_alone_waits_for_the_others_and_keeps_new_claims_back() -> None:
    desk = Desk(Slots(4))
    other, late = Job(), Job(is_bulk=False)
    desk.take(other)
    solo = Solo(desk.slots)
    eventually(lambda: waits(desk.slots))
    assert solo.is_kept_out()
    desk.take(late)
    assert late not in desk.claimed
    desk.end(other)
    assert solo.is_inside()
    desk.go_on()
    assert late not in desk.claimed, "it would be lost with the one inside"
    solo.go()
    desk.go_on()
    assert desk.calling == [late]


def test_one_that_is_only_claimed_keeps_a_solo_waiting_too() -> None:
    slots: Slots[Job] = Slots(4)
    claimed = Job()
    assert slots.add(claimed)
    assert slots.take_claimable() == [claimed]
    solo = Solo(slots)
    eventually(lambda: waits(slots))
    assert solo.is_kept_out()
    slots.leave(claimed, has_slot=False)
    slots.end()
    assert solo.is_inside()
    solo.go()
    assert slots.active == 0


def test_two_that_run_alone_do_so_one_after_the_other() -> None:
    slots: Slots[Job] = Slots(4)
    jobs = [Job(), Job()]
    assert all(map(slots.add, jobs))
    assert slots.take_claimable() == jobs
    first, second = (Solo(slots, job) for job in jobs)
    eventually(lambda: first.inside.is_set() or second.inside.is_set())
    now, then = (first, second) if first.inside.is_set() else (second, first)
    assert then.is_kept_out()
    now.go()
    assert then.is_inside()
    then.go()
    assert slots.active == 0


def test_the_others_have_their_turn_between_two_that_run_alone() -> None:
    desk = Desk(Slots(8))
    first = Solo(desk.slots)
    assert first.is_inside()
    others = [Job() for _ in range(3)]
    desk.take(*others)
    assert not desk.claimed
    suspect = Job()
    desk.take(suspect)  # which one it is, its claim tells
    first.go()
    desk.go_on()
    assert desk.calling == [*others, suspect], "held back by the first, before the second"
    desk.calling.remove(suspect)
    desk.slots.leave(suspect)
    inside = threading.Event()

    def run_alone() -> None:
        with desk.slots.alone():
            inside.set()
        desk.slots.end()

    second = threading.Thread(target=run_alone, daemon=True)
    second.start()
    eventually(lambda: waits(desk.slots))
    assert not inside.wait(0.05)
    desk.end(*others)
    assert inside.wait(10)
    second.join(10)
    assert desk.slots.active == 0


def test_no_solo_begins_before_those_are_claimed_who_waited_for_the_last_one() -> None:
    desk = Desk(Slots(1, ahead=0))
    first = Solo(desk.slots)
    assert first.is_inside()
    others = [Job() for _ in range(2)]
    desk.take(*others)
    first.go()
    desk.go_on()
    assert desk.calling == others[:1], "there is one slot, and nothing is claimed ahead"
    inside = threading.Event()
    suspect = Job(is_bulk=False)
    desk.take(suspect)
    desk.calling.remove(suspect)
    desk.slots.leave(suspect)

    def run_alone() -> None:
        with desk.slots.alone():
            inside.set()
        desk.slots.end()

    threading.Thread(target=run_alone, daemon=True).start()
    eventually(lambda: waits(desk.slots))
    desk.end(others[0])
    assert desk.calling == others[1:]
    assert not inside.wait(0.05)
    desk.end(others[1])
    assert inside.wait(10)


def test_stopping_gives_everyone_back_who_has_no_thread_and_lets_nobody_in() -> None:
    slots: Slots[Job] = Slots(2, ahead=1)
    jobs = [Job() for _ in range(5)]
    for job in jobs:
        assert slots.add(job)
    for job in slots.take_claimable():
        assert slots.add_claimed(job)
    assert slots.take_slots() == 2
    calling = slots.take_started()
    waiting, claimed = slots.stop()
    assert (calling, waiting) == (jobs[0], jobs[3:])
    assert set(map(id, claimed)) == set(map(id, jobs[1:3])), (
        "claimed ahead, and one whose thread did not come"
    )
    assert slots.is_stopping
    assert slots.take_started() is None
    assert not slots.add(Job())
    assert not slots.add_claimed(Job())
    for job in claimed:
        slots.leave(job, has_slot=False)
        slots.end()
    assert slots.active == 1
    slots.leave(jobs[0])
    slots.end()
    assert slots.wait_until_idle(lambda: False, timeout_s=5)
    assert (slots._calling, slots._inside) == ({False: 0, True: 0}, {False: 0, True: 0})


def test_stopping_wakes_the_one_who_waits_to_run_alone() -> None:
    desk = Desk(Slots(1))
    job = Job(is_bulk=False)
    desk.take(job)
    solo = Solo(desk.slots)
    eventually(lambda: waits(desk.slots))
    desk.slots.stop()
    solo.thread.join(10)
    assert solo.stopped
    desk.calling.remove(job)
    desk.slots.leave(job)
    desk.slots.end()
    assert desk.slots.wait_until_idle(lambda: False, timeout_s=5)


def test_a_call_that_runs_alone_is_in_flight() -> None:
    slots: Slots[Job] = Slots(1)
    solo = Solo(slots)
    assert solo.is_inside()
    assert slots.active == 1
    assert not slots.wait_until_idle(lambda: True)
    slots.stop()
    assert not slots.wait_until_idle(lambda: True)
    solo.go()
    assert slots.wait_until_idle(lambda: False, timeout_s=5)


def test_one_whose_turn_to_run_alone_breaks_is_active_no_more() -> None:
    slots: Slots[Job] = Slots(1)
    for _ in range(3):
        job = Job()
        assert slots.add(job)
        assert slots.take_claimable() == [job]
        slots.leave(job, has_slot=False)
        with pytest.raises(RuntimeError), slots.alone():
            raise RuntimeError
        assert slots.active == 1
        slots.end()
        assert slots.active == 0


def test_waiting_for_idle_gives_up_in_time_or_when_told() -> None:
    desk = Desk(Slots(1))
    job = Job(is_bulk=False)
    desk.take(job)
    assert not desk.slots.wait_until_idle(lambda: False, timeout_s=0.01)
    assert not desk.slots.wait_until_idle(lambda: True)
    desk.end(job)
    assert desk.slots.wait_until_idle(lambda: False)
