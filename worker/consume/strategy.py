"""The strategy for our task: it makes a request of each message, and tells Celery and Flower of it.

Celery's own strategy makes requests that run through its tracer. The tracer calls the task, and knows an outcome by
the exception that is raised. A job here is claimed first, then gets a thread, and ends with a report. Celery's timers
are not used: messages of the Fetcher have no ETA, because the ledger has it (invariant 8).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import signals
from celery.worker.state import task_reserved

from worker.consume.request import BlankRequest


def default(task: Any, app: Any, consumer: Any, **_: Any) -> Callable[..., Any]:
    """The handler of one message for `task`."""
    hostname, eventer = consumer.hostname, consumer.event_dispatcher
    connection_errors, revoked = consumer.connection_errors, consumer.controller.state.revoked
    tells = bool(eventer and eventer.enabled and task.send_events)
    take_on = consumer.on_task_request

    def handle(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **_: Any) -> None:
        request = BlankRequest(
            message,
            # Not Celery's `ack` and `reject`, which are promises for a turn of its loop: where something else of that
            # turn raises, such as a poll of a broker that broke, they are dropped, and the message counts as reserved
            # for ever. The Fetcher takes both from any thread.
            on_ack=message.ack_log_error,
            on_reject=message.reject_log_error,
            app=app,
            hostname=hostname,
            eventer=eventer,
            task=task,
            connection_errors=connection_errors,
            body=message.body,
            headers=message.headers,
            decoded=False,
            utc=True,
        )
        if (request.expires or request.id in revoked) and request.revoked():
            return
        signals.task_received.send(sender=consumer, request=request)
        if tells:
            eventer.send(
                "task-received",
                uuid=request.id,
                name=request.name,
                args=request.argsrepr,
                kwargs=request.kwargsrepr,
                root_id=request.root_id,
                parent_id=request.parent_id,
                eta=None,  # and no `retries`: the message, which is new for each try, knows of none before it
                expires=request.expires and request.expires.isoformat(),
            )
        bucket = None if consumer.disable_rate_limits else consumer.task_buckets[task.name]
        if bucket:  # somebody said `celery control rate_limit`
            consumer._limit_task(request, bucket, 1)
            return
        task_reserved(request)
        for callback in callbacks or ():
            callback(request)
        take_on(request)

    return handle
