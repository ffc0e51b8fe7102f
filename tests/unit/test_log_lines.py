"""A line of a log quotes nothing that it was handed: in both forms, whoever wrote the record, whatever failed."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from worker.errors import InputError, Unreachable
from worker.logs import sink as log_sink
from worker.logs.counts import MOST, SPAN_S, Counted
from worker.logs.crashes import tell_error, tell_traceback
from worker.logs.lines import read_record, render, tell_message
from worker.logs.setup import configure_logs

MARK = "pl4nted"
SECRET = f"The {MARK} sentence nobody may read."
LEVELS = ("debug", "info", "warning", "error")


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The logs of this process are pytest's again afterwards."""
    root = logging.getLogger()
    handlers, level, config = list(root.handlers), root.level, structlog.get_config()
    for owner, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    yield
    log_sink.flush_logs()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)


def fail(prompt: str) -> None:
    """Fails as a defect would: with a prompt in its frames, in its text, and in what it came from."""
    try:
        {}[prompt]
    except KeyError as exc:
        raise ValueError(f"cannot use {prompt!r}") from exc


def caught(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as exc:
        return exc
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("as_json", [False, True], ids=["terminal", "json"])
@pytest.mark.parametrize("level", LEVELS)
def test_no_level_and_no_form_quotes_what_failed(
    level: str, as_json: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logs(level, json=as_json)
    exc = caught(lambda: fail(SECRET))
    log = structlog.get_logger("worker.test")
    log.error("job.defect", job_id="1", exc_info=exc)
    try:
        fail(SECRET)
    except ValueError:
        log.exception("job.defect_again", job_id="2")
        for name in ("celery.pool", "celery.concurrency.base", "worker.test", "antrean.keeper", "asyncio"):
            logging.getLogger(name).exception("it failed")
    for name in (
        "celery.pool",
        "kombu.transport.redis",
        "celery.worker.consumer.consumer",
        "tornado.application",
    ):
        library = logging.getLogger(name)
        for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            library.log(number, "apply: %r %s", [SECRET], SECRET)
            library.log(number, "apply: %(body)s", {"body": SECRET})
            library.log(number, f"it failed\n{SECRET}")
            library.log(number, "%r", exc)
            library.log(number, exc)  # type: ignore[arg-type]  # as Celery's gossip does
    error = capfd.readouterr().err
    assert MARK not in error
    for event in ("job.defect", "job.defect_again", "apply: <list> ", "ValueError"):
        assert event in error
    assert "in fail" in error, "a traceback says where"
    if as_json:
        lines = [json.loads(line) for line in error.splitlines()]
        assert all(line.keys() >= {"event", "level", "timestamp"} for line in lines)
        [told] = [line["exception"] for line in lines if line["event"] == "job.defect"]
        assert told.count("in fail") == 2 and "KeyError" in told, "also what it came from"


def test_a_librarys_debug_lines_are_not_told_at_any_level(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs("debug", json=True)
    logging.getLogger("celery.pool").debug("TaskPool: Apply %s (args:%r kwargs:%r)", "x", (SECRET,), {})
    loud = logging.getLogger("some.library")
    loud.setLevel(logging.DEBUG)  # whoever set it
    loud.debug("sent %s", "a-name")
    logging.getLogger("antrean.keeper").setLevel(logging.DEBUG)
    logging.getLogger("antrean.keeper").debug("ours")
    assert [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()] == ["ours"]


@pytest.mark.parametrize("as_json", [False, True], ids=["terminal", "json"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_crashes_are_told_by_type_and_place(as_json: bool, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs(json=as_json)
    exc = caught(lambda: fail(SECRET))
    sys.excepthook(type(exc), exc, exc.__traceback__)
    thread = threading.Thread(target=fail, args=(SECRET,), name="heartbeat")
    thread.start()
    thread.join()
    error = capfd.readouterr().err
    assert MARK not in error
    assert error.count("in fail") == 4
    assert "process.crashed" in error and "thread.crashed thread=heartbeat" in error
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(SECRET), None)
    assert capfd.readouterr().err == ""


def test_words_are_told_only_where_it_is_known_whose_they_are() -> None:
    assert tell_error(KeyError(SECRET)) == "KeyError"
    assert tell_error(InputError(SECRET)) == "worker.errors.InputError"
    assert tell_error(Unreachable("the broker is away")) == "worker.errors.Unreachable: the broker is away"
    missing = caught(lambda: Path("/nowhere/at/all").read_text())
    assert tell_error(missing) == "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'"
    assert tell_error(OSError(SECRET)) == "OSError"


def test_a_group_and_a_circle_of_exceptions_are_told_whole_and_once() -> None:
    first, second = ValueError(SECRET), TypeError(SECRET)
    first.__context__, second.__context__ = second, first
    told = tell_traceback(ExceptionGroup(SECRET, [first, second]))
    assert MARK not in told
    assert told.count("ValueError") == told.count("TypeError") == 1


@pytest.mark.parametrize(
    ("words", "args", "told"),
    [
        ("Connected to %s", ("redis://:**@h:6379/0",), "Connected to redis://:**@h:6379/0"),
        ("%d of %s in %.2f s", (3, "a@b", 1.5), "3 of a@b in 1.50 s"),
        ("took %r", ("two words",), "took …"),
        ("took %r", (b"bytes",), "took <bytes>"),
        ("Couldn't ack %r, reason:%r", (7, ValueError(SECRET)), "Couldn't ack 7, reason:ValueError"),
        ("%(name)s: %(exc)s", ({"name": "a.task", "exc": SECRET},), "a.task: …"),
        ("wrong %d", ("x",), "wrong %d"),
        ("first\nsecond", (), "first"),
        (ValueError(SECRET), (), "ValueError"),
    ],
)
def test_a_library_is_told_by_its_own_words(words: object, args: Any, told: str) -> None:
    record = logging.LogRecord("celery.x", logging.ERROR, "", 1, words, args, None)
    assert tell_message(record.msg, record.args) == told


@pytest.mark.parametrize(
    "address",
    ["redis://:s3cret@h:6379/0", "postgresql://u:s3cret@h/d", "redis://u:s3c/ret@x@h", "http://u:s3cret@h"],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_password_in_an_address_is_not_told(address: str, as_json: bool) -> None:
    line = render({"event": "broker.away", "error": f"cannot reach {address}: refused"}, as_json=as_json)
    assert "s3c" not in line and "***@h" in line and "refused" in line


@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_log_quotes_steers_no_terminal_and_makes_no_second_line(as_json: bool) -> None:
    line = render(
        {"level": "info", "event": "x\x1b[2J", "file": "a\nfake: [error] \x9b\u202e"}, as_json=as_json
    )
    assert line.isascii() and line.isprintable()


def test_fields_read_alike_in_both_forms() -> None:
    facts = {
        "timestamp": "t",
        "level": "warning",
        "event": "gate.shut",
        "kind": "quota",
        "why": "two words",
        "n": 3,
    }
    assert render(facts, as_json=False) == 't [warning ] gate.shut kind=quota why="two words" n=3'
    assert json.loads(render(facts, as_json=True)) == facts
    assert "0x" not in render({"event": "x", "odd": object()}, as_json=True), "no repr of anybody's object"


class Timer:
    """Holds what was to be called later."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def __call__(self, _delay_s: float, call: Callable[[], None]) -> None:
        self.calls.append(call)


def test_many_of_a_kind_are_counted_and_none_is_lost() -> None:
    now_s, timer, told = [0.0], Timer(), list[Mapping[str, Any]]()
    counted = Counted(told.append, monotonic_s=lambda: now_s[0], start_timer=timer)
    wait = {"event": "job.waiting", "level": "info", "kind": "timeout"}
    shown = sum(counted.admits({**wait, "job_id": str(i)}) for i in range(1500))
    assert (shown, told, len(timer.calls)) == (MOST, [], 1)
    assert counted.admits({**wait, "kind": "rate_limited"}), "another kind is told"
    now_s[0] = SPAN_S
    assert counted.admits(wait), "a new span begins anew"
    assert told == [{**wait, "not_shown": 1500 - MOST}]
    for _ in range(MOST):
        counted.admits(wait)
    timer.calls[0]()
    assert told[1:] == [{**wait, "not_shown": 1}], "also when nothing more happens"
    for _ in range(MOST + 2):
        counted.admits(wait)
    counted.flush()
    assert told[2:] == [{**wait, "not_shown": 2}], "and at the end"
    counted.flush()
    assert len(told) == 3


def test_at_debug_every_one_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    for level, lines in (("debug", 3 * MOST), ("info", MOST + 1)):
        configure_logs(level, json=True)
        for i in range(3 * MOST):
            structlog.get_logger("worker.test").info(f"job.tried_{level}", job_id=i)
        log_sink.flush_logs()
        assert len(capfd.readouterr().err.splitlines()) == lines


def test_a_log_that_is_told_another_level_keeps_to_it(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning", json=False)
    log = structlog.get_logger("worker.test")
    log.info("not.told")
    configure_logs("info", json=True)
    log.info("is.told")
    assert [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()] == ["is.told"]


def test_our_own_records_are_told_with_their_arguments() -> None:
    record = logging.LogRecord(
        "antrean.keeper", logging.INFO, "", 1, "service.started service=%s", ("worker",), None
    )
    assert read_record(record)["event"] == "service.started service=worker"
    record = logging.LogRecord(
        "worker.x", logging.INFO, "", 1, "not rejected: %r", (ValueError(SECRET),), None
    )
    assert read_record(record)["event"] == "not rejected: ValueError", "kombu speaks through a logger of ours"
