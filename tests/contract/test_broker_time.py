"""Leases of foreign messages go by the broker's clock, whatever the clocks of its workers say."""

from __future__ import annotations

import time

import pytest
import redis
from kombu import Connection as KombuConnection

from tests.support.reader import UNACKED_INDEX, Reader, publish
from worker.broker.clock import BrokerClock
from worker.broker.hints import LONE_QUEUE

HOUR_S = 3600.0


@pytest.mark.parametrize("ahead_s", [-7 * HOUR_S, 0.0, 7 * HOUR_S])
def test_what_this_machines_clock_says_is_of_no_matter_once_the_broker_was_asked(
    valkey: redis.Redis, ahead_s: float
) -> None:
    wall = [time.time() + ahead_s]
    clock = BrokerClock(wall_s=lambda: wall[0])
    assert (clock.is_known, clock.now_s()) == (False, wall[0])
    clock.ask(valkey)
    wall[0] += 9 * HOUR_S  # it is set
    seconds, _ = valkey.time()
    assert clock.is_known
    assert abs(clock.now_s() - seconds) < 2


def test_its_seconds_go_on_between_two_looks(valkey: redis.Redis) -> None:
    passed = [100.0]
    clock = BrokerClock(monotonic_s=lambda: passed[0])
    clock.ask(valkey)
    before_s = clock.now_s()
    passed[0] += 5
    assert clock.now_s() - before_s == pytest.approx(5)


@pytest.mark.parametrize(
    ("age_s", "comes_again"), [(2.0, False), (2 * HOUR_S, True), (-20.0, False), (-HOUR_S, True)]
)
def test_a_lease_that_is_over_or_begins_in_the_future_is_given_out_again(
    connection: KombuConnection,
    valkey: redis.Redis,
    valkey_path: str,
    age_s: float,
    comes_again: bool,
) -> None:
    publish(connection, {"n": 1})
    reader = Reader(valkey_path)
    (message,) = reader.read(1)
    seconds, _ = valkey.time()
    assert abs(float(valkey.zscore(UNACKED_INDEX, message.delivery_tag) or 0) - seconds) < 5
    valkey.zadd(UNACKED_INDEX, {message.delivery_tag: seconds - age_s})
    reader.put_back_overdue()
    assert valkey.llen(LONE_QUEUE) == int(comes_again)
