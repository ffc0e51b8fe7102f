"""Celery's own request and strategy, under what antrean makes of them."""

from __future__ import annotations

import base64
import json
import logging
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.events.state import State
from celery.exceptions import InvalidTaskError, TaskRevokedError
from celery.worker import state
from celery.worker.request import Request
from celery.worker.strategy import default
from kombu.message import Message

from schemas.failure import FailureKind
from worker.attempt.report import GIVEN_BACK, Report, Verdict
from worker.broker.hints import TASK
from worker.celery import build_conf
from worker.consume import strategy
from worker.consume.fetching import Message as FetchedMessage
from worker.consume.foreign import NOT_BEFORE_HEADER, read_foreign
from worker.consume.request import BlankRequest

PROPERTIES = {"body_encoding": "base64", "content_type": "application/json"}
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

    @app.task(name="a.task", shared=False)
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


def message_for(ended: list[Any], headers: dict[str, Any] | None = None) -> Message:
    """A message that writes down how it is finished."""
    made = message(headers)
    made.channel = SimpleNamespace(
        no_ack_consumers=None,
        basic_ack=lambda _tag, multiple=False: ended.append("acknowledged"),
        basic_reject=lambda _tag, requeue=False: ended.append("put back" if requeue else "dropped"),
    )
    return made


def as_fetched(headers: dict[str, Any]) -> Message:
    """A foreign app's message as the Fetcher hands it to Celery."""
    body = base64.b64encode(json.dumps([[], {"request": {}}, {}]).encode()).decode()
    raw = json.dumps(
        {"body": body, "headers": {"id": "a", "task": TASK, **headers}, "properties": PROPERTIES}
    )
    payload = read_foreign(raw.encode(), queue="celery", tag="t")
    return FetchedMessage(payload, payload.decoded, SimpleNamespace(no_ack_consumers=None))  # type: ignore[arg-type]


def request_of(app: Celery, eventer: Eventer | None = None, **headers: Any) -> BlankRequest:
    given = message(headers)
    return BlankRequest(given, app=app, task=app.tasks["a.task"], eventer=eventer, headers=given.headers)


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
    assert (request.info()["args"], request.info()["kwargs"]) == ("()", "{}")


def test_the_task_itself_still_gets_what_was_sent(app: Celery) -> None:
    request = request_of(app)
    assert (request.args, request.kwargs) == ([SECRET], {"request": SECRET})
    assert request.delivery_info["routing_key"] == SECRET
    assert "planted" in request.body


def test_a_shadow_that_reads_as_a_name_stays(app: Celery) -> None:
    assert request_of(app, shadow="summarise.one").name == "summarise.one"
    assert request_of(app, shadow=None).name == "a.task"


def consumer_of(eventer: Eventer | None, taken: list[Any], **facts: Any) -> Any:
    """What a strategy asks of Celery's consumer."""
    return SimpleNamespace(
        hostname="w@h",
        connection_errors=(),
        event_dispatcher=eventer,
        disable_rate_limits=True,
        task_buckets={"a.task": None},
        on_task_request=taken.append,
        controller=SimpleNamespace(state=SimpleNamespace(revoked=set())),
        **facts,
    )


