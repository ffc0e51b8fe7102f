"""Celery's adapters: a task of a few lines, and the signals that start and stop a worker's other parts."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from celery import Task, signals
from celery.exceptions import Ignore, Reject, Retry

from worker.celery import app
from worker.channel import BULK_QUEUE
from worker.embedded.stack import Stack
from worker.errors import AntreanError
from worker.execute import Report, Verdict
from worker.logs import configure_logs
from worker.publisher import TASK
from worker.settings import IN_STACK, Settings, load_settings
from worker.wiring import WorkerRuntime, build_worker

_runtime: WorkerRuntime | None = None
_stack: Stack | None = None


class JobFailed(Exception):
    """What Flower shows of a failed job: its kind, never its content."""


@app.task(name=TASK, bind=True, throws=(JobFailed,))
def complete_chat(self: Task[Any, Any], job_id: str) -> str:
    """One attempt at the job. The message holds its id and nothing else."""
    if _runtime is None:
        raise Reject("this process runs no worker", requeue=True)
    is_bulk = self.request.delivery_info.get("routing_key") == BULK_QUEUE
    return _tell_celery(_runtime.execute(job_id, is_bulk=is_bulk))


def _tell_celery(report: Report) -> str:
    """The summary of a success; every other end in the form that Celery and Flower know it by."""
    if report.verdict is Verdict.SUCCEEDED:
        return report.summary
    if report.verdict is Verdict.WAITING:
        # Shown as RETRY and acknowledged; the delay is the ledger's (invariant 8).
        raise Retry(report.summary, when=report.retry_in_s)
    if report.verdict is Verdict.FAILED:
        raise JobFailed(report.failure.value if report.failure else "failed")
    if report.verdict is Verdict.GIVEN_BACK:
        raise Reject(report.summary, requeue=True)
    raise Ignore(report.summary)


@signals.setup_logging.connect
def _set_up_logging(loglevel: Any = None, **_: Any) -> None:
    configure_logs(_settings_or_exit().log_level)


@signals.celeryd_init.connect
def _prepare(**_: Any) -> None:
    """Before Celery starts anything: what cannot work ends the process with a sentence and its exit code."""
    global _runtime, _stack
    settings = _settings_or_exit()
    try:
        if settings.is_broker_embedded and IN_STACK not in os.environ:
            _stack = Stack.attach(settings.home)
            _stack.ensure_broker()
        _runtime = build_worker(settings)
    except AntreanError as exc:
        _exit(exc)


@signals.celeryd_after_setup.connect
def _start(instance: Any, **_: Any) -> None:
    assert _runtime is not None, "celeryd_init comes first"
    pool = instance.pool_cls if isinstance(instance.pool_cls, str) else instance.pool_cls.__module__
    if not pool.endswith("thread"):
        _exit(AntreanError("the worker runs on Celery's threads pool only: leave --pool out"))
    try:
        _runtime.start()
    except AntreanError as exc:
        _exit(exc)


@signals.worker_shutting_down.connect
def _begin_shutdown(how: str = "Warm", **_: Any) -> None:
    if _runtime is not None:
        _runtime.begin_shutdown(hurry=how == "Cold")


def _settings_or_exit() -> Settings:
    try:
        return load_settings()
    except AntreanError as exc:
        _exit(exc)


def _exit(exc: AntreanError) -> NoReturn:
    sys.stderr.write(f"antrean: {exc}\n")
    if _stack is not None:
        _stack.leave(wait=False)
    raise SystemExit(int(exc.exit_code))
