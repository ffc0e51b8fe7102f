"""The gates of keys in their stores: in memory, and in a real Valkey."""

from __future__ import annotations

import re
import time

import pytest
import redis

from schemas.failure import FailureKind
from tests.support.clock import FakeClock
from tests.support.processes import ROOT
from worker.policy.gates import Gate
from worker.throttle.key_gates import KeyGates
from worker.throttle.redis_store import RedisGateStore
from worker.throttle.store import GateStore, KeyName

K = FailureKind


def test_all_gates_are_opened_with_those_of_keys_that_no_worker_uses_any_more(store: GateStore) -> None:
    names = [KeyName("0a1b2c3d4e5f", "key 1"), KeyName("ffffffffffff", "key 2")]
    store.note_used(names)
    for one in (store, *map(store.of_key, names)):
        one.put(Gate(K.QUOTA, 1234, 3, needs_probe=True))
    store.note_used(names[:1], replaced=names[1:])
    assert [one.name for one in store.fetch_keys()] == names[:1]
    store.clear_all()
    assert [one.fetch() for one in (store, *map(store.of_key, names))] == [None] * 3
    store.of_key(names[1]).put(Gate(K.QUOTA, 1234, 3, needs_probe=True))
    store.clear_all()
    assert store.of_key(names[1]).fetch() is None


def test_keys_in_use_are_told_with_their_gates_and_forgotten_when_nobody_uses_them(
    valkey: redis.Redis, clock: FakeClock
) -> None:
    store = RedisGateStore(valkey, "https://e.test", goes_by_callers=True)
    keys = [
        KeyName("0a1b2c3d4e5f", "ANTREAN_API_KEYS, key 1"),
        KeyName("ffffffffffff", "ANTREAN_API_KEYS, key 2"),
    ]
    gates = KeyGates(store, clock, probe_ttl_s=60.0, keys=lambda: keys)
    gates.room(64)
    with gates.admit("job") as permit:
        assert permit.key == keys[0]
        gates.shut(FailureKind.QUOTA, asked_s=None, permit=permit, job_id="job", http_status=402)
    first, second = store.fetch_keys()
    assert (first.name, second.name, second.gate) == (keys[0], keys[1], None)
    assert first.gate is not None and (first.gate.kind, first.gate.http_status) == (FailureKind.QUOTA, 402)
    assert store.fetch() is None, "the endpoint's own gate is open"
    [gate_key] = valkey.keys("antrean:*:key:0a1b2c3d4e5f:gate")
    assert 600 <= valkey.ttl(gate_key) <= 602, "a key that nobody tries any more is forgotten"
    keys[:] = [KeyName("aaaaaaaaaaaa", "ANTREAN_API_KEY_FILE")]
    gates.room(64)
    assert [one.name for one in store.fetch_keys()] == keys
    assert valkey.smembers(valkey.keys("antrean:*:keys")[0]) == {b"aaaaaaaaaaaa"}


def test_a_key_whose_worker_has_ended_is_soon_forgotten(valkey: redis.Redis, clock: FakeClock) -> None:
    """As long as it is taken for one in use, a run whose only key is refused waits on without regard to its patience."""
    store = RedisGateStore(valkey, "https://e.test", goes_by_callers=True)
    gates = KeyGates(store, clock, probe_ttl_s=60.0, keys=lambda: [KeyName("0a1b2c3d4e5f", "key 1")])
    gates.room(64)
    [used] = valkey.keys("antrean:*:used")
    assert 10 <= valkey.ttl(used) <= 15
    valkey.expire(used, 1)
    clock.advance(4.0)
    gates.room(64)
    assert valkey.ttl(used) >= 10, "its worker lives"


def test_the_gates_of_keys_that_were_forgotten_are_not_remembered_for_ever(
    valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisGateStore(valkey, "https://e.test")
    now_s = time.time()
    for hours, key_id in ((0, "0a1b2c3d4e5f"), (2, "ffffffffffff")):
        monkeypatch.setattr(time, "time", lambda hours=hours: now_s + hours * 3600)
        store.of_key(KeyName(key_id, "key 1")).put(Gate(K.QUOTA, 1234, 3, needs_probe=True, wait_ms=60_000))
    assert valkey.zrange(valkey.keys("antrean:*:gated-keys")[0], 0, -1) == [b"ffffffffffff"]


def test_the_brokers_user_of_the_page_on_operations_may_do_all_that_gates_need(
    valkey: redis.Redis, valkey_path: str
) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    found = re.search(r"^ACL (SETUSER antrean .*?)(?=^ACL )", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    valkey.execute_command("ACL", *found[1].replace(">PASSWORD", ">secret").split())
    valkey.acl_log_reset()
    user = redis.Redis(unix_socket_path=valkey_path, username="antrean", password="secret")
    try:
        store = RedisGateStore(user, "https://e.test")
        names = [KeyName("0a1b2c3d4e5f", "key 1"), KeyName("ffffffffffff", "key 2")]
        store.note_used(names)
        for one in (store, *map(store.of_key, names)):
            one.put(Gate(K.QUOTA, 1234, 3, needs_probe=True))
            assert one.take_probe(ttl_s=5.0, token="t")
            one.leave_probe("t")
            one.note_accepted()
            assert one.was_accepted() and one.fetch() is not None
        store.note_used(names[:1], replaced=names[1:])
        assert [one.name for one in store.fetch_keys()] == names[:1]
        store.clear_all()
        assert store.of_key(names[1]).fetch() is None
        assert store.failed_open == 0 and valkey.acl_log() == []
    finally:
        user.close()
        valkey.acl_deluser("antrean")
