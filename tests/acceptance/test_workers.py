"""Workers that are killed, stopped and measured. Invariants 1, 3, 4 and the budget of calls in flight."""

from __future__ import annotations

import signal

import pytest
from celery import Celery
from sqlalchemy import select

from schemas.chat import parse_request
from tests.support.audit import assert_sound, states
from tests.support.processes import Shop, SimulatorProcess, end, wait_until
from worker.clock import SystemClock
from worker.intake.submit import make_job, submit_many
from worker.settings import Settings
from worker.storage.engine import Ledger
from worker.storage.tables import attempts, jobs


def queue(ledger: Ledger, settings: Settings, count: int, *, model: str = "DeepSeek-V3.1") -> None:
    """Writes `count` bulk jobs down."""
    submit_many(
        ledger,
        (
            make_job(
                parse_request({"model": model, "messages": [{"role": "user", "content": f"Tell me {i}."}]}),
                endpoint=settings.endpoint,
                batch_id="batch_x",
                position=i + 1,
                is_bulk=True,
            )
            for i in range(count)
        ),
        clock=SystemClock(),
    )


@pytest.mark.both_databases
@pytest.mark.simulator("--latency", "0.4")
def test_after_a_kill_9_at_most_the_calls_in_flight_are_made_again(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 400)
    first = plant.worker(concurrency=32)
    wait_until(lambda: states(plant_ledger)["succeeded"] > 100, within_s=30, what="the run is in its middle")
    end(first, signal.SIGKILL)
    claimed = states(plant_ledger)["running"]
    unfinished = (
        sum(call["received"] for call in simulator.calls().values()) - states(plant_ledger)["succeeded"]
    )
    assert 0 < unfinished <= claimed <= 32 + 8 + 16, (
        "in a call, being recorded, or claimed ahead of the slots"
    )
    plant.worker(concurrency=64)
    wait_until(lambda: states(plant_ledger)["succeeded"] == 400, within_s=40, what="all jobs end")
    assert_sound(plant_ledger)
    extra = sum(call["received"] for call in simulator.calls().values()) - 400
    assert extra <= unfinished, "what was only claimed was not called"


