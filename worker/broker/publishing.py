"""Publishing: job ids become messages that lie ready, one command for each list of the broker.

Not through Celery's `send_task`, which costs a hundred times as much a message (`docs/performance.md`).
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
    """Hands the jobs to the broker, into the queues of their endpoint; without any it only asks whether it is there.

    Raises BrokerAway: some may have arrived; claims sort that out.
    """
    lists: dict[str, list[bytes]] = defaultdict(list)
    for job in due:
        queue = queues.bulk if job.is_bulk else queues.lone
        hint = write_hint(job.id, queue=queue, priority=job.priority)
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
class _Letter:
    due: Sequence[Due]
    is_answered: threading.Event = field(default_factory=threading.Event)
    failure: BrokerAway | None = None


class PromptPublisher:
    """Publishes for a producer, which waits at most `within_s` for the broker, and only once for a broker that is away.

    A thread talks to the broker, so that a name that does not resolve, a firewall or a handshake costs the caller no
    more. The relay publishes what did not arrive. Thread-safe; not to be used after a fork.
    """

    def __init__(self, publish: Callable[[Sequence[Due]], None], *, within_s: float = 0.2) -> None:
        """`publish` hands jobs over, or asks whether the broker is there where it is given none. Raises BrokerAway."""
        self._publish = publish
        self._within_s = within_s
        self._letters: SimpleQueue[_Letter] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_away = False
        self._asked_s = 0.0

    def is_away(self) -> bool:
        """Whether the broker did not answer lately. It is asked again then, for those who come later."""
        with self._lock:
            now_s = time.monotonic()
            if not self._is_away or now_s - self._asked_s < _ASK_AGAIN_S:
                return self._is_away
            self._asked_s = now_s
        self._letters.put(_Letter(()))
        return True

    def publish(self, due: Sequence[Due]) -> None:
        """Hands the jobs over. Raises BrokerAway; they may arrive yet."""
        letter = _Letter(due)
        self._letters.put(letter)
        self._ensure_thread()
        if not letter.is_answered.wait(self._within_s):
            with self._lock:
                if not letter.is_answered.is_set():
                    self._is_away, self._asked_s = True, time.monotonic()
                    raise BrokerAway(f"the broker does not answer within {self._within_s:g} s")
        if letter.failure is not None:
            raise letter.failure

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
            letter = self._letters.get()
            failure = None
            try:
                self._publish(letter.due)
            except BrokerAway as exc:
                failure = exc
            except Exception as exc:  # the caller is told, and the next letter is taken
                log.error("publisher.failed", error=type(exc).__name__, where=tell_place(exc))
                failure = BrokerAway(f"the broker was not reached: {type(exc).__name__}")
            with self._lock:
                self._is_away = failure is not None
                if failure is not None:
                    self._asked_s = time.monotonic()
                letter.failure = failure
                letter.is_answered.set()
