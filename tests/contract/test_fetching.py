"""Our Fetcher beside kombu's own channel, on a real Valkey: what it does differently, and that all else is the same."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from kombu import Connection as KombuConnection
from kombu.asynchronous import Hub
from kombu.exceptions import OperationalError

from tests.support.reader import (
    BULK,
    LONE,
    UNACKED,
    UNACKED_INDEX,
    KombuReader,
    Reader,
    Told,
    ids,
    publish,
    put_hints,
)
from worker.broker.hints import BULK_QUEUE, LONE_QUEUE, list_key, list_keys, write_hint
from worker.consume.connection import Connection


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(params=["kombu's channel", "ours"])
def read(request: pytest.FixtureRequest, connection: KombuConnection, valkey_path: str) -> Callable[..., Any]:
    """Makes a reader: kombu's, and ours."""
    if request.param == "ours":
        return lambda *queues: Reader(valkey_path, *queues, bulk_limit=4)
    return lambda *queues: KombuReader(connection, *queues)


# What kombu does with a foreign message, ours does as well.


def test_a_message_in_hand_is_kept_by_the_broker_until_it_is_acknowledged(
    read: Callable[..., Any], connection: KombuConnection, valkey: redis.Redis
) -> None:
    publish(connection, {"n": 1})
    (message,) = read().read(1)
    assert valkey.hlen(UNACKED) == valkey.zcard(UNACKED_INDEX) == 1
    message.ack()
    assert valkey.hlen(UNACKED) == valkey.zcard(UNACKED_INDEX) == 0
    assert valkey.llen(LONE_QUEUE) == 0


def test_a_message_that_is_handed_back_comes_again(
    read: Callable[..., Any], connection: KombuConnection, valkey: redis.Redis
) -> None:
    for n in (1, 2):
        publish(connection, {"n": n})
    reader = read()
    reader.read(1)[0].requeue()
    first, second, third = reader.read(3)
    assert [first.payload[1]["n"], second.payload[1]["n"], third.payload[1]["n"]] == [1, 2, 1]
    second.reject()
    assert valkey.hlen(UNACKED) == 1, "the one that is in hand"
    third.ack()
    assert valkey.hlen(UNACKED) == valkey.llen(LONE_QUEUE) == 0


def test_what_a_reader_held_is_put_back_when_it_closes(
    read: Callable[..., Any], connection: KombuConnection, valkey: redis.Redis
) -> None:
    publish(connection, {"n": 1})
    reader = read()
    reader.read(1)
    reader.close()
    assert valkey.hlen(UNACKED) == valkey.zcard(UNACKED_INDEX) == 0
    assert valkey.llen(LONE_QUEUE) == 1


def test_what_a_killed_process_held_is_delivered_again_once_it_is_overdue(
    read: Callable[..., Any], connection: KombuConnection, valkey: redis.Redis
) -> None:
    publish(connection, {"n": 1})
    reader = read()
    reader.read(1)
    reader.put_back_overdue()
    assert valkey.llen(LONE_QUEUE) == 0, "not overdue yet"
    valkey.zadd(UNACKED_INDEX, {reader.messages[0].delivery_tag: 1.0})
    reader.put_back_overdue()
    assert valkey.llen(LONE_QUEUE) == 1


def test_a_foreign_message_in_the_bulk_queue_is_kept_as_well(
    read: Callable[..., Any], connection: KombuConnection, valkey: redis.Redis
) -> None:
    publish(connection, {"n": 1}, queue=BULK, priority=9)
    (message,) = read().read(1)
    assert valkey.hlen(UNACKED) == 1
    message.ack()
    assert valkey.hlen(UNACKED) == 0


def test_lower_numbers_come_first(read: Callable[..., Any], connection: KombuConnection) -> None:
    for priority in (9, 3, 0, 6):
        publish(connection, {"n": priority}, priority=priority)
    assert [message.payload[1]["n"] for message in read().read(4)] == [0, 3, 6, 9]


def test_each_message_may_be_acknowledged_from_another_thread(
    read: Callable[..., Any], connection: KombuConnection, valkey: redis.Redis
) -> None:
    from concurrent.futures import ThreadPoolExecutor  # local: only here

    for n in range(40):
        publish(connection, {"n": n})
    messages = read(LONE).read(40)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda message: message.ack(), messages))
    assert valkey.hlen(UNACKED) == valkey.zcard(UNACKED_INDEX) == 0


