"""Celery's own request, strategy and Flower's own state, under what antrean makes of them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tracemalloc
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app import trace
from celery.app.task import Context
from celery.events.state import State
from celery.exceptions import Ignore, InvalidTaskError, Reject, Retry
from celery.worker.request import Request
from celery.worker.strategy import default
from kombu.message import Message

from worker.attempt.execute import Report, Verdict
from worker.celery import build_conf
from worker.consume import strategy
from worker.consume.delivery import tell_retries
from worker.consume.request import BlankRequest, as_name
from worker.consume.tracebacks import BriefInfo, JobFailed, keep_words_only
from worker.logs.lines import read_record, render

SECRET = "A planted sentence. Nobody reads it."


class Eventer:
    """Keeps what Celery sends."""

    enabled = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, type: str, **fields: Any) -> None:
        self.sent.append((type, fields))


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("contract", broker="memory://", set_as_current=False)
    app.conf.task_acks_late = True

    @app.task(name="a.task", shared=False, throws=(JobFailed,))
    def run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("is not called")

    run.Request = BlankRequest
    yield app
    app.close()


def message(headers: dict[str, Any] | None = None, body: Any = None) -> Message:
    payload = [[SECRET], {"request": SECRET}, {"callbacks": None}] if body is None else body
    made = {
        "id": str(uuid.uuid4()),
        "task": "a.task",
        "argsrepr": SECRET,
        "kwargsrepr": SECRET,
        **(headers or {}),
    }
    return Message(
        body=json.dumps(payload),
        channel=SimpleNamespace(),
        headers=made,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_info={"exchange": SECRET, "routing_key": SECRET},
        properties={"priority": SECRET},
        accept={"application/json"},
    )


def request_of(app: Celery, eventer: Eventer | None = None, **headers: Any) -> BlankRequest:
    given = message(headers)
    return BlankRequest(given, app=app, task=app.tasks["a.task"], eventer=eventer, headers=given.headers)


def failure(exc: BaseException) -> Any:
    from billiard.einfo import ExceptionInfo  # local: only Celery's worker knows it

    try:
        raise exc
    except BaseException:
        return ExceptionInfo()


def test_nothing_that_a_request_tells_is_of_the_message(app: Celery) -> None:
    request = request_of(app, shadow=SECRET, root_id=SECRET, parent_id=SECRET, retries=SECRET)
    told = [
        request.info(),
        request.info(safe=True),
        str(request),
        repr(request),
        request.name,
        request.root_id,
    ]
    told += [request.parent_id, request.argsrepr, request.kwargsrepr, request.request_dict["retries"]]
    assert "planted" not in repr(told)
    assert request.info()["args"] == "()"
    assert request.info()["kwargs"] == "{}"


def test_the_task_itself_still_gets_what_was_sent(app: Celery) -> None:
    request = request_of(app)
    assert (request.args, request.kwargs) == ([SECRET], {"request": SECRET})
    assert request.delivery_info["routing_key"] == SECRET
    assert "planted" in request.body


def test_a_shadow_that_reads_as_a_name_stays(app: Celery) -> None:
    assert request_of(app, shadow="summarise.one").name == "summarise.one"
    assert request_of(app, shadow=None).name == "a.task"


def test_celerys_strategy_tells_events_and_logs_nothing_of_the_message(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    eventer = Eventer()
    taken: list[Any] = []
    consumer: Any = SimpleNamespace(
        hostname="w@h",
        connection_errors=(),
        event_dispatcher=eventer,
        timer=SimpleNamespace(call_at=None),
        apply_eta_task=None,
        disable_rate_limits=True,
        task_buckets={"a.task": None},
        on_task_request=taken.append,
        _limit_task=None,
        _limit_post_eta=None,
        pool=SimpleNamespace(apply_async=None),
        controller=SimpleNamespace(state=SimpleNamespace(revoked=set())),
    )
    with caplog.at_level(logging.DEBUG):
        default(app.tasks["a.task"], app, consumer)(message(), None, None, None, [])
    assert isinstance(taken[0], BlankRequest)
    assert eventer.sent[0][0] == "task-received"
    assert "planted" not in repr(eventer.sent)
    assert "planted" not in repr([(record.getMessage(), record.__dict__) for record in caplog.records])


@pytest.mark.parametrize(
    "body",
    [["a", {}, {}], [[], "k", {}], [[], {}, "embed"], [[], [], {}], [[], {}, [1]], [1, 2, 3]],
)
def test_a_body_that_would_hang_in_the_pool_is_refused_before(app: Celery, body: Any) -> None:
    given = message(body=body)
    with pytest.raises(InvalidTaskError):
        BlankRequest(given, app=app, task=app.tasks["a.task"], headers=given.headers)


def test_a_waiting_job_says_why_and_is_acknowledged_afterwards(app: Celery) -> None:
    eventer, acks = Eventer(), []
    request = request_of(app, eventer)
    request._on_ack = lambda *_: acks.append(len(eventer.sent))
    request.on_failure(failure(Retry("waits: rate_limited", when=3)), return_ok=True)
    assert eventer.sent == [("task-retried", {"uuid": request.id, "exception": "waits: rate_limited"})]
    assert acks == [1]


def test_the_end_of_a_try_counts_those_before_it_and_a_success_takes_back_why_one_waited(app: Celery) -> None:
    eventer = Eventer()

    def ended(retries: int | None) -> BlankRequest:
        request = request_of(app, eventer)
        request._on_ack = lambda *_: None
        # What the task itself sees is this very mapping: Celery's promise on threads, on which this stands.
        context = Context(request.request_dict)
        tell_retries(context, Report(Verdict.WAITING, "", retries=retries))
        assert "antrean" not in repr(request.info())
        return request

    ended(1).on_failure(failure(Retry("waits: timeout", when=3)), return_ok=True)
    ended(2).on_failure(failure(JobFailed("rejected")), return_ok=True)
    ended(2).on_success((False, "'7 tokens'", 0.1))
    ended(0).on_success((False, "'7 tokens'", 0.1))
    ended(None).on_success((False, "'7 tokens'", 0.1))
    assert [(kind, fields.get("retries")) for kind, fields in eventer.sent] == [
        ("task-retried", 1),
        ("task-failed", 2),
        ("task-succeeded", 2),
        ("task-succeeded", 0),
        ("task-succeeded", None),
    ]
    seen = State()
    for clock, (kind, fields) in enumerate(eventer.sent[:3], start=1):
        facts = {"type": kind, "hostname": "w", "timestamp": clock, "clock": clock, "local_received": clock}
        seen.event(facts | fields | {"uuid": "j"})
    task = seen.tasks["j"]
    assert (task.state, task.exception, task.retries) == ("SUCCESS", None, 2)


def test_a_failed_job_says_its_kind_and_a_defect_only_its_type(app: Celery) -> None:
    eventer = Eventer()
    for exc in (JobFailed("rejected"), ValueError(SECRET), KeyError(SECRET)):
        request = request_of(app, eventer)
        request._on_ack = lambda *_: None
        request.on_failure(failure(exc), return_ok=True)
    assert [fields["exception"] for _, fields in eventer.sent] == [
        "JobFailed('rejected')",
        "ValueError",
        "KeyError",
    ]
    assert "planted" not in repr(eventer.sent)


def trace_once(app: Celery, exc: Exception) -> tuple[str, Any, int]:
    """State and ExceptionInfo of a task that raises, from Celery's own tracer; and the most bytes that took."""

    @app.task(name=f"raises.{uuid.uuid4().hex}", shared=False, throws=(JobFailed,), ignore_result=True)
    def run() -> None:
        raise exc

    tracer = trace.build_tracer(run.name, run, app=app)

    def once() -> Any:
        return tracer(uuid.uuid4().hex, (), {}, {"id": "t", "is_eager": False, "delivery_info": {}})

    once()
    tracemalloc.start()
    try:
        _, info, _, _ = once()
        return info.state, info.retval, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "exc", [Retry("waits"), Ignore("nothing to do"), Reject("given back"), JobFailed("timeout")], ids=repr
)
def test_an_end_of_our_own_word_is_kept_as_a_word(
    app: Celery, monkeypatch: pytest.MonkeyPatch, exc: Exception
) -> None:
    monkeypatch.setattr(trace, "ExceptionInfo", trace.ExceptionInfo)  # put back afterwards
    state, _, heavy = trace_once(app, exc)
    keep_words_only()
    assert trace_once(app, exc)[0] == state
    light = trace_once(app, exc)[2]
    assert light < heavy / 4, f"{light} bytes instead of {heavy}"
    info = BriefInfo((type(exc), exc, None))
    assert (info.exception.exc, info.traceback, info.tb) == (exc, "", None)


