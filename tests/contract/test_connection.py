"""Celery's connection to the broker, on a real Valkey: what our few overrides of kombu do for a worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis
from celery import Celery
from kombu import Connection as KombuConnection
from kombu import Consumer, Exchange, Queue

from tests.support.reader import LONE, Reader, ids, put_hints
from worker.broker.hints import LONE_QUEUE
from worker.consume.connection import Connection, NamesQueues

NEWS = Exchange("news", type="fanout")


@pytest.fixture
def app(valkey: redis.Redis, valkey_path: str) -> Iterator[Celery]:
    with Celery(
        "named",
        broker=f"redis+socket://{valkey_path}",
        amqp="worker.consume.connection:AMQP",
        set_as_current=False,
    ) as made:
        made.conf.task_queues = [LONE]
        yield made


def drain(connection: KombuConnection) -> None:
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.2)


@pytest.mark.parametrize("trash", [b"[]", b"5", b'{"body": 1}', b'"text"', b"\xff", b'{"properties": {}}'])
def test_a_broadcast_that_cannot_be_read_ends_nothing(
    valkey: redis.Redis, valkey_path: str, trash: bytes
) -> None:
    """kombu passes on what such a message breaks, and Celery ends the worker."""
    seen: list[object] = []
    with Connection(f"redis+socket://{valkey_path}") as connection, connection.channel() as channel:
        queue = Queue("listener", NEWS, auto_delete=True)
        with Consumer(channel, [queue], no_ack=True, on_message=lambda message: seen.append(message.payload)):
            drain(connection)  # it subscribes
            assert valkey.publish("/0.news", trash) == 1
            drain(connection)
            with KombuConnection(f"redis+socket://{valkey_path}") as other, other.Producer() as producer:
                producer.publish({"n": 1}, exchange=NEWS, declare=[NEWS], serializer="json")
            drain(connection)
    assert seen == [{"n": 1}]


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+socket"])
def test_every_scheme_of_redis_gets_our_transport(scheme: str) -> None:
    transport = Connection(f"{scheme}://localhost/0").get_transport_cls()
    assert redis.ResponseError in transport.connection_errors, "a broker that refuses is waited for"
    assert redis.ConnectionError in transport.connection_errors


def test_celerys_consumer_names_the_queues_and_takes_nothing_from_them(
    app: Celery, valkey: redis.Redis, valkey_path: str
) -> None:
    put_hints(valkey, "j-1", queue=LONE_QUEUE, priority=0)
    with app.connection_for_read() as connection:
        assert isinstance(connection, Connection)
        consumer = app.amqp.TaskConsumer(connection)
        assert isinstance(consumer, NamesQueues)
        consumer.consume()
        drain(connection)
        assert valkey.llen(LONE_QUEUE) == 1
        assert [queue.name for queue in consumer.queues] == [LONE_QUEUE]
        consumer.add_queue(Queue("another", Exchange("another"), routing_key="another"))
        consumer.consume()
        assert [queue.name for queue in consumer.queues] == [LONE_QUEUE, "another"]
        consumer.cancel_by_queue("another")
        assert [queue.name for queue in consumer.queues] == [LONE_QUEUE]
        consumer.close()
    assert ids(Reader(valkey_path).read(1)) == ["j-1"]


def test_kombus_own_bookkeeping_touches_no_message_of_ours_or_of_another_app(
    valkey: redis.Redis, valkey_path: str
) -> None:
    """Celery's connection puts nothing back: our notes have leases, and other apps' may be held for hours."""
    from worker.celery import build_conf  # local: it reads the settings of this process

    options = build_conf()["broker_transport_options"]
    for key in ("unacked", "antrean.unacked"):
        valkey.hset(key, "t", b'[{"headers": {}, "properties": {"delivery_info": {}}}, "", "celery"]')
        valkey.zadd(f"{key}_index", {"t": 1.0})
    with Connection(f"redis+socket://{valkey_path}", transport_options=options) as connection:
        channel = connection.channel()
        channel.qos.restore_visible(interval=1)
        channel.close()
    for key in ("unacked", "antrean.unacked"):
        assert valkey.hlen(key) == valkey.zcard(f"{key}_index") == 1