def test_what_cannot_be_noted_costs_nothing_that_was_taken_with_it(
    connection: KombuConnection, valkey_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are on no list of the broker's any more."""
    for n in range(3):
        publish(connection, {"n": n})
    reader = Reader(valkey_path)
    read, breaks = reader.fetcher._read, [False, True, False]

    def read_or_break(taken: Any) -> Any:
        if breaks and breaks.pop(0):
            raise redis.ConnectionError("the broker is gone")
        return read(taken)

    monkeypatch.setattr(reader.fetcher, "_read", read_or_break)
    with pytest.raises(redis.ConnectionError):
        reader.fetcher.poll()
    assert [message.payload[1]["n"] for message in reader.messages] == [0, 2]
    assert [message.payload[1]["n"] for message in reader.read(3)] == [0, 2, 1]
    reader.close()


# Hints.


def test_the_lists_are_those_of_kombu(valkey_path: str) -> None:
    with KombuConnection(f"redis+socket://{valkey_path}") as connection, connection.channel() as channel:
        for queue in (LONE_QUEUE, BULK_QUEUE):
            assert [list_key(queue, n) for n in range(10)] == [
                channel._q_for_pri(queue, n) for n in range(10)
            ]
            assert list_keys(queue) == [channel._q_for_pri(queue, n) for n in channel.priority_steps]


def test_a_hint_is_what_celery_would_have_sent(valkey: redis.Redis, valkey_path: str) -> None:
    from worker.broker.hints import TASK
    from worker.celery import app  # local: it reads the settings of this process

    with KombuConnection(f"redis+socket://{valkey_path}") as connection, connection.channel() as channel:
        BULK(channel).declare()
        producer = app.amqp.Producer(channel, auto_declare=False)
        app.send_task(
            TASK,
            kwargs={"job_id": "j-1"},
            task_id="j-1",
            queue=BULK_QUEUE,
            priority=9,
            producer=producer,
            argsrepr="()",
            kwargsrepr="{}",
        )
    key = list_key(BULK_QUEUE, 9)
    sent = json.loads(valkey.lpop(key))  # type: ignore[arg-type]
    ready = json.loads(write_hint("j-1", queue=BULK_QUEUE, priority=9))
    assert ready["headers"].pop("antrean_hint") == 1
    for one in (sent, ready):
        for part, name in (("headers", "origin"), ("properties", "reply_to"), ("properties", "delivery_tag")):
            assert isinstance(one[part].pop(name), str)
        one["body"] = json.loads(base64.b64decode(one["body"]))
        one["properties"]["delivery_info"].pop("exchange")  # a queue's name as an address has none
        one["properties"].pop("argsrepr", None)  # Celery says it twice
        one["properties"].pop("kwargsrepr", None)
    assert ready == sent


def test_kombu_itself_reads_a_hint(valkey: redis.Redis, connection: KombuConnection) -> None:
    put_hints(valkey, "j-1")
    (message,) = KombuReader(connection).read(1)
    assert message.payload[:2] == [[], {"job_id": "j-1"}]
    assert message.delivery_info["routing_key"] == BULK_QUEUE
    message.ack()


def test_many_hints_are_taken_at_once_in_order_and_no_more_than_fit(
    valkey: redis.Redis, valkey_path: str
) -> None:
    put_hints(valkey, *(f"j-{n}" for n in range(30)))
    reader = Reader(valkey_path, bulk_limit=10, refill_at=5)
    valkey.config_resetstat()
    got = reader.read_all()
    assert ids(got) == [f"j-{n}" for n in range(10)]
    assert valkey.info("commandstats")["cmdstat_evalsha"]["calls"] <= 5, "a read a message"
    assert valkey.exists(UNACKED) == 0, "nobody keeps a hint"
    for message in got[:4]:
        message.ack()
    assert len(reader.read_all()) == 10, "not worth it yet"
    got[4].ack()
    assert ids(reader.read_all())[10:] == [f"j-{n}" for n in range(10, 15)]
    assert reader.reserved.bulk_room == 0
    assert sorted(reader.reserved.hinted_jobs) == sorted(f"j-{n}" for n in range(5, 15))


def test_an_acknowledgement_asks_for_no_bulk_where_there_was_none(
    valkey: redis.Redis, valkey_path: str, hub: Hub
) -> None:
    """Else the last jobs of a batch, and every lone job, would cost the broker a script each."""
    reader = Reader(valkey_path)
    reader.fetcher.run_in(hub)
    put_hints(valkey, "j-1", "j-2")
    reader.read(2)
    hub.call_soon = lambda *_: pytest.fail("it was polled once more")  # type: ignore[method-assign]
    for message in reader.messages:
        message.ack()


def test_a_lone_message_is_read_while_there_is_no_room_for_bulk(
    connection: KombuConnection, valkey: redis.Redis, valkey_path: str
) -> None:
    put_hints(valkey, *(f"j-{n}" for n in range(6)))
    reader = Reader(valkey_path, bulk_limit=2)
    reader.read_all()
    publish(connection, {"n": 1})
    assert reader.read(3)[2].payload[1] == {"n": 1}
    assert valkey.llen(list_key(BULK_QUEUE, 9)) == 4


def test_many_lone_messages_leave_room_for_what_else_the_loop_does(
    connection: KombuConnection, valkey: redis.Redis, valkey_path: str
) -> None:
    put_hints(valkey, *(f"j-{n}" for n in range(50)), queue=LONE_QUEUE, priority=0)
    reader = Reader(valkey_path)
    assert [reader.fetcher.poll() for _ in range(5)] == [16, 16, 16, 2, 0]
    assert ids(reader.messages) == [f"j-{n}" for n in range(50)]


def test_a_hint_that_is_handed_back_is_said_to_the_worker_and_not_to_the_broker(
    valkey: redis.Redis, valkey_path: str, told: Told
) -> None:
    put_hints(valkey, "j-1", "j-2", "j-3")
    reader = Reader(valkey_path, told=told)
    messages = reader.read(3)
    messages[0].requeue()
    messages[1].reject()
    assert told.given_back == ["j-1"]
    assert reader.reserved.hinted_jobs == ["j-3"]
    assert all(valkey.llen(key) == 0 for key in list_keys(BULK_QUEUE))


def test_a_reader_that_closes_puts_no_hint_back_and_forgets_none(
    valkey: redis.Redis, valkey_path: str
) -> None:
    put_hints(valkey, "j-1")
    reader = Reader(valkey_path, bulk_limit=4)
    (message,) = reader.read(1)
    reader.close()
    assert all(valkey.llen(key) == 0 for key in list_keys(BULK_QUEUE))
    assert reader.reserved.hinted_jobs == ["j-1"], "its job goes on"
    message.ack()
    assert reader.reserved.hinted_jobs == []
    assert reader.reserved.bulk_room == 4


def test_what_is_no_message_costs_only_itself(valkey: redis.Redis, valkey_path: str) -> None:
    key = list_key(BULK_QUEUE, 9)
    put_hints(valkey, "j-1", "j-2")
    for trash in (b"\xff\xfe", b"[]", b'{"properties": {}}', b'{"antrean_hint":1}'):
        valkey.lpush(key, trash)
    put_hints(valkey, "j-3")
    valkey.rpush(key, b"not json")  # the first to be read
    assert ids(Reader(valkey_path, bulk_limit=10).read_all()) == ["j-1", "j-2", "j-3"]


def test_what_was_taken_and_not_handed_on_is_given_back(
    connection: KombuConnection, valkey: redis.Redis, valkey_path: str, told: Told
) -> None:
    """Something breaks the consumer in the midst of what one poll took, as when the pool is shut."""

    def break_at_the_second(message: Any) -> None:
        handed_on.append(message.headers["id"])
        if len(handed_on) == 2:
            raise RuntimeError("the pool is shut")

    handed_on: list[str] = []
    put_hints(valkey, "j-1", "j-2", "j-3", queue=LONE_QUEUE, priority=0)
    publish(connection, {"n": 1})
    reader = Reader(valkey_path, told=told, on_message=break_at_the_second)
    with pytest.raises(RuntimeError):
        reader.fetcher.poll()
    assert handed_on == ["j-1", "j-2"]
    assert told.given_back == ["j-2", "j-3"]
    assert reader.reserved.hinted_jobs == ["j-1"]
    assert valkey.llen(LONE_QUEUE) == 1, "the foreign message"
    assert valkey.hlen(UNACKED) == 0


def test_a_broker_that_was_away_for_long_is_looked_for_every_three_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _: None)
    with (
        Connection("redis+socket:///tmp/nobody-listens.sock") as connection,
        pytest.raises(OperationalError),
    ):
        connection.ensure_connection(lambda _, wait_s: waits.append(wait_s), 20)
    assert waits[:3] == [1, 2, 3]
    assert max(waits) == 3
