"""Readers of a worker's queues: our Fetcher without Celery, and kombu's own channel, which it stands beside."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import redis
from kombu import Connection as KombuConnection
from kombu import Consumer, Exchange, Queue

from worker.broker.hints import BULK_QUEUE, LONE_QUEUE, TASK, UNACKED_KEY, list_key, write_hint
from worker.consume.fetching import Fetcher
from worker.consume.notes import UNACKED_INDEX_KEY, Notes
from worker.consume.reserved import Reserved

DIRECT = Exchange(LONE_QUEUE, type="direct")
LONE = Queue(LONE_QUEUE, DIRECT, routing_key=LONE_QUEUE)
BULK = Queue(BULK_QUEUE, DIRECT, routing_key=BULK_QUEUE)
UNACKED, UNACKED_INDEX = UNACKED_KEY, UNACKED_INDEX_KEY
NOTED_AS_OURS = {"unacked_key": UNACKED, "unacked_index_key": UNACKED_INDEX}
"""Options of a kombu transport that keeps its notes where ours are."""


class Told:
    """What the Fetcher tells the worker."""

    def __init__(self) -> None:
        self.given_back: list[str] = []
        self.losses = 0

    def lost(self) -> None:
        self.losses += 1


class Reader:
    """Our Fetcher with a list as its consumer."""

    def __init__(
        self,
        path: str,
        *queues: Queue,
        limit: int = 1000,
        bulk_limit: int = 4,
        refill_at: int = 1,
        lease_s: float = 30.0,
        beat_s: float = 5.0,
        told: Told | None = None,
        on_message: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        self.messages: list[Any] = []
        self.told = told or Told()
        self.reserved = Reserved(
            limit=limit,
            bulk_limit=bulk_limit,
            refill_at=refill_at,
            give_back=self.told.given_back.append,
            on_broker_lost=self.told.lost,
        )
        self.client = redis.Redis(unix_socket_path=path, socket_timeout=5, retry=None, **options)
        self.notes = Notes(self.client)
        self.fetcher = Fetcher(self.reserved, self.client, self.notes, lease_s=lease_s, beat_s=beat_s)
        names = [queue.name for queue in queues or (LONE, BULK)]
        self.fetcher.begin(lambda: names, on_message or self.messages.append)

    def read(self, count: int) -> list[Any]:
        """Reads until `count` messages were got in all."""
        end_s = time.monotonic() + 5
        while len(self.messages) < count:
            assert self.fetcher.poll() or time.monotonic() < end_s, f"{len(self.messages)} of {count} came"
        return self.messages

    def read_all(self) -> list[Any]:
        """Reads until nothing is left that there is room for."""
        while self.fetcher.poll():
            pass
        return self.messages

    def put_back_overdue(self) -> None:
        self.fetcher.put_back_overdue()

    def close(self) -> None:
        """As at the end of a worker."""
        self.fetcher.put_back_all()
        self.client.close()


class KombuReader:
    """kombu's own consumer; nothing is acknowledged by itself."""

    def __init__(self, connection: KombuConnection, *queues: Queue) -> None:
        self.messages: list[Any] = []
        self.connection = connection
        self.channel = connection.channel()
        self._consumer = Consumer(self.channel, queues or (LONE, BULK), on_message=self.messages.append)
        self._consumer.consume()

    def read(self, count: int) -> list[Any]:
        while len(self.messages) < count:
            self.connection.drain_events(timeout=5)
        return self.messages

    def put_back_overdue(self) -> None:
        qos = self.channel.qos
        qos._vrestore_count = 0
        qos.restore_visible(interval=1)

    def close(self) -> None:
        self.channel.close()


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


def put_hints(valkey: redis.Redis, *job_ids: str, queue: str = BULK_QUEUE, priority: int = 9) -> None:
    for job_id in job_ids:
        valkey.lpush(list_key(queue, priority), write_hint(job_id, queue=queue, priority=priority))


def ids(messages: list[Any]) -> list[str]:
    return [str(message.headers["id"]) for message in messages]


def turn(loop: Iterator[Any], until: Callable[[], Any], within_s: float = 10.0) -> float:
    """Runs Celery's loop until something is so: how many seconds."""
    began_s = time.monotonic()
    while not until():
        assert time.monotonic() < began_s + within_s, "it does not come"
        next(loop)
    return time.monotonic() - began_s


def count_takes(valkey: redis.Redis) -> int:
    """Scripts that the broker has run by name: takes, most of all."""
    return int(valkey.info("commandstats")["cmdstat_evalsha"]["calls"])  # type: ignore[index]
