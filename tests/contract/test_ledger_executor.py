"""One attempt from end to end: both databases, a real simulated endpoint, real HTTP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update

from schemas.failure import FailureKind
from tests.support.house import KEY, House
from tests.support.ledger import NOW, job_row, rows, state
from tests.support.processes import wait_until
from tests.support.writing import in_background
from worker.attempt.report import Verdict
from worker.storage.moves import cancel_jobs
from worker.storage.tables import jobs
from worker.upkeep.spool import replay_leftovers


def test_a_success_is_recorded_with_answer_usage_and_request_id(build: Callable[..., House]) -> None:
    house = build()
    id_ = house.put()
    report = house.receive(id_, is_bulk=True).result(20)
    assert report.verdict is Verdict.SUCCEEDED
    assert "tokens" in report.summary
    row = job_row(house.ledger, id_)
    [result], [usage] = rows(house.ledger, "results"), rows(house.ledger, "usage")
    assert (row.state, row.http_status) == ("succeeded", 200)
    assert row.request_id
    assert result.answer
    assert result.answer not in report.summary
    assert b"choices" in bytes(result.raw)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    assert house.simulator.calls()[id_]["paid"] == 1


def test_a_duplicate_delivery_makes_no_call(build: Callable[..., House]) -> None:
    house = build()
    id_ = house.put()
    verdicts = [house.execute(id_) for _ in range(5)]
    assert verdicts == [Verdict.SUCCEEDED, *[Verdict.NO_CLAIM] * 4]
    assert house.simulator.stats()["calls"] == 1


def _break(*_: Any, **__: Any) -> Any:
    raise KeyError("a defect of the gate")


def test_a_defect_of_the_gate_costs_no_answer_that_is_paid_for(
    build: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = build()
    monkeypatch.setattr(house.gates, "succeeded", _break)
    id_ = house.put()
    assert house.execute(id_) is Verdict.SUCCEEDED
    assert job_row(house.ledger, id_).state == "succeeded"
    assert house.simulator.calls()[id_]["paid"] == 1
    assert not house.writer.open_claims


def test_a_defect_of_the_gate_keeps_no_job_in_the_hands_of_a_worker(
    build: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = build(simulated={"outage_status": 500})
    id_ = house.put()
    monkeypatch.setattr(house.route.judge, "_attribute", _break)
    assert house.execute(id_) is Verdict.WAITING
    row = job_row(house.ledger, id_)
    assert (row.state, row.attempts) == ("waiting", 1)
    assert row.not_before_ms > NOW
    assert not house.writer.open_claims


@pytest.mark.parametrize("header", ["bearer", "api-key"])
def test_the_header_style_is_found_out_and_remembered(build: Callable[..., House], header: str) -> None:
    house = build(simulated={"auth_header": header})
    first, second = house.put(), house.put()
    assert house.execute(first) is house.execute(second) is Verdict.SUCCEEDED
    assert job_row(house.ledger, first).attempts == 0
    assert house.simulator.stats()["calls"] == (2 if header == "bearer" else 3)
    assert house.fetch_gate() is None


def test_a_key_file_that_has_changed_goes_on_at_once_and_off_the_budget(
    build: Callable[..., House], tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_text("sk-old\n")
    house = build(simulated={"key": "sk-old"}, api_key_file=path)
    house_two = build(simulated={"key": KEY}, api_key_file=path)
    assert house.execute(house.put()) is Verdict.SUCCEEDED
    path.write_text(KEY + "\n")
    id_ = house_two.put()
    house_two.credentials.worked(house_two.credentials.fetch()[0])  # the style is proven, the key is old
    assert house_two.execute(id_) is Verdict.SUCCEEDED
    assert (job_row(house.ledger, id_).attempts, len(rows(house.ledger, "attempts", job_id=id_))) == (0, 1)


def test_a_key_file_that_has_changed_is_used_before_the_endpoint_refuses_the_old_key(
    build: Callable[..., House], tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_text("sk-old\n")
    house = build(simulated={"key": "sk-old"}, api_key_file=path)
    assert house.execute(house.put()) is Verdict.SUCCEEDED
    path.write_text(KEY + "\n")
    for _ in range(2):
        house.clock.advance(1.0)
        house.credentials.names()
    house.simulator.set_faults(key=KEY)
    assert house.execute(house.put()) is Verdict.SUCCEEDED
    assert house.simulator.stats()["calls"] == 2, "no call was refused"


def test_a_key_file_that_is_mended_before_anything_worked_is_read_again(
    build: Callable[..., House], tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_text("sk-wrong\n")
    house = build(api_key_file=path)
    path.write_text(KEY + "\n")
    assert house.execute(house.put()) is Verdict.SUCCEEDED


def test_a_command_that_prints_a_new_key_goes_on_at_once_and_off_the_budget(
    build: Callable[..., House], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("sk-old")
    house = build(simulated={"key": "sk-old"}, api_key_command=f"cat {tmp_path}/key")
    assert house.execute(house.put()) is Verdict.SUCCEEDED
    (tmp_path / "key").write_text(KEY)
    house.simulator.set_faults(key=KEY)
    house.clock.advance(1)
    id_ = house.put()
    assert house.execute(id_) is Verdict.SUCCEEDED
    assert (job_row(house.ledger, id_).attempts, len(rows(house.ledger, "attempts", job_id=id_))) == (0, 1)


def test_without_a_key_the_worker_waits_as_at_a_refused_one_and_calls_nobody(
    build: Callable[..., House], tmp_path: Path
) -> None:
    house = build(api_key_command=f"cat {tmp_path}/key")
    first, second = house.put(), house.put()
    assert [house.execute(id_) for id_ in (first, second)] == [Verdict.WAITING, Verdict.NOT_ADMITTED]
    row = job_row(house.ledger, first)
    assert (row.state, row.attempts, row.failure_kind) == ("waiting", 0, "unauthorized")
    assert "ANTREAN_API_KEY_COMMAND ended with exit code 1" in row.failure_message
    assert house.simulator.stats()["calls"] == 0
    (tmp_path / "key").write_text(KEY)
    house.again(first)
    assert house.execute(first) is Verdict.SUCCEEDED
    assert house.execute(second) is Verdict.SUCCEEDED


def test_a_worker_that_stops_gives_back_a_job_that_waits_for_the_command_of_its_key(
    build: Callable[..., House], tmp_path: Path
) -> None:
    house = build(api_key_command=f"sh -c 'touch {tmp_path}/runs; sleep 60'", api_key_command_timeout_s=60)
    id_ = house.put()
    running = in_background(lambda: house.execute(id_))
    wait_until(lambda: (tmp_path / "runs").exists(), what="the command runs")
    house.slots.stop()
    house.routes.cut_key_commands()
    assert running() is Verdict.GIVEN_BACK
    row = job_row(house.ledger, id_)
    assert (row.state, row.attempts, row.claim_token) == ("queued", 0, None)


def test_no_job_is_at_fault_for_a_key_that_cannot_be_had(build: Callable[..., House], tmp_path: Path) -> None:
    house = build(api_key_command=f"cat {tmp_path}/key")
    id_ = house.put()
    house.store.of_key(house.credentials.names()[0]).note_accepted()  # by a command of somebody who has a key
    assert house.execute(id_) is Verdict.WAITING
    for _ in range(5):
        house.again(id_, after_s=70)
        assert house.execute(id_) is Verdict.WAITING


def test_invariant_7_waiting_burns_nothing_and_a_refused_key_shuts_the_gate(
    build: Callable[..., House],
) -> None:
    house = build(api_key="sk-wrong")
    ids = [house.put() for _ in range(3)]
    assert [house.execute(id_) for id_ in ids] == [
        Verdict.WAITING,
        Verdict.NOT_ADMITTED,
        Verdict.NOT_ADMITTED,
    ]
    row = job_row(house.ledger, ids[0])
    assert (row.state, row.attempts, row.failure_kind, row.blocked_since_ms) == (
        "waiting",
        0,
        "unauthorized",
        NOW,
    )
    assert [state(house.ledger, id_) for id_ in ids[1:]] == ["queued", "queued"]
    assert house.simulator.stats()["calls"] == 2  # both header styles, once


def test_a_probe_that_succeeds_opens_the_gate_again(build: Callable[..., House]) -> None:
    house = build(simulated={"unauthorized_for_s": 600.0})
    id_ = house.put()
    assert house.execute(id_) is Verdict.WAITING
    house.simulator.set_faults(unauthorized_for_s=0)
    house.again(id_)
    assert house.execute(id_) is Verdict.SUCCEEDED
    assert house.fetch_gate() is None
    assert [a.outcome for a in rows(house.ledger, "attempts")] == ["unauthorized", "succeeded"]


def test_a_server_error_waits_and_burns_until_the_budget_is_spent(build: Callable[..., House]) -> None:
    house = build(simulated={"rate_500": 1.0})
    id_ = house.put(max_attempts=2)
    assert house.execute(id_) is Verdict.WAITING
    assert job_row(house.ledger, id_).attempts == 1
    house.again(id_)
    assert house.execute(id_) is Verdict.FAILED
    row = job_row(house.ledger, id_)
    assert (row.state, row.attempts, row.failure_kind, row.http_status) == ("failed", 2, "server_error", 500)


def test_a_rate_limit_is_obeyed_by_all_and_burns_nothing(build: Callable[..., House]) -> None:
    house = build(simulated={"rate_429": 1.0, "retry_after_s": 7.0})
    first, second = house.put(), house.put()
    assert house.execute(first) is Verdict.WAITING
    assert house.execute(second) is Verdict.NOT_ADMITTED
    row = job_row(house.ledger, first)
    assert row.attempts == 0
    assert row.not_before_ms >= NOW + 7000
    assert house.simulator.stats()["calls"] == 1


def test_an_unknown_model_fails_its_job_once_the_endpoint_is_proven(build: Callable[..., House]) -> None:
    house = build(is_proven=True)
    id_ = house.put(model="no-such-model")
    report = house.receive(id_).result(20)
    assert (report.verdict, report.failure) == (Verdict.FAILED, FailureKind.REJECTED)
    assert house.fetch_gate() is None
    assert len(rows(house.ledger, "failure_bodies")) == 1


def test_invariant_5_a_paid_answer_is_spooled_while_the_database_is_away_and_replayed_by_the_next_process(
    build: Callable[..., House],
) -> None:
    house = build()
    id_ = house.put()
    house.ledger.is_away = lambda: house.simulator.stats()["paid"] > 0
    assert house.execute(id_) is Verdict.SUCCEEDED
    assert (state(house.ledger, id_), len(house.spool)) == ("running", 1)
    assert id_ in house.writer.open_claims
    house.ledger.is_away = lambda: False
    house.wait_for_the_database()
    folder = house.spool._folder
    assert replay_leftovers(folder, house.writer.record) == 0  # its process lives
    house.spool._fd = _closed(house.spool._fd)  # and now it does not
    assert replay_leftovers(folder, house.writer.record) == 1
    assert state(house.ledger, id_) == "succeeded"
    assert house.execute(id_) is Verdict.NO_CLAIM
    assert house.simulator.stats()["calls"] == 1


def _closed(fd: int | None) -> None:
    import os  # local: a killed process's descriptors, closed by hand

    assert fd is not None
    os.close(fd)


def test_a_failure_while_the_database_is_away_is_released_by_the_next_beat(
    build: Callable[..., House],
) -> None:
    house = build(simulated={"rate_500": 1.0})
    id_ = house.put()
    house.ledger.is_away = lambda: house.simulator.stats()["calls"] > 0
    assert house.execute(id_) is Verdict.WAITING
    assert house.writer.open_claims == {}
    assert house.spool.is_writable
    assert len(house.spool) == 0


def test_a_spool_that_cannot_be_written_stops_new_claims(build: Callable[..., House]) -> None:
    class Broken:
        is_writable = False
        asked = 0

        def keep(self, success: object) -> bool:
            return False

        def wait_until_writable(self) -> None:
            self.asked += 1
            self.is_writable = self.asked == 3

    house = build()
    broken = Broken()
    house.executor._spool = house.dispatcher._spool = broken
    assert house.execute(house.put()) is Verdict.SUCCEEDED
    assert broken.asked == 3


def test_an_answer_that_can_be_neither_stored_nor_put_aside_is_spooled(build: Callable[..., House]) -> None:
    house = build()
    id_ = house.put()
    (house.spool._folder / "rejected.jsonl").mkdir(parents=True)  # in the way
    house.ledger.run(lambda c: c.execute(text("ALTER TABLE results RENAME TO gone")))
    verdict = house.execute(id_)
    house.ledger.run(lambda c: c.execute(text("ALTER TABLE gone RENAME TO results")))
    assert (verdict, len(house.spool)) == (Verdict.WAITING, 1), "the job does not hang"
    house.spool.replay(house.writer.record)
    assert (state(house.ledger, id_), house.simulator.stats()["calls"]) == ("succeeded", 1)


def test_a_worker_that_stops_takes_nothing(build: Callable[..., House]) -> None:
    house = build()
    id_ = house.put()
    house.slots.stop()
    assert house.execute(id_) is Verdict.GIVEN_BACK
    assert (state(house.ledger, id_), house.simulator.stats()["calls"]) == ("queued", 0)


def test_a_call_cut_by_the_shutdown_is_given_back_unburnt(build: Callable[..., House]) -> None:
    house = build()
    id_ = house.put()
    house.client.cut_all_calls()
    assert house.execute(id_) is Verdict.GIVEN_BACK
    row = job_row(house.ledger, id_)
    assert (row.state, row.attempts, row.claim_token) == ("queued", 0, None)
    assert house.writer.open_claims == {}


def test_a_paid_answer_of_a_job_that_was_cancelled_meanwhile_is_kept(build: Callable[..., House]) -> None:
    house = build(simulated={"latency_s": 0.2})
    id_ = house.put()
    running = in_background(lambda: house.execute(id_))
    house.simulator.wait_for(lambda stats: stats["in_flight"] == 1)
    assert house.ledger.run(lambda c: cancel_jobs(c, [id_], now_ms=NOW)) == 1
    assert running() is Verdict.SUCCEEDED
    assert state(house.ledger, id_) == "succeeded"


def test_one_that_runs_alone_at_a_time_and_the_next_holds_no_slot_meanwhile(
    build: Callable[..., House],
) -> None:
    house = build(simulated={"latency_s": 0.3})
    first, *others, innocent = [house.put() for _ in range(4)]
    with house.ledger.write() as connection:
        connection.execute(
            update(jobs).where(jobs.c.id.in_([first, *others])).values(losses=2, published_at_ms=NOW)
        )
    on_trial = in_background(lambda: house.execute(first))
    house.simulator.wait_for(lambda stats: stats["in_flight"] == 1)
    held_back = [in_background(partial(house.execute, id_)) for id_ in (*others, innocent)]
    assert on_trial() is Verdict.SUCCEEDED
    came_to = [answer() for answer in held_back]
    assert sorted(came_to) == [Verdict.NOT_ADMITTED, Verdict.SUCCEEDED, Verdict.SUCCEEDED]
    assert house.simulator.stats()["max_in_flight"] == 1, "each was alone"
    put_off = others[came_to.index(Verdict.NOT_ADMITTED)]
    house.wait_for_the_database()
    row = job_row(house.ledger, put_off)
    assert (row.claims, row.published_at_ms) == (0, None), "never claimed, and the relay publishes it again"
    assert house.execute(put_off) is Verdict.SUCCEEDED


def test_invariant_6_no_transaction_and_no_pooled_connection_is_held_across_a_call(
    build: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = build()
    seen: list[int] = []
    complete = house.client.complete

    def look(*args: Any, **kwargs: Any) -> Any:
        seen.append(house.ledger.engine.pool.checkedout())  # type: ignore[attr-defined]
        return complete(*args, **kwargs)

    monkeypatch.setattr(house.client, "complete", look)
    assert [house.execute(house.put()) for _ in range(3)] == [Verdict.SUCCEEDED] * 3
    assert seen == [0, 0, 0]
