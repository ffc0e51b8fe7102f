"""The plan of a random storm: replayable, in order, and complete."""

from __future__ import annotations

import pytest

from tests.support.storm import Kind, plan_storm


def test_a_storm_is_a_function_of_its_seed() -> None:
    assert plan_storm(7, duration_s=60, database="sqlite") == plan_storm(7, duration_s=60, database="sqlite")
    assert plan_storm(7, duration_s=60, database="sqlite") != plan_storm(8, duration_s=60, database="sqlite")


def test_a_storm_of_a_known_seed_stays_as_it_is() -> None:
    """Otherwise a seed that somebody wrote down replays something else."""
    found = [(fault.at_s, fault.kind.name) for fault in plan_storm(1, duration_s=6, database="sqlite")]
    assert found == [(1.134, "BREAK_ENDPOINT"), (4.013, "KILL_WORKER"), (5.958, "CANCEL_JOBS")]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_faults_come_in_order_end_in_time_and_every_kind_comes(database: str) -> None:
    faults = plan_storm(3, duration_s=120, database=database)
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert all(fault.at_s + fault.lasts_s <= 120 for fault in faults)
    others = {
        "sqlite": {Kind.RESTART_DATABASE, Kind.CUT_DATABASE},
        "postgresql": {Kind.BUSY_DATABASE},
    }
    assert {fault.kind for fault in faults} == set(Kind) - others[database]
    assert all(0 <= fault.draw < 1 for fault in faults)
