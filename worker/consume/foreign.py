"""Messages of other programs, read once and made harmless before Celery sees them.

Any program may put anything on a queue. Celery trusts much of a message, and a message that breaks it ends the
worker, comes back and ends the next one. So Celery is handed messages of its own second protocol only, in the types
that it expects, with their bodies decoded. A message of our task that cannot be used is marked as refused: it becomes
a row that says why, and is acknowledged once that row is written. A message without a usable id is dropped with a line
in the log. A message of another app is set aside.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from kombu.utils.json import object_hook

from schemas.bounds import MAX_DEPTH, MAX_ID_LENGTH, MAX_TIME_MS, find_unkeepable, is_keepable_text
from schemas.chat import InvalidRequest
from worker.broker.hints import HINT_HEADER, TASK, write_body
from worker.intake.messages import make_row_id, read_time_ms
from worker.text.names import as_name

NOT_BEFORE_HEADER = "antrean_not_before"  # an ETA, put aside for the ledger (invariant 8)
REFUSED_HEADER = "antrean_refused"  # why a message cannot be used: a list of sentences
MAX_MESSAGE_BYTES = (
    16 * 1024 * 1024
)  # unless the setting says otherwise; decoding takes several times as much
_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")
_ENCODINGS = (None, "utf-8", "base64")
_NAMES = ("group", "root_id", "parent_id", "shadow", "origin")
_TOO_DEEP = f"the message is nested deeper than {MAX_DEPTH} levels"
_LONGEST_TIME = 64  # characters
# Far from both ends of Python's calendar, where it cannot change the time zone.
_FIRST_EXPIRY_MS, _LAST_EXPIRY_MS = 0, MAX_TIME_MS - 366 * 86_400_000
# What reading a message may raise that is not as it should be.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_ID = re.compile(rb'"id"\s*:\s*"([ !#-\[\]-~]{1,255})"')
_OURS = re.compile(rb'"task"\s*:\s*"' + re.escape(TASK.encode()) + rb'"')


class Payload(dict[str, Any]):
    """A message in kombu's JSON form, with its body decoded: arguments, named arguments, what is embedded.

    `raw` is the message as it lay in the broker, where it has no note yet. None: it has one.
    """

    decoded: list[Any] | None = None
    raw: bytes | None = None


class Unusable(Exception):
    """The message has no id, or is no message."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class OfAnother(Unusable):
    """A message of another app that shares the queue. `task`: the name of its task, if it reads as a name."""

    def __init__(self, task: object = None) -> None:
        super().__init__("it is another app's")
        self.task = as_name(task)


def read_hint(raw: bytes) -> dict[str, Any] | None:
    """A hint as we write it, or None where it only looks like one."""
    try:
        message: dict[str, Any] = orjson.loads(raw)
        headers, properties = message["headers"], message["properties"]
        is_sound = (
            headers["task"] == TASK
            and headers[HINT_HEADER] == 1
            and type(headers["id"]) is str
            and type(properties["delivery_tag"]) is str
            and type(properties["delivery_info"]["routing_key"]) is str
            and headers["eta"] is headers["expires"] is None
            and message["body"] == write_body(headers["id"])  # another body is a request of its own
        )
    except UNREADABLE:
        return None
    return message if is_sound and make_row_id(headers["id"]) == headers["id"] else None


