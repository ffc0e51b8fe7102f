"""Flower's history is names and numbers: it comes back whole, and a file that holds anything else is none."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import orjson
import pytest
from flower.events import EventsState

from worker.flower.history import KeptEvents, decode_state, encode_state

LIMITS = {"max_tasks_in_memory": 100, "max_workers_in_memory": 10}


def played() -> EventsState:
    """A state after the events of a worker and of 3 tasks."""
    state = EventsState(**LIMITS)
    clock = iter(range(1, 1000))

    def tell(kind: str, **fields: Any) -> None:
        state.event(
            {
                "type": kind,
                "hostname": "w1@h",
                "timestamp": 100.5,
                "local_received": 100.6,
                "pid": 7,
                "utcoffset": 0,
            }
            | {"clock": next(clock)}
            | fields
        )

    tell("worker-heartbeat", freq=2.0, active=1, processed=3, loadavg=[0.1, 0.2, 0.3], sw_ident="py-celery")
    for uuid in ("one", "two", "three"):
        tell(
            "task-received",
            uuid=uuid,
            name="antrean.complete_chat",
            args="()",
            kwargs="{}",
            retries=0,
            root_id=uuid,
        )
        tell("task-started", uuid=uuid)
    tell("task-succeeded", uuid="one", result="'5 tokens'", runtime=1.5)
    tell("task-failed", uuid="two", exception="JobFailed('rejected')", traceback="")
    return state


def test_tasks_workers_and_counts_come_back_as_they_were() -> None:
    before = played()
    after = decode_state(encode_state(before), **LIMITS)
    assert list(after.tasks) == list(before.tasks) == ["three", "one", "two"]  # least recently used first
    for uuid, task in before.tasks.items():
        again = after.tasks[uuid]
        assert again.as_dict() | {"worker": None} == task.as_dict() | {"worker": None}
        assert again.worker.hostname == task.worker.hostname
    assert list(after.workers) == ["w1@h"]
    assert after.workers["w1@h"].heartbeats == before.workers["w1@h"].heartbeats != []
    assert after.workers["w1@h"].loadavg == [0.1, 0.2, 0.3]
    assert after.counter == before.counter
    assert [uuid for uuid, _ in after.tasks_by_time()] == [uuid for uuid, _ in before.tasks_by_time()]
    assert {task.uuid for task in after.tasks_by_type["antrean.complete_chat"]} == {"one", "two", "three"}
    assert {task.uuid for task in after.tasks_by_worker["w1@h"]} == {"one", "two", "three"}
    assert after.max_tasks_in_memory == 100


def test_events_go_on_where_they_stopped() -> None:
    after = decode_state(encode_state(played()), **LIMITS)
    event = {"type": "task-succeeded", "uuid": "three", "hostname": "w1@h", "timestamp": 101.0, "clock": 2000}
    after.event(
        event | {"local_received": 101.0, "pid": 7, "utcoffset": 0, "result": "'6 tokens'", "runtime": 2.0}
    )
    assert after.tasks["three"].state == "SUCCESS"


def kept(**changes: Any) -> bytes:
    return orjson.dumps(json.loads(encode_state(played())) | changes)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04K\x01.",
        b"[]",
        b"{}",
        kept(format="another"),
        kept(tasks=[[]]),
        kept(tasks=[{"uuid": "x", "cluster_state": "y"}]),
        kept(tasks=[{"uuid": {"a": 1}}]),
        kept(tasks=[{"uuid": "x", "clock": "late"}]),
        kept(tasks=[{"name": "x"}]),
        kept(tasks=5),
        kept(workers=[{"hostname": "x", "heartbeats": "now"}]),
        kept(workers=[{"hostname": "x", "alive": True}]),
        kept(counters={"w": {"task-sent": "many"}}),
        kept(counters=[]),
    ],
)
def test_anything_else_is_no_history(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_state(data, **LIMITS)


def test_the_file_is_private_and_replaced_whole_and_one_that_cannot_be_read_is_set_aside(
    tmp_path: Path,
) -> None:
    path = tmp_path / "flower.history.json"
    path.write_text("{ not json")
    given = {"db": str(path), "persistent": True, **LIMITS}
    events = KeptEvents(None, None, **given)
    assert len(events.state.tasks) == 0
    assert (tmp_path / "flower.history.json.unreadable").read_text() == "{ not json"
    events.state = played()
    events.save_state()
    assert [stat.S_IMODE(path.stat().st_mode), sorted(file.name for file in tmp_path.iterdir())] == [
        0o600,
        ["flower.history.json", "flower.history.json.unreadable"],
    ]
    assert list(KeptEvents(None, None, **given).state.tasks) == ["three", "one", "two"]


def test_a_history_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    events = KeptEvents(None, None, db=str(tmp_path / "missing" / "history"), persistent=True, **LIMITS)
    events.save_state()
    assert not (tmp_path / "missing").exists()
