"""Celery's request without what it carries: no event, no `inspect` and no log sees a message's content.

A foreign producer may put a prompt anywhere: in arguments, in `argsrepr`, in a header. What leaves this process
about a message is therefore its id, its task's name and what reads as a name or a number (invariant 10).
"""

from __future__ import annotations

from typing import Any

from celery.exceptions import InvalidTaskError, TaskPredicate
from celery.worker import state
from celery.worker.request import ExceptionWithTraceback, Request

from worker.broker.hints import hinted_job, read_body
from worker.consume.foreign import as_name as as_name

NO_ARGS = "()"
NO_KWARGS = "{}"
RETRIES = "antrean_retries"  # in the delivery_info of this process alone: how often the job was tried before
_ENDS_OF_A_TRY = frozenset({"task-retried", "task-succeeded", "task-failed"})


class BlankRequest(Request):
    """What the worker's consumer makes of each message. Blank at once, so that nothing later has to think of it."""

    name: str
    _root_id: str | None
    _parent_id: str | None

    def __init__(self, message: Any, **options: Any) -> None:
        job_id = hinted_job(message)
        if job_id is not None:
            # Known without decoding it, twice, as Celery would. Whatever else its body says is not looked at.
            options |= {"body": read_body(job_id), "decoded": True}
        elif not options.get("decoded") and isinstance(message._decoded_cache, list):
            options |= {"body": message._decoded_cache, "decoded": True}  # by `worker.consume.foreign`
        super().__init__(message, **options)
        embed = self._payload[2]
        if (
            not isinstance(self._args, (list, tuple))
            or not isinstance(self._kwargs, dict)
            or not (embed is None or isinstance(embed, dict))
        ):
            # It would break Celery's tracer in the pool's thread: never acknowledged, its slot lost for good.
            raise InvalidTaskError("the body is not [arguments, named arguments, embedded]")
        self.time_limits = (
            None,
            None,
        )  # threads know none, and what a header says may not even be two numbers
        facts = self._request_dict
        # Not empty: Celery's tracer would make its own from the arguments.
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
        """What `celery inspect active|reserved|scheduled|query_task` tell."""
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

    def send_event(self, type: str, **fields: Any) -> None:
        """As Celery's; the end of a try counts those before it, and a success takes back why an earlier one waited."""
        retries = self._delivery_info.get(RETRIES)
        if retries is not None and type in _ENDS_OF_A_TRY:
            fields["retries"] = retries
            if retries and type == "task-succeeded":
                fields["exception"] = None
        super().send_event(type, **fields)

    def on_retry(self, exc_info: Any) -> None:
        """Says why the job waits, where Celery would say `None` and give a traceback."""
        try:
            # Before the broker is asked, unlike Celery: the ledger has the wait already, and a next attempt that
            # ends while this thread waits for the broker would be shown as waiting for good.
            self.send_event("task-retried", exception=str(_bare(exc_info.exception).message or "waits"))
        finally:
            self.acknowledge()

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """As Celery's, but the event has no traceback, and of a defect only its type: its text may quote anything."""
        exc_info.traceback = None
        exc = exc_info.exception = _bare(exc_info.exception)
        if not isinstance(exc, Exception) or isinstance(exc, (TaskPredicate, *self.task.throws)):
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
            return
        super().on_failure(exc_info, send_failed_event=False, return_ok=return_ok)
        if send_failed_event and not state.should_terminate:
            self.send_event("task-failed", exception=type(exc).__name__)


def _bare(exc: BaseException) -> Any:
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
