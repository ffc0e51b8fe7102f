"""Our consumer beside Celery's: which errors are a message's, and which are the connection's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.worker.consumer import Consumer as CeleryConsumer

from worker.consume.connection import Transport
from worker.consume.consumer import Consumer


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Consumer:
    """One that runs nowhere."""
    monkeypatch.setattr(Consumer, "fetcher", SimpleNamespace(begin=lambda queues, on_message: None))
    made = Consumer.__new__(Consumer)
    made.connection_errors = Transport.connection_errors
    return made


def receive(consumer: Consumer, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What becomes of a message that Celery's handler breaks at."""

    def handle(_message: Any) -> None:
        raise error

    ended: list[str] = []
    monkeypatch.setattr(CeleryConsumer, "create_task_handler", lambda self: handle)
    message = SimpleNamespace(
        acknowledged=False,
        headers={},
        delivery_info={},
        reject_log_error=lambda *_args, requeue=False: ended.append("put back" if requeue else "dropped"),
    )
    consumer.create_task_handler()(message)
    return ended


@pytest.mark.parametrize("error", [KeyError("task"), ValueError("no"), RecursionError("deep")])
def test_a_message_that_breaks_celerys_handler_is_dropped(
    consumer: Consumer, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a KeyError, which kombu counts as a broken connection: the message would come again for ever."""
    assert receive(consumer, error, monkeypatch) == ["dropped"]


@pytest.mark.parametrize(
    "error", [redis.ConnectionError("gone"), redis.TimeoutError("late"), RuntimeError("shut")]
)
def test_what_is_not_the_messages_fault_is_passed_on(
    consumer: Consumer, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(type(error)):
        receive(consumer, error, monkeypatch)


def test_a_refusal_is_waited_for_and_another_answer_ends_the_worker(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are connection errors of our transport, so that both come here."""
    told: list[str] = []
    monkeypatch.setattr(
        CeleryConsumer, "on_connection_error_before_connected", lambda self, exc: told.append("told")
    )
    monkeypatch.setattr("worker.consume.consumer.time.sleep", lambda seconds: told.append(f"{seconds:g} s"))
    consumer.on_connection_error_before_connected(redis.ResponseError("MISCONF no disk"))
    consumer.on_connection_error_before_connected(redis.ConnectionError("gone"))
    assert told == ["told", "1 s", "told"]
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        consumer.on_connection_error_before_connected(redis.ResponseError("WRONGTYPE of a key"))
