"""Celery's adapters: a task of a few lines, and the signals that start and stop a worker's other parts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import partial
from signal import SIG_IGN, SIGHUP, SIGINT, SIGQUIT, SIGTERM, getsignal, signal
from types import FrameType
from typing import Any, NoReturn

import structlog
from celery import Task, signals
from celery.exceptions import Reject
from celery.platforms import SecurityWarning
from celery.result import AsyncResult
from celery.utils.functional import maybe_list
from celery.worker import state
from celery.worker.control import Panel
from celery.worker.control import revoke as celery_revoke

from schemas.chat import InvalidRequest
from schemas.job import JobState
from worker.broker.hints import TASK
from worker.celery import app, serve_queues
from worker.consume.delivery import adopt_ended, pack_envelope
from worker.consume.request import BlankRequest
from worker.errors import AntreanError
from worker.heap import settle_heap, share_one_arena
from worker.intake.messages import Asked, read_time_ms
from worker.intake.producing import check_options, produce, read_call
from worker.logs.setup import configure_logs
from worker.operations.capacity import make_room
from worker.runtime import WorkerRuntime, build_worker
from worker.settings import IN_STACK, load_settings, warn_of_unknown_names
from worker.stack.attachment import Stack
from worker.startup import or_end

_runtime: WorkerRuntime | None = None
_stack: Stack | None = None
_outlives_terminal = False  # `nohup`: a SIGHUP that was ignored at the start stays ignored


_KEPT = ("group_id", "group_index", "root_id", "parent_id", "reply_to")


class ChatTask(Task):
    """A task whose `delay` and `apply_async` write a row and publish only its id (invariant 2)."""

    abstract = True
    typing = False  # the arguments are checked with everything else, all problems at once
    Request = "worker.consume.request:BlankRequest"
    Strategy = "worker.consume.strategy:default"

    def receive(self, request: BlankRequest, pool: Any) -> None:
        """Takes on the job of a received message, whose call will be made in `pool`. Does not block."""
        _running().receive(request, pool)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> AsyncResult:
        """The handle of the job; of its result and its state it only says where they are: in the ledger.

        Takes `priority`, `expires`, `countdown`, `eta` and `task_id` as Celery does; and, as arguments beside
        the request, `custom_id`, `batch`, `max_attempts` and `metadata`. The same `task_id` with the same request
        is the same job, and nothing is done twice. A `custom_id` alone makes no double of anything: it names a
        request for its reader. Raises InvalidRequest, also for a `task_id` that another request has, for a
        `custom_id` that names another request in the same `batch`, and for all that Celery knows and that is not
        served here: callbacks, chains, chords, queues and other options.
        """
        check_options({"link": link, "link_error": link_error, "shadow": shadow, **options})
        request, extras = read_call(args, kwargs)
        wait = options.get("eta") if options.get("countdown") is None else options["countdown"]
        envelope = pack_envelope({name: options.get(name) for name in _KEPT})
        asked = Asked(
            request=request,
            options=extras,
            priority=options.get("priority"),
            expires_at_ms=read_time_ms(options.get("expires")),
            not_before_ms=read_time_ms(wait),
            envelope=envelope,
        )
        return self.AsyncResult(produce(asked, task_id=task_id))

    def map(self, it: Any) -> NoReturn:
        """Raises InvalidRequest, as `starmap` and `chunks`: Celery would send a task of its own, and nobody runs it."""
        raise InvalidRequest(["map, starmap and chunks: are not served: call delay for each request"])

    def starmap(self, it: Any) -> NoReturn:
        self.map(it)

    def chunks(self, it: Any, n: int) -> NoReturn:
        self.map(it)


@app.task(name=TASK, base=ChatTask, bind=True)
def complete_chat(self: ChatTask, *args: Any, **kwargs: Any) -> NoReturn:
    """A chat completion. `complete_chat.delay({"model": …, "messages": […]})` queues one.

    Its message names a job of the ledger, or, from a foreign app, carries the request itself. A worker hands it to
    `ChatTask.receive`; called like a function, there is nobody who would write the answer down.
    """
    raise InvalidRequest(["complete_chat: is run by a worker: queue it with delay"])


def _running() -> WorkerRuntime:
    if _runtime is None:
        raise Reject("this process runs no worker", requeue=True)
    return _runtime


def _leave_stack(*, waits: bool = False) -> None:
    if _stack is not None:
        _stack.detach(wait=waits)


@signals.celeryd_init.connect
@or_end(partial(_leave_stack, waits=True))  # nothing of this process runs yet that would miss the broker
def _prepare(instance: Any, options: Mapping[str, Any] | None = None, **_: Any) -> None:
    """Before Celery starts anything: what cannot work ends the process with a sentence and its exit code."""
    global _runtime, _stack, _outlives_terminal
    if instance.app is not app:
        return  # the worker of another app, which only imports our task
    configure_logs()  # first of all: whatever fails from here on is told without what it quotes
    warnings.simplefilter(
        "ignore", SecurityWarning
    )  # of root, who would run a message's pickle: none is taken
    _outlives_terminal = getsignal(SIGHUP) is SIG_IGN  # Celery has not put its own in place yet
    share_one_arena()
    warn_of_unknown_names()
    told = load_settings()
    settings = make_room(told)
    if settings.max_concurrency < told.max_concurrency:
        structlog.get_logger(__name__).warning(
            "worker.fewer_slots", max_concurrency=settings.max_concurrency, told=told.max_concurrency
        )
    if settings.is_broker_embedded and IN_STACK not in os.environ:
        _stack = Stack.attach(settings.home)
        _stack.ensure_broker()
    _runtime = build_worker(settings, drains=bool((options or {}).get("drain")))
    serve_queues(_runtime.queues)


@signals.celeryd_after_setup.connect
@or_end(_leave_stack, end=os._exit)  # Celery catches SystemExit from here on, and would say 0
def _start(instance: Any, **_: Any) -> None:
    if instance.app is not app:
        return
    assert _runtime is not None, "celeryd_init comes first"
    pool = instance.pool_cls if isinstance(instance.pool_cls, str) else instance.pool_cls.__module__
    if not pool.endswith("thread"):
        raise AntreanError("the worker runs on Celery's threads pool only: leave --pool out")
    app.loader.when_worker_stops = _runtime.begin_shutdown
    _runtime.start()


@signals.task_revoked.connect
def _end_row(request: Any = None, expired: bool = False, **_: Any) -> None:
    """A revoked or expired message ends its row; otherwise each republish would be discarded for ever."""
    if _runtime is None or request is None:
        return
    ended_as = JobState.EXPIRED if expired else JobState.CANCELLED
    adopted = adopt_ended(request, ended_as=ended_as, settings=_runtime.settings)
    # Who revokes names a job. What has expired is this message: the job of its id may be another's, and Celery must
    # not discard what comes of that for ever.
    if expired:
        state.revoked.discard(request.id)
    _runtime.end_job(None if expired else str(request.id), adopted)


@Panel.register(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(panel: Any, task_id: Any, terminate: bool = False, **kwargs: Any) -> Any:
    """Revoke by task id: the jobs are cancelled in the ledger, also those that are not in the broker now."""
    if _runtime is None:  # the worker of another app
        return celery_revoke(panel, task_id, terminate=terminate, **kwargs)
    answer = celery_revoke(panel, task_id, terminate=False, **kwargs)
    _runtime.cancel_jobs([str(one) for one in maybe_list(task_id) or []])
    return answer


@signals.worker_ready.connect
@or_end(_leave_stack, end=os._exit)
def _take_signals(sender: Any, **_: Any) -> None:
    """The way out is ours: Celery's own second Ctrl-C asks the pool to kill threads, which no pool can."""
    if _runtime is None:
        return
    runtime, hub = _runtime, sender.hub
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_reader, False)
    hub.add_reader(wake_reader, os.read, wake_reader, 1)

    def stop(number: int, _frame: FrameType | None) -> None:
        is_again = state.should_stop is not None
        state.should_stop = int(runtime.exit_code)
        runtime.begin_shutdown(hurry=number == SIGQUIT or (is_again and number == SIGINT))
        os.write(wake_writer, b"1")  # the hub would sleep on for up to a second

    # Celery's own SIGHUP begins the program anew in this process, and calls in flight would be cut.
    for number in (SIGINT, SIGTERM, SIGQUIT, SIGHUP):
        signal(number, SIG_IGN if number == SIGHUP and _outlives_terminal else stop)
    settle_heap()
    runtime.ready(sender.pool)


@signals.worker_shutting_down.connect
def _begin_shutdown(how: str = "Warm", **_: Any) -> None:
    if _runtime is not None:
        _runtime.begin_shutdown(hurry=how == "Cold")
