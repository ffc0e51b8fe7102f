"""Our channel beside kombu's own, on a real Valkey: what it changes, and that it changes nothing else."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from kombu import Connection as KombuConnection
from kombu import Consumer, Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.message import Message

from worker.broker.hints import BULK_QUEUE, LONE_QUEUE, TASK, list_key, list_keys, write_hint
from worker.consume.channel import Channel, Connection, Hand

DIRECT = Exchange(LONE_QUEUE, type="direct")
LONE = Queue(LONE_QUEUE, DIRECT, routing_key=LONE_QUEUE)
BULK = Queue(BULK_QUEUE, DIRECT, routing_key=BULK_QUEUE)
UNACKED, UNACKED_INDEX = "unacked", "unacked_index"


class Told:
    """What the channel tells the worker."""

    def __init__(self) -> None:
        self.given_back: list[str] = []
        self.losses = 0

    def lost(self) -> None:
        self.losses += 1


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def hand(told: Told, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hand]:
    """Gives the process a hand of this size."""

    def give(bulk_limit: int, refill_at: int = 1) -> Hand:
        made = Hand(
            bulk_limit=bulk_limit,
            refill_at=refill_at,
            give_back=told.given_back.append,
            on_broker_lost=told.lost,
        )
        monkeypatch.setattr(Channel, "hand", made)
        return made

    return give


@pytest.fixture(params=["kombu's channel", "ours without a hand", "ours with a hand"])
def connection(
    request: pytest.FixtureRequest, valkey: redis.Redis, valkey_path: str, hand: Callable[..., Hand]
) -> Iterator[KombuConnection]:
    if request.param == "ours with a hand":
        hand(4)
    kind = KombuConnection if request.param.startswith("kombu") else Connection
    with kind(f"redis+socket://{valkey_path}") as made:
        yield made


@pytest.fixture
def ours(valkey: redis.Redis, valkey_path: str) -> Iterator[KombuConnection]:
    with Connection(f"redis+socket://{valkey_path}") as made:
        yield made


class Reader:
    """Consumes from both queues as the worker does; nothing is acknowledged by itself."""

    def __init__(self, connection: KombuConnection, *queues: Queue) -> None:
        self.messages: list[Message] = []
        self.connection = connection
        self.channel = connection.channel()
        self._consumer = Consumer(self.channel, queues or (LONE, BULK), on_message=self.messages.append)
        self._consumer.consume()

    def read(self, count: int) -> list[Message]:
        """Reads until `count` messages were got in all."""
        while len(self.messages) < count:
            self.connection.drain_events(timeout=5)
        return self.messages

    def read_all(self) -> list[Message]:
        """Reads until nothing comes for a moment."""
        while True:
            try:
                self.connection.drain_events(timeout=0.3)
            except TimeoutError:
                return self.messages


def publish(connection: KombuConnection, named: Any, *, queue: Queue = LONE, priority: int = 0) -> None:
    """As a foreign app does that calls our task with these `named` arguments."""
    with connection.Producer(serializer="json") as producer:
        producer.publish(
            [[], named, {}],
            exchange=DIRECT,
            routing_key=queue.routing_key,
            declare=[queue],
            priority=priority,
            headers={"task": TASK, "id": uuid.uuid4().hex},
        )


def put_hints(valkey: redis.Redis, *job_ids: str, priority: int = 9) -> None:
    for job_id in job_ids:
        hint = write_hint(job_id, queue=BULK_QUEUE, priority=priority)
        valkey.lpush(list_key(BULK_QUEUE, priority), hint)


def ids(messages: list[Message]) -> list[str]:
    return [str(message.headers["id"]) for message in messages]


# What kombu does with a foreign message, all three do.


def test_a_message_in_hand_is_kept_by_the_broker_until_it_is_acknowledged(
    connection: KombuConnection, valkey: redis.Redis
) -> None:
    publish(connection, {"n": 1})
    (message,) = Reader(connection).read(1)
    assert valkey.hlen(UNACKED) == valkey.zcard(UNACKED_INDEX) == 1
    message.ack()
    assert valkey.hlen(UNACKED) == valkey.zcard(UNACKED_INDEX) == 0
    assert valkey.llen(LONE_QUEUE) == 0


def test_a_message_that_is_handed_back_comes_again(connection: KombuConnection, valkey: redis.Redis) -> None:
    for n in (1, 2):
        publish(connection, {"n": n})
    reader = Reader(connection)
    reader.read(1)[0].requeue()
    first, second, third = reader.read(3)
    assert [first.payload[1]["n"], second.payload[1]["n"], third.payload[1]["n"]] == [1, 2, 1]
    second.reject()
    assert valkey.hlen(UNACKED) == 1, "the one that is in hand"
    third.ack()
    assert valkey.hlen(UNACKED) == valkey.llen(LONE_QUEUE) == 0


def test_what_a_closed_channel_held_is_put_back(connection: KombuConnection, valkey: redis.Redis) -> None:
    publish(connection, {"n": 1})
    reader = Reader(connection)
    reader.read(1)
    reader.channel.close()
    assert valkey.hlen(UNACKED) == 0
    assert valkey.llen(LONE_QUEUE) == 1


def test_what_a_killed_process_held_is_delivered_again_once_it_is_overdue(
    connection: KombuConnection, valkey: redis.Redis
) -> None:
    publish(connection, {"n": 1})
    reader = Reader(connection)
    reader.read(1)
    qos = reader.channel.qos
    qos.restore_visible(interval=1)
    assert valkey.llen(LONE_QUEUE) == 0, "not overdue yet"
    valkey.zadd(UNACKED_INDEX, {reader.messages[0].delivery_tag: 1.0})
    qos._vrestore_count = 0
    qos.restore_visible(interval=1)
    assert valkey.llen(LONE_QUEUE) == 1


def test_a_foreign_message_in_the_bulk_queue_is_kept_as_well(
    connection: KombuConnection, valkey: redis.Redis
) -> None:
    publish(connection, {"n": 1}, queue=BULK, priority=9)
    (message,) = Reader(connection).read(1)
    assert valkey.hlen(UNACKED) == 1
    message.ack()
    assert valkey.hlen(UNACKED) == 0


def test_lower_numbers_come_first(connection: KombuConnection) -> None:
    for priority in (9, 3, 0, 6):
        publish(connection, {"n": priority}, priority=priority)
    assert [message.payload[1]["n"] for message in Reader(connection).read(4)] == [0, 3, 6, 9]


def test_each_message_may_be_acknowledged_from_another_thread(
    connection: KombuConnection, valkey: redis.Redis
) -> None:
    from concurrent.futures import ThreadPoolExecutor  # local: only here

    for n in range(40):
        publish(connection, {"n": n})
    messages = Reader(connection, LONE).read(40)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda message: message.ack(), messages))
    assert valkey.hlen(UNACKED) == valkey.zcard(UNACKED_INDEX) == 0


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


def test_kombu_itself_reads_a_hint(valkey: redis.Redis, valkey_path: str) -> None:
    put_hints(valkey, "j-1")
    with KombuConnection(f"redis+socket://{valkey_path}") as connection:
        (message,) = Reader(connection).read(1)
        assert message.payload[:2] == [[], {"job_id": "j-1"}]
        assert message.delivery_info["routing_key"] == BULK_QUEUE
        message.ack()


def test_many_hints_are_taken_at_once_in_order_and_no_more_than_fit(
    ours: KombuConnection, valkey: redis.Redis, hand: Callable[..., Hand]
) -> None:
    held = hand(10, refill_at=5)
    put_hints(valkey, *(f"j-{n}" for n in range(30)))
    before = valkey.info("commandstats")
    reader = Reader(ours)
    got = reader.read_all()
    assert ids(got) == [f"j-{n}" for n in range(10)]
    after = valkey.info("commandstats")
    reads = after["cmdstat_evalsha"]["calls"] - before.get("cmdstat_evalsha", {"calls": 0})["calls"]
    assert reads <= 5, "a read a message"
    assert valkey.exists(UNACKED) == 0, "nobody keeps a hint"
    for message in got[:4]:
        message.ack()
    assert len(reader.read_all()) == 10, "not worth it yet"
    got[4].ack()
    reader.channel.ask_again()  # Celery's loop does once a second
    assert ids(reader.read_all())[10:] == [f"j-{n}" for n in range(10, 15)]
    assert held.room == 0
    assert sorted(held.hinted_jobs) == sorted(f"j-{n}" for n in range(5, 15))


def test_nobody_looks_for_bulk_while_the_bell_would_ring_for_it(
    ours: KombuConnection, valkey: redis.Redis, hand: Callable[..., Hand]
) -> None:
    hand(4)
    reader = Reader(ours)
    assert reader.read_all() == []
    reader.channel._taker.take([("none", "none")], 1)  # its script is known from here on
    before = valkey.info("commandstats")["cmdstat_evalsha"]["calls"]
    reader.channel._fetch_when_worth_it()  # as after each acknowledgement
    assert valkey.info("commandstats")["cmdstat_evalsha"]["calls"] == before
    put_hints(valkey, "j-1")
    assert ids(reader.read(1)) == ["j-1"]


def test_a_lone_message_is_read_while_the_hand_is_full_of_bulk(
    ours: KombuConnection, valkey: redis.Redis, hand: Callable[..., Hand]
) -> None:
    hand(2)
    put_hints(valkey, *(f"j-{n}" for n in range(6)))
    reader = Reader(ours)
    reader.read(2)
    publish(ours, {"n": 1})
    assert reader.read(3)[2].payload[1] == {"n": 1}
    assert valkey.llen(list_key(BULK_QUEUE, 9)) == 4


def test_a_hint_that_is_handed_back_is_said_to_the_worker_and_not_to_the_broker(
    ours: KombuConnection, valkey: redis.Redis, hand: Callable[..., Hand], told: Told
) -> None:
    held = hand(4)
    put_hints(valkey, "j-1", "j-2", "j-3")
    messages = Reader(ours).read(3)
    messages[0].requeue()
    messages[1].reject()
    assert told.given_back == ["j-1"]
    assert held.hinted_jobs == ["j-3"]
    assert all(valkey.llen(key) == 0 for key in list_keys(BULK_QUEUE))


def test_a_channel_that_closes_puts_no_hint_back_and_forgets_none(
    ours: KombuConnection, valkey: redis.Redis, hand: Callable[..., Hand]
) -> None:
    held = hand(4)
    put_hints(valkey, "j-1")
    reader = Reader(ours)
    (message,) = reader.read(1)
    reader.channel.close()
    assert all(valkey.llen(key) == 0 for key in list_keys(BULK_QUEUE))
    assert held.hinted_jobs == ["j-1"], "its job goes on"
    message.ack()
    assert held.hinted_jobs == []
    assert held.room == 4


def test_what_is_no_message_costs_only_itself(
    ours: KombuConnection, valkey: redis.Redis, hand: Callable[..., Hand]
) -> None:
    hand(10)
    key = list_key(BULK_QUEUE, 9)
    put_hints(valkey, "j-1", "j-2")
    for trash in (b"\xff\xfe", b"[]", b'{"properties": {}}', b'{"antrean_hint":1}'):
        valkey.lpush(key, trash)
    put_hints(valkey, "j-3")
    valkey.rpush(key, b"not json")  # the first to be read
    assert ids(Reader(ours).read_all()) == ["j-1", "j-2", "j-3"]


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
