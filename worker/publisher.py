"""Publishing: job ids become messages that lie ready, one command for each list of the broker.

Not through Celery's `send_task`, which costs a hundred times as much a message (`docs/performance.md`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import redis
from kombu.exceptions import KombuError, OperationalError

from worker.celery import app
from worker.errors import BrokerAway
from worker.hints import Queues, list_key, write_hint
from worker.storage.window import Due


def publish(due: Sequence[Due], queues: Queues) -> None:
    """Hands the jobs to the broker, into the queues of their endpoint.

    Raises BrokerAway: some may have arrived; claims sort that out.
    """
    lists: dict[str, list[bytes]] = defaultdict(list)
    for job in due:
        queue = queues.bulk if job.is_bulk else queues.lone
        hint = write_hint(job.id, queue=queue, priority=job.priority)
        lists[list_key(queue, job.priority)].append(hint)
    try:
        with (
            app.producer_pool.acquire(block=True, timeout=5) as producer,
            producer.channel.conn_or_acquire() as client,
            client.pipeline(transaction=False) as pipeline,
        ):
            for key, hints in lists.items():
                pipeline.lpush(key, *hints)
            pipeline.execute()
    except (KombuError, OperationalError, redis.RedisError, OSError) as exc:
        raise BrokerAway(f"the broker does not take messages: {type(exc).__name__}") from exc
