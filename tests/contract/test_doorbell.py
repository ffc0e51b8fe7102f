"""The broker tells of changes, on a real Valkey: an idle worker asks once a second, and what comes is taken at once."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection as KombuConnection
from kombu.asynchronous import Hub
from structlog.testing import capture_logs

from tests.support.proxy import Proxy
from tests.support.reader import Reader, count_takes, publish, turn
from worker.broker.hints import BULK_QUEUE, LONE_QUEUE, queues_of
from worker.consume.doorbell import Doorbell
from worker.consume.fetching import IDLE_POLL_S, POLL_S

QUEUES = (*queues_of("ledger", "endpoint").names, LONE_QUEUE, BULK_QUEUE)


def idle(loop: Iterator[Any], seconds: float) -> None:
    until_s = time.monotonic() + seconds
    turn(loop, lambda: time.monotonic() > until_s)


def count_takes_in(valkey: redis.Redis, loop: Iterator[Any], seconds: float) -> int:
    """How often the broker is asked in so many seconds in which nothing changes."""
    idle(loop, IDLE_POLL_S / 4)
    before = count_takes(valkey)
    idle(loop, seconds)
    return count_takes(valkey) - before


def take_one_by_one(
    connection: KombuConnection, reader: Reader, loop: Iterator[Any], *, acks: bool
) -> list[float]:
    """Publishes five messages with pauses; seconds until each is taken. `acks`: the reader is idle in between."""
    waits_s = []
    for n in range(5):
        idle(loop, 0.3)
        publish(connection, {"n": n})
        wanted = len(reader.messages) + 1
        waits_s.append(turn(loop, lambda wanted=wanted: len(reader.messages) == wanted))
        if acks:
            reader.messages[-1].ack()
    return waits_s


@pytest.fixture
def rings() -> list[None]:
    """One for each time that the doorbell rang."""
    return []


@pytest.fixture
def doorbell(valkey_path: str, hub: Hub, rings: list[None]) -> Iterator[Doorbell]:
    """Hung for `QUEUES` in the loop."""
    client = redis.Redis(unix_socket_path=valkey_path, socket_timeout=5, retry=None)
    made = Doorbell(client, lambda: rings.append(None))
    made.hang(hub, QUEUES)
    yield made
    made.take_down()
    client.close()


def test_an_idle_worker_asks_once_a_second_and_what_comes_is_taken_at_once(
    connection: KombuConnection,
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
) -> None:
    reader = Reader(valkey_path)
    reader.fetcher.run_in(hub)
    loop = hub.create_loop()
    assert 1 <= count_takes_in(valkey, loop, 3 * IDLE_POLL_S) <= 4
    waits_s = take_one_by_one(connection, reader, loop, acks=True)
    assert sorted(waits_s)[2] < 5 * POLL_S, "the second that it asks by itself would be far off"


def test_a_busy_worker_asks_when_something_has_changed_and_no_more_often_than_an_idle_one(
    connection: KombuConnection,
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
) -> None:
    reader = Reader(valkey_path)
    reader.fetcher.run_in(hub)
    loop = hub.create_loop()
    publish(connection, {"n": 0})
    turn(loop, lambda: len(reader.messages) == 1)  # not acknowledged: there is work from now on
    assert 1 <= count_takes_in(valkey, loop, 2 * IDLE_POLL_S) <= 3
    waits_s = take_one_by_one(connection, reader, loop, acks=False)
    assert sorted(waits_s)[2] < 5 * POLL_S
    for message in reader.messages:
        message.ack()


def test_a_worker_whose_notices_end_asks_often_and_gets_them_again(
    connection: KombuConnection,
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
) -> None:
    reader = Reader(valkey_path, beat_s=0.3)
    reader.fetcher.run_in(hub)
    loop, doorbell = hub.create_loop(), reader.fetcher._doorbell
    idle(loop, 0.1)
    assert doorbell.is_hung
    for told in (one for one in valkey.client_list() if "t" in one["flags"]):
        valkey.client_kill_filter(_id=told["id"])
    turn(loop, lambda: not doorbell.is_hung)
    publish(connection, {"n": 1})
    assert turn(loop, lambda: reader.messages) < 0.5
    turn(loop, lambda: doorbell.is_hung)


def test_a_worker_that_is_told_nothing_says_so_once_and_asks_often(
    connection: KombuConnection,
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
) -> None:
    reader = Reader(valkey_path, beat_s=0.1, protocol=2)  # which has no notices
    with capture_logs() as logs:
        reader.fetcher.run_in(hub)
        loop = hub.create_loop()
        idle(loop, 0.5)
        before = count_takes(valkey)
        idle(loop, 0.5)
        assert count_takes(valkey) - before > 5
    assert [one["event"] for one in logs] == ["broker.tells_nothing"]
    publish(connection, {"n": 1})
    assert turn(loop, lambda: reader.messages) < 0.5


def test_a_connection_that_is_silent_is_made_anew(
    valkey: redis.Redis,
    valkey_path: str,
    hub: Hub,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """As one that a firewall has forgotten."""
    path = tmp_path_factory.mktemp("p") / "p.sock"
    wire = Proxy(valkey_path, listen=path)
    client = redis.Redis(unix_socket_path=str(path), socket_timeout=0.3, retry=None)
    rings: list[None] = []
    doorbell = Doorbell(client, lambda: rings.append(None))
    doorbell.hang(hub, QUEUES)
    loop = hub.create_loop()
    doorbell.look_after(QUEUES)
    turn(loop, lambda: not doorbell._is_pinged)
    assert not rings, "a sign of life is no notice"
    wire.freeze()
    doorbell.look_after(QUEUES)
    doorbell.look_after(QUEUES)
    assert not doorbell.is_hung
    wire.thaw()
    doorbell.look_after(QUEUES)
    assert doorbell.is_hung
    rings.clear()
    valkey.lpush(QUEUES[0], "message")
    turn(loop, lambda: rings)
    doorbell.take_down()
    client.close()
    wire.close()


def test_other_queues_are_told_of_as_well(
    valkey: redis.Redis,
    hub: Hub,
    doorbell: Doorbell,
    rings: list[None],
) -> None:
    doorbell.look_after((*QUEUES, "another"))
    loop = hub.create_loop()
    rings.clear()
    valkey.lpush("another", "message")
    turn(loop, lambda: rings)


def test_notices_wake_no_loop_while_there_is_work(
    valkey: redis.Redis,
    hub: Hub,
    doorbell: Doorbell,
    rings: list[None],
) -> None:
    """And what was not read meanwhile does not pile up in the server."""
    loop = hub.create_loop()
    hub.call_repeatedly(0.02, lambda: None)
    for n in range(2):
        valkey.lpush(QUEUES[0], n)
        idle(loop, 0.1)
    assert len(rings) == 1
    doorbell.arm()
    turn(loop, lambda: len(rings) == 2)
    valkey.lpush(QUEUES[0], "message")
    idle(loop, 0.1)
    doorbell.look_after(QUEUES)
    idle(loop, 0.1)
    doorbell.look_after(QUEUES)
    assert doorbell.is_hung, "the sign of life was read"
    assert len(rings) == 3, "what was read is told once"


def test_a_loop_that_stood_still_asks_at_once_however_often_it_was_told(
    connection: KombuConnection,
    valkey_path: str,
    hub: Hub,
) -> None:
    """The loop runs ten timers a turn, and may sleep for a second after them."""
    reader = Reader(valkey_path)
    reader.fetcher.run_in(hub)
    loop = hub.create_loop()
    publish(connection, {"n": 1})
    turn(loop, lambda: reader.messages)
    idle(loop, 0.1)  # it has work, and reads no notices
    for _ in range(50):
        reader.fetcher._schedule()
    time.sleep(5 * POLL_S)  # it stands still
    publish(connection, {"n": 2})
    assert turn(loop, lambda: len(reader.messages) == 2) < 0.5


def test_a_notice_that_is_read_while_there_is_work_is_asked_for_though_the_work_ends(
    connection: KombuConnection,
    valkey_path: str,
    hub: Hub,
) -> None:
    reader = Reader(valkey_path, beat_s=30)
    fetcher = reader.fetcher
    fetcher.run_in(hub)
    loop = hub.create_loop()
    idle(loop, 0.1)
    publish(connection, {"n": 1})
    turn(loop, lambda: reader.messages)
    idle(loop, 0.1)
    polled_s = fetcher._polled_s
    turn(loop, lambda: fetcher._polled_s != polled_s)
    publish(connection, {"n": 2})
    fetcher._doorbell.look_after(fetcher._read_names())
    reader.messages[0].ack()
    assert turn(loop, lambda: len(reader.messages) == 2) < 0.5


def test_notices_come_after_a_refusal_that_passes(
    valkey: redis.Redis,
    hub: Hub,
) -> None:
    """Such as BUSY: another app's script runs for seconds."""
    answers = [redis.ResponseError("BUSY Valkey is busy running a script")]

    class BusyOnce(redis.connection.UnixDomainSocketConnection):
        def read_response(self, *args: Any, **options: Any) -> Any:
            if answers and self.protocol:
                raise answers.pop()
            return super().read_response(*args, **options)

    path = valkey.connection_pool.connection_kwargs["path"]
    client = redis.Redis(
        connection_pool=redis.ConnectionPool(connection_class=BusyOnce, path=path, retry=None)
    )
    doorbell = Doorbell(client, lambda: None)
    with capture_logs() as logs:
        doorbell.hang(hub, QUEUES)
        assert (doorbell.is_hung, answers) == (False, [])
        doorbell.look_after(QUEUES)
    assert (doorbell.is_hung, logs) == (True, [])
    doorbell.take_down()
    client.close()


