"""How a worker waits and takes, on a real Valkey: nothing is off its list and in nobody's hands, at no moment."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection as KombuConnection
from kombu.asynchronous import Hub

from tests.support.proxy import Proxy
from tests.support.reader import (
    BULK,
    LONE,
    UNACKED,
    UNACKED_INDEX,
    KombuReader,
    Reader,
    ids,
    publish,
    put_hints,
    turn,
)
from worker.broker.hints import BULK_QUEUE, LONE_QUEUE, list_key, list_keys, write_hint
from worker.consume.connection import Transport
from worker.consume.fetching import POLL_S
from worker.consume.foreign import MAX_MESSAGE_BYTES, REFUSED_HEADER
from worker.consume.taking import Taken, Taker

LISTS = [(queue, key) for queue in (LONE_QUEUE, BULK_QUEUE) for key in list_keys(queue)]


@pytest.fixture
def ours(connection: KombuConnection) -> KombuConnection:
    """A foreign app's connection to our broker."""
    return connection


@pytest.fixture
def proxy(valkey_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, str]]:
    path = tmp_path_factory.mktemp("p") / "p.sock"
    made = Proxy(valkey_path, listen=path)
    yield made, str(path)
    made.close()


def take(valkey: redis.Redis, count: int = 100) -> list[Taken]:
    return Taker(valkey, longest=MAX_MESSAGE_BYTES).take(LISTS, count, lone=count, bulk=count)


def notes(valkey: redis.Redis) -> dict[str, Any]:
    """What the broker keeps, by delivery tag."""
    kept: Any = valkey.hgetall(UNACKED)
    assert sorted(kept) == sorted(valkey.zrange(UNACKED_INDEX, 0, -1))
    return {tag.decode(): json.loads(note) for tag, note in kept.items()}


# Taking.


def test_a_foreign_message_is_kept_by_the_broker_though_the_taker_never_hears_of_it(
    ours: KombuConnection, valkey: redis.Redis, proxy: tuple[Proxy, str]
) -> None:
    """As when a worker is killed between the broker's taking it off its list and its own reading of the answer."""
    wire, path = proxy
    publish(ours, {"n": 1})
    client = redis.Redis(unix_socket_path=path, socket_timeout=5, retry=None)
    taker = Taker(client, longest=MAX_MESSAGE_BYTES)
    assert taker.take([(BULK_QUEUE, "none")], 1, lone=1, bulk=1) == [], "the script is known"
    wire.swallow_answer_to(b"EVALSHA")
    with pytest.raises(redis.ConnectionError):
        taker.take(LISTS, 1, lone=1, bulk=1)
    assert valkey.llen(LONE_QUEUE) == 0
    (note,) = notes(valkey).values()
    assert note[0]["properties"]["delivery_info"]["routing_key"] == LONE_QUEUE
    client.close()


def test_the_note_is_the_one_that_kombu_makes(ours: KombuConnection, valkey: redis.Redis) -> None:
    publish(ours, {"n": 1, "text": 'é\\"\u2028/'}, priority=3)
    (raw,) = valkey.lrange(list_key(LONE_QUEUE, 3), 0, -1)
    (taken,) = take(valkey)
    assert taken == (LONE_QUEUE, True, raw)
    of_ours = notes(valkey)
    valkey.flushall()
    valkey.lpush(list_key(LONE_QUEUE, 3), raw)
    KombuReader(ours).read(1)
    assert notes(valkey) == of_ours


def test_kombu_puts_back_what_was_taken_once_it_is_overdue(
    ours: KombuConnection, valkey: redis.Redis
) -> None:
    publish(ours, {"n": 1}, queue=BULK, priority=9)
    assert len(take(valkey)) == 1
    (tag,) = notes(valkey)
    valkey.zadd(UNACKED_INDEX, {tag: 1.0})
    reader = KombuReader(ours)
    reader.channel.qos.restore_visible(interval=1)
    assert reader.read(1)[0].payload[1] == {"n": 1}


def test_lists_are_emptied_in_their_order_and_hints_are_not_noted(
    ours: KombuConnection, valkey: redis.Redis
) -> None:
    put_hints(valkey, "j-1", "j-2")
    publish(ours, {"n": 1}, queue=BULK, priority=9)
    publish(ours, {"n": 2}, priority=9)
    publish(ours, {"n": 3})
    first = take(valkey, 2)
    assert [(one.queue, one.is_noted) for one in first] == [(LONE_QUEUE, True), (LONE_QUEUE, True)]
    rest = take(valkey)
    assert [(one.queue, one.is_noted) for one in rest] == [
        (BULK_QUEUE, False),
        (BULK_QUEUE, False),
        (BULK_QUEUE, True),
    ]
    assert len(notes(valkey)) == 3
    assert take(valkey) == []


def test_a_broker_that_takes_no_writes_gives_nothing_out_and_says_so(
    ours: KombuConnection, valkey: redis.Redis
) -> None:
    publish(ours, {"n": 1})
    valkey.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(redis.exceptions.ReadOnlyError):
            take(valkey)
    finally:
        valkey.replicaof("NO", "ONE")
    assert valkey.llen(LONE_QUEUE) == 1
    assert notes(valkey) == {}


