"""How a worker waits and takes, on a real Valkey: nothing is off its list and in nobody's hands, at no moment."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection as KombuConnection
from kombu.asynchronous import Hub, set_event_loop

from tests.contract.test_channel import BULK, LONE, UNACKED, UNACKED_INDEX, Reader, ids, publish, put_hints
from tests.contract.test_doorbell import allow_no_tracking
from tests.support.proxy import Proxy
from worker.broker.hints import BULK_QUEUE, LONE_QUEUE, list_key, list_keys, write_hint
from worker.consume.channel import Channel, Connection, Hand
from worker.consume.foreign import REFUSED_HEADER
from worker.consume.taking import Taken, Taker

LISTS = [(queue, key) for queue in (LONE_QUEUE, BULK_QUEUE) for key in list_keys(queue)]


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    """A worker's hand for four bulk messages."""
    made = Hand(bulk_limit=4, refill_at=1, give_back=lambda _: None, on_broker_lost=lambda: None)
    monkeypatch.setattr(Channel, "hand", made)
    return made


@pytest.fixture
def ours(valkey: redis.Redis, valkey_path: str) -> Iterator[KombuConnection]:
    with Connection(f"redis+socket://{valkey_path}") as made:
        yield made


@pytest.fixture
def proxy(valkey_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, str]]:
    path = tmp_path_factory.mktemp("p") / "p.sock"
    made = Proxy(valkey_path, listen=path)
    yield made, str(path)
    made.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Celery's event loop, as a worker runs it."""
    made = Hub()
    set_event_loop(made)
    yield made
    made.close()
    set_event_loop(None)


def take(valkey: redis.Redis, count: int = 100) -> list[Taken]:
    return Taker(valkey, notes=UNACKED, index=UNACKED_INDEX).take(LISTS, count)


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
    taker = Taker(client, notes=UNACKED, index=UNACKED_INDEX)
    assert taker.take([(BULK_QUEUE, "none")], 1) == [], "the script is known"
    wire.swallow_answer_to(b"EVALSHA")
    with pytest.raises(redis.ConnectionError):
        taker.take(LISTS, 1)
    assert valkey.llen(LONE_QUEUE) == 0
    (note,) = notes(valkey).values()
    assert note[0]["properties"]["delivery_info"]["routing_key"] == LONE_QUEUE
    client.close()


def test_the_note_is_the_one_that_kombu_makes(
    ours: KombuConnection, valkey: redis.Redis, valkey_path: str
) -> None:
    publish(ours, {"n": 1, "text": 'é\\"\u2028/'}, priority=3)
    (raw,) = valkey.lrange(list_key(LONE_QUEUE, 3), 0, -1)
    (taken,) = take(valkey)
    assert taken == (LONE_QUEUE, True, raw)
    of_ours = notes(valkey)
    valkey.flushall()
    valkey.lpush(list_key(LONE_QUEUE, 3), raw)
    with KombuConnection(f"redis+socket://{valkey_path}") as connection:
        Reader(connection).read(1)
        assert notes(valkey) == of_ours


def test_kombu_puts_back_what_was_taken_once_it_is_overdue(
    ours: KombuConnection, valkey: redis.Redis, valkey_path: str
) -> None:
    publish(ours, {"n": 1}, queue=BULK, priority=9)
    assert len(take(valkey)) == 1
    (tag,) = notes(valkey)
    valkey.zadd(UNACKED_INDEX, {tag: 1.0})
    with KombuConnection(f"redis+socket://{valkey_path}") as connection:
        reader = Reader(connection)
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
    ours: KombuConnection, valkey: redis.Redis, hand: Hand
) -> None:
    """kombu's note would be refused, after the message was taken off its list."""
    publish(ours, {"n": 1})
    reader = Reader(ours)
    valkey.config_set("maxmemory", 1)
    try:
        (message,) = reader.read(1)
        assert list(notes(valkey)) == [message.delivery_tag]
        message.ack()
        assert notes(valkey) == {}
    finally:
        valkey.config_set("maxmemory", 0)


def test_what_cannot_be_decoded_is_delivered_refused_and_kept_until_that_is_written(
    ours: KombuConnection, valkey: redis.Redis, hand: Hand
) -> None:
    message = json.loads(write_hint("j-1", queue=LONE_QUEUE, priority=0))
    del message["headers"]["antrean_hint"]
    message["properties"]["body_encoding"] = "of another world"
    valkey.lpush(LONE_QUEUE, json.dumps(message))
    publish(ours, {"n": 2})
    refused, read = Reader(ours, LONE).read_all()
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


# Waiting.


def test_a_worker_without_a_free_slot_leaves_messages_in_their_list(
    ours: KombuConnection, valkey: redis.Redis, hand: Hand
) -> None:
    """kombu has popped the next one by then."""
    valkey.config_resetstat()
    for n in range(3):
        publish(ours, {"n": n})
    reader = Reader(ours)
    reader.channel.basic_qos(0, 1, False)
    assert [message.payload[1]["n"] for message in reader.read_all()] == [0]
    assert valkey.llen(LONE_QUEUE) == 2
    reader.messages[0].ack()
    assert [message.payload[1]["n"] for message in reader.read(2)] == [0, 1]
    assert "cmdstat_brpop" not in valkey.info("commandstats")


def turn_until_it_waits(reader: Reader, loop: Iterator[None]) -> None:
    """Until it waits at the bell, and knows that there is nothing."""
    while reader.channel._bell is None or reader.channel._bell.is_waiting_for_an_answer:
        next(loop)


