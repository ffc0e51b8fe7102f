"""Publishing: hints of jobs are put on the broker's lists, with one command for each list.

Celery's `send_task` is not used. It costs a hundred times as much for a message (`docs/performance.md`).
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import redis
import structlog

from schemas.job import Due
from worker.broker.client import connect_anew
from worker.broker.hints import Queues, list_key, write_hint
from worker.broker.refusals import name_refusal
from worker.errors import BrokerAway, tell_place

log = structlog.get_logger(__name__)

_ASK_AGAIN_S = 1.0  # how often a broker that was away is asked whether it is back


def publish(client: redis.Redis, due: Sequence[Due], queues: Queues) -> None:
    """Puts hints of the jobs into the queues of their endpoint. Without jobs, only asks whether the broker answers.

    Raises BrokerAway. Some hints may have arrived then; a claim happens once in any case.
    """
    lists: dict[str, list[bytes]] = defaultdict(list)
    for job in due:
        queue = queues.bulk if job.is_bulk else queues.lone
        hint = write_hint(job.id, queue=queue, priority=job.priority, model=job.model)
        lists[list_key(queue, job.priority)].append(hint)
    try:
        with client.pipeline(transaction=False) as pipeline:
            for key, hints in lists.items():
                pipeline.lpush(key, *hints)
            if not lists:
                pipeline.ping()
            pipeline.execute()
    except redis.ResponseError as exc:
        connect_anew(client)
        word = name_refusal(exc) or type(exc).__name__
        raise BrokerAway(f"the broker refuses messages: {word}") from exc
    except (redis.RedisError, OSError, UnicodeError) as exc:  # the last of a host's name that cannot be one
        raise BrokerAway(f"the broker does not take messages: {type(exc).__name__}") from exc


@dataclass(slots=True)
class _Request:
    due: Sequence[Due]
    is_answered: threading.Event = field(default_factory=threading.Event)
    failure: BrokerAway | None = None


class PromptPublisher:
    """Publishes for a producer. The producer waits `within_s` at most, and only once for a broker that is away.

    A thread speaks to the broker, so that a slow name look-up, a firewall or a handshake does not hold up the producer.
    The relay publishes what did not arrive. Thread-safe. Not to be used after a fork.
    """

    def __init__(self, publish: Callable[[Sequence[Due]], None], *, within_s: float = 0.2) -> None:
        """`publish` publishes jobs. Without jobs it asks whether the broker answers. It raises BrokerAway."""
        self._publish = publish
        self._within_s = within_s
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_away = False
        self._asked_s = 0.0

    def is_away(self) -> bool:
        """Whether the broker did not answer last time. The thread asks it again then, once a second at most."""
        with self._lock:
            now_s = time.monotonic()
            if not self._is_away or now_s - self._asked_s < _ASK_AGAIN_S:
                return self._is_away
            self._asked_s = now_s
        self._requests.put(_Request(()))
        return True

    def publish(self, due: Sequence[Due]) -> None:
        """Publishes the jobs. Raises BrokerAway; the hints may still arrive then."""
        request = _Request(due)
        self._requests.put(request)
        self._ensure_thread()
        if not request.is_answered.wait(self._within_s):
            with self._lock:
                if not request.is_answered.is_set():
                    self._is_away, self._asked_s = True, time.monotonic()
                    raise BrokerAway(f"the broker does not answer within {self._within_s:g} s")
        if request.failure is not None:
            raise request.failure

    def _ensure_thread(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="antrean-publisher", daemon=True)
                try:
                    thread.start()
                except RuntimeError as exc:  # the machine has none left
                    raise BrokerAway("no thread for the broker") from exc
                self._thread = thread

    def _run(self) -> None:
        while True:
            request = self._requests.get()
            failure = None
            try:
                self._publish(request.due)
            except BrokerAway as exc:
                failure = exc
            except Exception as exc:  # the caller is told, and the next request is taken
                log.error("publisher.failed", error=type(exc).__name__, where=tell_place(exc))
                failure = BrokerAway(f"the broker was not reached: {type(exc).__name__}")
            with self._lock:
                self._is_away = failure is not None
                if failure is not None:
                    self._asked_s = time.monotonic()
                request.failure = failure
                request.is_answered.set()
