"""One contract for both gate stores: in memory, and in a real Valkey."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from schemas.failure import FailureKind
from tests.support.clock import FakeClock
from tests.support.ledger import at_once
from tests.support.processes import ROOT
from worker.policy.gates import Gate
from worker.throttle.gatekeeper import Gatekeeper, Permit
from worker.throttle.redis_store import RedisGateStore
from worker.throttle.store import GateStore, MemoryGateStore

K = FailureKind
Make = Callable[[], Gatekeeper]


def test_an_open_gate_lets_everyone_through(make: Make) -> None:
    keeper = make()
    assert [keeper.admit() for _ in range(3)] == [Permit(is_probe=False)] * 3
    assert keeper.room(64) == 64


def test_a_gate_comes_back_from_its_store_as_it_went(store: GateStore) -> None:
    assert store.fetch() is None
    gate = Gate(K.QUOTA, 1234, 3, needs_probe=True, lets_jobs=True)
    store.put(gate)
    assert store.fetch() == gate
    store.clear()
    assert store.fetch() is None


def test_a_shut_gate_is_shut_for_every_process(make: Make, clock: FakeClock) -> None:
    first, second = make(), make()
    assert second.admit().is_granted
    first.shut(K.UNAUTHORIZED, asked_s=None)
    clock.advance(0.3)  # what a process looked at is fresh for a quarter of a second
    assert not first.admit().is_granted
    assert not second.admit().is_granted
    assert second.room(64) == 0


def test_one_probe_at_a_time_passes_a_gate_whose_time_has_come(make: Make, clock: FakeClock) -> None:
    keepers = [make() for _ in range(4)]
    keepers[0].shut(K.UNAUTHORIZED, asked_s=None)
    clock.advance(1.0)
    answers = at_once(4, lambda i: keepers[i].admit())
    assert sorted(answer.is_granted for answer in answers) == [False, False, False, True]
    assert [keeper.room(64) for keeper in keepers] == [1] * 4


def test_a_probe_that_succeeds_opens_the_gate_for_all(make: Make, clock: FakeClock) -> None:
    first, second = make(), make()
    first.shut(K.UNAUTHORIZED, asked_s=None)
    clock.advance(1.0)
    probe = first.admit()
    assert probe == Permit(is_probe=True)
    first.succeeded(probe)
    clock.advance(0.3)
    assert first.admit() == second.admit() == Permit(is_probe=False)


def test_a_probe_that_is_refused_shuts_the_gate_for_longer_and_the_next_may_try(
    make: Make, clock: FakeClock
) -> None:
    keeper = make()
    keeper.shut(K.UNAUTHORIZED, asked_s=None)
    clock.advance(1.0)
    assert keeper.admit() == Permit(is_probe=True)
    assert keeper.shut(K.UNAUTHORIZED, asked_s=None).strikes == 2
    clock.advance(1.0)
    assert not keeper.admit().is_granted
    clock.advance(1.0)
    assert keeper.admit() == Permit(is_probe=True)


def test_a_probe_that_decided_nothing_gives_its_place_back(make: Make, clock: FakeClock) -> None:
    first, second = make(), make()
    first.shut(K.UNAUTHORIZED, asked_s=None)
    clock.advance(1.0)
    probe = first.admit()
    assert probe.is_granted
    assert not second.admit().is_granted
    probe.leave()
    assert second.admit() == Permit(is_probe=True)


def test_one_who_is_no_probe_takes_nothing_from_the_probe(make: Make, clock: FakeClock) -> None:
    first, second = make(), make()
    before = first.admit()
    assert before.is_granted
    second.shut(K.UNAUTHORIZED, asked_s=None)
    clock.advance(1.0)
    assert second.admit() == Permit(is_probe=True)
    before.leave()
    assert not first.admit().is_granted


def test_a_cooldown_is_obeyed_by_a_second_process_and_ends_by_itself(make: Make, clock: FakeClock) -> None:
    first, second = make(), make()
    first.cool_down(K.RATE_LIMITED, asked_s=5.0)
    assert not second.admit().is_granted
    clock.advance(4.9)
    assert (second.admit().is_granted, second.room(64)) == (False, 0)
    clock.advance(0.2)
    assert second.admit() == Permit(is_probe=False)
    assert second.room(64) == 64


def test_the_store_is_asked_at_most_four_times_a_second(clock: FakeClock) -> None:
    class Counting(MemoryGateStore):
        asked = 0

        def fetch(self) -> Gate | None:
            self.asked += 1
            return super().fetch()

    store = Counting()
    keeper = Gatekeeper(store, clock, probe_ttl_s=1.0)
    for _ in range(100):
        keeper.admit()
        clock.advance(0.02)
    assert store.asked <= 9


def test_a_store_that_is_away_stops_nobody_and_is_counted(tmp_path: Path, clock: FakeClock) -> None:
    client = redis.Redis(
        unix_socket_path=str(tmp_path / "nobody.sock"), socket_timeout=0.2, retry=Retry(NoBackoff(), 0)
    )
    store = RedisGateStore(client, "e")
    keeper = Gatekeeper(store, clock, probe_ttl_s=1.0)
    assert keeper.admit() == Permit(is_probe=False)
    assert store.failed_open == 1
    keeper.cool_down(K.RATE_LIMITED, asked_s=1.0)
    keeper.succeeded(Permit(is_probe=True))
    with Permit(is_probe=True, give_back=store.leave_probe):
        pass
    assert store.take_probe(ttl_s=1.0)
    assert store.failed_open == 6
    client.close()


def test_a_gate_that_cannot_be_read_stops_nobody(valkey: redis.Redis, clock: FakeClock) -> None:
    store = RedisGateStore(valkey, "e")
    store.put(Gate(K.QUOTA, 1, 1, needs_probe=True))
    [key] = valkey.keys("*gate")
    for odd in (b"not json", b"[]", b"{}", b'{"kind":"from the future","until_ms":1,"strikes":1}'):
        valkey.set(key, odd)
        assert store.fetch() is None
    assert store.failed_open == 4


def test_gates_of_two_endpoints_do_not_meet(valkey: redis.Redis) -> None:
    one, other = RedisGateStore(valkey, "a"), RedisGateStore(valkey, "b")
    one.put(Gate(K.QUOTA, 1, 1, needs_probe=True))
    assert one.take_probe(ttl_s=60)
    assert other.fetch() is None
    assert other.take_probe(ttl_s=60)


def test_a_probe_that_never_comes_back_loses_its_place_in_time(valkey: redis.Redis) -> None:
    store = RedisGateStore(valkey, "a")
    assert store.take_probe(ttl_s=60)
    assert not store.take_probe(ttl_s=60)
    [key] = valkey.keys("*probe")
    assert 0 < valkey.pttl(key) <= 60_000  # type: ignore[operator]


def test_a_late_failure_of_a_call_from_before_gives_no_probes_place_away(
    make: Make, clock: FakeClock
) -> None:
    first, second = make(), make()
    before = first.admit()
    assert before.is_granted
    second.shut(K.SERVER_ERROR, asked_s=None)
    clock.advance(1.0)
    assert second.admit() == Permit(is_probe=True)
    assert first.shut(K.SERVER_ERROR, asked_s=None, permit=before).strikes == 1
    clock.advance(0.3)
    assert not first.admit().is_granted, "the probe's place is taken still"


def test_a_probe_that_ends_late_gives_its_own_place_back_and_no_other(make: Make, clock: FakeClock) -> None:
    first, second = make(), make()
    first.shut(K.TIMEOUT, asked_s=None)
    clock.advance(1.0)
    hangs = first.admit("a")
    assert hangs == Permit(is_probe=True)
    clock.advance(5.0)
    assert second.admit("b") == Permit(is_probe=True)
    hangs.leave()
    assert not first.admit("c").is_granted
    assert second.room(64) == 1


def test_while_probes_hang_others_begin_every_few_seconds_and_there_is_a_limit(
    make: Make, clock: FakeClock
) -> None:
    keeper = Gatekeeper(make()._store, clock, probe_ttl_s=365.0)
    keeper.shut(K.TIMEOUT, asked_s=None)
    clock.advance(1.0)
    begun = []
    for second in range(360):
        if keeper.admit(f"job{second}").is_granted:
            begun.append(second)
        clock.advance(1.0)
    assert begun[:4] == [0, 5, 10, 15]
    assert len(begun) == 12


def test_a_probe_of_an_outage_that_is_over_opens_no_later_gate(make: Make, clock: FakeClock) -> None:
    first, second = make(), make()
    first.shut(K.TIMEOUT, asked_s=None)
    clock.advance(1.0)
    old = first.admit("a")
    assert old.is_granted
    clock.advance(5.0)
    new = second.admit("b")
    assert new.is_granted
    second.succeeded(new)
    for job in "cd":
        second.succeeded(second.admit(job))
    assert second.is_known_open
    second.shut(K.TIMEOUT, asked_s=None)
    first.succeeded(old)
    clock.advance(0.3)
    assert not first.admit("c").is_granted
    assert not second.admit("c").is_granted


def test_a_late_refusal_does_not_shut_a_gate_that_was_opened_meanwhile(store: GateStore) -> None:
    gate = Gate(K.UNAUTHORIZED, 1000, 1, needs_probe=True)
    store.put(gate, only_if_shut=True)
    assert store.fetch() is None
    store.put(gate)
    store.put(Gate(K.UNAUTHORIZED, 2000, 2, needs_probe=True), only_if_shut=True)
    found = store.fetch()
    assert found is not None and found.strikes == 2


def test_an_answer_to_a_call_from_before_opens_nothing_and_brings_the_probe_forward(
    make: Make, clock: FakeClock
) -> None:
    keeper = make()
    before = keeper.admit()
    assert before.is_granted
    keeper.shut(K.SERVER_ERROR, asked_s=30.0)
    clock.advance(2.0)
    assert not keeper.admit("a").is_granted
    keeper.succeeded(before)
    assert keeper.admit("a") == Permit(is_probe=True)
    assert not keeper.admit("b").is_granted


def test_a_refused_key_is_tried_with_another_job_before_its_time(make: Make, clock: FakeClock) -> None:
    first, second = make(), make()
    for _ in range(6):
        gate = first.shut(K.UNAUTHORIZED, asked_s=None, job_id="denied", http_status=401)
        clock.advance((gate.until_ms - clock.now_ms()) / 1000)
    first.shut(K.UNAUTHORIZED, asked_s=None, job_id="denied")
    clock.advance(1.1)
    assert not second.admit("denied").is_granted
    assert not second.admit().is_granted
    probe = second.admit("another")
    assert probe == Permit(is_probe=True)
    second.succeeded(probe)
    clock.advance(0.3)
    assert first.admit("denied") == Permit(is_probe=False)


def test_a_gate_that_is_shut_for_one_job_alone_opens_when_the_refusal_was_its_own(
    make: Make, clock: FakeClock
) -> None:
    keeper = make()
    keeper.shut(K.QUOTA, asked_s=None, job_id="dear")
    keeper.acquit("another")
    assert not keeper.admit("x").is_granted
    keeper.acquit("dear")
    assert keeper.admit("x") == Permit(is_probe=False)
    keeper.shut(K.QUOTA, asked_s=None, job_id="dear")
    keeper.shut(K.QUOTA, asked_s=None, permit=Permit(is_probe=False), job_id="another")
    keeper.acquit("dear")
    assert not keeper.admit("x").is_granted, "it is refused to others as well"


def test_a_probe_that_was_answered_otherwise_is_followed_by_one_a_second_later(
    make: Make, clock: FakeClock
) -> None:
    keeper = make()
    keeper.shut(K.SERVER_ERROR, asked_s=None)
    clock.advance(1.0)
    probe = keeper.admit("a")
    assert probe.is_granted
    keeper.decided_nothing(probe)
    assert not keeper.admit("b").is_granted
    clock.advance(1.0)
    assert keeper.admit("b") == Permit(is_probe=True)


def test_a_gate_that_another_machines_fast_clock_shut_is_shut_for_as_long_as_it_meant(
    store: GateStore, clock: FakeClock
) -> None:
    fast = FakeClock(clock.now_ms() + 7 * 3_600_000)
    Gatekeeper(store, fast, probe_ttl_s=60.0).shut(K.SERVER_ERROR, asked_s=None)
    keeper = Gatekeeper(store, clock, probe_ttl_s=60.0)
    assert not keeper.admit("a").is_granted
    clock.advance(0.6)
    assert not keeper.admit("a").is_granted
    clock.advance(0.5)
    assert keeper.admit("a") == Permit(is_probe=True)


def test_the_scripts_use_no_more_commands_than_the_page_grants_the_brokers_user() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    granted = set(re.findall(r"\+([a-z]+)", page))
    scripts = list((ROOT / "worker" / "throttle").glob("*.lua"))
    used = {
        name.lower() for path in scripts for name in re.findall(r"redis\.call\('(\w+)'", path.read_text())
    }
    assert len(scripts) == 5
    assert used == {"get", "set", "del", "time"} <= granted


def test_the_broker_clock_tells_when_the_next_probe_may_begin_whatever_the_workers_say(
    valkey: redis.Redis,
) -> None:
    store = RedisGateStore(valkey, "e")
    now_ms = 10**12
    assert store.take_probe(ttl_s=60, token="one", now_ms=now_ms)
    assert not store.take_probe(ttl_s=60, token="two", now_ms=now_ms + 3_600_000), "a clock an hour ahead"
    assert not store.take_probe(ttl_s=60, token="two", now_ms=now_ms - 3_600_000), "a clock an hour behind"
    store.leave_probe("one")
    assert store.take_probe(ttl_s=60, token="two", now_ms=now_ms)


def test_a_key_that_was_taken_is_remembered_by_all_workers(store: GateStore) -> None:
    assert not store.was_accepted()
    store.note_accepted()
    assert store.was_accepted()


def test_many_answers_that_tell_of_the_same_wait_ask_the_store_once(clock: FakeClock) -> None:
    class Counting(MemoryGateStore):
        asked = 0

        def fetch(self) -> Gate | None:
            self.asked += 1
            return super().fetch()

    store = Counting()
    keeper = Gatekeeper(store, clock, probe_ttl_s=1.0)
    for _ in range(100):
        keeper.keep_off(5.0)
    assert store.asked == 1
    clock.advance(1.0)
    keeper.keep_off(9.0)
    gate = store.fetch()
    assert gate is not None and gate.until_ms == clock.now_ms() + 9000, "a later end counts"
    keeper.shut(K.UNAUTHORIZED, asked_s=None)
    keeper.keep_off(60.0)
    assert (gate := store.fetch()) is not None and gate.needs_probe, "a gate that needs a probe stays one"