def test_a_full_broker_notes_what_it_gives_out(
    ours: KombuConnection, valkey: redis.Redis, valkey_path: str
) -> None:
    """kombu's note would be refused, after the message was taken off its list."""
    publish(ours, {"n": 1})
    reader = Reader(valkey_path)
    valkey.config_set("maxmemory", 1)
    try:
        (message,) = reader.read(1)
        assert list(notes(valkey)) == [message.delivery_tag]
        message.ack()
        assert notes(valkey) == {}
    finally:
        valkey.config_set("maxmemory", 0)


def test_what_cannot_be_decoded_is_delivered_refused_and_kept_until_that_is_written(
    ours: KombuConnection, valkey: redis.Redis, valkey_path: str
) -> None:
    message = json.loads(write_hint("j-1", queue=LONE_QUEUE, priority=0))
    del message["headers"]["antrean_hint"]
    message["properties"]["body_encoding"] = "of another world"
    valkey.lpush(LONE_QUEUE, json.dumps(message))
    publish(ours, {"n": 2})
    refused, read = Reader(valkey_path, LONE).read_all()
    assert refused.headers["id"] == "j-1"
    assert refused.headers[REFUSED_HEADER] == ["the body must be text, as it is or in base64"]
    assert refused.payload == [[], {}, {}]
    assert read.payload[1] == {"n": 2}
    assert sorted(notes(valkey)) == sorted([refused.delivery_tag, read.delivery_tag])
    refused.ack()
    assert list(notes(valkey)) == [read.delivery_tag]


@pytest.mark.parametrize(
    "trash", [b"\xff", b"[]", b'"x"', b'{"properties": []}', b"{" * 2000, b'{"antrean_hint":1}', b""]
)
def test_what_is_no_message_is_taken_and_not_noted(valkey: redis.Redis, trash: bytes) -> None:
    valkey.lpush(LONE_QUEUE, trash)
    assert take(valkey) == [(LONE_QUEUE, False, trash)]
    assert notes(valkey) == {}


@pytest.mark.parametrize(
    ("lone", "bulk", "expected"), [(1, 2, "lbb"), (0, 9, "bbb"), (9, 0, "ll"), (2, 1, "llb")]
)
def test_lone_and_bulk_messages_are_bounded_apart(
    valkey: redis.Redis, lone: int, bulk: int, expected: str
) -> None:
    put_hints(valkey, "b-1", "b-2", "b-3")
    put_hints(valkey, "l-1", "l-2", queue=LONE_QUEUE, priority=0)
    taker = Taker(valkey, longest=MAX_MESSAGE_BYTES)
    taken = taker.take(LISTS, 9, lone=lone, bulk=bulk)
    assert "".join("b" if one.queue == BULK_QUEUE else "l" for one in taken) == expected
    left = 5 - len(expected)
    assert valkey.llen(LONE_QUEUE) + valkey.llen(list_key(BULK_QUEUE, 9)) == left


# Polling.


def test_a_worker_without_a_free_slot_leaves_messages_in_their_list(
    ours: KombuConnection, valkey: redis.Redis, valkey_path: str
) -> None:
    """kombu has popped the next one by then."""
    valkey.config_resetstat()
    for n in range(3):
        publish(ours, {"n": n})
    reader = Reader(valkey_path, limit=1)
    assert [message.payload[1]["n"] for message in reader.read_all()] == [0]
    assert valkey.llen(LONE_QUEUE) == 2
    reader.messages[0].ack()
    assert [message.payload[1]["n"] for message in reader.read(2)] == [0, 1]
    assert "cmdstat_brpop" not in valkey.info("commandstats")


def test_a_worker_reads_what_comes_later(
    ours: KombuConnection,
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
) -> None:
    """Through Celery's loop: lone messages, then bulk, each after polls that found nothing."""
    reader = Reader(valkey_path)
    reader.fetcher.run_in(hub)
    loop = hub.create_loop()
    for _ in range(3):
        next(loop)
    assert reader.messages == []
    publish(ours, {"n": 1})
    turn(loop, lambda: len(reader.messages) == 1)
    put_hints(valkey, "j-1", "j-2")
    turn(loop, lambda: len(reader.messages) == 3)
    assert ids(reader.messages[1:]) == ["j-1", "j-2"]


def test_a_lone_message_waits_for_a_poll_and_no_longer(
    ours: KombuConnection,
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
) -> None:
    reader = Reader(valkey_path)
    reader.fetcher.run_in(hub)
    loop = hub.create_loop()
    waits_s = []
    for n in range(20):
        next(loop)
        publish(ours, {"n": n})
        began_s = time.monotonic()
        turn(loop, lambda n=n: len(reader.messages) == n + 1)
        waits_s.append(time.monotonic() - began_s)
    assert sorted(waits_s)[10] < 3 * POLL_S


