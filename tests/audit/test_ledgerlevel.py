from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from schemas.failure import FailureKind
from tests.contract.test_ledger_executor import House, build  # noqa: F401
from tests.contract.test_ledger_upkeep import Broker
from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    claim_one,
    job_row,
    put,
    put_one,
    record,
    rows,
    setback,
    success,
)
from worker.cli import run_work
from worker.clock import SystemClock
from worker.settings import load_settings
from worker.sources.documents import find_documents
from worker.sources.prompt import Prompt
from worker.storage.batches import fetch_batch, hold_batch
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.store import MemoryGateStore
from worker.upkeep.relay import Relay


def a_run(tmp_path, ledger):
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    for n in range(3):
        (docs / "sub" / f"{n}.txt").write_text(f"text {n}")
    (tmp_path / "p.md").write_text("Sum up: {{ text }}")
    home = tmp_path / "proj" / ".antrean"
    home.mkdir(parents=True)
    settings = load_settings(home=home, base_url="http://127.0.0.1:1", _env_file=None)
    return docs, Prompt.load(tmp_path / "p.md"), settings


def relay_of(ledger, endpoint, clock=None):
    broker = Broker(ledger)
    clock = clock or SystemClock()
    return Relay(
        ledger,
        broker.publish,
        broker,
        Gatekeeper(MemoryGateStore(), clock, probe_ttl_s=60),
        clock,
        endpoint=endpoint,
        republish_after_s=120.0,
    ), broker


def test_T1_a_run_whose_jobs_another_run_took_over_hangs_when_that_one_is_stopped(ledger, tmp_path):
    docs, prompt, settings = a_run(tmp_path, ledger)
    a = run_work.make_run(ledger, settings, docs, prompt, "m")
    with run_work.worked_on(ledger, settings, a):
        work_a = run_work.submit_run(ledger, settings, a, find_documents(docs), prompt, "m")
        b = run_work.make_run(ledger, settings, docs / "sub", prompt, "m")
        try:
            with run_work.worked_on(ledger, settings, b):
                work_b = run_work.submit_run(ledger, settings, b, find_documents(docs / "sub"), prompt, "m")
                assert set(work_b.ids) == set(work_a.ids)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        # run A still lives and follows its three jobs
        relay, broker = relay_of(ledger, settings.endpoint)
        relay.tick()
        relay.tick()
        assert set(broker.taken) == set(work_a.ids), (
            f"relayed {len(broker.taken)} of run A's {len(work_a.ids)} jobs"
        )


def test_T2_a_job_in_flight_of_a_stopped_run_is_not_taken_over(ledger, tmp_path):
    docs, prompt, settings = a_run(tmp_path, ledger)
    a = run_work.make_run(ledger, settings, docs, prompt, "m")
    try:
        with run_work.worked_on(ledger, settings, a):
            work_a = run_work.submit_run(ledger, settings, a, find_documents(docs), prompt, "m")
            job = claim_one(ledger, work_a.ids[0], endpoint=settings.endpoint)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    b = run_work.make_run(ledger, settings, docs / "sub", prompt, "m")
    with run_work.worked_on(ledger, settings, b):
        work_b = run_work.submit_run(ledger, settings, b, find_documents(docs / "sub"), prompt, "m")
        record(ledger, setback(job, not_before_ms=NOW + 1000))  # HTTP 500: it waits
        relay, broker = relay_of(ledger, settings.endpoint)
        relay.tick()
        relay.tick()
        assert set(broker.taken) == set(work_b.ids), (
            f"{len(broker.taken)} of {len(work_b.ids)}: {job_row(ledger, job.id).state}"
        )


def test_T3_a_run_that_begins_is_held_by_another_that_begins(ledger, tmp_path, monkeypatch):
    docs, prompt, settings = a_run(tmp_path, ledger)
    (settings.home / "runs").mkdir()
    b = run_work.make_run(ledger, settings, docs / "sub", prompt, "m")
    run_work.submit_run(
        ledger, settings, b, find_documents(docs / "sub"), prompt, "m"
    )  # killed -9 with jobs left
    real = run_work._is_run_by_somebody
    looked, go = threading.Event(), threading.Event()

    def slowly(path):
        answer = real(path)
        looked.set()
        go.wait(5)
        return answer

    monkeypatch.setattr(run_work, "_is_run_by_somebody", slowly)
    other = threading.Thread(target=lambda: run_work.hold_abandoned(ledger, settings))
    other.start()
    looked.wait(5)
    with run_work.worked_on(ledger, settings, b):  # the same command again
        go.set()
        other.join()
        with ledger.read() as c:
            assert fetch_batch(c, b.id).held_at_ms is None, "a living run is held"


FOREIGN = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    "what",
    [
        {"options": {"max_attempts": 2**31}},
        {"options": {"max_attempts": 2**63}},
        {"options": {"metadata": {"x": float("nan")}}},
        {"options": {"metadata": {"x": "a\0b"}}},
        {"options": {"metadata": {"x": "\ud800"}}},
        {"expires_at_ms": 10**20},
        {"not_before_ms": 10**20},
        {"options": {"custom_id": "a\0b"}},
        {"options": {"batch": "a\0b"}},
        {"priority": "high"},
        {"priority": 2.5},
    ],
)
def test_T5_a_foreign_message_never_vanishes(build, what):  # noqa: F811
    from schemas.chat import InvalidRequest
    from worker.messages import Asked, build_job, build_refused

    house = build()
    asked = Asked(request=FOREIGN, **what)
    try:
        try:
            job = build_job(
                "task-1", asked, endpoint=house.endpoint, default_model=None, allow_zero_temperature=False
            )
        except InvalidRequest as exc:
            job = build_refused("task-1", asked, exc.errors, endpoint=house.endpoint)
        report = house.executor.execute("task-1", is_bulk=False, adopt=job)
    except BaseException as exc:
        pytest.fail(
            f"raised {type(exc).__name__}: the task fails, its message is acknowledged, no row: {rows(house.ledger, 'jobs')}"
        )
    assert rows(house.ledger, "jobs")


