"""Celery's request without the message's content: no event, no `inspect` and no log shows it.

A foreign producer may put a prompt anywhere: in arguments, in `argsrepr`, in a header. So only the message's id, its
task's name, and what looks like a name or a number leave this process (invariant 10).
"""

from __future__ import annotations

import os
from time import monotonic, time
from typing import Any

from celery.exceptions import InvalidTaskError, TaskRevokedError
from celery.worker.request import Request
from celery.worker.state import task_ready

from worker.attempt.report import Report, Verdict
from worker.broker.hints import hinted_job, hinted_model, is_bulk_queue
from worker.text.names import as_name

NO_ARGS = "()"
NO_KWARGS = "{}"


class BlankRequest(Request):
    """The request that the consumer makes of each message. Its public fields are blank from the beginning."""

    hinted_job: str | None
    hinted_model: str | None
    name: str
    _root_id: str | None
    _parent_id: str | None

    def __init__(self, message: Any, **options: Any) -> None:
        self.hinted_job = hinted_job(message)  # None: the message is more than a hint
        self.hinted_model = None if self.hinted_job is None else hinted_model(message)
        if message._decoded_cache is not None:  # by the Fetcher; Celery would decode the body twice
            options |= {"body": message._decoded_cache, "decoded": True}
        super().__init__(message, **options)
        embed = self.embedded
        if (
            not isinstance(self._args, (list, tuple))
            or not isinstance(self._kwargs, dict)
            or not (embed is None or isinstance(embed, dict))
        ):
            # All readers expect these types.
            raise InvalidTaskError("the body is not [arguments, named arguments, embedded]")
        # Threads know none, and what a header says may not even be two numbers.
        self.time_limits = None, None
        facts = self._request_dict
        # Not empty: an empty one is filled from the arguments.
        facts["argsrepr"] = self._argsrepr = NO_ARGS
        facts["kwargsrepr"] = self._kwargsrepr = NO_KWARGS
        if self.name is not self._type:  # a `shadow`, which is shown instead of the task's name
            self.name = facts["shadow"] = as_name(self.name) or self._type
        if self._root_id != self.id:
            self._root_id = as_name(self._root_id)
        if self._parent_id is not None:
            self._parent_id = as_name(self._parent_id)
        if type(facts.get("retries")) is not int:
            facts["retries"] = 0

    def info(self, safe: bool = False) -> dict[str, Any]:
        """The facts that `celery inspect active|reserved|scheduled|query_task` show."""
        delivery = self._delivery_info
        return {
            **super().info(safe=True),
            "delivery_info": {
                "exchange": as_name(delivery["exchange"]) or "",
                "routing_key": as_name(delivery["routing_key"]),
                "priority": delivery["priority"] if isinstance(delivery["priority"], int) else None,
                "redelivered": bool(delivery["redelivered"]),
            },
        }

    @property
    def is_bulk(self) -> bool:
        """Whether the message came from a queue of bulk jobs."""
        return is_bulk_queue(self._delivery_info["routing_key"])

    @property
    def embedded(self) -> dict[str, Any] | None:
        """The callbacks and chains of the body."""
        embedded: dict[str, Any] | None = self._payload[2]
        return embedded

    def execute_using_pool(self, pool: Any, **_: Any) -> None:
        """Gives the request to its task, which does not block. Raises TaskRevokedError."""
        if self.revoked():
            raise TaskRevokedError(self.id)
        self.task.receive(self, pool)

    def begin(self) -> None:
        """Tells Celery that the call begins. In the thread of the call."""
        self.on_accepted(os.getpid(), monotonic())

    def finish(self, report: Report) -> None:
        """Tells Celery and Flower the report, and acknowledges the message or puts it back."""
        verdict = report.verdict
        tried: dict[str, Any] = {} if report.retries is None else {"retries": report.retries}
        task_ready(self, successful=verdict is Verdict.SUCCEEDED)
        if verdict is Verdict.SUCCEEDED:
            self.acknowledge()
            if report.retries:
                tried["exception"] = None  # takes back why an earlier try waited
            self.send_event("task-succeeded", result=repr(report.summary), runtime=self._runtime_s(), **tried)
        elif verdict is Verdict.WAITING:
            try:
                # Before the broker is asked: the ledger has the wait already, and a next attempt that ends while this
                # thread waits for the broker would be shown as waiting for good.
                self.send_event("task-retried", exception=report.summary, **tried)
            finally:
                self.acknowledge()
        elif verdict is Verdict.FAILED:
            self.acknowledge()
            why = "failed" if report.failure is None else report.failure.value
            self.send_event("task-failed", exception=f"JobFailed({why!r})", **tried)
        elif verdict is Verdict.BROKE:
            self.acknowledge()
            self.send_event("task-failed", exception=report.summary)
        elif verdict is Verdict.GIVEN_BACK:
            self.reject(requeue=True)
        else:
            self.acknowledge()

    def _runtime_s(self) -> float:
        return 0.0 if self.time_start is None else max(0.0, time() - self.time_start)
