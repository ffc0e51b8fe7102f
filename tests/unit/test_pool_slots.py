"""Slots over several endpoints: by model, by room, by weight; who is full or shut holds up nobody else's jobs."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.slots import Desk as SlotDesk
from worker.attempt.key_slots import KeyHold
from worker.attempt.pool_slots import EndpointSlots, PoolSlots
from worker.policy.routing import ANY

A, B = 0b01, 0b10


@dataclass(eq=False)
class Job:
    """What was received."""

    routes: int = ANY
    is_bulk: bool = True
    route: int = -1
    epoch: int = 0
    hold: KeyHold | None = None


class Desk(SlotDesk[Job]):
    """Two endpoints. Claims are answered at once, calls end when a test says so."""

    def __init__(
        self, *limits: int, lone: int = 0, ahead: int = 1, weights: tuple[float, ...] = (1, 1)
    ) -> None:
        self.is_open = [True for _ in limits]
        self.ends = [
            EndpointSlots(
                i,
                limit,
                lone,
                weight=weights[i],
                is_open=lambda i=i: self.is_open[i],  # type: ignore[misc]
            )
            for i, limit in enumerate(limits)
        ]
        self.slots: PoolSlots[Job]
        super().__init__(PoolSlots(self.ends, ahead=ahead))
        self.refused: list[Job] = []

    def drop(self, job: Job) -> None:
        self.refused.append(job)
        self.slots.leave(job, has_slot=False)
        self.slots.end()

    def at(self, index: int) -> list[Job]:
        return [job for job in self.calling if job.route == index]


def jobs(count: int, routes: int = ANY, *, is_bulk: bool = True) -> list[Job]:
    return [Job(routes, is_bulk) for _ in range(count)]


def test_jobs_fill_the_slots_of_all_endpoints_that_serve_them() -> None:
    desk = Desk(2, 3)
    desk.take(*jobs(9))
    assert (len(desk.at(0)), len(desk.at(1)), len(desk.claimed)) == (2, 3, 6)
    assert (desk.slots.limit, desk.slots.bulk_limit, desk.slots.in_flight) == (5, 5, 5)


def test_a_job_is_called_where_its_model_is_served_only() -> None:
    desk = Desk(4, 4)
    mine, others = jobs(2, A), jobs(3, B)
    desk.take(*mine, *others)
    assert (desk.at(0), desk.at(1)) == (mine, others)


def test_jobs_of_a_full_endpoint_hold_up_no_others_and_are_not_claimed_ahead_without_bound() -> None:
    desk = Desk(2, 4, ahead=1)
    mine, others = jobs(50, A), jobs(4, B)
    desk.take(*mine, *others)
    assert (desk.at(0), desk.at(1)) == (mine[:2], others)
    assert [job for job in desk.claimed if job.routes == A] == mine[:3]
    desk.end(mine[0])
    assert desk.at(0) == mine[1:3]


def test_by_weight_where_both_have_room() -> None:
    desk = Desk(100, 100, weights=(3, 1))
    desk.take(*jobs(40))
    assert (len(desk.at(0)), len(desk.at(1))) == (30, 10)


def test_a_shut_endpoint_gets_no_call_and_its_slots_are_not_counted() -> None:
    desk = Desk(4, 4)
    first = jobs(8)
    desk.take(*first)
    desk.is_open[0] = False
    assert (desk.slots.limit, desk.slots.bulk_limit) == (8, 8), "calls in flight there are counted"
    at_first = desk.at(0)
    desk.take(*jobs(8))
    desk.end(*at_first)
    assert desk.at(0) == []
    assert (desk.slots.limit, desk.slots.limit_of(A | B), desk.slots.limit_of(A)) == (4, 4, 0)
    assert (desk.ends[0].demand, desk.ends[0].startable) == (0, 0)
    assert desk.ends[1].demand > 4
    desk.end(*desk.at(1))
    assert (len(desk.at(0)), len(desk.at(1))) == (0, 4)


def test_claimed_jobs_that_only_a_shut_endpoint_serves_are_handed_out() -> None:
    desk = Desk(1, 1, ahead=1)
    mine = jobs(2, A)
    desk.take(*mine)
    desk.is_open[0] = False
    stranded = desk.slots.take_stranded()
    assert stranded == mine[1:]
    for job in stranded:
        desk.drop(job)
    late = Job(A)
    desk.take(late)
    assert desk.refused[-1] is late, "its claim goes back"
    desk.end(mine[0])
    assert (desk.slots.active, desk.slots.demand) == (0, 0)
    desk.is_open[0] = True
    desk.take(*jobs(3, A))
    assert len(desk.at(0)) == 1, "nothing is counted twice"


def test_one_job_at_a_time_may_test_a_shut_endpoint() -> None:
    desk = Desk(4, 4)
    desk.is_open[0] = False
    desk.slots.let_probe(0)
    assert desk.slots.may_probe(0)
    some = jobs(3)
    desk.take(*some)
    assert desk.at(0) == some[:1], "the first one, whatever the weights are"
    assert len(desk.at(1)) == 2
    assert not desk.slots.may_probe(0)
    desk.slots.let_probe(0)
    desk.slots.end_probe(0)
    desk.take(*jobs(1))
    assert len(desk.at(0)) == 1


def test_each_endpoint_has_its_limit_its_permits_and_its_demand() -> None:
    desk = Desk(4, 4)
    mine, others = jobs(6, A), jobs(6, B)
    desk.ends[0].grant(1)
    desk.take(*mine, *others)
    assert (len(desk.at(0)), len(desk.at(1))) == (1, 4)
    assert desk.ends[0].lacks and desk.slots.lacks and not desk.ends[1].lacks
    assert (desk.ends[0].in_flight, desk.ends[0].demand, desk.ends[1].demand) == (1, 6, 6)
    assert desk.ends[0].startable == 4
    desk.ends[0].grant(2)
    desk.go_on()
    assert (len(desk.at(0)), desk.ends[0].permits) == (3, 0)
    assert desk.slots.set_limits(1, 6, 0) == []
    desk.go_on()
    assert len(desk.at(1)) == 6
    assert desk.ends[1].take_permits(5) == 0


def test_a_job_keeps_the_epoch_of_the_limit_under_which_its_endpoint_gave_it_a_slot() -> None:
    desk = Desk(2, 2)
    desk.ends[0].epoch, desk.ends[1].epoch = 7, 9
    desk.take(*jobs(4))
    assert sorted((job.route, job.epoch) for job in desk.calling) == [(0, 7), (0, 7), (1, 9), (1, 9)]
    assert all(end.lacks for end in desk.ends), "the first job after a time without any: their limiters wake"


def test_no_call_begins_at_an_endpoint_whose_share_is_not_confirmed() -> None:
    desk = Desk(4, 4)
    desk.ends[0].valid_until_s = 0.0
    desk.take(*jobs(8))
    assert (len(desk.at(0)), len(desk.at(1))) == (0, 4)


def test_a_job_whose_model_is_not_known_before_its_claim_counts_for_its_endpoints_afterwards() -> None:
    desk = Desk(1, 1)
    job = Job()
    assert desk.slots.add(job)
    assert desk.slots.take_claimable() == [job]
    assert (desk.ends[0].demand, desk.ends[1].demand) == (1, 1)
    job.routes = B
    assert desk.slots.add_claimed(job)
    assert (desk.ends[0].demand, desk.ends[1].demand) == (0, 1)


def test_lone_jobs_keep_their_part_of_each_limit_and_go_first() -> None:
    desk = Desk(3, 3, lone=1)
    bulk, lone = jobs(9), jobs(2, is_bulk=False)
    desk.take(*bulk)
    assert len(desk.calling) == 6
    desk.take(*lone)
    assert [job.route for job in lone] in ([0, 1], [1, 0])


def test_a_job_that_runs_alone_is_called_at_an_endpoint_that_serves_it() -> None:
    desk = Desk(1, 1)
    job = Job(B, is_bulk=False)
    assert desk.slots.begin_alone(job)
    assert (job.route, desk.ends[1].in_flight) == (1, 1)
    desk.slots.end_alone(job)
    desk.is_open[1] = False
    assert not desk.slots.begin_alone(job)
    assert desk.ends[1].in_flight == 0


def test_stopping_hands_everybody_out_and_counts_nobody() -> None:
    desk = Desk(2, 2, ahead=1)
    some = jobs(8)
    for job in some:
        assert desk.slots.add(job)
    for job in desk.slots.take_claimable():
        assert desk.slots.add_claimed(job)
    assert desk.slots.take_slots() == 4
    calling = desk.slots.take_started()
    assert calling is not None
    waiting, claimed = desk.slots.stop()
    assert len(waiting) + len(claimed) == 7
    for job in claimed:
        desk.slots.leave(job, has_slot=False)
        desk.slots.end()
    assert sum(end.in_flight for end in desk.ends) == 1
    desk.slots.leave(calling)
    desk.slots.end()
    assert (desk.slots.active, sum(end.in_flight for end in desk.ends)) == (0, 0)
