"""The wait that takes nothing, on a real Valkey: it misses no message, and rings for none that is not wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from worker.broker.hints import BULK_QUEUE, LONE_QUEUE, list_keys
from worker.consume.doorbell import Doorbell

KEYS = [key for queue in (LONE_QUEUE, BULK_QUEUE) for key in list_keys(queue)]


@pytest.fixture
def socket(valkey: redis.Redis, valkey_path: str) -> Iterator[Callable[..., Any]]:
    """Opens connections of redis-py."""
    pools: list[redis.ConnectionPool] = []

    def open_one(**options: Any) -> Any:
        pools.append(
            redis.ConnectionPool(
                connection_class=redis.UnixDomainSocketConnection,
                path=valkey_path,
                socket_timeout=5,
                **options,
            )
        )
        return pools[-1].get_connection()

    yield open_one
    for pool in pools:
        pool.disconnect()


def has_rung(bell: Doorbell) -> bool:
    """Whether it has rung by the time all answers have come."""
    rung = bell.has_rung()
    while bell.is_waiting_for_an_answer:
        rung |= bell.has_rung()
    return rung


def allow_no_tracking(valkey: redis.Redis) -> None:
    valkey.execute_command("ACL", "SETUSER", "untold", "on", ">p", "~*", "&*", "+@all", "-client|tracking")


@pytest.mark.parametrize("key", KEYS)
def test_the_bell_rings_once_for_a_message_in_any_list(
    valkey: redis.Redis, socket: Callable[..., Any], key: str
) -> None:
    connection = socket()
    bell = Doorbell(connection)
    bell.ask(KEYS)
    assert not has_rung(bell)
    valkey.lpush("another list", b"x")
    assert not connection.can_read(0.05)
    valkey.lpush(key, b"x")
    assert connection.can_read(5)
    assert bell.has_rung()
    valkey.lpush(key, b"y")
    assert not connection.can_read(0.05), "nobody has asked again"
    bell.ask([key])
    assert has_rung(bell), "there is something already"


def test_a_message_that_comes_while_the_bell_is_asked_is_not_missed(
    valkey: redis.Redis, valkey_path: str, socket: Callable[..., Any]
) -> None:
    """A thousand times beside a producer: each time either the answer or a notice tells of it."""
    connection = socket()
    bell = Doorbell(connection)
    rounds = 1000
    go = threading.Barrier(2, timeout=10)

    def produce(client: redis.Redis) -> None:
        for _ in range(rounds):
            go.wait()
            client.lpush("l", b"x")

    with redis.Redis(unix_socket_path=valkey_path) as client:
        producer = threading.Thread(target=produce, args=(client,))
        producer.start()
        for _ in range(rounds):
            go.wait()
            bell.ask(["l"])
            while valkey.lpop("l") is None:
                assert connection.can_read(5), "a message lies there and nobody tells"
                if bell.has_rung() and valkey.llen("l") == 0:
                    bell.ask(["l"])  # an answer to an earlier question, as when another worker was quicker
        producer.join(10)


def test_a_broker_that_forgets_everything_rings(valkey: redis.Redis, socket: Callable[..., Any]) -> None:
    connection = socket()
    bell = Doorbell(connection)
    bell.ask(["l"])
    assert not has_rung(bell)
    valkey.flushall()
    assert connection.can_read(5)
    assert bell.has_rung(), "to look in vain is safe"


def test_a_bell_belongs_to_one_socket(valkey: redis.Redis, socket: Callable[..., Any]) -> None:
    connection = socket()
    bell = Doorbell(connection)
    assert bell.is_at(connection)
    connection.disconnect()
    assert not bell.is_at(connection)
    connection.connect()
    assert not bell.is_at(connection)


@pytest.mark.parametrize("options", [{"protocol": 2}, {"username": "untold", "password": "p"}])
def test_a_broker_that_pushes_nothing_is_asked(
    valkey: redis.Redis, socket: Callable[..., Any], options: dict[str, Any]
) -> None:
    allow_no_tracking(valkey)
    connection = socket(**options)
    bell = Doorbell(connection)
    bell.ask(["l"])
    assert not has_rung(bell)
    assert not bell.is_told
    valkey.lpush("l", b"x")
    bell.ask(["l"])
    assert has_rung(bell)
