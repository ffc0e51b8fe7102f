"""A live worker and messages of all kinds: it lives, what has an id is a row, and the next one is served at once."""

from __future__ import annotations

import base64
import json
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from tests.support.audit import states
from tests.support.mutants import REQUEST, encode, first_protocol, message, mutants, nested
from tests.support.processes import Shop, SimulatorProcess, end, wait_until
from worker.broker.hints import ASIDE_PREFIX, LONE_QUEUE, TASK, UNACKED_KEY, write_hint
from worker.clock import SystemClock
from worker.consume.foreign import Unusable, read_foreign, read_hint
from worker.ids import new_id
from worker.intake.messages import make_row_id
from worker.storage.batches import make_batch
from worker.storage.engine import Ledger
from worker.storage.intake import NewJob, insert_jobs
from worker.storage.tables import jobs, requests

pytestmark = pytest.mark.parametrize(
    "plant",
    ["sqlite", pytest.param("postgresql", marks=[pytest.mark.postgresql, pytest.mark.full])],
    indirect=True,
)
_SECRET = "Zanzibar"  # in every prompt
_EVENT = re.compile(r'"event": "message\.(\w+)"')
REQUEST_HERE = {**REQUEST, "messages": [{"role": "user", "content": f"{_SECRET}: say one."}]}


def odd_messages() -> dict[str, bytes]:
    """Messages that a worker cannot use, each with the id that its row has."""
    made: dict[str, Any] = {}

    def odd(name: str, **changes: Any) -> None:
        one = message(name, messages=REQUEST_HERE["messages"])
        for where in ("headers", "properties"):
            one[where] |= changes.pop(where, {})
        made[name] = json.dumps(one | changes).encode()

    ask = {"request": REQUEST_HERE}
    odd("type", body=encode([[], {**ask, "metadata": {"__type__": "x", "__value__": 1}}, {}]))
    odd(
        "type-in-header",
        headers={"origin": {"__type__": "of-nobody", "__value__": 1}},
        **{"content-type": "x"},
    )
    odd("date-in-header", headers={"x": {"__type__": "datetime", "__value__": "never"}, "expires": "never"})
    odd("pickle", **{"content-type": "application/x-python-serialize"})
    odd("no-type", **{"content-type": None})
    odd("bytes", body=base64.b64encode(b"\xff\xfe").decode())
    odd("no-body", body=None)
    odd("list-body", body=[1])
    odd("empty-body", body="")
    odd("encoding", properties={"body_encoding": "rot13"})
    odd("zlib", headers={"compression": "zlib"}, body=base64.b64encode(zlib.compress(b"[" * 10**8)).decode())
    odd("null-tag", properties={"delivery_tag": None, "priority": "high"})
    odd("true-tag", properties={"delivery_tag": True, "priority": 2.5})
    odd("list-tag", properties={"delivery_tag": ["x"], "priority": float("nan")})
    odd("no-info", properties={"delivery_info": None, "delivery_tag": 7, "priority": []})
    odd(
        "odd-info",
        properties={"delivery_info": {"exchange": float("nan"), "routing_key": [1]}, "priority": "x"},
    )
    odd("deep-body", body=base64.b64encode(b'[[], {"request": ' + nested(100_000) + b"}, {}]").decode())
    odd("less-deep-body", body=base64.b64encode(b'[[], {"request": ' + nested(900) + b"}, {}]").decode())
    odd("callbacks", body=encode([[], ask, {"callbacks": [float("nan")], "errbacks": 5}]))
    odd("attempts", body=encode([[], {**ask, "max_attempts": 2**31}, {}]))
    odd("not-a-number", body=encode([[], {**ask, "metadata": {"x": float("nan")}}, {}]))
    odd("surrogate", body=encode([[], {"request": {**REQUEST_HERE, "model": "a\ud800"}}, {}]))
    odd("seed", body=encode([[], {"request": {**REQUEST_HERE, "seed": 2**70}}, {}]))
    odd("self", body=encode([[], {**ask, "self": 1}, {}]))
    odd("job-id", body=encode([[], {"job_id": "a\ud800"}, {}]))
    odd("far", headers={"eta": "9" * 30})
    odd("eta", headers={"eta": ""})
    odd("expires", headers={"expires": [1]})
    odd("large", body=encode([[], {"request": {**REQUEST_HERE, "x": "y" * 40_000}, "colour": 1}, {}]))
    raw = json.dumps(message("deep", messages=REQUEST_HERE["messages"])).encode()
    made["deep"] = raw.replace(b'"gen1@host"', nested(1500))
    made["deeper"] = raw.replace(b'"deep"', b'"deeper"').replace(b'"gen1@host"', nested(100_000))
    made["half"] = (
        raw.replace(b'"deep"', b'"half"').replace(b'"gen1@host"', b'"\\ud800"').replace(b'"utf-8"', b"NaN, 5")
    )
    for odd_id in ("a\nb", "x" * 9000):
        made[make_row_id(odd_id)] = json.dumps(message(odd_id)).encode()
    old = first_protocol("old")
    old["body"] = encode({"task": TASK, "id": "old", "args": 5, "kwargs": None})
    made["old"] = json.dumps(old).encode()
    return made


