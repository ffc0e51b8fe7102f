"""Celery's consumer as antrean needs it: fed by our Fetcher, and not ended by any message.

It runs without gossip and mingle, because workers learn of each other in the ledger, not on the broker. A message that
cannot be run is logged by its facts, never by its content (Celery would print the whole body), and dropped as Celery
drops it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import structlog
from celery import signals
from celery.exceptions import NotRegistered
from celery.utils.log import get_logger
from celery.utils.objects import Bunch
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.common import ignore_errors

from schemas.shortage import describe_shortage, is_local_shortage
from worker.consume.connection import REFUSES_WRITES
from worker.consume.events import FLUSH_EVERY_S
from worker.consume.fetching import Fetcher
from worker.consume.request import BlankRequest, as_name

log = structlog.get_logger(__name__)
_celery_log = get_logger(__name__)  # kombu's `…_log_error` say a delivery tag on it
_REFUSED_PAUSE_S = 1.0
_SHORTAGE_PAUSE_S = 0.5


class Consumer(CeleryConsumer):
    """The consumer that `celery -A worker worker` runs."""

    fetcher: ClassVar[Fetcher | None] = None  # set by the worker process before Celery's loop begins

    def __init__(self, *args: Any, worker_options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        # Only command-line flags could do this otherwise. Mingle alone costs a second at every start.
        options = {**(worker_options or {}), "without_mingle": True, "without_gossip": True}
        super().__init__(*args, worker_options=options, **kwargs)

    def update_strategies(self) -> None:
        """A blank request for every task. Celery's own tasks are not run: they return what they are given."""
        for task in self.app.tasks.values():
            task.Request = BlankRequest
        super().update_strategies()
        for name in [name for name in self.strategies if name.startswith("celery.")]:
            del self.strategies[name]

    def register_with_event_loop(self, hub: Any) -> None:
        super().register_with_event_loop(hub)
        hub.call_repeatedly(FLUSH_EVERY_S, self._flush_events)
        self._fetcher.run_in(hub)

    def on_send_event_buffered(self) -> None:
        """Celery would publish at the next turn of the loop; ours are sent by the timer above."""

    @property
    def _fetcher(self) -> Fetcher:
        assert self.fetcher is not None, "the worker process sets it before Celery's loop begins"
        return self.fetcher

    def shutdown(self) -> None:
        if self.event_dispatcher:
            ignore_errors(self, self.event_dispatcher.flush)  # while its connection is open
        if self.fetcher is not None:
            ignore_errors(self, self.fetcher.put_back_all)
        super().shutdown()

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        super().on_connection_error_after_connected(exc)
        self._fetcher.reserved.on_broker_lost()
        _pause_where_writes_are_refused(exc)

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        super().on_connection_error_before_connected(exc)
        _pause_where_writes_are_refused(exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Celery's handler, but a message that breaks it is dropped. It would end the worker, come back, and
        end the next one."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                handle(message)
            except self.connection_errors:
                raise  # it is not the message, which comes again
            except Exception as exc:
                # Whatever it is: here it is one message, further up it is the worker.
                if message.acknowledged:
                    raise
                if is_local_shortage(exc):
                    self._outlive_a_shortage(message, exc)
                elif isinstance(exc, RuntimeError) and not isinstance(exc, RecursionError):
                    raise  # the pool is shut: the worker ends, and the message comes again
                else:
                    self.on_invalid_task(None, message, exc)

        self._fetcher.begin(self._name_queues, on_task_received)
        return on_task_received

    def _name_queues(self) -> list[str]:
        return [] if self.task_consumer is None else [queue.name for queue in self.task_consumer.queues]

    def _outlive_a_shortage(self, message: Any, exc: Exception) -> None:
        log.error("worker.shortage", lack=describe_shortage(exc))
        if isinstance(exc, RuntimeError):
            return  # no more threads; but the pool has the message by then, for the next one that is free
        message.reject_log_error(_celery_log, self.connection_errors, requeue=True)
        time.sleep(_SHORTAGE_PAUSE_S)  # it is the next to be taken

    def on_unknown_message(self, body: Any, message: Any) -> None:
        log.warning("message.not_a_task", **_facts(message))
        message.reject_log_error(_celery_log, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=None)

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        facts = _facts(message)
        log.error("message.unknown_task", **facts)
        message.reject_log_error(_celery_log, self.connection_errors)
        task_id, name = facts["task_id"], facts["task"]
        if task_id is None:
            return
        request = Bunch(
            name=name,
            chord=None,
            root_id=None,
            correlation_id=message.properties.get("correlation_id"),
            reply_to=message.properties.get("reply_to"),
            errbacks=None,
        )
        self.app.backend.mark_as_failure(task_id, NotRegistered(name), request=request)
        if self.event_dispatcher:
            self.event_dispatcher.send("task-failed", uuid=task_id, exception=f"NotRegistered({name!r})")
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=task_id)

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        log.error("message.invalid", error=type(exc).__name__, **_facts(message))
        message.reject_log_error(_celery_log, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=exc)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        log.error("message.undecodable", error=type(exc).__name__, **_facts(message))
        message.ack()


def _pause_where_writes_are_refused(exc: BaseException) -> None:
    if isinstance(exc, REFUSES_WRITES):
        time.sleep(
            _REFUSED_PAUSE_S
        )  # the broker takes connections, so that nothing else would slow the hub down


def _facts(message: Any) -> dict[str, Any]:
    """What may be said of a message: `task_id` and `task` are None where they do not read as names."""
    headers = message.headers if isinstance(message.headers, Mapping) else {}
    if "task" not in headers:  # the first protocol has them in the body; not worth a second try to decode it
        body = getattr(message, "_decoded_cache", None)
        headers = body if isinstance(body, Mapping) else headers
    body = message.body
    return {
        "task_id": as_name(headers.get("id")),
        "task": as_name(headers.get("task")),
        "size_bytes": len(body) if isinstance(body, (bytes, str)) else None,
        "content_type": as_name(message.content_type),
        "queue": as_name((message.delivery_info or {}).get("routing_key")),
    }
