"""What the log of Celery's tracer, names in messages and Flower's state tell of a message: nothing of its prompt."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from celery.app import trace

from worker.logs.lines import read_record, render
from worker.text.names import as_name

SECRET = "A planted sentence. Nobody reads it."


def test_the_tracers_log_says_where_a_defect_is_and_not_its_words() -> None:
    from billiard.einfo import ExceptionInfo  # local: only Celery's worker knows it

    try:
        raise ValueError(SECRET)
    except ValueError:
        info = ExceptionInfo()
    facts = {
        "name": "a.task",
        "id": "1-2",
        "description": "raised unexpected",
        "exc": repr(info.exception),
        "traceback": info.traceback,
    }
    record = logging.LogRecord(
        "celery.app.trace", logging.ERROR, "", 1, trace.LOG_FAILURE, (facts,), info.exc_info
    )
    for as_json in (False, True):
        line = render(read_record(record), as_json=as_json)
        assert "planted" not in line
        assert "Task a.task[1-2] raised unexpected: " in line
        assert "test_celery_words.py" in line and "ValueError" in line


@pytest.mark.parametrize(
    "value", ["antrean.complete_chat", "0198-ab_c", "w0@host.example", "2026-01-02T03:04:05+00:00"]
)
def test_names_are_names(value: str) -> None:
    assert as_name(value) == value


@pytest.mark.parametrize("value", [None, 5, "", "Two words", "line\nbreak", "é", "a" * 161, ["x"]])
def test_prompts_are_not(value: object) -> None:
    assert as_name(value) is None


def test_flowers_state_stays_within_its_bound_and_tells_nothing_of_foreign_events() -> None:
    # In a process of its own: Flower's options and metrics are one per process.
    script = """
import time
from flower.events import EventsState
from worker.flower.setup import BlankReceiver, MAX_WORKERS
state = EventsState(max_tasks_in_memory=100, max_workers_in_memory=MAX_WORKERS)
receiver = BlankReceiver.__new__(BlankReceiver)
receiver.handlers = {"*": state.event}
for i in range(1000):
    event = {"uuid": f"id-{i}", "hostname": "w@h", "clock": i, "timestamp": time.time(), "local_received": 1.0,
             "name": "A planted sentence.", "args": "planted", "kwargs": "planted", "root_id": "It is planted.",
             "queue": "celery", "expires": None, "retries": {"planted": 1}}
    receiver.process("task-sent", {**event, "type": "task-sent"})
assert len(state.tasks) == len(state.search_engine.documents) == 100
task = state.tasks["id-999"]
assert "planted" not in repr(task.as_dict()) and task.args == "()" and task.routing_key is None
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
