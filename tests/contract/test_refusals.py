"""A broker that takes connections and refuses requests, on a real Valkey: a worker waits for it and keeps its jobs."""

from __future__ import annotations

import time

import pytest
import redis
from kombu import Connection as KombuConnection
from kombu.asynchronous import Hub
from redis._parsers.base import BaseParser
from structlog.testing import capture_logs

from schemas.job import Due
from tests.support.reader import UNACKED, Reader, count_takes, ids, publish, put_hints, turn
from tests.support.refusing import KINDS, refusing
from worker.broker.hints import LONE_QUEUE, SHARED_QUEUES
from worker.broker.publishing import publish as publish_due
from worker.broker.refusals import REFUSED_PAUSE_S, Refusals, name_refusal
from worker.consume.connection import Connection
from worker.errors import BrokerAway


@pytest.mark.parametrize("kind", ["MISCONF", "READONLY"])
def test_a_refused_take_ends_no_worker_is_told_once_and_tried_again_every_second(
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
    kind: str,
) -> None:
    reader = Reader(valkey_path)
    reader.fetcher.run_in(hub)
    put_hints(valkey, "j-1", queue=LONE_QUEUE, priority=0)
    turn(hub.create_loop(), lambda: reader.messages, within_s=5)
    put_hints(valkey, "j-2", queue=LONE_QUEUE, priority=0)
    with capture_logs() as logs:
        with refusing(valkey, kind):
            turn(hub.create_loop(), lambda: logs, within_s=5)
            asked, until_s = count_takes(valkey), time.monotonic() + 2.5 * REFUSED_PAUSE_S
            turn(hub.create_loop(), lambda: time.monotonic() > until_s, within_s=5)
            assert 1 <= count_takes(valkey) - asked <= 4
        turn(hub.create_loop(), lambda: len(reader.messages) == 2, within_s=5)
    assert ids(reader.messages) == ["j-1", "j-2"]
    assert [one["event"] for one in logs] == ["broker.refuses", "broker.takes_again"]
    assert logs[0]["error"] == {"READONLY": "ReadOnlyError"}.get(kind, kind)
    assert reader.told.losses == 0, "nothing was lost"


def test_a_full_broker_gives_out_what_it_holds(
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
) -> None:
    reader = Reader(valkey_path)
    reader.fetcher.run_in(hub)
    put_hints(valkey, "j-1", queue=LONE_QUEUE, priority=0)
    with refusing(valkey, "OOM"):
        turn(hub.create_loop(), lambda: reader.messages, within_s=5)


@pytest.mark.parametrize("kind", KINDS)
def test_leases_that_cannot_be_renewed_are_told_once_though_others_are_overdue(
    connection: KombuConnection,
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
    kind: str,
) -> None:
    publish(connection, {"n": 1})
    Reader(valkey_path).read(1)  # a worker that died
    reader = Reader(valkey_path, lease_s=0.3, beat_s=0.1)
    if kind == "OOM":
        publish(connection, {"n": 2})
        reader.read(1)
    reader.fetcher.run_in(hub)
    with capture_logs() as logs, refusing(valkey, kind):
        until_s = time.monotonic() + 1.0
        turn(hub.create_loop(), lambda: time.monotonic() > until_s, within_s=5)
    told = [one for one in logs if one.get("of") == "leases"]
    assert len(told) == 1, logs