@pytest.mark.parametrize("user", ["", "untold:p@"], ids=["told", "not told"])
def test_a_worker_reads_what_comes_later(
    valkey: redis.Redis, valkey_path: str, hand: Hand, hub: Hub, user: str
) -> None:
    """Through Celery's loop: lone messages, then bulk, each after a wait for nothing."""
    allow_no_tracking(valkey)
    with Connection(f"redis+socket://{user}{valkey_path}") as connection:
        reader = Reader(connection)
        connection.transport.register_with_event_loop(connection.connection, hub)
        loop = hub.create_loop()

        def turn_until(count: int) -> None:
            for _ in range(200):  # a turn lasts as long as nothing happens, a second at most
                if len(reader.messages) == count:
                    return
                next(loop)
            raise AssertionError(f"{len(reader.messages)} of {count} messages came")

        for _ in range(3):
            next(loop)
        assert reader.messages == []
        publish(connection, {"n": 1})
        turn_until(1)
        put_hints(valkey, "j-1", "j-2")
        turn_until(3)
        assert ids(reader.messages[1:]) == ["j-1", "j-2"]


def test_a_worker_whose_hand_was_full_waits_for_bulk_again_once_there_is_room(
    ours: KombuConnection, valkey: redis.Redis, hand: Hand, hub: Hub
) -> None:
    reader = Reader(ours)
    ours.transport.register_with_event_loop(ours.connection, hub)
    loop = hub.create_loop()
    put_hints(valkey, *(f"j-{n}" for n in range(4)))
    while len(reader.messages) < 4:
        next(loop)
    bell = reader.channel._bell
    while bell is None or list_key(BULK_QUEUE, 9) in bell.keys or bell.is_waiting_for_an_answer:
        next(loop)
        bell = reader.channel._bell
    reader.messages[0].ack()  # there is nothing to fetch, and from here on there may be
    next(loop)
    assert list_key(BULK_QUEUE, 9) in bell.keys
    put_hints(valkey, "j-4")
    while len(reader.messages) < 5:
        next(loop)


def test_room_that_is_made_by_a_message_of_a_broken_connection_is_used_at_once(
    valkey: redis.Redis, valkey_path: str, hand: Hand, hub: Hub
) -> None:
    """Not when the next second has passed: calls go on while the broker's connection is made again."""
    url = f"redis+socket://{valkey_path}"
    put_hints(valkey, *(f"j-{n}" for n in range(8)))
    with Connection(url) as broken:
        taken = Reader(broken).read(4)
    set_event_loop(None)  # as after a broken connection, when Celery has begun its loop anew
    with Connection(url) as connection:
        reader = Reader(connection)
        connection.transport.register_with_event_loop(connection.connection, hub)
        loop = hub.create_loop()
        turn_until_it_waits(reader, loop)
        for message in taken:
            message.ack()
        next(loop)
        assert len(reader.messages) == 4, "only what else happens, or the next second, would fetch them"


def test_a_connection_that_is_dropped_at_the_bell_is_made_again(
    ours: KombuConnection, valkey: redis.Redis, hand: Hand, hub: Hub
) -> None:
    reader = Reader(ours)
    ours.transport.register_with_event_loop(ours.connection, hub)
    loop = hub.create_loop()
    turn_until_it_waits(reader, loop)
    valkey.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(ours.connection_errors):
        list(itertools.islice(loop, 10))
    loop = hub.create_loop()
    publish(ours, {"n": 1})
    while not reader.messages:
        next(loop)


def test_a_message_in_hand_is_leased_and_one_that_nobody_has_comes_again(
    valkey: redis.Redis, valkey_path: str, hand: Hand, hub: Hub
) -> None:
    """The one that nobody has: a worker took it and was killed, or its answer was cut off on the way."""
    options = {"visibility_timeout": 0.6, "unacked_restore_interval": 0.1, "unacked_restore_throttle": 1}
    with Connection(f"redis+socket://{valkey_path}", transport_options=options) as connection:
        publish(connection, {"n": 1})
        assert len(take(valkey, 1)) == 1
        publish(connection, {"n": 2})
        reader = Reader(connection)
        connection.transport.register_with_event_loop(connection.connection, hub)
        loop = hub.create_loop()
        while len(reader.messages) < 2:
            next(loop)
        assert [message.payload[1]["n"] for message in reader.messages] == [2, 1]
        end_s = time.monotonic() + 3 * 0.6
        while time.monotonic() < end_s:
            next(loop)
        assert len(reader.messages) == 2, "what is in hand was given out again"
        for message in reader.messages:
            message.ack()
        reader.channel.renew_leases()
        assert notes(valkey) == {}, "a lease that is renewed late brings nothing back"


def test_what_kombu_itself_loses(
    valkey: redis.Redis, proxy: tuple[Proxy, str], ours: KombuConnection
) -> None:
    """Why all this: the same cut, and kombu's own channel. Should this fail one day, worker/consume/taking.py can go."""
    wire, path = proxy
    with KombuConnection(
        f"redis+socket://{path}", transport_options={"socket_timeout": 5, "retry_on_timeout": None}
    ) as connection:
        reader = Reader(connection, LONE)
        wire.swallow_answer_to(b"BRPOP")
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)  # it waits in BRPOP now
        publish(ours, {"n": 1})
        with pytest.raises(connection.connection_errors):
            connection.drain_events(timeout=5)
        assert reader.messages == []
        assert valkey.llen(LONE_QUEUE) == 0
        assert notes(valkey) == {}