NO_MESSAGES = (b"", b"not json", b"\xff", b"5", b"[]", b"null", b"{}", nested(100_000), b'{"headers": null}')
OF_OTHERS = (
    json.dumps(
        {**message("u-1"), "headers": {"task": "their.task", "id": "u-1", "compression": "zlib"}}
    ).encode(),
    json.dumps({**message("u-2"), "headers": {"task": {"a": _SECRET}, "id": {"b": 1}}}).encode(),
    json.dumps({**message("u-3"), "headers": {"task": None}, "body": 5}).encode(),
)


def read_rows(ledger: Ledger) -> dict[str, Any]:
    with ledger.read() as connection:
        return {row.id: row for row in connection.execute(select(jobs))}


def serve_a_good_one(
    plant: Shop, ledger: Ledger, valkey: Any, task_id: str, *, within_s: float = 20.0
) -> float:
    """Seconds until a message that is sound has its answer."""
    began_s = time.monotonic()
    valkey.lpush(LONE_QUEUE, json.dumps(message(task_id)))
    wait_until(
        lambda: (row := read_rows(ledger).get(task_id)) and row.state == "succeeded",
        within_s=within_s,
        what="the good one is served",
    )
    return time.monotonic() - began_s


def assert_all_are_refused(ledger: Ledger, wanted: Iterable[str]) -> None:
    wanted = set(wanted)
    wait_until(lambda: wanted <= read_rows(ledger).keys(), within_s=30, what="all are rows")
    found = read_rows(ledger)
    for id_ in wanted:
        row = found[id_]
        assert (row.state, row.failure_kind, bool(row.failure_message)) == (
            "failed",
            "invalid_request",
            True,
        ), id_
    with ledger.read() as connection:
        bodies = connection.execute(select(requests.c.job_id, requests.c.body)).all()
    assert max(len(one.body) for one in bodies if one.job_id in wanted) <= 16 * 1024


def assert_nothing_is_left(valkey: Any) -> None:
    wait_until(lambda: valkey.hlen(UNACKED_KEY) == 0, within_s=15, what="nothing is left unacknowledged")
    assert valkey.zcard(f"{UNACKED_KEY}_index") == valkey.llen(LONE_QUEUE) == 0


def test_odd_messages_end_as_rows_and_end_no_worker(plant: Shop, plant_ledger: Ledger, valkey: Any) -> None:
    odd = odd_messages()
    worker = plant.worker(concurrency=4, log_level="debug")  # where each line counts
    for raw in (*NO_MESSAGES, *OF_OTHERS, *odd.values()):
        valkey.lpush(LONE_QUEUE, raw)
        valkey.publish("/0.celery.pidbox", raw)  # what is said to all workers
    assert_all_are_refused(plant_ledger, odd)
    serve_a_good_one(plant, plant_ledger, valkey, "good")
    assert worker.poll() is None
    assert states(plant_ledger) == {"failed": len(odd), "succeeded": 1}
    assert_nothing_is_left(valkey)
    log = (plant.folder / "worker.log").read_text()
    assert _SECRET not in log
    assert count_lines(log)["unreadable"] >= len(NO_MESSAGES)
    assert set(OF_OTHERS) <= set(valkey.lrange(ASIDE_PREFIX + LONE_QUEUE, 0, -1))