def read_foreign(raw: bytes, *, queue: str, tag: str) -> Payload:
    """The message of ours that lay on `queue`, to be delivered under `tag`. Raises Unusable, OfAnother among it."""
    try:
        message = _load(raw)
    except UNREADABLE as exc:
        why = _TOO_DEEP if isinstance(exc, RecursionError) else "the message is no JSON that can be read"
        return read_fragments(raw, why, queue=queue, tag=tag)
    if not isinstance(message, dict):
        raise Unusable("it is no object")
    if find_unkeepable(message, with_text=False) == _deep_words():
        return read_fragments(raw, _TOO_DEEP, queue=queue, tag=tag)
    headers, properties = (
        found if isinstance(found, dict) else {}
        for found in (message.get("headers"), message.get("properties"))
    )
    if not headers and not isinstance(message.get("body"), str):
        raise Unusable("it has neither headers nor a body")
    body, problems = _decode_body(message, headers, properties)
    if "task" not in headers and isinstance(body, dict) and "task" in body:  # the first protocol
        headers = {**body, **headers}
        body = _from_first_protocol(body)
    task = headers.get("task")
    if task != TASK:
        raise OfAnother(task)
    task_id = headers.get("id")
    if isinstance(task_id, int) and not isinstance(task_id, bool) and abs(task_id) < 2**63:
        task_id = str(task_id)
    if not isinstance(task_id, str) or not task_id:
        raise Unusable("it has no id")
    if make_row_id(task_id) != task_id:
        problems.append(f"task_id: must be 1 to {MAX_ID_LENGTH} printable characters")
        task_id = make_row_id(task_id)
    decoded = _check_body(body, problems)
    facts = _read_headers(headers, problems)
    if problems:
        facts[REFUSED_HEADER] = problems
    return _make(task_id, facts, properties, decoded, queue=queue, tag=tag)


def read_fragments(raw: bytes, why: str, *, queue: str, tag: str) -> Payload:
    """A refused message with the id that is found in `raw`, which is cut or cannot be read. Raises Unusable."""
    is_ours = _OURS.search(raw) is not None
    if not is_ours and raw.lstrip()[:1] == b"{":
        raise OfAnother
    found = _ID.search(raw) if is_ours else None
    if found is None:
        raise Unusable(why)
    task_id = make_row_id(found.group(1).decode("ascii"))
    return _make(task_id, {REFUSED_HEADER: [why]}, {}, [[], {}, {}], queue=queue, tag=tag)


def mark_redelivered(raw: bytes) -> bytes:
    """The message with kombu's mark of a second delivery, or as it is where it cannot be read."""
    try:
        message = json.loads(raw)
        message["headers"]["redelivered"] = message["properties"]["delivery_info"]["redelivered"] = True
        return json.dumps(message).encode()
    except UNREADABLE:
        return raw


def _load(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return json.loads(raw.decode())  # takes NaN and halves of surrogate pairs, which kombu writes


def _deep_words() -> str:
    return f"must not be nested deeper than {MAX_DEPTH} levels"


def _decode_body(
    message: Mapping[str, Any], headers: Mapping[str, Any], properties: Mapping[str, Any]
) -> tuple[Any, list[str]]:
    """The content of the body and its problems. The content is None if there are problems."""
    if headers.get("compression"):
        # A message of 266 KB became one of 2.6 GB.
        return None, ["the body is compressed: send it without `compression`"]
    if message.get("content-type") != "application/json":
        return None, ["content-type: must be application/json"]
    body, encoding = message.get("body"), properties.get("body_encoding")
    if not isinstance(body, str) or encoding not in _ENCODINGS:
        return None, ["the body must be text, as it is or in base64"]
    try:
        text = base64.b64decode(body).decode() if encoding == "base64" else body
        return json.loads(text, object_hook=object_hook), []
    except binascii.Error:
        return None, ["the body is not the base64 that it says it is"]
    except UnicodeError:
        return None, ["the body is not UTF-8"]
    except json.JSONDecodeError:
        return None, ["the body is not JSON"]
    except RecursionError:
        return None, [_TOO_DEEP]
    except UNREADABLE:  # a type that kombu revives, with a value that it cannot be made of
        return None, ["the body holds a `__type__` that cannot be read"]


def _from_first_protocol(body: Mapping[str, Any]) -> list[Any]:
    embedded = {name: body.get(name) for name in _EMBEDDED if name != "chain"}
    return [body.get("args", []), body.get("kwargs", {}), embedded]


def _check_body(body: Any, problems: list[str]) -> list[Any]:
    """The body as Celery is to get it. What is wrong with it is added to `problems`, and the body is empty then."""
    if problems:
        return [[], {}, {}]
    if isinstance(body, dict) and "args" in body:  # a mix of both protocols
        body = _from_first_protocol(body)
    if not isinstance(body, list) or len(body) != 3:
        problems.append("the body must be [arguments, named arguments, embedded]")
        return [[], {}, {}]
    args, kwargs, embedded = body
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embedded or {}, dict):
        problems.append("the body must be [arguments, named arguments, embedded]")
        return [[], {}, {}]
    if find_unkeepable(body, with_text=False) == _deep_words():
        problems.append(_TOO_DEEP)
        return [[], {}, {}]
    kept = embedded or {}
    # `self` is the task's own, and would break its call.
    named = {("self (named)" if name == "self" else name): value for name, value in kwargs.items()}
    return [args, named, {name: kept.get(name) for name in _EMBEDDED}]


