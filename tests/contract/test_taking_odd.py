"""Odd messages on a real Valkey: how they are noted, put back and let go. The rest of it is in test_taking.py."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from tests.contract.test_taking import LISTS, notes
from tests.support.mutants import message, nested
from tests.support.reader import LONE, UNACKED, UNACKED_INDEX, Reader
from worker.broker.hints import LONE_QUEUE, list_key
from worker.consume.foreign import MAX_MESSAGE_BYTES, REFUSED_HEADER
from worker.consume.notes import read_note, write_note
from worker.consume.taking import Taken, Taker


def put(valkey: redis.Redis, *made: Any, queue: str = LONE_QUEUE) -> list[bytes]:
    raws = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in made]
    for raw in raws:
        valkey.lpush(queue, raw)
    return raws


def take(valkey: redis.Redis, count: int = 100, *, longest: int = MAX_MESSAGE_BYTES) -> list[Taken]:
    return Taker(valkey, longest=longest).take(LISTS, count, lone=count, bulk=count)


def changed(**properties: Any) -> dict[str, Any]:
    made = message("a")
    made["properties"] |= properties
    return made


@pytest.mark.parametrize("tag", [None, True, 5, ["x"], {}, "", "t" * 300, "a b", "ü", "a\0"])
@pytest.mark.parametrize("info", [None, {}, {"exchange": float("nan"), "routing_key": {"a": [1]}}])
def test_a_message_is_noted_whatever_it_says_of_itself_under_a_tag_that_is_told(
    valkey: redis.Redis, tag: Any, info: Any
) -> None:
    [raw] = put(valkey, changed(delivery_tag=tag, delivery_info=info))
    [taken] = take(valkey)
    assert (taken.is_noted, taken.is_cut, taken.raw) == (True, False, raw)
    assert taken.tag not in ("", tag)
    assert list(notes(valkey)) == [taken.tag]
    assert read_note(valkey.hget(UNACKED, taken.tag))[0] == raw


def test_two_messages_of_one_tag_are_two_notes(valkey: redis.Redis) -> None:
    """The note of one must not be that of the other, or be gone with it."""
    put(valkey, changed(delivery_tag="1"), changed(delivery_tag="1"), changed(delivery_tag="1"))
    taken = take(valkey, 2) + take(valkey)
    assert len({one.tag for one in taken}) == 3
    assert taken[0].tag == "1"
    assert set(notes(valkey)) == {one.tag for one in taken}


def test_what_breaks_the_notes_of_one_message_costs_no_other(valkey: redis.Redis) -> None:
    """The script has popped all of them by then."""
    odd = json.dumps(changed(delivery_info={"exchange": float("nan"), "routing_key": float("inf")})).encode()
    put(
        valkey,
        message("a"),
        odd,
        nested(5000),
        b'{"properties": {"delivery_info": {"exchange": 1e999}}}',
        message("b"),
    )
    taken = take(valkey)
    assert [one.is_noted for one in taken] == [True, True, False, True, True]


def test_what_is_too_large_is_cut_to_its_ends_and_noted_so(valkey: redis.Redis) -> None:
    large = message("large")
    large["body"] = "x" * 200_000
    put(valkey, large, message("small"), b"y" * 150_000)
    first, second, third = take(valkey, longest=100_000)
    assert (first.is_cut, second.is_cut, third.is_cut) == (True, False, True)
    assert first.is_noted and third.is_noted
    assert len(first.raw) == len(third.raw) == 8192 + 65_536
    assert b'"id": "large"' in first.raw
    assert valkey.hget(UNACKED, first.tag) == first.raw


def test_a_message_that_only_python_can_read_is_noted_by_its_reader(
    valkey: redis.Redis, valkey_path: str
) -> None:
    """Redis knows no half of a surrogate pair."""
    made = message("a")
    made["headers"]["origin"] = "\ud800"
    [raw] = put(valkey, made)
    [read] = Reader(valkey_path, LONE).read(1)
    assert read.payload[1]["request"] == json.loads(json.dumps(read.payload[1]["request"]))
    assert read_note(valkey.hget(UNACKED, read.delivery_tag)) == (raw, LONE_QUEUE)
    read.ack()
    assert notes(valkey) == {}


@pytest.mark.parametrize(
    ("note", "priority"),
    [
        (write_note(json.dumps(message("a")).encode(), LONE_QUEUE), 0),
        (write_note(json.dumps(changed(priority=6)).encode(), LONE_QUEUE), 6),
        (write_note(json.dumps(changed(priority=float("nan"))).encode(), LONE_QUEUE), 0),
        (write_note(json.dumps(message("a")).encode(), "of-nobody"), 0),
        (b"[" + json.dumps(message("a")).encode() + b',"gone","x"]', 0),
        (write_note(nested(100_000), LONE_QUEUE), 0),
        (write_note(b'{"headers": {"__type__": "x", "__value__": 1}}', LONE_QUEUE), 0),
        (b"\xff not a note", 0),
        (b"[1, 2]", 0),
        (b"", 0),
    ],
)
def test_a_note_is_put_back_whatever_it_holds(
    valkey: redis.Redis, valkey_path: str, note: bytes, priority: int
) -> None:
    """In the step that removes it, and without being decoded as kombu would."""
    valkey.hset(UNACKED, "t", note)
    valkey.zadd(UNACKED_INDEX, {"t": 1.0, "without a note": 1.0, b"\xff of nobody": 1.0})
    Reader(valkey_path, LONE).put_back_overdue()
    assert valkey.hlen(UNACKED) == valkey.zcard(UNACKED_INDEX) == 0
    assert valkey.llen(list_key(LONE_QUEUE, priority)) == (1 if note else 0)


def test_a_message_that_comes_again_says_so_and_is_read(valkey: redis.Redis, valkey_path: str) -> None:
    put(valkey, message("a"))
    reader = Reader(valkey_path, LONE)
    [first] = reader.read(1)
    first.reject(requeue=True)
    [_, again] = reader.read(2)
    assert again.delivery_info["redelivered"] is True
    assert again.headers["id"] == "a"
    assert again.payload == first.payload
    assert REFUSED_HEADER not in again.headers
