"""Messages of a foreign Celery app, and what becomes of them in bad hands: a pure function of a seed."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from worker.broker.hints import LONE_QUEUE, TASK, write_hint

REQUEST = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": "Say one."}]}
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**31, 2**63, 2**70, 1e400, float("nan"), "", "x", "é", "\0", "\ud800", "a" * 5000,
    "a\nb\x07", [], {}, [[]], ["x"], {"a": None}, {"__type__": "datetime", "__value__": "never"},
    {"__type__": "of-nobody", "__value__": 1}, {"__type__": "uuid", "__value__": [1]}, "2020-01-01T00:00:00",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "NaN", "antrean.complete_chat", "base64",
]  # fmt: skip


def encode(body: Any) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


def message(task_id: Any, **request: Any) -> dict[str, Any]:
    """What a foreign Celery app sends, as kombu lays it on the list."""
    return {
        "body": encode([[], {"request": {**REQUEST, **request}}, {"callbacks": None, "chain": None}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": TASK, "id": task_id, "shadow": None, "eta": None, "expires": None, "group": None,
            "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": task_id, "parent_id": None,
            "argsrepr": "()", "kwargsrepr": "{}", "origin": "gen1@host", "ignore_result": True,
            "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
        },
        "properties": {
            "correlation_id": task_id, "reply_to": "", "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": LONE_QUEUE}, "priority": 0, "body_encoding": "base64",
            "delivery_tag": f"tag-{task_id}",
        },
    }  # fmt: skip


def first_protocol(task_id: Any) -> dict[str, Any]:
    """What a Celery of long ago sends: all of it in the body."""
    made = message(task_id)
    made["headers"] = {}
    made["body"] = encode(
        {"task": TASK, "id": task_id, "args": [], "kwargs": {"request": REQUEST}, "retries": 0}
    )
    return made


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def mutants(seed: int, count: int, *, prefix: str) -> Iterator[bytes]:
    """So many messages, most of them broken; each was made from one with an id of its own."""
    rng = random.Random(seed)
    for number in range(count):
        yield mutate(rng, f"{prefix}-{number}")


def mutate(rng: random.Random, task_id: str) -> bytes:
    made = first_protocol(task_id) if rng.random() < 0.15 else message(task_id)
    kind = rng.randrange(10)
    if kind < 5:  # a value somewhere in it becomes another
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            _change_one(rng, made)
        return json.dumps(made).encode()
    if kind == 5:  # in its body
        return json.dumps(_change_body(rng, made)).encode()
    raw = (
        write_hint(task_id, queue=LONE_QUEUE, priority=0) if rng.random() < 0.2 else json.dumps(made).encode()
    )
    return _break_bytes(rng, bytearray(raw))


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], (dict, list)):
            _places(value[key], found)
    return found


def _change_one(rng: random.Random, made: Any) -> None:
    where, key = rng.choice(_places(made, []))
    if isinstance(where, dict) and rng.random() < 0.2:
        del where[key]
        return
    where[key] = deepcopy(rng.choice(ODD_VALUES))


def _change_body(rng: random.Random, made: dict[str, Any]) -> dict[str, Any]:
    body = json.loads(base64.b64decode(made["body"]))
    if rng.random() < 0.2:
        text = json.dumps(body).encode().replace(b'"Say one."', nested(rng.choice((99, 300, 1000, 100_000))))
        made["body"] = base64.b64encode(text).decode()
        return made
    if isinstance(body, list) and rng.random() < 0.5:
        options = ("custom_id", "batch", "max_attempts", "metadata", "job_id", "self", "colour")
        body[1][rng.choice(options)] = deepcopy(rng.choice(ODD_VALUES))
    else:
        _change_one(rng, body)
    made["body"] = encode(body)
    return made


def _break_bytes(rng: random.Random, raw: bytearray) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(raw) + 1)
        length = rng.choice((1, 2, 8, 100))
        match rng.randrange(7):
            case 0:
                raw[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del raw[at:]
            case 2:
                del raw[at : at + length]
            case 3:
                raw[at:at] = raw[at : at + length]
            case 4:
                other = json.dumps(rng.choice(ODD_VALUES)).encode()
                raw[at:at] = rng.choice((other, b'{"__type__": "x", "__value__": 1}', b'"antrean_hint":1,'))
            case 5:
                raw[at:at] = nested(rng.choice((10, 1000, 100_000)))
            case _:
                raw[at:at] = b"9" * rng.choice((20, 400, 5000))
        if not raw:
            break
    return bytes(raw)