@pytest.mark.simulator("--latency", "0.2")
def test_a_stopped_worker_ends_within_its_grace_and_gives_unfinished_jobs_back_unburnt(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    simulator.set_faults(rate_hang=1.0)
    queue(plant_ledger, plant_settings, 50)
    worker = plant.worker(concurrency=16, grace_s=1)
    wait_until(lambda: simulator.stats()["in_flight"] == 16, within_s=20, what="all slots hang in a call")

    code, seconds = end(worker)

    assert code == 0
    assert seconds < 1 + 2
    assert states(plant_ledger) == {"queued": 50}
    with plant_ledger.read() as connection:
        burnt = connection.execute(select(jobs.c.id).where(jobs.c.attempts > 0)).all()
        outcomes = set(connection.execute(select(attempts.c.outcome)).scalars())
    assert burnt == []
    assert outcomes == {"released"}
    simulator.set_faults(rate_hang=0.0)
    plant.worker(concurrency=16)
    wait_until(lambda: states(plant_ledger)["succeeded"] == 50, within_s=20, what="another worker does them")
    assert_sound(plant_ledger)


@pytest.mark.simulator("--latency", "1.0")
def test_a_stopped_worker_lets_calls_end_within_its_grace(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 40)
    worker = plant.worker(concurrency=8, grace_s=10)
    wait_until(lambda: simulator.stats()["in_flight"] == 8, within_s=20, what="all slots are in a call")
    code, seconds = end(worker)
    assert code == 0
    assert seconds < 4, "it does not sit out the grace when everything has ended"
    after = states(plant_ledger)
    assert after["running"] == 0
    assert after["succeeded"] == simulator.stats()["paid"] >= 8
    assert simulator.stats()["abandoned"] == 0


def test_invariant_4_only_a_claim_calls_the_endpoint_and_a_duplicate_message_makes_no_call(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess, valkey: object
) -> None:
    """Invariant 4: every message of the window is delivered five times."""
    queue(plant_ledger, plant_settings, 30)
    plant.worker(concurrency=4)
    script = "local n=0 for _,k in ipairs(redis.call('keys','antrean.bulk*')) do for _,m in ipairs(redis.call('lrange',k,0,-1)) do for i=1,4 do redis.call('lpush',k,m) n=n+1 end end end return n"
    valkey.eval(script, 0)  # type: ignore[attr-defined]
    wait_until(lambda: states(plant_ledger)["succeeded"] == 30, within_s=20, what="all jobs end")
    wait_until(lambda: valkey.llen("antrean.bulk\x06\x169") == 0, within_s=10, what="the broker is empty")  # type: ignore[attr-defined]
    assert simulator.stats()["calls"] == 30
    assert_sound(plant_ledger)


@pytest.mark.both_databases
@pytest.mark.simulator("--latency", "0.1")
def test_invariant_1_the_database_is_the_truth_and_a_flushed_broker_loses_no_job(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess, valkey: object
) -> None:
    """Invariant 1: the database is the truth, the broker holds hints."""
    queue(plant_ledger, plant_settings, 300)
    plant.worker(concurrency=8)
    wait_until(lambda: states(plant_ledger)["succeeded"] > 30, within_s=20, what="the run is in its middle")
    valkey.flushall()  # type: ignore[attr-defined]
    wait_until(lambda: states(plant_ledger)["succeeded"] == 300, within_s=30, what="all jobs end")
    assert simulator.stats()["calls"] == 300
    assert_sound(plant_ledger)


@pytest.mark.simulator("--latency", "0.1", "--key", "right")
def test_a_refused_key_burns_nothing_and_a_new_key_in_the_file_lets_the_jobs_go_on(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    key = plant.folder / "key"
    key.write_text("wrong\n")
    del plant.settings["api_key"]
    queue(plant_ledger, plant_settings, 100)
    plant.worker(concurrency=8, api_key_file=key)
    wait_until(
        lambda: simulator.stats()["refused"].get("401", 0) >= 2, within_s=20, what="the key is refused"
    )
    key.write_text("right\n")
    wait_until(lambda: states(plant_ledger)["succeeded"] == 100, within_s=40, what="all jobs end")
    with plant_ledger.read() as connection:
        assert connection.execute(select(jobs.c.id).where(jobs.c.attempts > 0)).all() == []
    assert simulator.stats()["refused"]["401"] < 60, "the gate shut for all, instead of a refusal a job"


@pytest.mark.full
@pytest.mark.measures
@pytest.mark.simulator("--latency", "2")
def test_a_hundred_slots_keep_97_percent_of_their_calls_in_flight(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings
) -> None:
    queue(plant_ledger, plant_settings, 700)
    plant.worker(concurrency=100)
    wait_until(lambda: states(plant_ledger)["succeeded"] == 700, within_s=60, what="all jobs end")
    with plant_ledger.read() as connection:
        claimed = sorted(connection.execute(select(jobs.c.claimed_at_ms)).scalars())
        ended = sorted(connection.execute(select(jobs.c.ended_at_ms)).scalars())
    ramp_up_s = (claimed[99] - claimed[0]) / 1000
    drain_s = (ended[-1] - ended[600]) / 1000
    steady = 500 / ((ended[600] - ended[100]) / 1000)
    print(f"ramp-up {ramp_up_s:.2f} s, steady {steady:.2f} jobs/s of 50, drain {drain_s:.2f} s")
    assert steady >= 0.97 * 50


@pytest.mark.slow
@pytest.mark.simulator("--latency", "0.3")
def test_a_pause_stops_claims_and_lets_calls_end_until_it_is_lifted(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 400)
    plant.worker(concurrency=16)
    wait_until(lambda: states(plant_ledger)["succeeded"] >= 8, within_s=20, what="the run is in its middle")
    assert plant.antrean("pause", "the endpoint is being moved").code == 0
    wait_until(lambda: states(plant_ledger)["running"] == 0, within_s=10, what="calls in flight end")
    before = states(plant_ledger)
    paid = simulator.stats()["paid"]
    assert before["succeeded"] == paid < 400
    assert set(before) == {"succeeded", "queued"}
    assert "being moved" in plant.antrean("status").out + plant.antrean("status").err
    assert states(plant_ledger) == before
    assert plant.antrean("resume").code == 0
    wait_until(lambda: states(plant_ledger)["succeeded"] == 400, within_s=60, what="all jobs end")
    assert simulator.stats()["calls"] == 400
    assert_sound(plant_ledger)


@pytest.mark.simulator("--latency", "1")
def test_a_worker_that_is_told_to_stop_by_remote_control_leaves_no_claim(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    """`celery control shutdown` sends no signal. What was claimed ahead is given back as if it had not been."""
    queue(plant_ledger, plant_settings, 60)
    worker = plant.worker(concurrency=8, grace_s=10)
    wait_until(lambda: simulator.stats()["in_flight"] == 8, within_s=20, what="all slots are in a call")
    with Celery("operator", broker=plant.settings["broker_url"], set_as_current=False) as operator:
        operator.control.shutdown()
    assert worker.wait(30) == 0
    found = states(plant_ledger)
    assert found == {"succeeded": simulator.stats()["paid"], "queued": 60 - simulator.stats()["paid"]}
    with plant_ledger.read() as connection:
        assert connection.execute(select(jobs.c.id).where(jobs.c.losses > 0)).all() == []
        assert set(connection.execute(select(attempts.c.outcome)).scalars()) == {"succeeded"}
