"""Received messages: a hint is claimed at once, any other message becomes a row first. None is left without an end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.house import House
from tests.support.ledger import job_row, rows, state
from worker.attempt.report import Report, Verdict
from worker.consume import receiving
from worker.consume.receiving import Receiver
from worker.logs.sink import flush_logs
from worker.settings import load_settings
from worker.storage.errors import WriterStopped

SECRET = "A planted sentence."
REQUEST = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": SECRET}]}


class Message(SimpleNamespace):
    """What the strategy makes of a message, as far as it is read here."""

    def __init__(self, task_id: str, *, hinted_job: str | None = None, **kwargs: Any) -> None:
        self.end: Future[Report] = Future()
        super().__init__(
            id=task_id,
            hinted_job=hinted_job,
            hinted_model=None,
            is_bulk=False,
            request_dict={"id": task_id, "delivery_info": {"priority": 0}},
            args=[],
            kwargs=kwargs,
            embedded=None,
            finish=self.end.set_result,
            begin=lambda: None,
        )

    def report(self) -> Report:
        return self.end.result(20)


class Inbox:
    """A receiver in the house."""

    def __init__(self, house: House) -> None:
        self.house = house
        settings = load_settings(base_url=house.simulator.url, api_key="k", _env_file=None)
        self._receiver = Receiver(
            house.dispatcher, house.writer, settings, house.clock, spawn=house.pool.submit
        )

    def take(self, message: Message) -> Message:
        self._receiver.receive(message)  # type: ignore[arg-type]
        return message


@pytest.fixture
def inbox(build: Callable[..., House]) -> Inbox:
    return Inbox(build())


def test_a_hint_is_claimed_and_called(inbox: Inbox) -> None:
    id_ = inbox.house.put()
    assert inbox.take(Message(id_, hinted_job=id_)).report().verdict is Verdict.SUCCEEDED
    assert state(inbox.house.ledger, id_) == "succeeded"


def test_a_message_with_its_own_request_becomes_a_row_and_is_called(inbox: Inbox) -> None:
    assert inbox.take(Message("a-17", request=REQUEST)).report().verdict is Verdict.SUCCEEDED
    assert (state(inbox.house.ledger, "a-17"), inbox.house.simulator.calls()["a-17"]["paid"]) == (
        "succeeded",
        1,
    )


def test_a_message_that_comes_again_finds_nothing_to_do_and_is_logged(
    inbox: Inbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inbox.take(Message("a-18", request=REQUEST)).report().verdict is Verdict.SUCCEEDED
    flush_logs()
    assert inbox.take(Message("a-18", request=REQUEST)).report().verdict is Verdict.NO_CLAIM
    assert inbox.take(Message("other", job_id="a-18")).report().verdict is Verdict.NO_CLAIM
    flush_logs()
    said = capsys.readouterr()
    assert "message.no_claim" in said.out + said.err
    assert [row.id for row in rows(inbox.house.ledger, "jobs")] == ["a-18"]
    assert inbox.house.simulator.stats()["calls"] == 1


def test_a_message_that_cannot_become_a_call_ends_as_a_row_with_a_sentence(inbox: Inbox) -> None:
    assert inbox.take(Message("bad", request={"model": 5})).report().verdict is Verdict.FAILED
    row = job_row(inbox.house.ledger, "bad")
    assert (row.state, row.failure_kind) == ("failed", "invalid_request")


def test_a_message_waits_for_the_database_which_is_its_only_safety(inbox: Inbox) -> None:
    inbox.house.ledger.is_away = lambda: True
    message = inbox.take(Message("a-19", request=REQUEST))
    Event().wait(0.3)  # the outage's own length
    assert not message.end.done()
    inbox.house.ledger.is_away = lambda: False
    assert message.report().verdict is Verdict.SUCCEEDED


def test_a_message_is_given_back_where_the_writer_has_ended(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise WriterStopped

    monkeypatch.setattr(inbox.house.writer, "write_down", stopped)
    assert inbox.take(Message("a-20", request=REQUEST)).report().verdict is Verdict.GIVEN_BACK
    assert rows(inbox.house.ledger, "jobs") == []


def test_a_defect_of_ours_is_told_by_its_type_and_keeps_no_message(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr(receiving, "read_message", broken)
    report = inbox.take(Message("a-21", request=REQUEST)).report()
    assert (report.verdict, report.summary) == (Verdict.BROKE, "KeyError")
    flush_logs()
    said = capsys.readouterr()
    assert "message.broke" in said.out + said.err
    assert "planted" not in said.out + said.err