@pytest.mark.parametrize("kind", ["MISCONF", "READONLY"])
@pytest.mark.parametrize("end", ["ack", "reject", "requeue"])
def test_a_message_that_cannot_be_finished_comes_again_after_its_lease(
    connection: KombuConnection,
    valkey: redis.Redis,
    valkey_path: str,
    kind: str,
    end: str,
) -> None:
    publish(connection, {"n": 1})
    reader = Reader(valkey_path, lease_s=0.1)
    (message,) = reader.read(1)
    with refusing(valkey, kind):
        getattr(message, end)()
    assert reader.reserved.foreign_tags == [], "its lease is not renewed"
    assert valkey.hlen(UNACKED) == 1
    time.sleep(0.2)
    reader.put_back_overdue()
    assert reader.read(2)[1].payload[1] == {"n": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_publishing_says_that_the_broker_refuses(valkey: redis.Redis, valkey_path: str, kind: str) -> None:
    client = redis.Redis(unix_socket_path=valkey_path)
    due = [Due("j-1", is_bulk=True, priority=9)]
    with refusing(valkey, kind), pytest.raises(BrokerAway, match="refuses messages"):
        publish_due(client, due, SHARED_QUEUES)
    publish_due(client, due, SHARED_QUEUES)
    client.close()


@pytest.mark.parametrize("kind", KINDS)
def test_celerys_own_connection_counts_a_refusal_as_a_broken_connection(
    valkey: redis.Redis, valkey_path: str, kind: str
) -> None:
    """Celery waits and connects again at those errors, and ends the worker at all others."""
    with (
        Connection(f"redis+socket://{valkey_path}") as made,
        refusing(valkey, kind),
        pytest.raises(made.connection_errors),
        made.channel() as channel,
    ):
        channel.client.sadd("somebodys", "write")


def test_a_refusal_is_named_without_what_it_quotes() -> None:
    quoting = redis.ResponseError(
        "Command # 1 (HSET k SECRET) of pipeline caused error: MISCONF no disk: SECRET"
    )
    assert name_refusal(quoting) == "MISCONF"
    assert name_refusal(redis.ResponseError("SECRET is no command")) is None
    assert name_refusal(redis.ConnectionError("READONLY")) is None
    assert name_refusal(redis.exceptions.ReadOnlyError("SECRET")) == "ReadOnlyError"


def test_another_reason_is_told_as_well_and_the_end_only_once() -> None:
    now_s = [0.0]
    refusals = Refusals("takes", lambda: now_s[0])
    with capture_logs() as logs:
        refusals.end()
        for error in (redis.ResponseError("MISCONF a"), redis.ResponseError("MISCONF b")):
            refusals.note(error)
        refusals.note(redis.exceptions.ReadOnlyError("c"))
        assert refusals.is_pausing
        now_s[0] += REFUSED_PAUSE_S
        assert not refusals.is_pausing
        refusals.end()
        refusals.end()
        for _ in range(2):
            refusals.note(redis.ResponseError("MISCONF a"))
            now_s[0] += 61
    assert [one.get("error") for one in logs] == ["MISCONF", "ReadOnlyError", None, "MISCONF", "MISCONF"]


def test_what_no_waiting_mends_is_no_refusal() -> None:
    refusals = Refusals("takes")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        refusals.note(redis.ResponseError("WRONGTYPE of a key"))
    assert not refusals.is_pausing


_IN_SCRIPT = "@user_script: 48: -"
_FROM_CALL = "Error running script (call to f_0123456789abcdef): @user_script:16: @user_script: 16: -"


@pytest.mark.parametrize(
    "place", ["", _IN_SCRIPT, _FROM_CALL, "Command # 1 (LPUSH a OOM) of pipeline caused error: "]
)
@pytest.mark.parametrize(
    ("words", "is_refusal"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("READONLY You can't write against a read only replica.", True),
        ("MISCONF Valkey is configured to save RDB snapshots, but it is unable to persist to disk.", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("CLUSTERDOWN The cluster is down", True),
        ("TRYAGAIN Multiple keys request during rehashing of slot", True),
        ("BUSY Valkey is busy running a script.", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
        ("NOPERM this user has no permissions", False),
        ("ERR unknown command", False),
    ],
)
def test_refusals_are_known_by_their_code_wherever_the_server_puts_it(
    place: str, words: str, is_refusal: bool
) -> None:
    """Before Redis 7 a script's place comes first; redis-py takes the code off the words of some."""
    told = BaseParser.parse_error(place + words)
    assert (name_refusal(told) is not None) is is_refusal