def test_our_strategy_tells_events_and_logs_nothing_of_the_message(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    eventer = Eventer()
    taken: list[Any] = []
    with caplog.at_level(logging.DEBUG):
        strategy.default(app.tasks["a.task"], app, consumer_of(eventer, taken))(
            message(), None, None, None, []
        )
    assert type(taken[0]) is BlankRequest, "Celery's own class of it would run through its tracer"
    assert eventer.sent[0][0] == "task-received"
    assert "retries" not in eventer.sent[0][1], "its message knows of no earlier try"
    assert "planted" not in repr(eventer.sent)
    assert "planted" not in repr([(record.getMessage(), record.__dict__) for record in caplog.records])
    assert taken[0] in state.reserved_requests
    state.task_ready(taken[0])


def test_our_strategy_tells_what_celerys_tells(app: Celery) -> None:
    """Fails where a newer Celery says more of a task that it received, or looks at more before it takes it on."""
    task, given = app.tasks["a.task"], {"id": "same", "root_id": "r", "expires": "2040-01-01T00:00:00+00:00"}
    ours, theirs = Eventer(), Eventer()
    made: list[Any] = []
    apart = {"timer": SimpleNamespace(call_at=None), "apply_eta_task": None, "_limit_task": None}
    apart |= {"_limit_post_eta": None, "pool": SimpleNamespace(apply_async=None)}
    strategy.default(task, app, consumer_of(ours, made))(message(given), None, None, None, [])
    default(task, app, consumer_of(theirs, made, **apart))(message(given), None, None, None, [])
    assert theirs.sent[0][1].pop("retries") == 0  # which ours leaves out: a try before it is told at its end
    assert ours.sent == theirs.sent
    assert made[0].info() == made[1].info()
    for one in made:
        state.task_ready(one)


def test_what_was_revoked_or_has_expired_is_not_taken_on(app: Celery) -> None:
    eventer, taken, acks = Eventer(), [], []  # type: ignore[var-annotated]
    consumer = consumer_of(eventer, taken)
    consumer.controller.state.revoked = state.revoked
    handle = strategy.default(app.tasks["a.task"], app, consumer)
    state.revoked.add("gone")
    try:
        for given in ({"id": "gone"}, {"id": "late", "expires": "2020-01-01T00:00:00+00:00"}):
            handle(message_for(acks, given), None, None, None, [])
    finally:
        state.revoked.discard("gone")
        state.revoked.discard("late")
    assert (taken, acks) == ([], ["acknowledged"] * 2)
    told = [(kind, fields["expired"]) for kind, fields in eventer.sent]
    assert told == [("task-revoked", False), ("task-revoked", True)]


def test_a_rate_limit_that_somebody_set_holds_a_request_back(app: Celery) -> None:
    held: list[Any] = []
    consumer = consumer_of(
        None, [], _limit_task=lambda request, bucket, tokens: held.append((bucket, tokens))
    )
    consumer.disable_rate_limits, consumer.task_buckets = False, {"a.task": "bucket"}
    strategy.default(app.tasks["a.task"], app, consumer)(message(), None, None, None, [])
    assert held == [("bucket", 1)]


def test_a_request_is_handed_to_its_task_and_not_to_celerys_tracer(app: Celery) -> None:
    handed: list[Any] = []
    app.tasks["a.task"].receive = lambda request, pool: handed.append((request, pool))
    request = request_of(app)
    request.execute_using_pool("the pool")
    assert handed == [(request, "the pool")]
    state.revoked.add(request.id)
    request._on_ack = lambda *_: None
    try:
        with pytest.raises(TaskRevokedError):
            request.execute_using_pool("the pool")
    finally:
        state.revoked.discard(request.id)
    assert len(handed) == 1


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
    request.finish(Report(Verdict.WAITING, "waits: rate_limited", 3.0))
    assert eventer.sent == [("task-retried", {"uuid": request.id, "exception": "waits: rate_limited"})]
    assert acks == [1]


def test_the_end_of_a_try_counts_those_before_it_and_a_success_takes_back_why_one_waited(app: Celery) -> None:
    eventer = Eventer()

    def end(report: Report) -> None:
        request = request_of(app, eventer)
        request._on_ack = lambda *_: None
        request.finish(report)
        assert "antrean" not in repr(request.info())

    end(Report(Verdict.WAITING, "waits: timeout", 3.0, retries=1))
    end(Report(Verdict.FAILED, "failed", failure=FailureKind.REJECTED, retries=2))
    for retries in (2, 0, None):
        end(Report(Verdict.SUCCEEDED, "7 tokens", retries=retries))
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
    assert task.result == "'7 tokens'", "as Celery's tracer would say it"


def test_a_failed_job_says_its_kind_and_a_defect_only_its_type(app: Celery) -> None:
    eventer = Eventer()
    for report in (
        Report(Verdict.FAILED, "failed: rejected", failure=FailureKind.REJECTED),
        Report(Verdict.BROKE, "KeyError"),
    ):
        request = request_of(app, eventer)
        request._on_ack = lambda *_: None
        request.finish(report)
    assert [(kind, fields["exception"]) for kind, fields in eventer.sent] == [
        ("task-failed", "JobFailed('rejected')"),
        ("task-failed", "KeyError"),
    ]


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_end_leaves_celerys_books_and_is_acknowledged_or_given_back_once(
    app: Celery, verdict: Verdict
) -> None:
    eventer, acks, rejects = Eventer(), [], []  # type: ignore[var-annotated]
    request = request_of(app, eventer)
    request._on_ack = lambda *_: acks.append(1)
    request.on_reject = lambda _log, _errors, requeue: rejects.append(requeue)
    state.task_reserved(request)
    request.begin()
    assert request in state.active_requests
    request.finish(Report(verdict, "a word"))
    assert request not in state.active_requests
    assert request not in state.reserved_requests
    assert (len(acks), rejects) == ((0, [True]) if verdict is Verdict.GIVEN_BACK else (1, []))
    request.acknowledge()
    assert len(acks) + len(rejects) == 1
    assert [kind for kind, _ in eventer.sent] == [
        "task-started",
        *{
            Verdict.SUCCEEDED: ["task-succeeded"],
            Verdict.WAITING: ["task-retried"],
            Verdict.FAILED: ["task-failed"],
            Verdict.BROKE: ["task-failed"],
            Verdict.GIVEN_BACK: ["task-rejected"],
        }.get(verdict, []),
    ]


def test_a_blank_request_has_every_method_that_celerys_has() -> None:
    overridden = {
        name for name in vars(BlankRequest) if callable(getattr(BlankRequest, name)) and name != "__init__"
    } - {"begin", "finish", "_runtime_s"}
    assert overridden <= set(dir(Request))


def test_invariant_8_no_eta_reaches_celerys_timers_it_is_put_aside_for_the_ledger(
    app: Celery,
) -> None:
    taken: list[Any] = []
    handle = strategy.default(app.tasks["a.task"], app, consumer_of(None, taken))
    given = [as_fetched({"eta": eta}) for eta in ("2030-01-01T00:00:00", None)]
    for one in given:
        handle(one, None, None, None, [])
    assert [one.eta for one in taken] == [None, None]
    assert [one.headers.get("eta") for one in given] == [None, None]
    assert [one.request_dict.get(NOT_BEFORE_HEADER) for one in taken] == [
        "2030-01-01T00:00:00",
        None,
    ]
    for one in taken:
        state.task_ready(one)
    conf = build_conf()
    assert not any("eta" in name or "countdown" in name or "autoretry" in name for name in conf)


def test_a_message_is_finished_by_itself_and_not_by_a_turn_of_celerys_loop(app: Celery) -> None:
    """Where something else of that turn raises, Celery's promise is dropped, and the message is reserved for ever."""
    ended, made = list[Any](), list[Any]()
    handle = strategy.default(app.tasks["a.task"], app, consumer_of(None, made))
    for report in (Report(Verdict.SUCCEEDED, "5 tokens"), GIVEN_BACK):
        handle(message_for(ended), None, pytest.fail, pytest.fail, [])
        made.pop().finish(report)
    assert ended == ["acknowledged", "put back"]