def test_room_for_bulk_is_used_at_once(valkey: redis.Redis, valkey_path: str, hub: Hub) -> None:
    """Not when the next poll is due: jobs with quick answers would wait for it in vain."""
    reader = Reader(valkey_path, bulk_limit=4)
    reader.fetcher.run_in(hub)
    loop = hub.create_loop()
    put_hints(valkey, *(f"j-{n}" for n in range(8)))
    turn(loop, lambda: len(reader.messages) == 4)
    for message in list(reader.messages):
        message.ack()
    next(loop)
    assert len(reader.messages) == 8


def test_an_idle_connection_that_is_dropped_costs_nothing(
    ours: KombuConnection,
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
) -> None:
    reader = Reader(valkey_path)
    reader.fetcher.run_in(hub)
    loop = hub.create_loop()
    publish(ours, {"n": 0})
    turn(loop, lambda: len(reader.messages) == 1)
    publish(ours, {"n": 1})
    valkey.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    turn(loop, lambda: len(reader.messages) == 2)


def test_an_answer_that_is_cut_off_reaches_celery_and_the_next_loop_reads_on(
    valkey: redis.Redis,
    valkey_path: str,
    proxy: tuple[Proxy, str],
    hub: Hub,
) -> None:
    """Celery tells the worker that hints may be lost, and begins its loop anew; what was reserved stays reserved."""
    wire, path = proxy
    reader = Reader(path)
    reader.fetcher.run_in(hub)
    hub.propagate_errors = Transport.connection_errors  # as Celery does
    loop = hub.create_loop()
    put_hints(valkey, "j-1")
    turn(loop, lambda: len(reader.messages) == 1)
    wire.swallow_answer_to(b"EVALSHA")
    with pytest.raises(Transport.connection_errors):
        turn(loop, lambda: False)
    hub.reset()
    assert reader.reserved.hinted_jobs == ["j-1"]
    reader.fetcher.run_in(hub)
    loop = hub.create_loop()
    put_hints(valkey, "j-2")
    turn(loop, lambda: len(reader.messages) == 2)


@pytest.mark.parametrize("breaks", ["the hash of notes", "a list"])
def test_what_nobody_thought_of_ends_the_loop_as_it_ends_the_worker(
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
    breaks: str,
) -> None:
    """A timer of Celery's loop only logs an error, fifty times a second."""
    valkey.set(LONE_QUEUE if breaks == "a list" else UNACKED_INDEX, "text")
    reader = Reader(valkey_path, beat_s=0.02)
    reader.fetcher.run_in(hub)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        turn(hub.create_loop(), lambda: False)


def test_a_message_in_hand_is_leased_and_one_that_nobody_has_comes_again(
    ours: KombuConnection,
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
) -> None:
    """The one that nobody has: a worker took it and was killed, or its answer was cut off on the way."""
    publish(ours, {"n": 1})
    assert len(take(valkey, 1)) == 1
    publish(ours, {"n": 2})
    reader = Reader(valkey_path, lease_s=0.6, beat_s=0.1)
    reader.fetcher.run_in(hub)
    loop = hub.create_loop()
    turn(loop, lambda: len(reader.messages) == 2)
    assert [message.payload[1]["n"] for message in reader.messages] == [2, 1]
    end_s = time.monotonic() + 3 * 0.6
    turn(loop, lambda: time.monotonic() > end_s)
    assert len(reader.messages) == 2, "what is in hand was given out again"
    for message in reader.messages:
        message.ack()
    reader.fetcher.renew_leases()
    assert notes(valkey) == {}, "a lease that is renewed late brings nothing back"


def test_two_workers_that_find_one_message_overdue_put_it_back_once(
    ours: KombuConnection, valkey: redis.Redis, valkey_path: str
) -> None:
    publish(ours, {"n": 1})
    [taken] = take(valkey)
    [raw] = [note for note in (valkey.hget(UNACKED, taken.tag),) if note]
    first, second = Reader(valkey_path).notes, Reader(valkey_path).notes
    script = second._put_back
    second._put_back = lambda **given: (  # type: ignore[assignment]  # the other was quicker by one step
        first.put_back(taken.tag, [LONE_QUEUE], is_next=True),
        script(**given),
    )[1]
    second.put_back(taken.tag, [LONE_QUEUE], is_next=True)
    assert raw is not None
    assert valkey.llen(LONE_QUEUE) == 1
    assert notes(valkey) == {}


def test_what_kombu_itself_loses(
    valkey: redis.Redis, proxy: tuple[Proxy, str], ours: KombuConnection
) -> None:
    """Why all this: the same cut, and kombu's own channel. Should this fail one day, `take.lua` can go."""
    wire, path = proxy
    with KombuConnection(
        f"redis+socket://{path}", transport_options={"socket_timeout": 5, "retry_on_timeout": None}
    ) as theirs:
        reader = KombuReader(theirs, LONE)
        wire.swallow_answer_to(b"BRPOP")
        with pytest.raises(TimeoutError):
            theirs.drain_events(timeout=0.1)  # it waits in BRPOP now
        publish(ours, {"n": 1})
        with pytest.raises(theirs.connection_errors):
            theirs.drain_events(timeout=5)
        assert reader.messages == []
        assert valkey.llen(LONE_QUEUE) == 0
        assert notes(valkey) == {}