def test_T6_patience_counts_the_night_in_which_nobody_worked(build):  # noqa: F811
    house = build(simulated={"fault_rate": 0.0})
    id_ = house.put()
    from worker.policy.retry import RetryRules, Standing, decide

    # met once at 18:00
    job = claim_one(house.ledger, id_, endpoint=house.endpoint, now_ms=house.clock.now_ms())
    record(
        house.ledger,
        setback(
            job,
            kind=FailureKind.RATE_LIMITED,
            http_status=429,
            not_before_ms=house.clock.now_ms() + 1000,
            burns=False,
            is_blocked=True,
        ),
    )
    house.clock.advance(10 * 3600)  # the worker was off, or the endpoint paused, or the batch held
    from worker.storage.window import take_due

    house.ledger.run(
        lambda c: take_due(c, house.endpoint, room=9, after_batch="", now_ms=house.clock.now_ms())
    )
    j2 = claim_one(house.ledger, id_, token="t2", endpoint=house.endpoint, now_ms=house.clock.now_ms())
    import random

    from schemas.failure import Failure

    d = decide(
        Failure(FailureKind.RATE_LIMITED, "slow down", http_status=429),
        Standing(j2.attempts, j2.bad_responses, None, j2.number, j2.blocked_since_ms, True),
        now_ms=house.clock.now_ms(),
        rules=RetryRules(),
        rng=random.Random(1),
    )
    assert d.not_before_ms is not None, "failed at its second 429: the night counted as patience"


class Jumping(FakeClock):
    def jump(self, s):
        self._now_ms += round(s * 1000)


def test_T7a_after_a_clock_that_was_ahead_a_flush_is_not_made_good(ledger):
    clock = Jumping(1_000_000_000)
    relay, broker = relay_of(ledger, ENDPOINT, clock)
    id_ = put_one(ledger)
    clock.jump(+7 * 3600)  # booted with a local-time RTC
    relay.tick()
    assert broker.taken == [id_]
    clock.jump(-7 * 3600)  # NTP
    broker.taken.clear()
    broker.has_mark = False  # FLUSHALL / broker restarted empty
    for _ in range(3600):
        clock.advance(1)
        broker.is_purged = True
        relay.tick()
        if broker.taken:
            break
    assert broker.taken == [id_], "an hour later still not published again"


def test_T7c_a_retry_written_by_a_clock_ahead_waits_for_that_clock(ledger):
    clock = Jumping(1_000_000_000)
    relay, broker = relay_of(ledger, ENDPOINT, clock)
    id_ = put_one(ledger)
    job = claim_one(ledger, id_)
    record(ledger, setback(job, not_before_ms=clock.now_ms() + 24 * 3600_000 + 500))
    for _ in range(7200):
        clock.advance(1)
        relay.tick()
        if broker.taken:
            break
    assert broker.taken == [id_]


def test_T8_one_thread_that_cannot_start_ends_name_resolution_for_good(monkeypatch):
    from api_client.deadline import CallRegister
    from api_client.resolver import Resolver

    r = Resolver(lambda h, p: [(2, 1, 6, "", ("127.0.0.1", p))])
    reg = CallRegister(60, time.monotonic)
    real = threading.Thread.start

    def no(self):
        if self.name == "antrean-dns":
            raise RuntimeError("can't start new thread")
        return real(self)

    monkeypatch.setattr(threading.Thread, "start", no)
    with pytest.raises(RuntimeError):
        r.resolve("endpoint.test", 80, timeout_s=1, call=reg.begin())
    monkeypatch.setattr(threading.Thread, "start", real)  # the shortage is over
    for _ in range(3):
        r.resolve("endpoint.test", 80, timeout_s=1, call=reg.begin())


def test_T11_published_jobs_of_a_held_run_fill_the_window(ledger):
    clock = FakeClock(1_000_000_000)
    relay, broker = relay_of(ledger, ENDPOINT, clock)
    from worker.storage.batches import make_batch

    for b in ("batch_a", "batch_b"):
        ledger.run(
            partial(
                make_batch,
                batch_id=b,
                kind="run",
                label=b,
                endpoint=ENDPOINT,
                idempotency_key=b,
                now_ms=clock.now_ms(),
            )
        )
    put(ledger, *[a_job(batch_id="batch_a", is_bulk=True) for _ in range(100)])
    relay.tick()
    assert len(broker.taken) == 32
    ledger.run(partial(hold_batch, batch_id="batch_a", now_ms=clock.now_ms()))
    broker.taken.clear()
    new = put(ledger, *[a_job(batch_id="batch_b", is_bulk=True) for _ in range(10)])
    waited = 0
    while not broker.taken and waited < 300:
        clock.advance(1)
        waited += 1
        broker.is_purged = True
        relay.tick()
    assert waited <= 2, f"batch_b waited {waited} s (broker not empty)"


def test_T17_usage_of_a_task_id_used_again_after_pruning_is_overwritten(ledger):
    from worker.storage.pruning import prune

    put(ledger, a_job(id="report", idempotency_key="task:report"))
    record(ledger, success(claim_one(ledger, "report")))
    prune(ledger, before_ms=NOW + 10_000, with_usage=False)
    put(ledger, a_job(id="report", idempotency_key="task:report"))
    record(ledger, success(claim_one(ledger, "report", token="t2")))
    assert len(rows(ledger, "usage")) == 2, "two paid answers, one in usage"
