"""Another app's messages on a queue that we read, on a real Valkey: kept as they are, and given back in their order."""

from __future__ import annotations

import json
from typing import Any

import redis
from structlog.testing import capture_logs

from tests.contract.test_taking import LISTS
from tests.support.mutants import first_protocol, message
from tests.support.reader import LONE, UNACKED, UNACKED_INDEX, Reader, ids
from worker.broker.hints import ASIDE_PREFIX, LONE_QUEUE, list_key
from worker.broker.set_aside import count_aside, give_back, name_aside
from worker.consume.taking import Taker

ASIDE = ASIDE_PREFIX + LONE_QUEUE


def theirs(task_id: str, task: Any = "their.task") -> dict[str, Any]:
    made = message(task_id)
    made["headers"]["task"] = task
    return made


def put(valkey: redis.Redis, *made: Any, key: str = LONE_QUEUE) -> list[bytes]:
    raws = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in made]
    for raw in raws:
        valkey.lpush(key, raw)
    return raws


def aside(valkey: redis.Redis, key: str = LONE_QUEUE) -> list[bytes]:
    """What was set aside from a list, oldest first."""
    found: Any = valkey.lrange(ASIDE_PREFIX + key, 0, -1)
    return list(reversed(found))


def test_they_are_set_aside_byte_for_byte_and_ours_go_on(valkey: redis.Redis, valkey_path: str) -> None:
    old = first_protocol("old")
    old["body"] = "eyJ0YXNrIjogInRoZWlyLnRhc2siLCAiaWQiOiAib2xkIn0="
    pickled = theirs("p") | {"content-type": "application/x-python-serialize"}
    without_id = theirs("n")
    without_id["headers"] = {"task": "their.task"}
    without_id["properties"].pop("delivery_info")
    odd = json.dumps(theirs("odd", "their.\ud800")).encode()
    raws = put(valkey, theirs("t"), old, pickled, without_id, odd, theirs("none", None))
    put(valkey, message("ours"))
    assert ids(Reader(valkey_path, LONE).read(1)) == ["ours"]
    assert aside(valkey) == raws
    assert valkey.llen(LONE_QUEUE) == 0
    assert valkey.hlen(UNACKED) == valkey.zcard(UNACKED_INDEX) == 1, "ours alone is in hand"


def test_one_that_is_too_large_to_be_read_is_set_aside_whole(valkey: redis.Redis) -> None:
    large = theirs("large")
    large["body"] = "x" * 200_000
    [raw] = put(valkey, large)
    [taken] = Taker(valkey, longest=100_000).take(LISTS, 5, lone=5, bulk=5)
    assert (taken.is_aside, taken.is_noted, taken.raw) == (True, False, b"")
    assert aside(valkey) == [raw]
    assert valkey.hlen(UNACKED) == 0


def test_they_are_counted_by_list_and_named_by_their_task_alone(
    valkey: redis.Redis, valkey_path: str
) -> None:
    high = list_key(LONE_QUEUE, 6)
    put(valkey, theirs("a"), theirs("b"))
    put(valkey, theirs("c", "Tell me, what is a task?"), key=high)
    put(valkey, message("ours"))
    Reader(valkey_path, LONE).read_all()
    assert count_aside(valkey, [LONE_QUEUE]) == {LONE_QUEUE: 2, high: 1}
    assert (name_aside(valkey, LONE_QUEUE), name_aside(valkey, high)) == ("their.task", None)


def test_they_are_given_back_before_what_came_since_and_in_their_order(
    valkey: redis.Redis, valkey_path: str
) -> None:
    raws = put(valkey, *(theirs(f"t{i}") for i in range(250)))
    Reader(valkey_path, LONE).read_all()
    assert aside(valkey) == raws
    since = put(valkey, theirs("since"), key="theirs")
    assert give_back(valkey, LONE_QUEUE, "theirs") == 250
    found: Any = valkey.lrange("theirs", 0, -1)
    assert list(reversed(found)) == raws + since
    assert not valkey.exists(ASIDE)
    assert give_back(valkey, LONE_QUEUE, "theirs") == 0


def test_many_are_a_few_lines_in_the_log(valkey: redis.Redis, valkey_path: str) -> None:
    put(valkey, *(theirs(f"t{i}", "their.many") for i in range(120)))
    with capture_logs() as said:
        Reader(valkey_path, LONE).read_all()
    told = [line for line in said if line.get("task") == "their.many"]
    assert [line["count"] for line in told] == [1, 10, 100]