def test_odd_messages_that_a_killed_worker_left_end_as_rows_and_end_no_worker(
    plant: Shop, plant_ledger: Ledger, valkey: Any
) -> None:
    """Restored from the broker's notes, where kombu reads them once more."""
    odd = odd_messages()
    notes: dict[str, bytes] = {id_: b"[" + raw + b',"celery","celery"]' for id_, raw in odd.items()}
    notes |= {
        f"trash-{n}": trash for n, trash in enumerate((*NO_MESSAGES, b"[1, 2]", b'[5, null, "celery"]'))
    }
    notes["elsewhere"] = b"[" + json.dumps(message("elsewhere")).encode() + b',"nowhere","of-nobody"]'
    for tag, note in notes.items():
        valkey.hset(UNACKED_KEY, tag, note)
        valkey.zadd(f"{UNACKED_KEY}_index", {tag: 1.0})
    valkey.zadd(f"{UNACKED_KEY}_index", {"without-a-note": 1.0})
    worker = plant.worker(concurrency=4)
    assert_all_are_refused(plant_ledger, odd)
    wait_until(
        lambda: (row := read_rows(plant_ledger).get("elsewhere")) and row.state == "succeeded",
        within_s=20,
        what="one that names a queue of nobody's is served",
    )
    serve_a_good_one(plant, plant_ledger, valkey, "good")
    assert worker.poll() is None
    assert_nothing_is_left(valkey)


def test_a_message_beyond_the_limit_is_refused_unread(plant: Shop, plant_ledger: Ledger, valkey: Any) -> None:
    large = message("large", metadata={"x": "y" * 200_000})
    valkey.lpush(LONE_QUEUE, json.dumps(large), b"z" * 300_000)
    plant.worker(concurrency=4, max_message_bytes=100_000)
    assert_all_are_refused(plant_ledger, ["large"])
    assert "ANTREAN_MAX_MESSAGE_BYTES" in read_rows(plant_ledger)["large"].failure_message
    serve_a_good_one(plant, plant_ledger, valkey, "good")
    assert_nothing_is_left(valkey)


@pytest.mark.simulator("--latency", "0.3")
def test_a_message_with_the_id_of_a_job_or_the_name_of_a_batch_changes_neither(
    plant: Shop, plant_ledger: Ledger, valkey: Any, simulator: SimulatorProcess
) -> None:
    """One whose time was over ended the job of that id; one that named a batch wrote into its results."""
    endpoint = str(plant.settings["endpoint_name"])
    now_ms = SystemClock().now_ms()
    ours = NewJob(id=new_id(), body=json.dumps(REQUEST), model="m", request_hash="h", endpoint=endpoint,
                  batch_id="batch_of_a_file", is_bulk=True, not_before_ms=now_ms + 3_600_000)  # fmt: skip

    def prepare(connection: Any) -> None:
        make_batch(connection, "batch_of_a_file", kind="submit", label="x", endpoint=endpoint,
                   idempotency_key=None, now_ms=now_ms)  # fmt: skip
        insert_jobs(connection, [ours], now_ms=now_ms)

    plant_ledger.run(prepare)
    late = message(ours.id)
    late["headers"]["expires"] = "2020-01-01T00:00:00+00:00"
    late["properties"]["delivery_tag"] = "late"
    again = message(ours.id)
    names_it = message(ours.id)
    names_it["headers"] |= {"id": "names-it", "expires": "2020-01-01T00:00:00"}
    names_it["body"] = encode([[], {"job_id": ours.id}, {}])
    joins = message("joins")
    joins["body"] = encode([[], {"request": REQUEST, "batch": "batch_of_a_file"}, {}])
    own = message("own")
    own["body"] = encode([[], {"request": REQUEST, "batch": "batch_of_messages"}, {}])
    plant.worker(concurrency=2)
    for one in (late, again, names_it, joins, own):
        valkey.lpush(LONE_QUEUE, json.dumps(one))
    serve_a_good_one(plant, plant_ledger, valkey, "good")
    wait_until(lambda: (row := read_rows(plant_ledger).get("own")) and row.state == "succeeded",
               within_s=20, what="one that joins a batch of messages is served")  # fmt: skip
    found = read_rows(plant_ledger)
    assert (found[ours.id].state, found[ours.id].batch_id) == ("waiting", "batch_of_a_file")
    assert (found["joins"].state, found["joins"].batch_id) == ("failed", "")
    assert "batch" in found["joins"].failure_message
    assert found["own"].batch_id == "batch_of_messages"
    assert "names-it" not in found
    assert simulator.stats()["calls"] == 2
    assert_nothing_is_left(valkey)


