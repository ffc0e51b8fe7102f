"""Celery's consumer as antrean needs it: the Fetcher gives it messages, and no message ends it.

It runs without gossip and mingle, because workers find each other in the ledger. A message that cannot be run is
dropped, as Celery drops it. The log shows its id, task and queue. Celery would log the whole body.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import redis
import structlog
from celery import signals
from celery.utils.log import get_logger
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.common import ignore_errors

from schemas.shortage import describe_shortage, is_local_shortage
from worker.broker.refusals import REFUSED_PAUSE_S, name_refusal
from worker.consume.events import FLUSH_EVERY_S
from worker.consume.fetching import Fetcher
from worker.text.names import as_name

log = structlog.get_logger(__name__)
_celery_log = get_logger(__name__)  # kombu's `…_log_error` say a delivery tag on it
_SHORTAGE_PAUSE_S = 0.5


class Consumer(CeleryConsumer):
    """The consumer that `celery -A worker worker` runs."""

    fetcher: ClassVar[Fetcher | None] = None  # set by the worker process before Celery's loop begins

    def __init__(self, *args: Any, worker_options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        # Only command-line flags could do this otherwise. Mingle alone costs a second at every start.
        options = {**(worker_options or {}), "without_mingle": True, "without_gossip": True}
        super().__init__(*args, worker_options=options, **kwargs)

    @property
    def _fetcher(self) -> Fetcher:
        assert self.fetcher is not None, "the worker process sets it before Celery's loop begins"
        return self.fetcher

    def register_with_event_loop(self, hub: Any) -> None:
        """Starts the timers that fetch messages and publish events. They end with Celery's loop."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(FLUSH_EVERY_S, self._publish_events)
        self._fetcher.run_in(hub)

    def _publish_events(self) -> None:
        if self.event_dispatcher:
            self.event_dispatcher.flush()

    def on_send_event_buffered(self) -> None:
        """Does nothing: a timer publishes the events. Celery would publish at the next turn of the loop."""

    def shutdown(self) -> None:
        """Publishes the buffered events, puts back foreign messages that did not run, and shuts down."""
        if self.event_dispatcher:
            ignore_errors(self, self.event_dispatcher.flush)
        if self.fetcher is not None:
            ignore_errors(self, self.fetcher.put_back_all)
        super().shutdown()

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Does what Celery does. Tells the worker that hints may be lost. Raises an answer that no waiting mends."""
        is_refusal = _is_refusal(exc)
        super().on_connection_error_after_connected(exc)
        self._fetcher.reserved.on_broker_lost()
        if is_refusal:
            time.sleep(REFUSED_PAUSE_S)

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        """Does what Celery does, and pauses after a refusal. Raises an answer that no waiting mends."""
        is_refusal = _is_refusal(exc)
        super().on_connection_error_before_connected(exc)
        if is_refusal:
            time.sleep(REFUSED_PAUSE_S)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Celery's handler, to which the Fetcher gives messages from now on. A message that breaks it is dropped.

        Otherwise the message would end the worker, come again, and end the next worker.
        """
        handle = super().create_task_handler(*args, **kwargs)
        # kombu counts a KeyError as a broken connection. Here it is an error of the message.
        broken = tuple(one for one in self.connection_errors if one is not KeyError)

        def on_task_received(message: Any) -> None:
            try:
                handle(message)
            except broken:
                raise  # it is not the message, which comes again
            except Exception as exc:
                # Any error: here it costs one message, further up it would end the worker.
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

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Drops a message as Celery does, and logs its facts alone."""
        log.error("message.invalid", error=type(exc).__name__, **_facts(message))
        message.reject_log_error(_celery_log, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=exc)


def _is_refusal(exc: BaseException) -> bool:
    """Whether the broker refuses for a while. It takes connections then, so that only a pause slows the loop down.

    Raises an error that the broker answers and that no waiting mends. Our transport does not distinguish the two.
    """
    is_refusal = name_refusal(exc) is not None
    if isinstance(exc, redis.ResponseError) and not is_refusal:
        raise exc
    return is_refusal


def _facts(message: Any) -> dict[str, Any]:
    """What the log may show of a message. A value is None if it does not look like a name."""
    return {
        "task_id": as_name(message.headers.get("id")),
        "task": as_name(message.headers.get("task")),
        "queue": as_name(message.delivery_info.get("routing_key")),
    }