def test_a_defect_keeps_its_traceback(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "ExceptionInfo", BriefInfo)
    try:
        raise ValueError(SECRET)
    except ValueError:
        info = BriefInfo()
    assert "test_celery_request.py" in info.traceback
    assert trace_once(app, ValueError(SECRET))[0] == "FAILURE"


def test_the_tracers_log_says_where_a_defect_is_and_not_its_words() -> None:
    info = failure(ValueError(SECRET))
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
        assert "test_celery_request.py" in line and "ValueError" in line


@pytest.mark.parametrize(
    "value", ["antrean.complete_chat", "0198-ab_c", "w0@host.example", "2026-01-02T03:04:05+00:00"]
)
def test_names_are_names(value: str) -> None:
    assert as_name(value) == value


@pytest.mark.parametrize("value", [None, 5, "", "Two words", "line\nbreak", "é", "a" * 161, ["x"]])
def test_prompts_are_not(value: object) -> None:
    assert as_name(value) is None


def test_a_blank_request_has_every_method_that_celerys_has() -> None:
    overridden = {
        name for name in vars(BlankRequest) if callable(getattr(BlankRequest, name)) and name != "__init__"
    }
    assert overridden <= set(dir(Request))


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


def test_invariant_8_no_eta_reaches_celerys_timers_it_is_put_aside_for_the_ledger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Message] = []
    monkeypatch.setattr(strategy, "celery_default", lambda *_, **__: lambda message, *_: seen.append(message))
    handle = strategy.default(None, None, None)
    for eta in ("2030-01-01T00:00:00", None):
        handle(message({"eta": eta}), None, None, None, None)
    assert [one.headers["eta"] for one in seen] == [None, None]
    assert [one.headers.get(strategy.NOT_BEFORE_HEADER) for one in seen] == ["2030-01-01T00:00:00", None]
    conf = build_conf()
    assert not any("eta" in name or "countdown" in name or "autoretry" in name for name in conf)
