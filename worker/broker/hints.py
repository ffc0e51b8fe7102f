"""Hints: messages that name a job of the ledger and carry nothing else.

A hint has kombu's form and a header of our own. A lost hint loses nothing (invariant 1), so hints are not acknowledged
(docs/adr/0012).
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

TASK = "antrean.complete_chat"
LONE_QUEUE = "celery"  # Celery's default: a foreign producer needs no routing
BULK_QUEUE = "antrean.bulk"  # where older versions put the hints of all endpoints
UNACKED_KEY = (
    "antrean.unacked"  # the hash of foreign messages that a worker has, and the beginning of its index's key
)
ASIDE_PREFIX = "antrean.set-aside:"  # before a list's key: the list of what lay there and is another app's
HINT_HEADER = "antrean_hint"
MODEL_HEADER = "antrean_model"

_PRIORITY_STEPS = (9, 6, 3, 0)  # kombu's lists of a queue; 0 is the highest and has no suffix
_PRIORITY_SEPARATOR = "\x06\x16"
HINT_MARK = f'"{HINT_HEADER}":1'.encode()  # what a hint holds as it lies in the broker
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_ORIGIN = "antrean"
_BULK_PREFIX = f"{BULK_QUEUE}."


@dataclass(frozen=True, slots=True)
class Queues:
    """The two queues of hints. The queue of lone jobs is read first, then that of bulk jobs."""

    lone: str
    bulk: str

    @property
    def names(self) -> tuple[str, str]:
        return self.lone, self.bulk


SHARED_QUEUES = Queues(lone=LONE_QUEUE, bulk=BULK_QUEUE)


def queues_of(ledger_id: str, endpoint: str) -> Queues:
    """The queues of one ledger's jobs for one endpoint, which only workers that can claim these jobs read."""
    name = hashlib.sha256(f"{ledger_id}\0{endpoint}".encode()).hexdigest()[:16]
    return Queues(lone=f"{LONE_QUEUE}.{name}", bulk=f"{BULK_QUEUE}.{name}")


def is_bulk_queue(name: object) -> bool:
    """Whether this is the name of a queue of bulk messages, of any endpoint. `name` may be a message's routing key."""
    return isinstance(name, str) and (name == BULK_QUEUE or name.startswith(_BULK_PREFIX))


def list_key(queue: str, priority: int) -> str:
    """The Redis list in which kombu keeps the messages of `queue` at this priority."""
    step = next((step for step in _PRIORITY_STEPS if priority >= step), 0)
    return f"{queue}{_PRIORITY_SEPARATOR}{step}" if step else queue


def list_keys(queue: str) -> list[str]:
    """All lists of `queue`, in the order to empty them."""
    return [list_key(queue, step) for step in reversed(_PRIORITY_STEPS)]


class Lists(NamedTuple):
    """Queue and key of each list that a worker reads, in the order to empty them: all, and those of lone jobs."""

    every: list[tuple[str, str]]
    lone: list[tuple[str, str]]

    @classmethod
    def of(cls, queues: Iterable[str]) -> Lists:
        lists = [[(queue, key) for key in list_keys(queue)] for queue in queues]
        every = [one for step in zip(*lists, strict=True) for one in step]
        return cls(every, [one for one in every if not is_bulk_queue(one[0])])


def write_hint(job_id: str, *, queue: str, priority: int, model: str | None = None) -> bytes:
    """The message as it lies in the broker: Celery's second protocol in kombu's envelope."""
    told = {} if model is None else {MODEL_HEADER: model}
    return orjson.dumps(
        {
            "body": write_body(job_id),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": TASK,
                "id": job_id,
                "shadow": None,
                "eta": None,
                "expires": None,
                "group": None,
                "group_index": None,
                "retries": 0,
                "timelimit": [None, None],
                "root_id": job_id,
                "parent_id": None,
                "argsrepr": "()",
                "kwargsrepr": "{}",
                "origin": _ORIGIN,
                "ignore_result": None,
                "replaced_task_nesting": 0,
                "stamped_headers": None,
                "stamps": {},
                HINT_HEADER: 1,
                **told,
            },
            "properties": {
                "correlation_id": job_id,
                "reply_to": "",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": priority,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )


def write_body(job_id: str) -> str:
    """The body of a hint."""
    return base64.b64encode(orjson.dumps([[], {"job_id": job_id}, _EMBED])).decode("ascii")


def is_written_hint(raw: bytes) -> bool:
    """Whether this message, as it lay in the broker, may be a hint."""
    return HINT_MARK in raw


def read_hinted_job(raw: bytes) -> str | None:
    """The id of the job that a message in the broker names. None if the message is no hint."""
    if not is_written_hint(raw):
        return None
    try:
        job_id = orjson.loads(raw)["headers"]["id"]
    except (ValueError, TypeError, LookupError):  # a foreign message that holds the mark somewhere
        return None
    return job_id if isinstance(job_id, str) else None


def read_body(job_id: str) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """The decoded body of a hint: arguments, named arguments, and Celery's callbacks, which are empty."""
    return [], {"job_id": job_id}, dict(_EMBED)


def hinted_job(message: Any) -> str | None:
    """The id of the job that a received hint names. None if the message is more than a hint."""
    headers = message.headers
    if not headers or HINT_HEADER not in headers:
        return None
    job_id = headers.get("id")
    return job_id if isinstance(job_id, str) else None


def hinted_model(message: Any) -> str | None:
    """The model that a received hint tells. None where it tells none."""
    model = (message.headers or {}).get(MODEL_HEADER)
    return model if isinstance(model, str) else None