def _read_headers(headers: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The headers that are used, in the types that Celery expects. The others are left out."""
    facts: dict[str, Any] = {}
    for name in _NAMES:
        value = headers.get(name)
        is_fit = isinstance(value, str) and len(value) <= MAX_ID_LENGTH and is_keepable_text(value)
        facts[name] = value if is_fit else None
    index = headers.get("group_index")
    facts["group_index"] = index if type(index) is int and abs(index) < 2**31 else None
    retries = headers.get("retries")
    facts["retries"] = retries if type(retries) is int and 0 <= retries < 2**31 else 0
    eta = headers.get("eta")
    if eta is None or type(eta) in (int, float) or (isinstance(eta, str) and len(eta) <= _LONGEST_TIME):
        facts[NOT_BEFORE_HEADER] = eta
    else:
        problems.append("eta: must be a time")
    facts["expires"] = _read_expires(headers.get("expires"), problems)
    return facts


def _read_expires(value: Any, problems: list[str]) -> str | None:
    """The time as an ISO text with a time zone, which Celery can read."""
    if value is None:
        return None
    try:
        at_ms = read_time_ms(value) if isinstance(value, str) and len(value) <= _LONGEST_TIME else None
    except InvalidRequest:
        at_ms = None
    if at_ms is not None and at_ms <= _LAST_EXPIRY_MS:
        return datetime.fromtimestamp(max(at_ms, _FIRST_EXPIRY_MS) / 1000, UTC).isoformat()
    problems.append("expires: must be a time in ISO form")
    return None


def _make(
    task_id: str,
    facts: Mapping[str, Any],
    properties: Mapping[str, Any],
    decoded: list[Any],
    *,
    queue: str,
    tag: str,
) -> Payload:
    names = {
        name: value
        for name in ("correlation_id", "reply_to")
        if isinstance(value := properties.get(name), str)
        and len(value) <= MAX_ID_LENGTH
        and is_keepable_text(value)
    }
    payload = Payload(
        {
            "body": "",  # decoded below
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": TASK,
                "id": task_id,
                "eta": None,
                "expires": None,
                "timelimit": [None, None],
                "argsrepr": "()",
                "kwargsrepr": "{}",
                **facts,
            },
            "properties": {
                **names,
                "delivery_mode": 2,
                "delivery_info": _where(properties, queue),
                "priority": _priority(properties),
                "body_encoding": "base64",
                "delivery_tag": tag,
            },
        }
    )
    payload.decoded = decoded
    return payload


def _priority(properties: Mapping[str, Any]) -> Any:
    priority = properties.get("priority")
    return priority if priority is None or type(priority) is int else "odd"


def _where(properties: Mapping[str, Any], queue: str) -> dict[str, Any]:
    """The delivery facts, with the queue on which the message lay. What it says of its queue itself is not used."""
    info = properties.get("delivery_info")
    exchange = info.get("exchange") if isinstance(info, dict) else None
    is_redelivered = isinstance(info, dict) and info.get("redelivered") is True
    return {
        "exchange": exchange if isinstance(exchange, str) else "",
        "routing_key": queue,
        "redelivered": is_redelivered,
    }