def test_an_error_that_waits_for_a_loop_that_ends_does_not_end_the_next_one(
    valkey_path: str,
    hub: Hub,
) -> None:
    reader = Reader(valkey_path)
    fetcher = reader.fetcher
    fetcher.run_in(hub)

    def fail() -> None:
        raise redis.ConnectionError("the broker is gone")

    fetcher._run(fail, fetcher._takes_refused)
    hub.reset()
    hub.timer.clear()
    fetcher.run_in(hub)
    idle(hub.create_loop(), 0.1)
    fetcher._run(fail, fetcher._takes_refused)
    with pytest.raises(redis.ConnectionError):
        idle(hub.create_loop(), 1.0)


def test_a_shortage_of_files_ends_no_loop_and_is_told_once(
    connection: KombuConnection,
    valkey_path: str,
    hub: Hub,
) -> None:
    """As where the calls in flight have all files, and a connection to the broker is not open yet."""
    reader = Reader(valkey_path)
    fetcher = reader.fetcher
    fetcher.run_in(hub)
    loop = hub.create_loop()

    def connect() -> None:
        try:
            raise OSError(errno.EMFILE, "Too many open files")
        except OSError as exc:
            # As redis-py does.
            raise redis.ConnectionError("Error 24 connecting to the broker") from exc

    with capture_logs() as logs:
        for _ in range(3):
            fetcher._run(connect, fetcher._takes_refused)
            idle(loop, 0.05)
    assert [(one["event"], "open files" in one["lack"]) for one in logs] == [("worker.shortage", True)]
    publish(connection, {"n": 1})
    turn(loop, lambda: reader.messages)