def has_to_be_a_row(raw: bytes) -> str | None:
    """The id of the row that this message has to become, as far as that is plain; None: a line in the log will do."""
    if read_hint(raw) is not None:
        return None
    try:
        made = json.loads(raw)
        headers, task_id = made["headers"], made["headers"]["id"]
        is_ours = headers["task"] == TASK and isinstance(made["properties"], dict)
        names_a_job = b"job_id" in base64.b64decode(str(made["body"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (
        make_row_id(task_id) if is_ours and not names_a_job and isinstance(task_id, str) and task_id else None
    )


def count_lines(log: str) -> Counter[str]:
    """How often each event of a message was told of, or counted, by its name."""
    said: Counter[str] = Counter()
    for line in log.splitlines():
        found = _EVENT.search(line)
        if found is not None:
            said[found[1]] += json.loads(line).get("not_shown", 1)
    return said


def told_apart(sent: Iterable[bytes]) -> tuple[set[str], int]:
    """Of all that are no hints: the ids of those that are jobs by our own reading, and how many only a line can tell of."""
    named: set[str] = set()
    nameless = 0
    for raw in sent:
        if read_hint(raw) is not None:
            continue
        try:
            read = read_foreign(raw, queue=LONE_QUEUE, tag="t")
        except Unusable:
            nameless += 1
            continue
        if read["headers"].get("task") != TASK:
            nameless += 1
        elif not (read.decoded and read.decoded[1].get("job_id") is not None):
            named.add(read["headers"]["id"])
    return named, nameless


def storm(plant: Shop, ledger: Ledger, valkey: Any, *, seed: int, count: int) -> None:
    worker = plant.worker(concurrency=8, log_level="debug")
    serve_a_good_one(plant, ledger, valkey, "first")
    process = psutil.Process(worker.pid)
    memory: list[int] = []
    sent = list(mutants(seed, count, prefix=f"s{seed}"))
    for start in range(0, count, 200):
        for raw in sent[start : start + 200]:
            valkey.lpush(LONE_QUEUE, raw)
        wait_until(lambda: valkey.llen(LONE_QUEUE) == 0, within_s=120, what="all of it is taken")
        assert worker.poll() is None, (plant.folder / "worker.log").read_text()[-3000:]
        memory.append(process.memory_info().rss)
    took_s = serve_a_good_one(plant, ledger, valkey, "last")
    wait_until(
        lambda: not states(ledger)["running"] and not states(ledger)["queued"], within_s=60, what="all end"
    )
    assert_nothing_is_left(valkey)
    assert worker.poll() is None
    found = read_rows(ledger)
    wanted = {id_ for raw in sent if (id_ := has_to_be_a_row(raw))}
    end(worker)  # then it says how many lines it has counted instead of told
    said = count_lines((plant.folder / "worker.log").read_text())
    said["set_aside"] = valkey.llen(ASIDE_PREFIX + LONE_QUEUE)  # the log has a line for the 1st, the 10th, …
    print(f"{count} messages: {len(found)} rows, lines {dict(said)}; a good one after {took_s:.2f} s; RSS"
          f" {memory[0] >> 20} MB after 200, {memory[len(memory) // 2] >> 20} MB, {memory[-1] >> 20} MB")  # fmt: skip
    assert len(wanted) > count * 0.3
    assert wanted <= found.keys()
    named, nameless = told_apart(sent)
    assert named <= found.keys()
    assert said.total() - said["no_claim"] >= nameless
    assert memory[-1] - memory[len(memory) // 2] < 24 << 20


@pytest.mark.timeout(180)
def test_a_worker_outlives_hundreds_of_mutated_messages(
    plant: Shop, plant_ledger: Ledger, valkey: Any
) -> None:
    storm(plant, plant_ledger, valkey, seed=1, count=600)


@pytest.mark.storm
@pytest.mark.timeout(900)
def test_a_worker_outlives_ten_thousand_mutated_messages_in_the_same_memory(
    plant: Shop, plant_ledger: Ledger, valkey: Any
) -> None:
    storm(plant, plant_ledger, valkey, seed=2, count=10_000)


def test_a_hint_that_asks_for_something_is_a_row(plant: Shop, plant_ledger: Ledger, valkey: Any) -> None:
    """A message of somebody's that carries our mark as well as its own request."""
    hint = json.loads(write_hint("marked", queue=LONE_QUEUE, priority=0))
    hint["body"] = encode([[], {"request": REQUEST}, {}])
    plant.worker(concurrency=2)
    valkey.lpush(LONE_QUEUE, json.dumps(hint, separators=(",", ":")))
    wait_until(lambda: (row := read_rows(plant_ledger).get("marked")) and row.state == "succeeded",
               within_s=20, what="it is served")  # fmt: skip
